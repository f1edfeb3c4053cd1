# amaranth: UnusedElaboratable=no
"""Proves the portable multiplier exact, free-running and of the stated latency, and the ECP5 one
to be a single `MULT18X18D` with every register stage in use."""

import re

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.sim import Simulator
from amaranth_boards.ulx3s import ULX3S_85F_Platform

from openese.hdl.multiply import Multiplier

SIZES = [(1, 1), (4, 7), (16, 16), (18, 18), (18, 5)]


def operands(bits: int, count: int, seed: int) -> list[int]:
    """Random signed operands with both rails, -1, 0 and 1 (as far as the width holds them)."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    corners = [v for v in (low, high, -1, 0, 1) if low <= v <= high]
    drawn = np.random.default_rng(seed).integers(low, high, size=count, endpoint=True)
    return corners + drawn.tolist()


@pytest.mark.parametrize(("a_bits", "b_bits"), SIZES)
def test_products_and_latency(a_bits, b_bits):
    dut = Multiplier(a_bits, b_bits)
    # Every corner of a meets every corner of b, then random pairs.
    corners = [(a, b) for a in operands(a_bits, 0, 0) for b in operands(b_bits, 0, 0)]
    pairs = corners + list(zip(operands(a_bits, 200, 1), operands(b_bits, 200, 2), strict=False))

    async def testbench(ctx):
        for cycle in range(len(pairs) + dut.LATENCY):
            if cycle < len(pairs):
                ctx.set(dut.a, pairs[cycle][0])
                ctx.set(dut.b, pairs[cycle][1])
            await ctx.tick()
            # The edge just passed is number `cycle + 1`.
            source = cycle + 1 - dut.LATENCY
            expected = pairs[source][0] * pairs[source][1] if 0 <= source < len(pairs) else 0
            if source < len(pairs):
                assert ctx.get(dut.p) == expected, (cycle, pairs[source])

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(testbench)
    sim.run()


@pytest.mark.parametrize(("a_bits", "b_bits"), SIZES)
def test_ecp5_primitive(a_bits, b_bits):
    text = rtlil.convert(Multiplier(a_bits, b_bits), platform=ULX3S_85F_Platform())
    assert len(re.findall(r"cell \\MULT18X18D", text)) == 1
    for stage in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT"):
        assert re.search(rf'parameter \\REG_{stage}_CLK "CLK0"', text)
    # No fabric register beside it.
    assert "$dff" not in text
    assert "process" not in text


@pytest.mark.parametrize(("a_bits", "b_bits", "message"), [
    (0, 16, "a_bits must be an integer from 1 to 18, not 0"),
    (19, 16, "a_bits must be an integer from 1 to 18, not 19"),
    (16, 19, "b_bits must be an integer from 1 to 18, not 19"),
    (16, "8", "b_bits must be an integer from 1 to 18, not '8'"),
])
def test_widths_are_checked(a_bits, b_bits, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Multiplier(a_bits, b_bits)
