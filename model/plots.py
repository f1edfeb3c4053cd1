"""Plots of a compressed network or model: weights, gaps and the balance of processing elements."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openese.model.ese_file import code_matrix
from openese.model.matrix import FixedMatrix, SparseColumns
from openese.model.network import CompressedNetwork
from openese.model.state import CompressedModel, CompressedTensor

__all__ = ["compressed_matrices", "entry_gaps", "plot_balance", "plot_gaps", "plot_weights"]

#: Columns of panels, and the size of one in inches.
ACROSS, PANEL = 3, (4.0, 2.6)


def compressed_matrices(network: CompressedNetwork | CompressedModel) -> dict[str, SparseColumns]:
    """The compressed matrices of a network or model by name, in order."""
    if isinstance(network, CompressedNetwork):
        return {layer.name: layer for layer in network.layers}
    return {tensor.name: tensor.matrix for tensor in network.tensors
            if isinstance(tensor, CompressedTensor)}


def entry_gaps(matrix: SparseColumns) -> NDArray[np.int64]:
    """Zeros before every weight in the order in which the file stores them, int64 ``(nnz,)``."""
    by_row = matrix.row_idx.astype(np.int64) * matrix.cols + matrix.columns
    by_column = matrix.columns * matrix.rows + matrix.row_idx
    position = by_column if code_matrix(matrix).by_column else np.sort(by_row)
    return np.diff(position, prepend=-1) - 1


def plot_weights(network: CompressedNetwork | CompressedModel, path: str | Path,
                 before: Mapping[str, NDArray] | None = None) -> None:
    """Histogram of the weights of each matrix, and its centroids as ticks below it (PNG).

    `before` gives weights before sharing by the matrix's name; without, the shared weights
    themselves are counted. Pruned weights are left out. Raises ``ImportError`` without
    matplotlib, which the extra ``plot`` installs.
    """
    matrices = compressed_matrices(network)
    figure, panels = _panels(len(matrices))
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        values = np.asarray((before or {}).get(name, matrix.values), dtype=np.float64)
        axes.hist(values[values != 0], bins=80, color="tab:blue")
        if not isinstance(matrix, FixedMatrix):
            used = matrix.codebook[np.unique(matrix.code)]
            axes.plot(used, np.zeros(len(used)), "|", color="tab:red", markersize=14)
        axes.set_title(f"{name}, {matrix.density:.1%} kept", fontsize=9)
    _save(figure, path, "weight (red: centroids)", "weights")


def plot_gaps(network: CompressedNetwork | CompressedModel, path: str | Path) -> None:
    """Histogram of the gaps between weights, as stored, of each matrix (PNG).

    Raises ``ImportError`` without matplotlib.
    """
    matrices = compressed_matrices(network)
    figure, panels = _panels(len(matrices))
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        gap = entry_gaps(matrix)
        top = int(np.quantile(gap, 0.99)) if len(gap) else 0
        axes.hist(np.minimum(gap, top + 1), bins=min(top + 2, 100), color="tab:green")
        axes.set_title(f"{name}, mean {gap.mean() if len(gap) else 0:.1f}", fontsize=9)
    _save(figure, path, "zeros between weights (the last bar: all larger)", "weights")


def plot_balance(counts: Mapping[str, NDArray], path: str | Path) -> None:
    """Weights per processing element of each matrix (PNG), from counts ``(n_pes,)`` by name.

    Raises ``ImportError`` without matplotlib.
    """
    figure, panels = _panels(len(counts))
    for axes, (name, count) in zip(panels, counts.items(), strict=True):
        axes.bar(np.arange(len(count)), count, color="tab:orange")
        mean = count.mean()
        axes.axhline(mean, color="black", linewidth=0.8)
        ratio = count.max() / mean if mean else 1.0
        axes.set_title(f"{name}, max / mean {ratio:.2f}", fontsize=9)
    _save(figure, path, "processing element", "weights")


def _panels(count: int) -> tuple[Any, list]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'openese[plot]'") from error
    across = min(count, ACROSS) or 1
    down = -(-count // across) or 1
    figure = Figure(figsize=(PANEL[0] * across, PANEL[1] * down), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for empty in panels[count:]:
        empty.set_axis_off()
    return figure, panels[:count]


def _save(figure: Any, path: str | Path, below: str, beside: str) -> None:
    figure.supxlabel(below, fontsize=9)
    figure.supylabel(beside, fontsize=9)
    figure.savefig(path, format="png", dpi=110)
