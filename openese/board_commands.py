"""What the commands about boards do: `build`, `boards`, `flash`."""

from argparse import Namespace
from pathlib import Path

from .commands import Result, _lanes, _load_network

__all__ = ["build"]


def build(options: Namespace) -> Result:
    """A routed bitstream."""
    from openese.boards.build import build as run
    from openese.boards.build import find_board
    from openese.model.compile import compile_network, size_for
    from openese.model.quantise import quantise

    config = find_board(options.board).config
    network = _load_network(options.model)
    if options.pes is not None:
        config = size_for(network, options.pes, input_lanes=_lanes(options.pes))
    image = compile_network(quantise(network, config), config)
    report = run(image, options.board, seed=options.seed, target_mhz=options.target_mhz,
                 out_dir=Path(options.output), allow_timing_miss=options.allow_timing_miss)
    return Result(report.to_json(), _build_text(report))


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
