"""Load-balance-aware pruning: every processing element keeps equally many weights.

An array of PEs waits for the one with the most work (Han et al. 2017, ESE, section 3.1). Pruning
each PE's share of a matrix to the same count costs next to no accuracy and removes that wait; the
same count in every column as well removes the waits within a vector, which queues otherwise hide.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Balance", "balanced_mask", "load_ratio", "pe_counts"]


@dataclass(frozen=True)
class Balance:
    """How the rows of a matrix are spread over processing elements, and what is to be equal.

    Parameters
    ----------
    n_pes
        Number of PEs, 1 or more.
    per_column
        Equal counts per PE and column, not only per PE.
    group
        Number of stacked matrices whose rows ``u``, ``u + rows / group``, ... belong together:
        the gates of hidden unit ``u``. All of them go to PE ``u mod n_pes``. ``None`` takes it
        from the layer: 4 for the ``weight_ih`` and ``weight_hh`` of an ``nn.LSTM``, 3 for those
        of an ``nn.GRU``, else 1 (row ``i`` goes to PE ``i mod n_pes``).

    Raises
    ------
    ValueError
        A number below 1.
    """

    n_pes: int
    per_column: bool = False
    group: int | None = None

    def __post_init__(self) -> None:
        if self.n_pes < 1:
            raise ValueError(f"n_pes must be 1 or more, not {self.n_pes!r}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group must be 1 or more, not {self.group!r}")


def _split(weight: Tensor, n_pes: int, group: int, per_column: bool) -> Tensor:
    """Index of every weight of every cell, int64 ``(cells, size)``; -1 where a cell is smaller.

    A cell is a PE, or a PE and column: then PE ``p`` and column ``j`` are row ``p * cols + j``.
    """
    rows = weight.shape[0]
    if rows % group:
        raise ValueError(f"{rows} rows are no {group} stacked matrices of equal size")
    units, cols = rows // group, weight[0].numel()
    depth = -(-units // n_pes)
    row = torch.full((group, depth * n_pes), -1, device=weight.device)
    row[:, :units] = torch.arange(rows, device=weight.device).view(group, units)
    # One line of rows per PE, gate by gate.
    row = row.view(group, depth, n_pes).permute(2, 0, 1).reshape(n_pes, group * depth)
    column = torch.arange(cols, device=weight.device)
    if per_column:
        index = (row[:, None, :] * cols + column[None, :, None]).reshape(n_pes * cols, -1)
        empty = (row < 0)[:, None, :].expand(n_pes, cols, -1).reshape(index.shape)
    else:
        index = (row[:, :, None] * cols + column).reshape(n_pes, -1)
        empty = (row < 0)[:, :, None].expand(n_pes, -1, cols).reshape(index.shape)
    return index.masked_fill_(empty, -1)


def _level(capacity: Tensor, total: int) -> int:
    """The largest count for all with ``sum(min(capacity, count)) <= total``."""
    low, high = 0, int(capacity.max())
    while low < high:
        middle = (low + high + 1) // 2
        if int(capacity.clamp(max=middle).sum()) <= total:
            low = middle
        else:
            high = middle - 1
    return low


def balanced_mask(weight: Tensor, density: float, balance: Balance) -> Tensor:
    """Keep the weights of largest magnitude under equal counts per PE, or per PE and column.

    Returns a bool tensor of the weight's shape, True where kept. Rows are the first dimension;
    all others count as columns. As in `density_mask`, weights that are 0 are never kept and ties
    go to the first in memory order (within a PE gate by gate).

    Per PE, exactly ``round(density * numel)`` weights are kept (fewer where there are fewer
    non-zeros) and the counts of two PEs differ by at most 1; the PEs with one more are those
    whose next weight is largest.

    Per PE and column, all PEs keep the same count in any one column, and the counts of two
    columns differ by at most 1; the columns with one more are those whose next weights are
    largest. Equal counts come in steps of `n_pes` weights, so that the density is the nearest
    that these steps allow; where ``density * rows / n_pes`` is a whole number it is exact and
    every column has the same count.

    A PE cannot keep more than it has: where it has too few rows (``rows`` no multiple of `n_pes`,
    or below it) or too few non-zeros for the common count, it keeps all of them, and the others
    share the rest equally.

    Raises
    ------
    ValueError
        A density out of range, rows that are no multiple of `group`.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density must be 0 to 1, not {density!r}")
    group = balance.group or 1
    index = _split(weight, balance.n_pes, group, balance.per_column)
    magnitude = weight.detach().abs().flatten()
    mask = torch.zeros_like(magnitude, dtype=torch.bool)
    if not magnitude.any():
        return mask.view(weight.shape)
    # Index -1 would read the last weight; a magnitude of -1 sorts behind everything real.
    ranked, order = magnitude[index].masked_fill_(index < 0, -1).sort(
        dim=1, descending=True, stable=True)
    capacity = (ranked > 0).sum(dim=1)
    total = min(round(density * magnitude.numel()), int(capacity.sum()))
    level = _level(capacity, total)
    count = capacity.clamp(max=level)
    missing = total - int(count.sum())
    if missing:
        more = capacity > level
        following = ranked[:, level].double().masked_fill(~more, -1)
        if balance.per_column:
            more, following = more.view(balance.n_pes, -1), following.view(balance.n_pes, -1)
            takers = more.sum(dim=0)
            gain = following.clamp(min=0).sum(dim=0) / takers.clamp(min=1)
            best = gain.argsort(descending=True, stable=True)
            sums = torch.cumsum(takers[best], dim=0)
            # As many columns as bring the total nearest to the one asked for.
            wanted = int((torch.cat((sums.new_zeros(1), sums)) - missing).abs().argmin())
            extra = torch.zeros_like(more)
            extra[:, best[:wanted]] = True
            count += (extra & more).flatten()
        else:
            count[following.argsort(descending=True, stable=True)[:missing]] += 1
    kept = torch.arange(index.shape[1], device=index.device) < count[:, None]
    mask[index.gather(1, order)[kept]] = True
    return mask.view(weight.shape)


def pe_counts(weight: Tensor, balance: Balance) -> NDArray[np.int64]:
    """Non-zeros (or True) of a matrix or mask that each PE holds.

    Returns int64 ``(n_pes,)``, with ``per_column`` ``(n_pes, columns)``. Raises ``ValueError`` for
    rows that are no multiple of `group`.
    """
    index = _split(weight, balance.n_pes, balance.group or 1, balance.per_column)
    alive = (weight.detach() != 0).flatten()
    count = (alive[index] & (index >= 0)).sum(dim=1).cpu().numpy()
    return count.reshape(balance.n_pes, -1) if balance.per_column else count


def load_ratio(counts: NDArray[np.int64]) -> float:
    """Largest count / mean count, 1.0 where nothing is held: the slow-down by imbalance.

    Of counts per PE and column the largest of each column adds up, as if every PE waited for all
    others at the end of each column; queues do better.
    """
    counts = np.asarray(counts)
    total = int(counts.sum())
    return float(counts.max(axis=0).sum() * counts.shape[0] / total) if total else 1.0
