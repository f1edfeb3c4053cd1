"""Draws the charts of the README from the tables in bench/results: python bench/charts.py

Equal tables and an equal matplotlib give equal files.
"""

import argparse
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"

OURS, OTHERS, TEXT = "#1f6f8b", "#b8c4cc", "#33414a"


def table(page: Path, first: str) -> list[dict[str, str]]:
    """Rows of the table of a page whose first column is called `first`, by column.

    Raises
    ------
    ValueError
        The page has no such table.
    """
    rows, head = [], None
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]
        if head is None:
            head = cells if line.startswith("|") and cells[0] == first else None
        elif not line.startswith("|"):
            break
        elif not set("".join(cells)) <= set("-: "):
            rows.append(dict(zip(head, cells, strict=True)))
    if not rows:
        raise ValueError(f"{page}: no table whose first column is {first!r}")
    return rows


def number(text: str) -> float:
    """The number in a cell."""
    return float(re.sub(r"[^\d.]", "", text))


def axes(width: float, height: float):
    """A figure and its axes without frame."""
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(TEXT)
    axis.tick_params(colors=TEXT, length=0)
    return figure, axis


def utilisation():
    """Share of useful cycles on EIE's nine layers, beside the paper's."""
    rows = table(RESULTS / "eie.md", "layer")
    figure, axis = axes(8, 3)
    for offset, column, colour, label in ((-0.2, "utilisation", OURS, "openese, RTL"),
                                          (0.2, "EIE's", OTHERS, "EIE, the paper's actual times")):
        values = [number(row[column]) for row in rows]
        places = [place + offset for place in range(len(rows))]
        axis.bar(places, values, 0.38, color=colour, label=label)
        for place, value in zip(places, values, strict=True):
            axis.text(place, value + 0.01, f"{value:.2f}".lstrip("0"), ha="center", va="bottom",
                      fontsize=7.5, color=TEXT)
    axis.set_xticks(range(len(rows)), [row["layer"].replace(" ", "\n") for row in rows])
    axis.set_yticks([])
    axis.set_ylim(0, 1.05)
    axis.set_title("Multipliers doing useful work, 64 PEs", loc="left", color=TEXT, fontsize=11)
    axis.legend(loc="upper right", bbox_to_anchor=(1, 1.17), ncols=2, frameon=False, fontsize=9,
                labelcolor=TEXT)
    return figure


def ese_step():
    """Microseconds of a step of ESE's layer at batch 1."""
    rows = table(RESULTS / "cpu.md", "a step of ESE's layer")
    figure, axis = axes(8, 0.55 + 0.42 * len(rows))
    for place, row in enumerate(rows):
        us, name = number(row["us"]), row["a step of ESE's layer"]
        axis.barh(-place, us, 0.62, color=OURS if name.startswith("openese") else OTHERS)
        axis.text(us, -place, f" {us:.1f}", va="center", fontsize=9, color=TEXT)
    axis.set_yticks([-place for place in range(len(rows))],
                    [row["a step of ESE's layer"] for row in rows])
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.set_title("ESE's LSTM layer, one stream, microseconds a step", loc="left", color=TEXT,
                   fontsize=11)
    return figure


CHARTS = {"eie.svg": utilisation, "ese.svg": ese_step}


def main(arguments: list[str]) -> None:
    """Write the charts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs", metavar="DIR",
                        help="where to (default docs)")
    options = parser.parse_args(arguments)
    with matplotlib.rc_context({"svg.hashsalt": "openese", "font.family": "DejaVu Sans"}):
        for name, draw in CHARTS.items():
            figure = draw()
            path = options.output / name
            figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")
            plt.close(figure)
            print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
