"""Sparse-matrix read: the entries of a column, one per cycle (EIE, section IV)."""

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import SPMAT_READ_LATENCY, EngineConfig

from .checks import checked_config, checked_contents
from .layouts import Kind, broadcast_signature, entry_layout, start_layout

__all__ = ["SpMatRead"]


class SpMatRead(wiring.Component):
    """Reads the entries of column after column without a bubble between them.

    An entry read now is seen two cycles later, when two more addresses have gone out. So the
    end of a column is announced two entries ahead: columns of one or two entries by their
    pointer's length class, longer ones by the flag of the entry two before the last.

    Latency: ``SPMAT_READ_LATENCY`` = 3 cycles from a column being taken to its first entry.
    Throughput: 1 entry per cycle.

    Parameters
    ----------
    config
        Engine configuration.
    init
        Entry words the memory starts with.

    Members
    -------
    id : ``In(pe_bits)``
    load : ``In(broadcast_signature(config))``
    i : ``In(stream.Signature(start_layout(config)))``
    o : ``Out(stream.Signature(entry_layout(config), always_ready=True))``
    busy : ``Out(1)``
        An entry is inside.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        More words than the memory holds, or a word that is not an unsigned integer of its width.
    """

    LATENCY = SPMAT_READ_LATENCY

    def __init__(self, config: EngineConfig, init=()):
        self._config = checked_config(config)
        self.words = memory.MemoryData(
            shape=config.spmat_word_bits, depth=config.spmat_depth,
            init=checked_contents("spmat", init, config.spmat_depth, config.spmat_word_bits))
        super().__init__({
            "id": In(config.pe_bits),
            "load": In(broadcast_signature(config)),
            "i": In(stream.Signature(start_layout(config))),
            "o": Out(stream.Signature(entry_layout(config), always_ready=True)),
            "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.words = words = memory.Memory(self.words)
        write, read = words.write_port(), words.read_port()
        args = self.load.payload.args.load
        load = self.load.valid & (self.load.payload.kind == Kind.LOAD_SPMAT) & (args.pe == self.id)
        m.d.comb += [write.en.eq(load), write.addr.eq(args.addr), write.data.eq(args.data)]

        # Stage 0 holds the address that is being read, stage 1 waits for the memory, stage 2
        # holds the entry.
        value_shape = signed(self._config.act_bits)
        valid_0, valid_1, valid_2 = Signal(), Signal(), Signal()
        first_0, first_1, first_2 = Signal(), Signal(), Signal()
        value_0 = Signal(value_shape, reset_less=True)
        value_1 = Signal(value_shape, reset_less=True)
        value_2 = Signal(value_shape, reset_less=True)
        addr = Signal(self._config.spmat_addr_bits, reset_less=True)
        left = Signal(2, reset_less=True)  # entries left: 1, 2, or 3 for "not known yet"
        word = Signal(self._config.spmat_word_bits, reset_less=True)

        flag = valid_2 & word[self._config.entry_bits]
        is_last = (left == 1) | flag
        m.d.comb += [read.addr.eq(addr), self.i.ready.eq(~valid_0 | is_last)]
        with m.If(self.i.ready):
            m.d.sync += [
                valid_0.eq(self.i.valid), first_0.eq(1), value_0.eq(self.i.payload.value),
                addr.eq(self.i.payload.ptr.start), left.eq(self.i.payload.ptr.length),
            ]
        with m.Else():
            m.d.sync += [first_0.eq(0), addr.eq(addr + 1)]
            with m.If(left == 2):
                m.d.sync += left.eq(1)
        m.d.sync += [
            valid_1.eq(valid_0), first_1.eq(first_0), value_1.eq(value_0),
            valid_2.eq(valid_1), first_2.eq(first_1), value_2.eq(value_1), word.eq(read.data),
        ]
        m.d.comb += [
            self.o.valid.eq(valid_2),
            self.o.payload.entry.eq(word),
            self.o.payload.value.eq(value_2),
            self.o.payload.first.eq(first_2),
            self.busy.eq(valid_0 | valid_1 | valid_2),
        ]
        return m
