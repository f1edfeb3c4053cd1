"""Write-back: accumulators to activations of the next layer."""

from itertools import pairwise

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import (
    DECODE_LATENCY,
    MULTIPLY_LATENCY,
    WRITE_BACK_LATENCY,
    EngineConfig,
)

from .checks import checked_config, checked_contents
from .layouts import Kind, broadcast_signature, values_layout
from .ram_style import small_memory

__all__ = ["WriteBack", "result_layout"]

#: From an accumulator being asked for to its value being there: the request takes the way of an
#: entry through the pipeline.
_DRAIN_LATENCY = DECODE_LATENCY + MULTIPLY_LATENCY


def result_layout(config: EngineConfig) -> data.StructLayout:
    """An activation of every channel and where it goes in the activation memory."""
    return data.StructLayout({"act": config.act_addr_bits, "values": values_layout(config)})


class WriteBack(wiring.Component):
    """Drains accumulators one by one: shift, add the bias, round half up, ReLU, saturate.

    ``y = sat(relu(((acc >> (shift - g)) + bias + 2**(g - 1)) >> g))`` with ``g`` the guard bits.
    Nested floors are exact, so this equals rounding ``acc + (bias << (shift - g))`` once.

    A WRITE message is for one accumulator, whose result goes to the activation memory. A CELL
    message prepares the drain of a recurrent layer: then every token is for the accumulators of
    one unit, whose results go to the element-wise unit.

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
    i_token, o_token : ``In(1)``, ``Out(1)``
        Drain the accumulators of the next unit; passed on to the next PE a cycle later.
    drain : ``Out(1)``, row : ``Out(acc_addr_bits)``
        Read and clear this accumulator. Its values are expected on `drained` after as many cycles
        as an entry takes from `SpMatRead` to the sum.
    drained : ``In(signed(acc_bits)).array(channels)``
    o : ``Out(stream.Signature(result_layout(config), always_ready=True))``
        Results of WRITE.
    gate : ``Out(1)``
        The values on `o` are results of a CELL instead.
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
            "i_token": In(1), "o_token": Out(1), "gate": Out(1),
            "busy": Out(1),
        })

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
                     for k in range(_DRAIN_LATENCY)]
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
        if config.recurrent:
            gates, left = Signal(2, reset_less=True), Signal(2)
            for_cell = Signal(reset_less=True)
            with m.If(active):
                m.d.sync += [self.row.eq(self.row + 1), bias_addr[0].eq(bias_addr[0] + 1)]
            with m.If(left != 0):
                m.d.sync += [left.eq(left - 1), active.eq(1)]
            with m.If(self.i_token):
                m.d.sync += [left.eq(gates), active.eq(1)]
            with m.If(self.i.valid & (message.kind == Kind.CELL)):
                m.d.sync += [*begin, for_cell.eq(1), gates.eq(command.gates)]
            m.d.sync += self.o_token.eq(self.i_token)
        with m.If(is_write):
            m.d.sync += begin
            if config.recurrent:
                m.d.sync += for_cell.eq(0)
        m.d.comb += [self.drain.eq(active), read.addr.eq(bias_addr[-1])]

        # The accumulator comes; then one stage each shifts, adds the bias, rounds off and writes.
        valid = [active] + [Signal(name=f"valid_{k}") for k in range(1, WRITE_BACK_LATENCY)]
        m.d.sync += [after.eq(before) for before, after in pairwise(valid)]
        # The half is added here, one stage early, where it costs the narrowest adder.
        bias = Signal(signed(max(config.bias_bits, config.bias_guard) + 1), reset_less=True)
        m.d.sync += bias.eq(read.data.as_signed() + (1 << (config.bias_guard - 1)))
        clips = [self._round_off(m, c, shift, bias, relu) for c in range(config.channels)]
        done = valid[WRITE_BACK_LATENCY - 1]
        m.d.sync += self.saturated.eq(
            Mux(valid[WRITE_BACK_LATENCY - 2] & ~discard, sum(clips), 0))
        m.d.comb += [
            self.o.valid.eq(done & ~discard), self.o.payload.act.eq(act[-1]),
            self.busy.eq(Cat(valid).any()),
        ]
        if config.recurrent:
            m.d.comb += [
                self.o.valid.eq(done & ~discard & ~for_cell), self.gate.eq(done & for_cell)]
        return m

    def _round_off(self, m: Module, channel: int, shift: Value, bias: Value, relu: Value) -> Value:
        """The datapath of a channel; returns whether the value of the last stage is clipped."""
        config = self._config
        shifted = Signal(signed(config.acc_bits - config.shift_base), reset_less=True,
                         name=f"shifted_{channel}")
        total = Signal(signed(max(len(shifted), len(bias)) + 1), reset_less=True,
                       name=f"total_{channel}")
        m.d.sync += [
            shifted.eq((self.drained[channel] >> config.shift_base) >> shift),
            total.eq(shifted + bias),
        ]

        rounded = total >> config.bias_guard
        low, high = -(1 << (config.act_bits - 1)), (1 << (config.act_bits - 1)) - 1
        negative = total[-1]
        # A number fits if all bits from its sign upwards are equal.
        signs = total[min(config.bias_guard + config.act_bits, len(total)) - 1:]
        clipped = Signal(name=f"clipped_{channel}")
        value = Signal(signed(config.act_bits), reset_less=True, name=f"value_{channel}")
        m.d.comb += [
            clipped.eq(Mux(negative, ~relu & ~signs.all(), signs.any())),
            self.o.payload.values[channel].eq(value),
        ]
        with m.If(negative & relu):
            m.d.sync += value.eq(0)
        with m.Elif(clipped):
            m.d.sync += value.eq(Mux(negative, low, high))
        with m.Else():
            m.d.sync += value.eq(rounded)
        return clipped
