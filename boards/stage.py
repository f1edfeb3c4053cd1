"""A register in a slow stream."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Stage"]


class Stage(wiring.Component):
    """Cuts all paths through a stream, in both directions, with one register per bit.

    For the streams of the serial link, on which something comes every few cycles at most.

    Latency: 1 cycle. Throughput: 1 every 2 cycles.

    Parameters
    ----------
    shape
        Shape of the payload.

    Members
    -------
    i : ``In(stream.Signature(shape))``
    o : ``Out(stream.Signature(shape))``
    """

    def __init__(self, shape):
        super().__init__({
            "i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)),
        })

    def elaborate(self, platform):
        m = Module()
        kept = Signal.like(self.i.payload, reset_less=True)
        m.d.comb += [self.i.ready.eq(~self.o.valid), self.o.payload.eq(kept)]
        with m.If(~self.o.valid):
            m.d.sync += [self.o.valid.eq(self.i.valid), kept.eq(self.i.payload)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m
