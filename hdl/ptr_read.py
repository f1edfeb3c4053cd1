"""Pointer read: from a column number to where its entries start (EIE, section IV)."""

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import PTR_READ_LATENCY, EngineConfig

from .checks import checked_config, checked_contents
from .layouts import (
    Kind,
    broadcast_signature,
    ptr_layout,
    route_layout,
    start_layout,
    values_layout,
)

__all__ = ["PtrRead"]


class PtrRead(wiring.Component):
    """Looks up the pointer of every broadcast column and drops columns without entries.

    EIE reads two pointers, the start and the next start. Here a column carries its length class
    beside its start and the entries carry a flag, so one read is enough. An engine without
    pointers passes every column on, the first of each matrix with its address.

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
        A column or a fence is inside.

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
        message, args = self.i.payload, self.i.payload.args
        column, out = self.i.valid & (message.kind == Kind.ACT), self.o.payload
        opens = self.i.valid & (message.kind == Kind.SCAN)
        if config.recurrent:
            opens |= self.i.valid & (message.kind == Kind.FEED)

        reading, found = Signal(), Signal()
        values_0 = Signal(values_layout(config), reset_less=True)
        values_1 = Signal(values_layout(config), reset_less=True)
        m.d.sync += [
            reading.eq(column), values_0.eq(args.act.values),
            found.eq(reading), values_1.eq(values_0),
        ]
        # A route is that of the message before a column; it goes along with the column because
        # the next message may be right behind.
        route = [Signal(route_layout(config), reset_less=True, name=f"route_{k}")
                 for k in range(3)]
        with m.If(opens):
            m.d.sync += route[0].eq(args.scan.route)
        m.d.sync += [route[1].eq(route[0]), route[2].eq(route[1])]
        m.d.comb += [out.values.eq(values_1), out.route.eq(route[2])]

        if config.pointers:
            m.submodules.words = words = memory.Memory(self.words)
            write, read = words.write_port(), words.read_port()
            load = self.i.valid & (message.kind == Kind.LOAD_PTR) & (args.load.pe == self.id)
            ptr = Signal(ptr_layout(config), reset_less=True)
            m.d.comb += [
                write.en.eq(load), write.addr.eq(args.load.addr), write.data.eq(args.load.data),
                read.addr.eq(args.act.ptr), out.ptr.eq(ptr),
            ]
            m.d.sync += ptr.eq(read.data)
            passes = found & (ptr.length != 0)
        else:
            start = [Signal(config.spmat_addr_bits, reset_less=True, name=f"start_{k}")
                     for k in range(3)]
            restart = [Signal(name=f"restart_{k}") for k in range(3)]
            with m.If(opens):
                m.d.sync += [start[0].eq(args.scan.spmat), restart[0].eq(1)]
            with m.Elif(column):
                m.d.sync += restart[0].eq(0)
            m.d.sync += [start[1].eq(start[0]), start[2].eq(start[1]),
                         restart[1].eq(restart[0]), restart[2].eq(restart[1])]
            m.d.comb += [out.spmat.eq(start[2]), out.restart.eq(restart[2])]
            passes = found

        m.d.comb += [self.o.valid.eq(passes), self.busy.eq(reading | found)]
        if config.recurrent:
            fence_0, fence_1 = Signal(), Signal()
            m.d.sync += [
                fence_0.eq(self.i.valid & (message.kind == Kind.CELL)), fence_1.eq(fence_0)]
            m.d.comb += [
                self.o.valid.eq(passes | fence_1), out.fence.eq(fence_1),
                self.busy.eq(reading | found | fence_0 | fence_1),
            ]
        return m
