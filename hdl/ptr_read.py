"""Pointer read: from a column number to where its entries start (EIE, section IV)."""

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import PTR_READ_LATENCY, EngineConfig

from .checks import checked_config, checked_contents
from .layouts import Kind, broadcast_signature, ptr_layout, start_layout

__all__ = ["PtrRead"]


class PtrRead(wiring.Component):
    """Looks up the pointer of every broadcast column and drops columns without entries.

    EIE reads two pointers, the start and the next start. Here a column carries its length class
    beside its start and the entries carry a flag, so one read is enough.

    Latency: ``PTR_READ_LATENCY`` = 2 cycles. Throughput: 1 column per cycle.

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
        A column is inside.

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
        m.submodules.words = words = memory.Memory(self.words)
        write, read = words.write_port(), words.read_port()
        message, args = self.i.payload, self.i.payload.args
        load = self.i.valid & (message.kind == Kind.LOAD_PTR) & (args.load.pe == self.id)
        m.d.comb += [
            write.en.eq(load), write.addr.eq(args.load.addr), write.data.eq(args.load.data),
            read.addr.eq(args.act.ptr),
        ]

        reading = Signal()
        found = Signal()
        value_0 = Signal(signed(self._config.act_bits), reset_less=True)
        value_1 = Signal(signed(self._config.act_bits), reset_less=True)
        ptr = Signal(ptr_layout(self._config), reset_less=True)
        m.d.sync += [
            reading.eq(self.i.valid & (message.kind == Kind.ACT)), value_0.eq(args.act.value),
            found.eq(reading), value_1.eq(value_0), ptr.eq(read.data),
        ]
        m.d.comb += [
            self.o.valid.eq(found & (ptr.length != 0)),
            self.o.payload.ptr.eq(ptr),
            self.o.payload.value.eq(value_1),
            self.busy.eq(reading | found),
        ]
        return m
