"""Write-back: accumulators to activations of the next layer."""

from itertools import pairwise

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import DRAIN_LATENCY, WRITE_BACK_LATENCY, EngineConfig

from .checks import checked_config, checked_contents
from .layouts import Kind, broadcast_signature, values_layout
from .ram_style import small_memory
from .round_off import RoundOff, half_up

__all__ = ["WriteBack", "result_layout"]


def result_layout(config: EngineConfig) -> data.StructLayout:
    """An activation of every channel and where it goes in the activation memory."""
    return data.StructLayout({"act": config.act_addr_bits, "values": values_layout(config)})


class WriteBack(wiring.Component):
    """Drains accumulators one by one and rounds them (`RoundOff`).

    A WRITE message is for one accumulator, whose result goes to the activation memory. For engines
    without element-wise unit; the others have a `Drain`.

    Latency: ``WRITE_BACK_LATENCY`` = 8 cycles. Throughput: 1 per cycle. Messages less than 8
    cycles apart must agree in shift, ReLU and discard.

    Parameters
    ----------
    config
        Engine configuration.
    init
        Biases the memory starts with (unsigned two's complement).

    Members
    -------
    id : ``In(pe_bits)``
    i : ``In(broadcast_signature(config))``
    drain : ``Out(1)``, row : ``Out(acc_addr_bits)``
        Read and clear this accumulator. Its values are expected on `drained` after as many cycles
        as an entry takes from `SpMatRead` to the sum.
    drained : ``In(signed(acc_bits)).array(channels)``
    o : ``Out(stream.Signature(result_layout(config), always_ready=True))``
    saturated : ``Out(range(channels + 1))``
        How many of the activations on `o` were clipped.
    busy : ``Out(1)``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        More words than the memory holds, or a word that is not an unsigned integer of its width.
    """

    LATENCY = WRITE_BACK_LATENCY

    def __init__(self, config: EngineConfig, init=()):
        self._config = checked_config(config)
        self.biases = memory.MemoryData(
            shape=config.bias_bits, depth=config.bias_depth,
            init=checked_contents("bias", init, config.bias_depth, config.bias_bits))
        super().__init__({
            "id": In(config.pe_bits),
            "i": In(broadcast_signature(config)),
            "drain": Out(1),
            "row": Out(config.acc_addr_bits),
            "drained": In(signed(config.acc_bits)).array(config.channels),
            "o": Out(stream.Signature(result_layout(config), always_ready=True)),
            "saturated": Out(range(config.channels + 1)),
            "busy": Out(1),
        })
        assert WRITE_BACK_LATENCY == 1 + DRAIN_LATENCY + RoundOff.LATENCY

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.biases = biases = memory.Memory(
            self.biases, attrs=small_memory(config.bias_depth, platform))
        write, read = biases.write_port(), biases.read_port()
        message, args = self.i.payload, self.i.payload.args
        load = self.i.valid & (message.kind == Kind.LOAD_BIAS) & (args.load.pe == self.id)
        m.d.comb += [
            write.en.eq(load), write.addr.eq(args.load.addr), write.data.eq(args.load.data)]

        # Stage 0 holds the row; the places of bias and result follow it.
        active = Signal()
        bias_addr = [Signal(config.bias_addr_bits, reset_less=True, name=f"bias_addr_{k}")
                     for k in range(DRAIN_LATENCY)]
        act = [Signal(config.act_addr_bits, reset_less=True, name=f"act_{k}")
               for k in range(WRITE_BACK_LATENCY)]
        shift = Signal(config.shift_bits, reset_less=True)
        relu, discard = Signal(reset_less=True), Signal(reset_less=True)
        command = args.write
        begin = [
            bias_addr[0].eq(command.bias), act[0].eq(command.act), shift.eq(command.shift),
            relu.eq(command.relu), discard.eq(command.discard), self.row.eq(command.acc),
        ]
        is_write = self.i.valid & (message.kind == Kind.WRITE)
        m.d.sync += [after.eq(before) for chain in (bias_addr, act)
                     for before, after in pairwise(chain)]
        m.d.sync += active.eq(is_write)
        with m.If(is_write):
            m.d.sync += begin
        m.d.comb += [self.drain.eq(active), read.addr.eq(bias_addr[-1])]

        # The accumulator comes, is rounded, and then written.
        valid = [active] + [Signal(name=f"valid_{k}") for k in range(1, WRITE_BACK_LATENCY)]
        m.d.sync += [after.eq(before) for before, after in pairwise(valid)]
        bias = Signal(signed(max(config.bias_bits, config.bias_guard) + 1), reset_less=True)
        m.d.sync += bias.eq(half_up(config, read.data))
        clips = []
        for c, drained in enumerate(self.drained):
            m.submodules[f"round_off_{c}"] = round_off = RoundOff(config)
            m.d.comb += [
                round_off.acc.eq(drained), round_off.bias.eq(bias), round_off.shift.eq(shift),
                round_off.relu.eq(relu), self.o.payload.values[c].eq(round_off.value),
            ]
            clips.append(round_off.clipped)
        m.d.sync += self.saturated.eq(Mux(valid[-2] & ~discard, sum(clips), 0))
        m.d.comb += [
            self.o.valid.eq(valid[-1] & ~discard), self.o.payload.act.eq(act[-1]),
            self.busy.eq(Cat(valid).any()),
        ]
        return m
