"""Rounding: an accumulator to an activation or a pre-activation."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config

__all__ = ["RoundOff", "half_up"]


def half_up(config: EngineConfig, bias: Value) -> Value:
    """A word of a bias memory as `RoundOff` takes it."""
    return bias.as_signed() + (1 << (config.bias_guard - 1))


class RoundOff(wiring.Component):
    """Shift, add the bias, round half up, ReLU, saturate.

    ``y = sat(relu(((acc >> (shift - g)) + bias + 2**(g - 1)) >> g))`` with ``g`` the guard bits.
    Nested floors are exact, so this equals rounding ``acc + (bias << (shift - g))`` once. The half
    comes with the bias, where it costs the narrowest adder.

    Latency: ``LATENCY`` = 3 cycles. Throughput: 1 per cycle.

    Parameters
    ----------
    config
        Engine configuration.

    Members
    -------
    acc : ``In(signed(acc_bits))``
    bias : ``In``
        `half_up` of the bias, one cycle after `acc`.
    shift : ``In(shift_bits)``, relu : ``In(1)``
    value : ``Out(signed(act_bits))``
    clipped : ``Out(1)``
        The value of the next cycle is.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    LATENCY = 3

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        super().__init__({
            "acc": In(signed(config.acc_bits)),
            "bias": In(signed(max(config.bias_bits, config.bias_guard) + 1)),
            "shift": In(config.shift_bits), "relu": In(1),
            "value": Out(signed(config.act_bits)), "clipped": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        shifted = Signal(signed(config.acc_bits - config.shift_base), reset_less=True)
        total = Signal(signed(max(len(shifted), len(self.bias)) + 1), reset_less=True)
        m.d.sync += [
            shifted.eq((self.acc >> config.shift_base) >> self.shift),
            total.eq(shifted + self.bias),
        ]

        rounded = total >> config.bias_guard
        low, high = -(1 << (config.act_bits - 1)), (1 << (config.act_bits - 1)) - 1
        negative = total[-1]
        # A number fits if all bits from its sign upwards are equal.
        signs = total[min(config.bias_guard + config.act_bits, len(total)) - 1:]
        value = Signal(signed(config.act_bits), reset_less=True)
        m.d.comb += [
            self.clipped.eq(Mux(negative, ~self.relu & ~signs.all(), signs.any())),
            self.value.eq(value),
        ]
        with m.If(negative & self.relu):
            m.d.sync += value.eq(0)
        with m.Elif(self.clipped):
            m.d.sync += value.eq(Mux(negative, low, high))
        with m.Else():
            m.d.sync += value.eq(rounded)
        return m
