"""Proves the Gowin part of a build: PLL settings within the device's limits and as close as they
claim, exact for the clocks the boards use, impossible clocks refused; and that tools are called for
the right device, without carry chains, with the clock that is really run."""

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from openese.boards.gowin import (
    DIVIDERS,
    GW1NR_9C,
    GW2AR_18C,
    OSCILLATOR_DIVIDERS,
    RpllSettings,
)
from openese.boards.platforms import BOARDS
from openese.boards.top import Top
from openese.model.config import EngineConfig


@pytest.mark.parametrize("limits", [GW1NR_9C, GW2AR_18C])
@settings(deadline=None, max_examples=50)
@given(input_mhz=st.sampled_from([12, 24, 27, 50, 100]),
       output_mhz=st.floats(10, 200, allow_nan=False))
def test_limits_hold(limits, input_mhz, output_mhz):
    fractions = [input_mhz * b / a for a in DIVIDERS for b in DIVIDERS
                 if input_mhz * 1e6 / a >= limits.detector[0]]
    error = min(abs(made / output_mhz - 1) for made in fractions)
    assume(abs(error - 0.02) > 1e-9)  # 51 MHz for 50 MHz is 2 % or a bit more, by rounding
    if error > 0.02:
        with pytest.raises(ValueError, match=r"within 2 %$"):
            RpllSettings.for_frequency(limits, input_mhz * 1e6, output_mhz * 1e6)
        return
    found = RpllSettings.for_frequency(limits, input_mhz * 1e6, output_mhz * 1e6)
    assert found.input_div in DIVIDERS
    assert found.feedback_div in DIVIDERS
    assert found.oscillator_div in OSCILLATOR_DIVIDERS
    detector = found.input_hz / found.input_div
    assert limits.detector[0] <= detector <= limits.detector[1]
    oscillator = detector * found.feedback_div * found.oscillator_div
    assert limits.oscillator[0] <= oscillator <= limits.oscillator[1]
    assert limits.clock_out[0] <= found.output_hz <= limits.clock_out[1]
    assert found.output_hz == pytest.approx(detector * found.feedback_div)
    assert found.output_hz == pytest.approx(output_mhz * 1e6, rel=0.0201)


@pytest.mark.parametrize("mhz", [27, 48, 54, 60, 66, 72, 75, 81, 90, 108])
def test_round_clocks_are_exact(mhz):
    for limits in (GW1NR_9C, GW2AR_18C):
        found = RpllSettings.for_frequency(limits, 27e6, mhz * 1e6)
        assert found.output_hz == pytest.approx(mhz * 1e6)


@pytest.mark.parametrize(("input_hz", "output_hz", "message"), [
    (2e6, 54e6, "the PLL of a GW1NR-9C takes 3 to 400 MHz, not 2 MHz"),
    (27e6, 700e6, "the PLL of a GW1NR-9C makes 3.125 to 600 MHz, not 700 MHz"),
    (27e6, 1e6, "the PLL of a GW1NR-9C makes 3.125 to 600 MHz, not 1 MHz"),
    (27e6, 3.2e6, "the PLL of a GW1NR-9C cannot make 3.2 MHz from 27 MHz within 2 %"),
])
def test_impossible_clocks_are_refused(input_hz, output_hz, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RpllSettings.for_frequency(GW1NR_9C, input_hz, output_hz)


@pytest.mark.parametrize(("name", "part", "die"), [
    ("tang-nano-9k", "GW1NR-LV9QN88PC6/I5", "GW1N-9C"),
    ("tang-nano-20k", "GW2AR-LV18QN88C8/I7", "GW2A-18C"),
])
def test_plan(name, part, die):
    board = BOARDS[name]
    top = Top(EngineConfig(n_pes=1, spmat_depth=256, ptr_depth=64), board, 60.0)
    plan = board.family.plan(board.platform(), top, 7)

    def option(arguments, flag):
        return arguments[arguments.index(flag) + 1]

    assert option(plan.route, "--device") == part
    assert f"family={die}" in plan.route
    assert float(option(plan.route, "--freq")) == pytest.approx(top.pll.output_hz / 1e6)
    assert option(plan.route, "--seed") == "7"
    assert option(plan.pack, "-d") == die
    assert option(plan.pack, "-o") in plan.products
    assert set(plan.files) == {"top.ys", "top.il", "top.cst"}
    assert "IO_LOC" in plan.files["top.cst"]
    synthesis, = re.findall(r"^synth_gowin .*$", plan.files["top.ys"], re.M)
    assert f"-family {die[:4].lower()} " in synthesis
    assert "-noalu" in synthesis
    assert plan.netlist in synthesis
