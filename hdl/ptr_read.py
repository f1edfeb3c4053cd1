"""Pointer read: from a column number to where its entries start (EIE, section IV)."""

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import PTR_READ_LATENCY, EngineConfig

from .checks import checked_config, checked_contents
from .layouts import (
    Kind,
    Tag,
    broadcast_signature,
    ptr_layout,
    start_layout,
    values_layout,
)

__all__ = ["PtrRead"]


class PtrRead(wiring.Component):
    """Looks up the pointer of every broadcast column and drops columns without entries.

    EIE reads two pointers, the start and the next start. Here a column carries its length class
    beside its start and the entries carry a flag, so one read is enough. An engine without
    pointers passes every column on. In recurrent engines, markers and fences go with the columns.

    Latency: `EngineConfig.ptr_read_latency` cycles: ``PTR_READ_LATENCY`` = 2, and 0 without
    pointers. Throughput: 1 column per cycle.

    Parameters
    ----------
    config
        Engine configuration.
    init
        Pointer words the memory starts with.

    Members
    -------
    id : ``In(pe_bits)``
        Number of this PE, for loading.
    i : ``In(broadcast_signature(config))``
    o : ``Out(stream.Signature(start_layout(config), always_ready=True))``
    busy : ``Out(1)``
        A column, a marker or a fence is inside.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        More words than the memory holds, or a word that is not an unsigned integer of its width.
    """

    LATENCY = PTR_READ_LATENCY

    def __init__(self, config: EngineConfig, init=()):
        self._config = checked_config(config)
        self.words = memory.MemoryData(
            shape=config.ptr_word_bits, depth=config.ptr_depth,
            init=checked_contents("ptr", init, config.ptr_depth, config.ptr_word_bits))
        super().__init__({
            "id": In(config.pe_bits),
            "i": In(broadcast_signature(config)),
            "o": Out(stream.Signature(start_layout(config), always_ready=True)),
            "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        message, args, out = self.i.payload, self.i.payload.args, self.o.payload
        kind = message.kind.as_value()
        column = self.i.valid & (message.kind == Kind.ACT)
        tag, marks = Signal(Tag), Const(0)
        to_queue = column
        if config.recurrent:
            # Of few bits, because from here on everything to the queue's level is in one cycle.
            to_queue = self.i.valid & ~kind[2:].any()
            marks = to_queue & kind[:2].any()
            m.d.comb += tag.as_value().eq(Cat(kind[0], kind[1] | (kind[0] & args.mark.last)))
        if config.pointers:
            self._read(m, column, marks, tag)
            return m

        # There is nothing to look up. A part of a marker lies where activations do.
        m.d.comb += [self.o.valid.eq(to_queue), out.values.eq(args.act.values)]
        if config.recurrent:
            m.d.comb += out.tag.eq(tag)
        return m

    def _read(self, m: Module, column: Value, marks: Value, tag: Value) -> None:
        """The memory, and the two cycles that a column and its company wait for it."""
        config = self._config
        message, args, out = self.i.payload, self.i.payload.args, self.o.payload
        m.submodules.words = words = memory.Memory(self.words)
        write, read = words.write_port(), words.read_port()
        load = self.i.valid & (message.kind == Kind.LOAD_PTR) & (args.load.pe == self.id)
        ptr = Signal(ptr_layout(config), reset_less=True)
        m.d.comb += [
            write.en.eq(load), write.addr.eq(args.load.addr), write.data.eq(args.load.data),
            read.addr.eq(args.act.ptr), out.ptr.eq(ptr),
        ]
        m.d.sync += ptr.eq(read.data)

        reading, found = Signal(), Signal()
        values_0 = Signal(values_layout(config), reset_less=True)
        values_1 = Signal(values_layout(config), reset_less=True)
        m.d.sync += [
            reading.eq(column), values_0.eq(args.act.values),
            found.eq(reading), values_1.eq(values_0),
        ]
        m.d.comb += [
            out.values.eq(values_1), self.o.valid.eq(found & (ptr.length != 0)),
            self.busy.eq(reading | found),
        ]
        if config.recurrent:
            marks_0, marks_1 = Signal(), Signal()
            tag_0, tag_1 = (Signal(Tag, reset_less=True, name=f"tag_{k}") for k in range(2))
            m.d.sync += [
                marks_0.eq(marks), marks_1.eq(marks_0), tag_0.eq(tag), tag_1.eq(tag_0)]
            m.d.comb += [
                self.o.valid.eq((found & (ptr.length != 0)) | marks_1), out.tag.eq(tag_1),
                self.busy.eq(reading | found | marks_0 | marks_1),
            ]
