"""Pointer read: from a column number to where its entries start (EIE, section IV)."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
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

        route = Signal(route_layout(config), reset_less=True)
        with m.If(opens):
            m.d.sync += route.eq(args.scan.route)
        fence = Const(0)
        if config.recurrent:
            fence = self.i.valid & (message.kind == Kind.CELL)
        if config.pointers:
            self._read(m, column, fence, route)
            return m

        # There is nothing to look up.
        start, restart = Signal(config.spmat_addr_bits, reset_less=True), Signal()
        with m.If(opens):
            m.d.sync += [start.eq(args.scan.spmat), restart.eq(1)]
        with m.Elif(column):
            m.d.sync += restart.eq(0)
        m.d.comb += [
            self.o.valid.eq(column | fence), out.values.eq(args.act.values), out.route.eq(route),
            out.spmat.eq(start), out.restart.eq(restart),
        ]
        if config.recurrent:
            m.d.comb += out.fence.eq(fence)
        return m

    def _read(self, m: Module, column: Value, fence: Value, route: data.View) -> None:
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
        # A route is that of the message before a column; it goes along with the column because
        # the next message may be right behind.
        route_1 = Signal.like(route, reset_less=True)
        route_2 = Signal.like(route, reset_less=True)
        m.d.sync += [
            reading.eq(column), values_0.eq(args.act.values), route_1.eq(route),
            found.eq(reading), values_1.eq(values_0), route_2.eq(route_1),
        ]
        m.d.comb += [
            out.values.eq(values_1), out.route.eq(route_2),
            self.o.valid.eq(found & (ptr.length != 0)), self.busy.eq(reading | found),
        ]
        if config.recurrent:
            fence_0, fence_1 = Signal(), Signal()
            m.d.sync += [fence_0.eq(fence), fence_1.eq(fence_0)]
            m.d.comb += [
                self.o.valid.eq((found & (ptr.length != 0)) | fence_1), out.fence.eq(fence_1),
                self.busy.eq(reading | found | fence_0 | fence_1),
            ]
