"""Activations of an engine that broadcasts them all: one memory in the place of each PE's own."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import ACT_READ_LATENCY, EngineConfig

from .checks import checked_config
from .layouts import Kind, broadcast_signature, input_signature, scan_layout, values_layout

__all__ = ["ActStore"]


class ActStore(wiring.Component):
    """Holds all activations, in the order of their numbers.

    Without pointers every activation is broadcast, zero or not, so nothing is won by searching
    them in all PEs at once; and those of a recurrent engine are written a beat at a time. So they
    are in `input_lanes` memories, one for each lane of a beat, and a scan reads them in turn.

    Regions are the program's business: it scans one while another is written. A scan gives the
    ``rem`` first activations of the region's last row, and ``n_pes`` of the others.

    Latency: ``ACT_READ_LATENCY`` = 3 cycles from scan message to first activation; what is written
    is there for a scan message in the next cycle. Throughput: 1 activation per cycle.

    Parameters
    ----------
    config
        Engine configuration with ``central_acts``.

    Members
    -------
    i : ``In(broadcast_signature(config))``
        Scans and loads, before they enter the broadcast tree.
    i_input : ``In(input_signature(config))``
        Input vectors, and results of cells; not in the cycle of a load.
    o : ``Out(stream.Signature(scan_layout(config, 0)))``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    LATENCY = ACT_READ_LATENCY

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        groups = config.n_pes // config.input_lanes
        self._group_bits = (groups - 1).bit_length()
        self.words = [
            memory.MemoryData(shape=values_layout(config),
                              depth=config.act_depth << self._group_bits, init=[])
            for _ in range(config.input_lanes)]
        super().__init__({
            "i": In(broadcast_signature(config)),
            "i_input": In(input_signature(config)),
            "o": Out(stream.Signature(scan_layout(config, 0))),
        })

    def elaborate(self, platform):
        m = Module()
        config, lanes = self._config, self._config.input_lanes
        args = self.i.payload.args

        # Stage 0 walks the activations, stage 1 waits for the memories, stage 2 holds their words.
        # Block RAM answers late in a cycle: its word goes nowhere but to a register.
        active, valid_1, valid_2 = Signal(), Signal(), Signal()
        left = Signal(config.rows_bits, reset_less=True)
        act = Signal(config.act_addr_bits, reset_less=True)
        group = Signal(self._group_bits) if self._group_bits else Const(0, 0)
        lane = Signal(range(lanes)) if lanes > 1 else Const(0, 1)
        pe, final = Signal(config.pe_bits), Signal(config.pe_bits, reset_less=True)
        last, last_1, last_2 = Signal(), Signal(reset_less=True), Signal(reset_less=True)
        lane_1 = Signal.like(lane, reset_less=True)
        lane_2 = Signal.like(lane, reset_less=True)
        ready_2 = ~valid_2 | self.o.ready
        ready_1 = ~valid_1 | ready_2
        reads = [self._memory(m, k, act, group, ready_1) for k in range(lanes)]
        words = [Signal.like(read, reset_less=True, name=f"word_{k}")
                 for k, read in enumerate(reads)]
        m.d.comb += [
            last.eq((pe == config.n_pes - 1) | ((left == 1) & (pe == final))),
            self.o.valid.eq(valid_2), self.o.payload.nonzero.eq(1), self.o.payload.last.eq(last_2),
        ]
        with m.Switch(lane_2):
            for k, word in enumerate(words):
                with m.Case(k):
                    m.d.comb += self.o.payload.values.eq(word)
        with m.If(ready_2):
            m.d.sync += [
                valid_2.eq(valid_1), last_2.eq(last_1), lane_2.eq(lane_1),
                *(word.eq(read) for word, read in zip(words, reads, strict=True))]
        with m.If(ready_1):
            m.d.sync += [valid_1.eq(active), last_1.eq(last), lane_1.eq(lane)]
            with m.If(active):
                m.d.sync += pe.eq(pe + 1)
                if lanes > 1:
                    m.d.sync += lane.eq(lane + 1)
                with m.If(lane == lanes - 1):
                    if lanes > 1:
                        m.d.sync += lane.eq(0)
                    if self._group_bits:
                        m.d.sync += group.eq(group + 1)
                with m.If(last):
                    self._row(m, pe, group, lane)
                    m.d.sync += [act.eq(act + 1), left.eq(left - 1), active.eq(left != 1)]
        with m.If(self.i.valid & (self.i.payload.kind == Kind.SCAN)):
            self._row(m, pe, group, lane)
            m.d.sync += [active.eq(1), act.eq(args.scan.act), left.eq(args.scan.rows),
                         final.eq(args.scan.rem - 1)]
        return m

    @staticmethod
    def _row(m: Module, *places: Value) -> None:
        """To the start of a row, in all that count within one."""
        m.d.sync += [place.eq(0) for place in places if isinstance(place, Signal)]

    def _memory(self, m: Module, lane: int, act: Value, group: Value, en: Value) -> data.View:
        """The memory of a lane, filled by beats and loads; returns what is read."""
        config = self._config
        m.submodules[f"words_{lane}"] = words = memory.Memory(self.words[lane])
        # One channel's state can be loaded without touching the others.
        write = words.write_port(granularity=1 if config.channels > 1 else None)
        read = words.read_port()
        beat, load = self.i_input.payload, self.i.payload.args.load
        write_en = Signal.like(write.en)
        write_addr = Signal.like(write.addr, reset_less=True)
        written = Signal.like(write.data, reset_less=True)
        m.d.sync += [
            write_en.eq(Mux(self.i_input.valid, ~Const(0, len(write.en)), 0)),
            write_addr.eq(Cat(beat.group[:self._group_bits], beat.act)),
            written.eq(beat.values[lane])]
        with m.If(self.i.valid & (self.i.payload.kind == Kind.LOAD_ACT)):
            m.d.sync += [
                *self._loaded(load, lane, write_en, write_addr),
                *(value.eq(load.data) for value in written),
                Assert(~self.i_input.valid, "a load met another write")]
        m.d.comb += [
            write.en.eq(write_en), write.addr.eq(write_addr), write.data.eq(written),
            read.addr.eq(Cat(group, act)), read.en.eq(en),
        ]
        return read.data

    def _loaded(self, load: data.View, lane: int, write_en: Value, write_addr: Value) -> list:
        """Where a load of a PE's activation goes."""
        config, lanes = self._config, self._config.input_lanes
        group, mine = load.pe, Const(1)
        if lanes > 1:
            # Constants: the lanes of a beat need not be a power of two.
            pes = range(1 << config.pe_bits)
            group = Array(Const(p // lanes, self._group_bits or 1) for p in pes)[load.pe]
            mine = Array(Const(p % lanes == lane, 1) for p in pes)[load.pe]
        channel = 1 if config.channels == 1 else 1 << load.channel
        return [write_en.eq(Mux(mine, channel, 0)),
                write_addr.eq(Cat(group[:self._group_bits], load.addr))]
