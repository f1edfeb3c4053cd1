"""Row assignment: an order of hidden units in which every PE gets about as many weights.

Row ``i`` belongs to PE ``i mod N``. Which unit of a hidden layer is number ``i`` is free: the layer
that reads it has its columns in the same order. So matrices that were not pruned for balance can be
balanced without touching a weight.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from openese.model.matrix import CompressedMatrix, FixedMatrix
from openese.model.network import (
    CompressedBidirectional,
    CompressedLinear,
    CompressedNetwork,
    CompressedRecurrent,
)

__all__ = ["assign_units"]


def assign_units(network: CompressedNetwork, n_pes: int) -> CompressedNetwork:
    """The same network with its hidden units in an order that balances `n_pes` PEs.

    Reordered are outputs of a layer that another one reads, and the cells of an LSTM that has a
    projection, in every layer but bidirectional ones and those next to them. Outputs of the network
    keep their order; states of reordered layers come in the new one. All gates of a unit stay in
    one PE. The float network computes the same up to the order of additions, the integer one
    exactly the same.

    The largest unit goes to the least loaded PE that has a place, and so on.

    Raises
    ------
    ValueError
        `n_pes` is not 1 to 256.
    """
    if not isinstance(n_pes, int) or not 1 <= n_pes <= 256:
        raise ValueError(f"n_pes must be an integer from 1 to 256, not {n_pes!r}")
    layers = list(network.layers)
    for number, layer in enumerate(layers):
        if isinstance(layer, CompressedBidirectional):
            continue
        if isinstance(layer, CompressedRecurrent) and layer.w_hr is not None:
            order = _balanced_order(_unit_loads(layer), n_pes)
            layers[number] = layer = _with_units(layer, order)
            layers[number] = layer = replace(layer, w_hr=_moved(layer.w_hr, cols=order))
            loads = _row_loads(layer.w_hr)
        elif isinstance(layer, CompressedRecurrent):
            loads = _unit_loads(layer)
        else:
            loads = _row_loads(layer)
        after = layers[number + 1] if number + 1 < len(layers) else None
        if after is None or isinstance(after, CompressedBidirectional):
            continue
        order = _balanced_order(loads, n_pes)
        layers[number] = _with_outputs(layer, order)
        layers[number + 1] = (
            replace(after, w_ih=_moved(after.w_ih, cols=order))
            if isinstance(after, CompressedRecurrent) else _moved(after, cols=order))
    return replace(network, layers=layers)


def _row_loads(matrix) -> NDArray[np.int64]:
    return np.bincount(matrix.row_idx, minlength=matrix.rows)


def _unit_loads(layer: CompressedRecurrent) -> NDArray[np.int64]:
    """Weights in all gates of every unit."""
    rows = _row_loads(layer.w_ih) + _row_loads(layer.w_hh)
    return rows.reshape(-1, layer.hidden_size).sum(axis=0)


def _balanced_order(loads: NDArray[np.int64], n_pes: int) -> NDArray[np.int64]:
    """Units by their new number: unit ``order[i]`` becomes number ``i``."""
    size = len(loads)
    order = np.empty(size, dtype=np.int64)
    total = np.zeros(min(n_pes, size), dtype=np.float64)
    place = np.arange(len(total))
    for unit in np.argsort(-loads, kind="stable"):
        pe = int(np.argmin(total))
        order[place[pe]] = unit
        total[pe] += loads[unit]
        place[pe] += n_pes
        if place[pe] >= size:
            total[pe] = np.inf
    return order


def _moved(matrix: CompressedMatrix | FixedMatrix | CompressedLinear, *,
           rows: NDArray | None = None, cols: NDArray | None = None):
    """A matrix whose row ``i`` is the former ``rows[i]``, and the same of columns."""
    def inverse(order: NDArray | None, size: int) -> NDArray[np.int64]:
        if order is None:
            return np.arange(size)
        new = np.empty(size, dtype=np.int64)
        new[order] = np.arange(size)
        return new

    row = inverse(rows, matrix.rows)[matrix.row_idx]
    column = inverse(cols, matrix.cols)[matrix.columns]
    entry = np.lexsort((row, column))
    col_ptr = np.zeros(matrix.cols + 1, dtype=np.int64)
    np.cumsum(np.bincount(column, minlength=matrix.cols), out=col_ptr[1:])
    stored = "raw" if isinstance(matrix, FixedMatrix) else "code"
    return replace(matrix, col_ptr=col_ptr, row_idx=row[entry],
                   **{stored: getattr(matrix, stored)[entry]})


def _with_units(layer: CompressedRecurrent, order: NDArray) -> CompressedRecurrent:
    """A recurrent layer with its units in another order, but not what reads them."""
    units = layer.hidden_size

    def blocks(count: int) -> NDArray[np.int64]:
        return (np.arange(count)[:, None] * units + order).ravel()

    gates = blocks(layer.w_ih.rows // units)
    return replace(
        layer, w_ih=_moved(layer.w_ih, rows=gates), w_hh=_moved(layer.w_hh, rows=gates),
        bias=None if layer.bias is None else layer.bias[blocks(layer.slots)],
        peephole=None if layer.peephole is None else layer.peephole[:, order])


def _with_outputs(layer: CompressedLinear | CompressedRecurrent, order: NDArray
                  ) -> CompressedLinear | CompressedRecurrent:
    """A layer with its outputs in another order; its own state's columns follow."""
    if isinstance(layer, CompressedLinear):
        moved = _moved(layer, rows=order)
        return replace(moved, bias=None if layer.bias is None else layer.bias[order])
    if layer.w_hr is not None:
        layer = replace(layer, w_hr=_moved(layer.w_hr, rows=order))
    else:
        layer = _with_units(layer, order)
    return replace(layer, w_hh=_moved(layer.w_hh, cols=order))
