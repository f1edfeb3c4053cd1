"""Sigmoid and tanh: a table with interpolation."""

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from openese.model.elementwise import activation_table, table_split, unit_frac

from .multiply import Multiplier

__all__ = ["Activation", "delayed"]


def delayed(m: Module, value: Value, cycles: int, name: str) -> list[Value]:
    """`value` and what it was 1, 2, ... `cycles` cycles ago."""
    line = [value]
    for k in range(1, cycles + 1):
        stage = Signal.like(value, reset_less=True, name=f"{name}_{k}")
        m.d.sync += stage.eq(line[-1])
        line.append(stage)
    return line


class Activation(wiring.Component):
    """Sigmoid or tanh of gate pre-activations, bit for bit those of `openese.model.elementwise`.

    The magnitude selects a segment of the table of tanh; between its ends the result is
    interpolated. Sigmoid is ``(1 + tanh(x / 2)) / 2``.

    Latency: ``LATENCY`` = 9 cycles. Throughput: 1 per cycle; free-running.

    Resources: one memory of 512 words, one multiplier.

    Parameters
    ----------
    act_bits
        Width of pre-activations and results, 8 to 18.

    Members
    -------
    x : ``In(signed(act_bits))``
    mode : ``In(1)``
        0 sigmoid, 1 tanh.
    y : ``Out(signed(act_bits))``

    Raises
    ------
    ValueError
        A width out of range.
    """

    LATENCY = 9

    def __init__(self, act_bits: int):
        if not isinstance(act_bits, int) or not 8 <= act_bits <= 18:
            raise ValueError(f"act_bits must be an integer from 8 to 18, not {act_bits!r}")
        self._act_bits = act_bits
        values, steps = (column.tolist() for column in activation_table(act_bits))
        self._word = data.StructLayout({
            "value": unit_frac(act_bits), "step": max(1, max(steps).bit_length())})
        self.table = memory.MemoryData(
            shape=self._word, depth=len(values),
            init=[{"value": value, "step": step}
                  for value, step in zip(values, steps, strict=True)])
        super().__init__({
            "x": In(signed(act_bits)), "mode": In(1), "y": Out(signed(act_bits)),
        })

    def elaborate(self, platform):
        m = Module()
        bits, one = self._act_bits, unit_frac(self._act_bits)
        _, rest = table_split(bits)
        m.submodules.table = table = memory.Memory(self.table)
        read = table.read_port()
        negative = delayed(m, self.x[-1], self.LATENCY - 1, "negative")
        mode = delayed(m, self.mode, self.LATENCY - 1, "mode")

        # Stage 1: magnitude. Stage 2: that of tanh is doubled; both end at the table's last place.
        magnitude = Signal(bits, reset_less=True)
        place = Signal(one, reset_less=True)
        m.d.sync += magnitude.eq(Mux(self.x < 0, -self.x, self.x))
        beyond = magnitude[one] | (mode[1] & magnitude[one - 1])
        m.d.sync += place.eq(
            Mux(beyond, ~0, Mux(mode[1], magnitude << 1, magnitude)))

        # Stage 3 reads, stage 4 holds the word; then the step is multiplied.
        word = Signal(self._word, reset_less=True)
        m.d.comb += read.addr.eq(place[rest:])
        m.d.sync += word.eq(read.data)
        if rest:
            fraction = delayed(m, place[:rest], 2, "fraction")[-1]
            m.submodules.multiplier = multiplier = Multiplier(
                len(word.step) + 1, rest + 1)
            m.d.comb += [multiplier.a.eq(word.step), multiplier.b.eq(fraction)]
            part = multiplier.p
        else:
            part = Const(0)
        # With the half below it that rounds, the start takes part in one addition.
        start = delayed(m, word.value, Multiplier.LATENCY, "start")[-1]
        rounded = Cat(Const((1 << rest) >> 1, rest), start)
        size = Signal(one, reset_less=True)
        m.d.sync += size.eq((rounded + part) >> rest)

        # Stage 9: the sign, and for sigmoid from -1 .. 1 to 0 .. 1. Adding 1 inverts the sign bit.
        both = Signal(signed(bits))
        m.d.comb += both.eq(Mux(negative[8], -size, size))
        y = Signal.like(self.y, reset_less=True)
        m.d.sync += y.eq(Mux(mode[8], both, Cat(both[1:one], ~both[one])))
        m.d.comb += self.y.eq(y)
        return m
