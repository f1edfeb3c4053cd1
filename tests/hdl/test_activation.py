# amaranth: UnusedElaboratable=no
"""Proves sigmoid and tanh equal to the integers of the model, for every input of 16 bits, at one
per cycle and in any order of the two modes."""

import re

import numpy as np
import pytest
from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.hdl.activation import Activation
from openese.model import elementwise
from openese.sim import simulation
from openese.sim.streams import pack


class Streamed(wiring.Component):
    """`Activation` with a valid bit that travels along."""

    def __init__(self, act_bits: int):
        self._activation = Activation(act_bits)
        layout = data.StructLayout({"x": signed(act_bits), "mode": 1})
        super().__init__({"i": In(stream.Signature(layout, always_ready=True)),
                          "o": Out(stream.Signature(signed(act_bits), always_ready=True))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.activation = activation = self._activation
        valid = Signal(activation.LATENCY)
        m.d.sync += valid.eq(Cat(self.i.valid, valid))
        m.d.comb += [
            activation.x.eq(self.i.payload.x), activation.mode.eq(self.i.payload.mode),
            self.o.payload.eq(activation.y), self.o.valid.eq(valid[-1]),
        ]
        return m


def run(act_bits: int, x: np.ndarray, mode: np.ndarray) -> np.ndarray:
    """The results of `Activation`, one input per cycle, each ``LATENCY`` cycles after its input."""
    dut = Streamed(act_bits)
    # Compiling pays for every input of 16 bits.
    result = simulation.run(dut, {"i": pack(dut.i.payload.shape(), {"x": x, "mode": mode})},
                            {"o": len(x)}, backend="cxxrtl" if len(x) > 20_000 else "amaranth")
    assert (result.times["o"] - result.times["i"] == Activation.LATENCY).all()
    assert (np.diff(result.times["i"]) == 1).all()
    return result.values("o")


def expected(act_bits: int, x: np.ndarray, mode: np.ndarray) -> np.ndarray:
    return np.where(mode, elementwise.tanh(x, act_bits), elementwise.sigmoid(x, act_bits))


def every_input(act_bits: int, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Each `step`-th input in both modes, shuffled: neighbours in the pipeline have nothing in
    common. Both ends are among them."""
    low, high = -(1 << (act_bits - 1)), (1 << (act_bits - 1)) - 1
    x = np.append(np.arange(low, high, step), high)
    x, mode = np.tile(x, 2), np.repeat([0, 1], x.size)
    order = np.random.default_rng(act_bits).permutation(x.size)
    return x[order], mode[order]


# 8 to 10 bits: one entry of the table for each magnitude, without interpolation.
@pytest.mark.parametrize(("act_bits", "step"), [
    (8, 1), (9, 1), (10, 1), (11, 1), (12, 1), (16, 1), (17, 37), (18, 61)])
def test_every_input_in_both_modes(act_bits, step):
    x, mode = every_input(act_bits, step)
    found = run(act_bits, x, mode)
    wrong = np.flatnonzero(found != expected(act_bits, x, mode))
    assert wrong.size == 0, list(zip(x[wrong[:5]], mode[wrong[:5]], found[wrong[:5]], strict=True))


def test_ends_of_the_range():
    """Written out, so that model and hardware are not wrong together."""
    x = np.array([0, 0, 32767, -32768, 32767, -32768, 2048, 2048])
    mode = np.array([0, 1, 0, 0, 1, 1, 0, 1])
    found = run(16, x, mode)
    # sigmoid(0) is a half; far out tanh is one step below 1 and sigmoid as near to 0 and 1.
    assert found[:6].tolist() == [16384, 0, 32767, 0, 32767, -32767]
    # 2048 is 1.0.
    assert found[6:].tolist() == pytest.approx(
        [32768 / (1 + np.exp(-1)), 32768 * np.tanh(1)], abs=2)


@pytest.mark.parametrize("act_bits", [7, 19, "16"])
def test_widths_are_checked(act_bits):
    message = f"act_bits must be an integer from 8 to 18, not {act_bits!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Activation(act_bits)
