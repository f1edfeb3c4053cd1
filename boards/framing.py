"""Where frames begin and end on the line: byte stuffing, as HDLC has it."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .protocol import ESCAPE, FLAG, TOGGLE

__all__ = ["Stuffer", "Unstuffer", "item_layout"]


def item_layout() -> data.StructLayout:
    """A byte of a frame, or, if ``flag`` is set, the boundary of one."""
    return data.StructLayout({"data": 8, "flag": 1})


class Unstuffer(wiring.Component):
    """Bytes of the line to bytes of frames and the boundaries between them.

    Latency: combinational. Throughput: a byte per cycle.

    Members
    -------
    i : ``In(stream.Signature(8))``
    o : ``Out(stream.Signature(item_layout()))``
    """

    i: In(stream.Signature(8))
    o: Out(stream.Signature(item_layout()))

    def elaborate(self, platform):
        m = Module()
        escaped = Signal()
        is_escape = Signal()
        m.d.comb += [
            is_escape.eq(self.i.payload == ESCAPE),
            self.o.payload.flag.eq(self.i.payload == FLAG),
            self.o.payload.data.eq(self.i.payload ^ Mux(escaped, TOGGLE, 0)),
            self.o.valid.eq(self.i.valid & ~is_escape),
            self.i.ready.eq(self.o.ready | is_escape),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += escaped.eq(is_escape)
        return m


class Stuffer(wiring.Component):
    """Bytes of frames and their boundaries to bytes of the line.

    Latency: combinational. Throughput: a byte of the line per cycle.

    Members
    -------
    i : ``In(stream.Signature(item_layout()))``
    o : ``Out(stream.Signature(8))``
    """

    i: In(stream.Signature(item_layout()))
    o: Out(stream.Signature(8))

    def elaborate(self, platform):
        m = Module()
        escaped = Signal()
        item = self.i.payload
        m.d.comb += self.o.valid.eq(self.i.valid)
        with m.If(item.flag):
            m.d.comb += [self.o.payload.eq(FLAG), self.i.ready.eq(self.o.ready)]
        with m.Elif(~escaped & ((item.data == FLAG) | (item.data == ESCAPE))):
            m.d.comb += self.o.payload.eq(ESCAPE)
            with m.If(self.i.valid & self.o.ready):
                m.d.sync += escaped.eq(1)
        with m.Else():
            m.d.comb += [
                self.o.payload.eq(item.data ^ Mux(escaped, TOGGLE, 0)),
                self.i.ready.eq(self.o.ready),
            ]
            with m.If(self.i.valid & self.o.ready):
                m.d.sync += escaped.eq(0)
        return m
