"""Weight sharing: one-dimensional k-means and trained centroids.

Follows Deep Compression (Han et al. 2016, section 3): the non-zero weights of a matrix share
``2**code_bits - 1`` values; code 0 is reserved for pruned weights and always means 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from openese.model.prune import linear_weights, resolve_weight

__all__ = ["SharedWeights", "kmeans", "share_weights"]

INITS = ("linear", "density", "random")
# Smallest centroid that k-means leaves, as a share of the largest magnitude.
SMALLEST = 1 / 256


def kmeans(values: ArrayLike, k: int, *, init: str = "linear", seed: int = 0,
           max_iterations: int = 300) -> NDArray[np.float64]:
    """Centroids of one-dimensional k-means (Lloyd's iterations on sorted data).

    Parameters
    ----------
    values
        Finite numbers, any shape; at least one.
    k
        Number of centroids, 1 or more.
    init
        ``"linear"``: evenly over [min, max] (the paper's best: it keeps the few large weights);
        ``"density"``: evenly over the distribution's quantiles; ``"random"``: distinct values
        drawn with `seed` (Forgy).
    max_iterations
        Bound on the iterations; each costs O(k log n).

    Returns
    -------
    float64, rising, at most `k`. Where the values have no more than `k` distinct ones, exactly
    these are returned. A centroid nothing belongs to moves to the value that its own centroid
    represents worst, so that none is wasted.

    Raises
    ------
    ValueError
        No values, values that are not finite, `k` below 1, an unknown `init`.
    """
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, not {init!r}")
    if k < 1:
        raise ValueError(f"k must be 1 or more, not {k!r}")
    data = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    if data.size == 0:
        raise ValueError("k-means needs at least one value")
    if not np.isfinite(data).all():
        raise ValueError("k-means needs finite values (no NaN or infinity)")
    distinct = data[np.flatnonzero(np.diff(data, prepend=-np.inf))]
    if len(distinct) <= k:
        return distinct
    if init == "linear":
        centroids = np.linspace(data[0], data[-1], k)
    elif init == "density":
        centroids = data[((np.arange(k) + 0.5) / k * len(data)).astype(np.int64)]
    else:
        drawn = np.random.default_rng(seed).choice(len(distinct), k, replace=False)
        centroids = distinct[np.sort(drawn)]

    sums = np.concatenate(([0.0], np.cumsum(data)))
    last_bounds = None
    for _ in range(max_iterations):
        # Cluster c is data[bounds[c]:bounds[c + 1]]: with sorted data, clusters are intervals.
        middles = (centroids[:-1] + centroids[1:]) / 2
        bounds = np.concatenate(([0], np.searchsorted(data, middles), [len(data)]))
        if last_bounds is not None and np.array_equal(bounds, last_bounds):
            break
        last_bounds = bounds
        first, end = bounds[:-1], bounds[1:]
        used = end > first
        centroids = np.divide(sums[end] - sums[first], end - first, out=centroids.copy(),
                              where=used)
        if not used.all():
            # The worst represented value of an interval is one of its ends.
            ends = np.concatenate((data[first[used]], data[end[used] - 1]))
            error = np.abs(ends - np.tile(centroids[used], 2))
            idle = np.flatnonzero(~used)
            worst = np.argsort(-error, kind="stable")[:len(idle)]
            worst = worst[error[worst] > 0]
            centroids[idle[:len(worst)]] = ends[worst]
            centroids.sort()
    return np.unique(centroids)


def share_weights(weight: ArrayLike, code_bits: int, *, init: str = "linear", seed: int = 0
                  ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Share the non-zero weights of a matrix.

    Parameters
    ----------
    weight
        Finite numbers of any shape; zeros are pruned weights.
    code_bits
        1 to 8; there are ``2**code_bits - 1`` centroids.
    init, seed
        As for `kmeans`.

    Returns
    -------
    codes : uint8, the shape of `weight`; 0 exactly where the weight is 0
    codebook : float32 ``(2**code_bits,)``; entry 0 and the entries not needed are 0

    Notes
    -----
    Weights that already have no more distinct values than there are centroids are kept bit for
    bit (as float32). Otherwise no centroid is smaller in magnitude than 1/256 of the largest:
    one that falls near 0, where positive and negative weights cancel, moves out to that. At
    exactly 0 it would prune its weights unasked, and nearer to it, vanish in fixed point.

    Raises
    ------
    ValueError
        `code_bits` out of range, weights that are not finite, an unknown `init`.
    """
    if not 1 <= code_bits <= 8:
        raise ValueError(f"code_bits must be 1 to 8, not {code_bits!r}")
    weight = np.asarray(weight)
    codes = np.zeros(weight.shape, dtype=np.uint8)
    codebook = np.zeros(1 << code_bits, dtype=np.float32)
    alive = weight != 0
    values = weight[alive].astype(np.float64)
    if values.size:
        centroids = kmeans(values, len(codebook) - 1, init=init, seed=seed).astype(np.float32)
        index = _nearest(centroids, values)
        if not np.array_equal(centroids[index], values):
            largest = np.abs(centroids).max() or np.float32(np.abs(values).max())
            floor = largest * np.float32(SMALLEST)
            small = np.abs(centroids) < floor
            centroids = np.unique(np.where(small, np.copysign(floor, centroids), centroids))
            index = _nearest(centroids, values)
        codebook[1:len(centroids) + 1] = centroids
        codes[alive] = index + 1
    return codes, codebook


def _nearest(centroids: NDArray[np.float32], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the nearest of rising centroids to each value."""
    exact = centroids.astype(np.float64)
    return np.searchsorted((exact[:-1] + exact[1:]) / 2, values)


@dataclass
class _Shared:
    """Codes of one matrix (int64 on its device), the trained centroids, the last values used."""

    codes: torch.Tensor
    centroids: nn.Parameter
    last: torch.Tensor


class SharedWeights:
    """Weight-shared matrices of a model, and their centroids as trainable parameters.

    On construction the non-zero weights are shared by k-means and the weights of the model
    replaced by their centroids. Fine-tuning then trains the centroids, ``dL/dC_k`` being the sum
    of ``dL/dW`` over the weights of cluster ``k`` (Deep Compression, equation 3), while codes,
    and with them the pattern of zeros, stay as they are::

        shared = SharedWeights(model, code_bits=4)
        optimizer = torch.optim.Adam(shared.parameters(), lr=1e-4)
        shared.hold(optimizer)          # then an ordinary training loop

    Code 0 has no centroid: pruned weights are 0 whatever the optimizer does. A centroid that a
    step takes to exactly 0 keeps its previous value, because 0 would prune its weights.

    Parameters
    ----------
    model
        Its ``nn.Linear`` weights are replaced in place.
    code_bits
        1 to 8: one number for every ``nn.Linear``, or a mapping from paths (of a matrix or its
        module), which shares the named matrices and no others.
    init, seed
        As for `kmeans`.

    Raises
    ------
    ValueError
        As `share_weights`, naming the parameter; a path that the model does not have.
    """

    def __init__(self, model: nn.Module, code_bits: int | Mapping[str, int] = 4, *,
                 init: str = "linear", seed: int = 0) -> None:
        self._model = model
        self._shared: dict[str, _Shared] = {}
        if not isinstance(code_bits, Mapping):
            code_bits = dict.fromkeys(linear_weights(model), code_bits)
            if not code_bits:
                raise ValueError("the model has no nn.Linear to share")
        for path, bits in code_bits.items():
            name = resolve_weight(model, path)
            weight = model.get_parameter(name).detach()
            try:
                codes, codebook = share_weights(weight.double().cpu().numpy(), bits,
                                                init=init, seed=seed)
            except ValueError as error:
                raise ValueError(f"{name!r}: {error}") from None
            centroids = torch.from_numpy(codebook[1:]).to(weight)
            self._shared[name] = _Shared(torch.from_numpy(codes).to(weight.device, torch.int64),
                                         nn.Parameter(centroids), centroids.clone())
        self.apply()

    @property
    def names(self) -> list[str]:
        """Paths of the shared parameters."""
        return list(self._shared)

    def codes(self, name: str) -> NDArray[np.uint8]:
        """Codes of a matrix, uint8 in its shape; 0 where pruned."""
        return self._shared[name].codes.cpu().numpy().astype(np.uint8)

    def codebook(self, name: str) -> NDArray[np.float32]:
        """Codebook of a matrix, float32 ``(2**code_bits,)``; entry 0 is 0."""
        centroids = self._shared[name].centroids.detach().float().cpu().numpy()
        return np.concatenate((np.zeros(1, dtype=np.float32), centroids))

    def centroids(self, name: str) -> nn.Parameter:
        """The trained values of codes 1, 2, ... of a matrix."""
        return self._shared[name].centroids

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer should train: centroids, and the model's parameters not shared."""
        shared = {id(self._model.get_parameter(name)) for name in self._shared}
        others = [p for p in self._model.parameters() if id(p) not in shared]
        return [s.centroids for s in self._shared.values()] + others

    @torch.no_grad()
    def gather(self) -> None:
        """Sum each weight's gradient into its centroid's and clear it on the weight.

        Call it after the backward pass (or passes) and before the optimizer's step. The
        centroid's gradient is replaced: accumulation happens on the weights.
        """
        for name, shared in self._shared.items():
            weight = self._model.get_parameter(name)
            if weight.grad is None:
                shared.centroids.grad = None
                continue
            # Slot 0 collects the pruned weights' gradient and is dropped.
            total = weight.grad.new_zeros(len(shared.centroids) + 1)
            total.index_add_(0, shared.codes.flatten(), weight.grad.flatten())
            shared.centroids.grad = total[1:]
            weight.grad = None

    @torch.no_grad()
    def apply(self) -> None:
        """Write the centroids into the model's weights. Call it after the optimizer's step."""
        for name, shared in self._shared.items():
            centroids = shared.centroids
            centroids.copy_(torch.where(centroids == 0, shared.last, centroids))
            shared.last.copy_(centroids)
            table = torch.cat((centroids.new_zeros(1), centroids))
            self._model.get_parameter(name).copy_(table[shared.codes])

    def hold(self, optimizer: torch.optim.Optimizer) -> tuple:
        """`gather` before and `apply` after every step of `optimizer`.

        Returns the two handles; ``remove()`` on each ends it.
        """
        return (optimizer.register_step_pre_hook(lambda *_: self.gather()),
                optimizer.register_step_post_hook(lambda *_: self.apply()))
