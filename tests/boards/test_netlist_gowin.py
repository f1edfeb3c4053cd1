# amaranth: UnusedElaboratable=no
"""Proves that what Yosys makes for Gowin devices computes what the RTL does: block RAMs of every
width, LUT RAM, the multiplier with -1 times -1 and the smallest times the smallest operand, and a
whole engine that equals the integer reference, simulated in Verilator with our models of the
primitives. Also that no carry chain is in a netlist, and that these models stop at what they do not
model and give wrong data for undefined reads."""

import re

import pytest

from openese.boards.build import simulation_sources
from openese.hdl.multiply import Multiplier
from openese.sim.verilator import VerilatorError, lint

from .netlists import check_engine, check_multiplier, check_ram, simulator


@pytest.fixture
def simulate(tmp_path):
    """Synthesise a component and simulate the netlist."""
    return simulator("tang-nano-9k", tmp_path)


def count(netlist, *prefixes):
    """Cells whose name starts so."""
    return sum(n for kind, n in netlist.cells.items() if kind.startswith(prefixes))


@pytest.mark.parametrize(("width", "depth", "granularity", "blocks"), [
    (1, 16384, 1, 1), (4, 4096, 4, 1), (8, 2048, 8, 1), (9, 2048, 9, 1), (16, 1024, 8, 1),
    (18, 1024, 18, 1), (32, 512, 8, 1), (36, 512, 9, 1), (13, 2048, 13, 2),
])
def test_block_ram(simulate, width, depth, granularity, blocks):
    netlist = check_ram(simulate, width, depth, granularity)
    assert count(netlist, "SDP", "DP") == blocks


@pytest.mark.parametrize(("board", "a_bits", "b_bits"), [
    ("tang-nano-9k", 18, 18), ("tang-nano-9k", 5, 9), ("tang-nano-20k", 18, 18),
])
def test_multiplier(tmp_path, board, a_bits, b_bits):
    netlist = check_multiplier(simulator(board, tmp_path), a_bits, b_bits)
    assert netlist.cells["MULT18X18"] == 1
    # Three valid bits and nothing of the data path.
    assert count(netlist, "DFF") == Multiplier.LATENCY


def test_engine(simulate):
    netlist = check_engine(simulate)
    assert netlist.cells["MULT18X18"] == 2
    assert count(netlist, "RAM16SDP") > 0
    assert count(netlist, "ALU") == 0


@pytest.mark.parametrize(("kind", "parameter", "value"), [
    ("SDPB", "READ_MODE", 1), ("SDPX9B", "READ_MODE", 1),
    ("DPB", "READ_MODE0", 1), ("DPX9B", "READ_MODE1", 1),
    ("DPB", "WRITE_MODE0", 2), ("DPX9B", "WRITE_MODE1", 2),
    ("SDPB", "BIT_WIDTH_0", 9), ("SDPX9B", "BIT_WIDTH_1", 4),
    ("MULT18X18", "ASIGN_REG", 1), ("MULT18X18", "BSIGN_REG", 1),
    ("MULT18X18", "SOA_REG", 0),
])
def test_models_refuse_other_modes(kind, parameter, value):
    text = simulation_sources("tang-nano-9k")[0].read_text()
    top = f"module top();\n{kind} #(.{parameter}({value})) dut();\nendmodule\n"
    with pytest.raises(VerilatorError, match=re.escape(parameter)):
        lint(text + top)
