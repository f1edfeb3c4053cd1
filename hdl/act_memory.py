"""Activation memory of a PE: source and destination activations (EIE's ActRW)."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import ACT_READ_LATENCY, EngineConfig

from .checks import checked_config
from .layouts import Kind, broadcast_signature, scan_layout, values_layout
from .write_back import result_layout

__all__ = ["ActMemory", "lane_layout"]


def lane_layout(config: EngineConfig) -> data.StructLayout:
    """The part of an input beat that one PE sees."""
    groups = config.n_pes // config.input_lanes
    return data.StructLayout({
        "group": max(1, (groups - 1).bit_length()),
        "act": config.act_addr_bits,
        "values": values_layout(config),
    })


class ActMemory(wiring.Component):
    """Holds every ``n_pes``-th activation of the input and of each layer's output.

    Regions are the program's business: it scans one while another is written. A scan gives one
    item per row, in order. In the last row, PEs beyond ``rem`` have no activation and give a
    zero item whatever their memory holds. A `dense` scan marks every activation non-zero. An
    activation is non-zero when it is in any channel.

    Latency: ``ACT_READ_LATENCY`` = 3 cycles from scan message to first item. Throughput: 1 item
    per cycle. Results and input beats never meet: the input stops during write-back.

    Parameters
    ----------
    config
        Engine configuration.

    Members
    -------
    id : ``In(pe_bits)``
    group : ``In``
        Number of this PE's group of ``input_lanes`` PEs.
    i : ``In(broadcast_signature(config))``
    i_input : ``In(stream.Signature(lane_layout(config), always_ready=True))``
    i_result : ``In(stream.Signature(result_layout(config), always_ready=True))``
        Not of recurrent engines, whose results come as beats of input.
    o : ``Out(stream.Signature(scan_layout(config, 0)))``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    LATENCY = ACT_READ_LATENCY

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        # Whether an activation is zero is found out on the way in: behind the memory there is no
        # time for it, and block RAM is 18 bits wide anyway.
        self.words = memory.MemoryData(
            shape=data.ArrayLayout(
                data.StructLayout({"value": signed(config.act_bits), "nonzero": 1}),
                config.channels),
            depth=config.act_depth, init=[])
        members = {
            "id": In(config.pe_bits),
            "group": In(lane_layout(config)["group"].shape),
            "i": In(broadcast_signature(config)),
            "i_input": In(stream.Signature(lane_layout(config), always_ready=True)),
            "o": Out(stream.Signature(scan_layout(config, 0))),
        }
        if not config.recurrent:
            members["i_result"] = In(stream.Signature(result_layout(config), always_ready=True))
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.words = words = memory.Memory(self.words)
        # One channel's state can be loaded without touching the others.
        write = words.write_port(granularity=1 if config.channels > 1 else None)
        read = words.read_port()

        # Registered, so that the zero test has a cycle of its own. A scan starts later than that.
        beat = self.i_input.payload
        mine = self.i_input.valid & (beat.group == self.group)
        written = Signal(values_layout(config), reset_less=True)
        write_addr = Signal.like(write.addr, reset_less=True)
        write_en = Signal.like(write.en)
        every = ~Const(0, len(write.en))
        m.d.sync += [
            write_en.eq(Mux(mine, every, 0)), write_addr.eq(beat.act), written.eq(beat.values)]
        if config.recurrent:
            load = self.i.payload.args.load
            with m.If(self.i.valid & (self.i.payload.kind == Kind.LOAD_ACT)
                      & (load.pe == self.id)):
                m.d.sync += [
                    write_en.eq(1 if config.channels == 1 else 1 << load.channel),
                    write_addr.eq(load.addr), *(value.eq(load.data) for value in written),
                    Assert(~mine, "a load met another write")]
        else:
            result = self.i_result.payload
            with m.If(self.i_result.valid):
                m.d.sync += [
                    write_en.eq(every), write_addr.eq(result.act), written.eq(result.values),
                    Assert(~mine, "input and write-back met")]
        m.d.comb += [write.en.eq(write_en), write.addr.eq(write_addr)]
        for slot, value in zip(write.data, written, strict=True):
            m.d.comb += [slot.value.eq(value), slot.nonzero.eq(value != 0)]

        # Stage 0 walks the rows, stage 1 waits for the memory, stage 2 holds its word. Block RAM
        # answers late in a cycle: its word goes nowhere but to a register. All stages move at once,
        # for the way from `ready` is long; there is no gap between rows that could close.
        scan = self.i.payload.args.scan
        active, valid_1, valid_2 = Signal(), Signal(), Signal()
        left = Signal(config.rows_bits, reset_less=True)
        addr = Signal(config.act_addr_bits, reset_less=True)
        short, dense = Signal(reset_less=True), Signal(reset_less=True)
        absent_1, absent_2 = Signal(reset_less=True), Signal(reset_less=True)
        word = Signal.like(read.data, reset_less=True)
        go = ~valid_2 | self.o.ready
        m.d.comb += [
            read.addr.eq(addr), read.en.eq(go),
            self.o.valid.eq(valid_2),
            self.o.payload.nonzero.eq(
                (Cat(slot.nonzero for slot in word).any() | dense) & ~absent_2),
            self.o.payload.last.eq(1),
        ]
        m.d.comb += [
            out.eq(slot.value) for out, slot in zip(self.o.payload.values, word, strict=True)]
        with m.If(go):
            m.d.sync += [
                valid_1.eq(active), absent_1.eq(short & (left == 1)),
                valid_2.eq(valid_1), absent_2.eq(absent_1), word.eq(read.data),
            ]
            with m.If(active):
                m.d.sync += [addr.eq(addr + 1), left.eq(left - 1), active.eq(left != 1)]
        with m.If(self.i.valid & (self.i.payload.kind == Kind.SCAN)):
            m.d.sync += [
                active.eq(1), addr.eq(scan.act), left.eq(scan.rows), dense.eq(scan.dense),
                short.eq(self.id >= scan.rem),
            ]
        return m
