# amaranth: UnusedElaboratable=no
"""Proves that what Yosys makes for ECP5 computes what the RTL does: block RAMs of every width,
the multiplier, and a whole engine, simulated in Verilator with our models of the primitives. Also
that these models stop at what they do not model and give wrong data for undefined reads."""

import re

import pytest

from openese.boards.build import simulation_sources
from openese.hdl.multiply import Multiplier
from openese.sim.verilator import VerilatorError, lint

from .netlists import check_engine, check_multiplier, check_ram, simulator


@pytest.fixture
def simulate(tmp_path):
    """Synthesise a component and simulate the netlist."""
    return simulator("ulx3s-85f", tmp_path)


@pytest.mark.parametrize(("width", "depth", "granularity", "blocks"), [
    (1, 16384, 1, 1), (4, 4096, 4, 1), (9, 2048, 9, 1), (18, 1024, 18, 1), (36, 512, 9, 1),
    (13, 2048, 13, 2),
])
def test_block_ram(simulate, width, depth, granularity, blocks):
    assert check_ram(simulate, width, depth, granularity).cells["DP16KD"] == blocks


@pytest.mark.parametrize(("width", "depth", "granularity", "blocks"), [
    (1, 16384, 1, 1), (18, 1024, 18, 1), (36, 512, 36, 1), (13, 2048, 13, 2),
])
def test_register_behind_block_ram_is_within_it(simulate, width, depth, granularity, blocks):
    netlist = check_ram(simulate, width, depth, granularity, registered=True)
    assert netlist.cells["DP16KD"] == blocks
    # Two valid bits and nothing of the words.
    assert netlist.cells["TRELLIS_FF"] == 2
    assert netlist.verilog.count('REGMODE_B("OUTREG")') == blocks
    assert netlist.verilog.count('REGMODE_A("OUTREG")') == blocks * (width == 36)


@pytest.mark.parametrize(("a_bits", "b_bits"), [(18, 18), (5, 9)])
def test_multiplier(simulate, a_bits, b_bits):
    netlist = check_multiplier(simulate, a_bits, b_bits)
    assert netlist.cells["MULT18X18D"] == 1
    # Three valid bits and nothing of the data path.
    assert netlist.cells["TRELLIS_FF"] == Multiplier.LATENCY


def test_engine(simulate):
    assert check_engine(simulate).cells["MULT18X18D"] == 2


@pytest.mark.parametrize(("kind", "parameter", "value"), [
    ("DP16KD", "REGMODE_A", "INREG"), ("DP16KD", "REGMODE_B", "INREG"),
    ("DP16KD", "CSDECODE_A", "0b001"), ("DP16KD", "CLKBMUX", "INV"),
    ("DP16KD", "WRITEMODE_A", "FAST"), ("DP16KD", "DATA_WIDTH_A", 32),
    ("MULT18X18D", "REG_INPUTA_CLK", "CLK1"), ("MULT18X18D", "REG_OUTPUT_CLK", "CLK3"),
    ("MULT18X18D", "SOURCEB_MODE", "B_INPUT"),
])
def test_models_refuse_other_modes(kind, parameter, value):
    text = "".join(path.read_text() for path in simulation_sources()[:1])
    value = f'"{value}"' if isinstance(value, str) else value
    top = f"module top();\n{kind} #(.{parameter}({value})) dut();\nendmodule\n"
    with pytest.raises(VerilatorError, match=re.escape(parameter)):
        lint(text + top)
