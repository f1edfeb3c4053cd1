"""What the commands about boards do: `build`, `boards`, `flash`."""

import importlib.metadata
from argparse import Namespace
from pathlib import Path

from .commands import Result, _lanes, _load_network, preset_engine

__all__ = ["boards", "build", "flash"]


def build(options: Namespace) -> Result:
    """A routed bitstream."""
    report = _build(options, options.model, options.empty)
    return Result(report.to_json(), _build_text(report))


def boards(options: Namespace) -> Result:
    """The boards there are, and the tools that are installed."""
    from openese.boards.flash import PROGRAM, ProgrammerError, find_programmer
    from openese.boards.platforms import BOARDS
    from openese.model.resources import engine_memories

    rows = [{
        "name": board.name, "device": board.device, "family": board.family.name,
        "n_pes": board.config.n_pes, "entries_per_pe": board.config.spmat_depth,
        "recurrent": board.config.recurrent,
        "memory_kbit": round(sum(m.bits for m in engine_memories(board.config)) / 1000),
        "clock_mhz": board.target_mhz, "link": board.link, "baud": board.baud,
        "programmer": [" ".join(a) for a in (board.sram, board.flash) if a is not None],
    } for board in BOARDS.values()]
    packages = dict.fromkeys(package for board in BOARDS.values()
                             for package in board.family.packages)
    tools = {package: _version(package) for package in packages}
    try:
        tools[PROGRAM] = str(find_programmer())
    except ProgrammerError:
        tools[PROGRAM] = None
    table = [("board", "device", "PEs", "entries/PE", "LSTM", "kbit", "MHz", "link")]
    table += [(row["name"], row["device"], str(row["n_pes"]), f"{row['entries_per_pe']:,}",
               "yes" if row["recurrent"] else "no", f"{row['memory_kbit']:,}",
               f"{row['clock_mhz']:g}", f"{row['link']}, {row['baud']:,} baud") for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.rjust(width) if 2 <= k <= 6 else cell.ljust(width) for k, (cell, width)
                       in enumerate(zip(row, widths, strict=True))).rstrip() for row in table]
    width = max(map(len, tools))
    lines += ["", *(f"{name.ljust(width)}  {found or 'not installed'}"
                    for name, found in tools.items())]
    return Result({"boards": rows, "tools": tools}, "\n".join(lines))


def flash(options: Namespace) -> Result:
    """A bitstream on a board."""
    from openese.boards.build import find_board
    from openese.boards.flash import find_programmer
    from openese.boards.flash import flash as run

    find_board(options.board)
    # Known before a build that takes minutes.
    find_programmer()
    bitstream = options.file
    if Path(bitstream).suffix == ".ese":
        bitstream = _build(options, bitstream, False).bitstream
    command = run(bitstream, options.board, permanent=options.flash)
    where = "flash memory" if options.flash else "device, until power goes"
    return Result({"board": options.board, "bitstream": str(bitstream), "flash": options.flash,
                   "command": command}, f"{bitstream} is on {options.board} ({where})")


def _build(options: Namespace, model: str | None, empty: bool):
    from openese.boards.build import build as run
    from openese.boards.build import find_board
    from openese.model.compile import compile_network, size_for
    from openese.model.quantise import quantise

    engine = find_board(options.board).config
    if options.preset is not None:
        engine = preset_engine(options)
    if model is None and not empty:
        raise ValueError("give MODEL.ese, or --empty for an engine that is loaded later")
    if model is None and options.pes is not None:
        raise ValueError("--pes needs MODEL.ese: the engine is sized for it; "
                         "--preset takes an engine as it is")
    if model is not None:
        network = _load_network(model)
        if options.pes is not None:
            engine = size_for(network, options.pes, input_lanes=_lanes(options.pes))
        if not empty:
            engine = compile_network(quantise(network, engine), engine)
    return run(engine, options.board, seed=options.seed, target_mhz=options.target_mhz,
               baud=options.baud, out_dir=Path(options.output),
               allow_timing_miss=options.allow_timing_miss)


def _build_text(report) -> str:
    lines = [
        f"{report.name}: {report.fmax_mhz:.1f} MHz routed, {report.constraint_mhz:.1f} MHz asked "
        f"for{'' if report.met else ': MISSED'}",
        f"  LUTs {report.luts:,}, registers {report.ffs:,}, block RAMs {report.brams}, "
        f"multipliers {report.multipliers}",
        f"  critical path  {report.critical_path}",
        f"  bitstream      {report.bitstream}",
        f"  tools          {report.seconds:.0f} s" + (" (from the cache)" if report.cached else ""),
    ]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
