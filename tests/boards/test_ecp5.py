"""Proves the PLL settings: within the device's limits and as close as they claim; exact for the
clocks the boards use; impossible clocks refused."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.boards.ecp5 import (
    DETECTOR_RANGE,
    INPUT_RANGE,
    MAX_DIVIDER,
    VCO_RANGE,
    PllSettings,
)


@settings(deadline=None, max_examples=100)
@given(input_mhz=st.sampled_from([12, 16, 25, 27, 48, 50, 100]),
       output_mhz=st.floats(10, 200, allow_nan=False))
def test_limits_hold(input_mhz, output_mhz):
    found = PllSettings.for_frequency(input_mhz * 1e6, output_mhz * 1e6)
    detector = found.input_hz / found.input_div
    oscillator = detector * found.feedback_div
    assert DETECTOR_RANGE[0] <= detector <= DETECTOR_RANGE[1]
    assert VCO_RANGE[0] <= oscillator <= VCO_RANGE[1]
    assert all(1 <= divider <= MAX_DIVIDER
               for divider in (found.input_div, found.feedback_div, found.output_div))
    assert found.output_hz == pytest.approx(oscillator / found.output_div)
    assert found.output_hz == pytest.approx(output_mhz * 1e6, rel=0.0201)


@pytest.mark.parametrize("mhz", [25, 50, 75, 80, 90, 100, 110, 120, 125])
def test_round_clocks_are_exact(mhz):
    assert PllSettings.for_frequency(25e6, mhz * 1e6).output_hz == pytest.approx(mhz * 1e6)


@pytest.mark.parametrize(("input_hz", "output_hz", "message"), [
    (5e6, 100e6, f"the PLL takes {INPUT_RANGE[0] / 1e6:g} to {INPUT_RANGE[1] / 1e6:g} MHz, "
                 "not 5 MHz"),
    (25e6, 1000e6, "the PLL cannot make 1000 MHz from 25 MHz within 2 %"),
    (25e6, 1e6, "the PLL cannot make 1 MHz from 25 MHz within 2 %"),
])
def test_impossible_clocks_are_refused(input_hz, output_hz, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PllSettings.for_frequency(input_hz, output_hz)
