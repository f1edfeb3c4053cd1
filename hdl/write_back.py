"""Write-back: accumulators to activations of the next layer."""

from itertools import pairwise

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import WRITE_BACK_LATENCY, EngineConfig

from .checks import checked_config, checked_contents
from .layouts import Kind, broadcast_signature

__all__ = ["WriteBack", "result_layout"]


def result_layout(config: EngineConfig) -> data.StructLayout:
    """An activation and where it goes in the activation memory."""
    return data.StructLayout({"act": config.act_addr_bits, "value": signed(config.act_bits)})


class WriteBack(wiring.Component):
    """Drains the accumulators row by row: shift, add the bias, round half up, ReLU, saturate.

    ``y = sat(relu(((acc >> (shift - g)) + bias + 2**(g - 1)) >> g))`` with ``g`` the guard bits.
    Nested floors are exact, so this equals rounding ``acc + (bias << (shift - g))`` once.

    Latency: ``WRITE_BACK_LATENCY`` = 5 cycles to the first of ``rows`` results, one per cycle. A
    command is for one row or more, and comes when the one before is done.

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
        Read and clear this accumulator; its value is expected on `drained` a cycle later.
    drained : ``In(signed(acc_bits))``
    o : ``Out(stream.Signature(result_layout(config), always_ready=True))``
    saturated : ``Out(1)``
        The activation on `o` was clipped.
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
            "drained": In(signed(config.acc_bits)),
            "o": Out(stream.Signature(result_layout(config), always_ready=True)),
            "saturated": Out(1),
            "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.biases = biases = memory.Memory(self.biases)
        write, read = biases.write_port(), biases.read_port()
        message, args = self.i.payload, self.i.payload.args
        load = self.i.valid & (message.kind == Kind.LOAD_BIAS) & (args.load.pe == self.id)
        m.d.comb += [
            write.en.eq(load), write.addr.eq(args.load.addr), write.data.eq(args.load.data)]

        # Stage 0 walks the rows.
        active = Signal()
        left = Signal(config.rows_bits, reset_less=True)
        bias_addr = Signal(config.bias_addr_bits, reset_less=True)
        act = Signal(config.act_addr_bits, reset_less=True)
        shift = Signal(config.shift_bits, reset_less=True)
        relu, discard = Signal(reset_less=True), Signal(reset_less=True)
        with m.If(active):
            m.d.sync += [
                self.row.eq(self.row + 1), bias_addr.eq(bias_addr + 1), left.eq(left - 1),
                active.eq(left != 1),
            ]
        with m.If(self.i.valid & (message.kind == Kind.WRITE)):
            m.d.sync += [
                active.eq(1), self.row.eq(0), left.eq(args.write.rows),
                bias_addr.eq(args.write.bias), act.eq(args.write.act),
                shift.eq(args.write.shift), relu.eq(args.write.relu),
                discard.eq(args.write.discard),
            ]
        m.d.comb += [self.drain.eq(active), read.addr.eq(bias_addr)]

        # Stage 1 shifts, stage 2 adds the bias, stage 3 rounds off, stage 4 writes.
        valid = [active] + [Signal(name=f"valid_{k}") for k in range(1, 5)]
        m.d.sync += [after.eq(before) for before, after in pairwise(valid)]
        shifted = Signal(signed(config.acc_bits - config.shift_base), reset_less=True)
        # The half is added here, one stage early, where it costs the narrowest adder.
        bias = Signal(signed(max(config.bias_bits, config.bias_guard) + 1), reset_less=True)
        total = Signal(signed(max(len(shifted), len(bias)) + 1), reset_less=True)
        half = 1 << (config.bias_guard - 1)
        m.d.sync += [
            shifted.eq((self.drained >> config.shift_base) >> shift),
            bias.eq(read.data.as_signed() + half),
            total.eq(shifted + bias),
        ]

        rounded = total >> config.bias_guard
        low, high = -(1 << (config.act_bits - 1)), (1 << (config.act_bits - 1)) - 1
        negative = total[-1]
        # A number fits if all bits from its sign upwards are equal.
        signs = total[min(config.bias_guard + config.act_bits, len(total)) - 1:]
        clipped = Signal()
        value = Signal(signed(config.act_bits), reset_less=True)
        m.d.comb += clipped.eq(Mux(negative, ~relu & ~signs.all(), signs.any()))
        with m.If(negative & relu):
            m.d.sync += value.eq(0)
        with m.Elif(clipped):
            m.d.sync += value.eq(Mux(negative, low, high))
        with m.Else():
            m.d.sync += value.eq(rounded)
        m.d.sync += self.saturated.eq(valid[3] & clipped & ~discard)

        with m.If(valid[4]):
            m.d.sync += act.eq(act + 1)
        m.d.comb += [
            self.o.valid.eq(valid[4] & ~discard),
            self.o.payload.act.eq(act),
            self.o.payload.value.eq(value),
            self.busy.eq(Cat(valid).any()),
        ]
        return m
