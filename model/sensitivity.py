"""Sensitivity scan: what pruning one matrix alone, at several densities, does to the accuracy.

Tells how deep each layer can be pruned before any retraining (Han et al. 2015, figure 6).
"""

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from openese.model.balance import Balance
from openese.model.prune import Masks, expand_weights

__all__ = ["Sensitivity", "scan_sensitivity"]

DENSITIES = (1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03)


@dataclass(frozen=True)
class Sensitivity:
    """The result of a scan.

    Parameters
    ----------
    baseline
        Score of the model as it was.
    rows
        One dict per matrix and density, in the order measured: ``name``, ``density`` asked for,
        ``nonzeros`` left, ``score``.
    """

    baseline: float
    rows: list[dict]

    @property
    def names(self) -> list[str]:
        """Paths of the matrices."""
        return list(dict.fromkeys(row["name"] for row in self.rows))

    def densities(self, loss: float) -> dict[str, float]:
        """For each matrix the lowest density scanned down to which the score stays within `loss`.

        1.0 where none does. Losses add up when all are pruned at once: a start for `Masks` with
        retraining, not a promise. Raises ``ValueError`` for a negative loss.
        """
        if not loss >= 0:
            raise ValueError(f"loss must be 0 or more, not {loss!r}")
        found = dict.fromkeys(self.names, 1.0)
        for name in found:
            mine = [row for row in self.rows if row["name"] == name]
            for row in sorted(mine, key=lambda row: -row["density"]):
                if not row["score"] >= self.baseline - loss:  # also when it is no number
                    break
                found[name] = row["density"]
        return found

    def table(self) -> str:
        """Plain text: a line per matrix, a column per density."""
        columns = sorted({row["density"] for row in self.rows}, reverse=True)
        scores = {(row["name"], row["density"]): row["score"] for row in self.rows}
        head = ["weight", *(f"{density:.3g}" for density in columns)]
        lines = [head] + [
            [name, *(f"{scores[name, density]:.4g}" for density in columns)]
            for name in self.names
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join("  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in lines)

    def save_table(self, path: str | os.PathLike) -> None:
        """Write the rows as CSV with a header line."""
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["name", "density", "nonzeros", "score"])
            writer.writeheader()
            writer.writerows(self.rows)

    def save_plot(self, path: str | os.PathLike, *, score: str = "score") -> None:
        """Draw score against density, a line per matrix; the suffix decides on the format.

        `score` names the vertical axis. Raises ``ImportError`` without matplotlib, which the
        extra ``plot`` installs.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plots need matplotlib: pip install 'openese[plot]'") from error
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for name in self.names:
            points = sorted((row["density"], row["score"]) for row in self.rows
                            if row["name"] == name)
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.axhline(self.baseline, color="0.6", linewidth=0.8, linestyle="--", label="not pruned")
        axes.set(xlabel="density", ylabel=score)
        axes.legend()
        figure.savefig(path)


@torch.no_grad()
def scan_sensitivity(model: nn.Module, evaluate: Callable[[nn.Module], float], *,
                     densities: Sequence[float] = DENSITIES,
                     weights: Iterable[str] | None = None, balance: Balance | None = None,
                     progress: bool = True) -> Sensitivity:
    """Prune each matrix alone to each density and measure; nothing is retrained.

    Parameters
    ----------
    model
        Left as it was, bit for bit, also when `evaluate` raises.
    evaluate
        Returns a score of the model, larger being better: an accuracy, or an error negated.
    densities
        Tried on every matrix, each from the unpruned weights.
    weights
        Paths or patterns (`resolve_weights`); ``None`` means every layer.
    balance
        As for `Masks.by_density`.
    progress
        Progress bar on standard error.

    Raises
    ------
    ValueError
        No densities or one out of range, a path that means nothing.
    """
    if not densities:
        raise ValueError("need at least one density")
    names = expand_weights(model, None if weights is None else dict.fromkeys(weights), "to scan")
    baseline = evaluate(model)
    rows = []
    with tqdm(total=len(names) * len(densities), desc="scan", disable=not progress) as bar:
        for name in names:
            weight = model.get_parameter(name)
            before = weight.detach().clone()
            try:
                for density in densities:
                    mask = Masks.by_density(model, {name: density}, balance=balance)[name]
                    weight.masked_fill_(~mask, 0)
                    rows.append({"name": name, "density": density,
                                 "nonzeros": int(mask.sum()), "score": evaluate(model)})
                    weight.copy_(before)
                    bar.update()
            finally:
                weight.copy_(before)
    return Sensitivity(baseline, rows)
