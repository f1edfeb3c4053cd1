"""Weight sharing: one-dimensional k-means and trained centroids.

Follows Deep Compression (Han et al. 2016, section 3): the non-zero weights of a matrix share
``2**code_bits - 1`` values; code 0 is reserved for pruned weights and always means 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from ckmeans import ckmeans
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from openese.model.prune import Handle, before_closures, expand_weights

__all__ = ["ReplacedWeights", "SharedWeights", "kmeans", "share_weights"]

INITS = ("linear", "density", "random", "optimal")
# Values times clusters up to which optimal clustering takes every value: its tables take 13 bytes
# per pair, here half a gigabyte, and some seconds. 2.2 million values at 4 bits, 131,000 at 8.
EXACT = 1 << 25
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
        drawn with `seed` (Forgy); ``"optimal"``: the clusters of least squared error there are,
        by dynamic programming, which the iterations then leave as they are. Beyond 2**25 values
        x centroids it starts from the optimum of as many values as that allows, evenly over the
        ranks.
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
    elif init == "random":
        drawn = np.random.default_rng(seed).choice(len(distinct), k, replace=False)
        centroids = distinct[np.sort(drawn)]
    else:
        size = min(len(data), max(k, EXACT // k))
        sample = data[((np.arange(size) + 0.5) / size * len(data)).astype(np.int64)]
        centroids = np.array([cluster.mean() for cluster in ckmeans(sample, k)])

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


@dataclass(kw_only=True)
class Replacement:
    """A trained tensor that a weight is computed from.

    Parameters
    ----------
    trained
        What an optimizer trains in place of the weight.
    fresh
        Whether the gradient that `trained` has, if any, went into a step already.
    """

    trained: nn.Parameter
    fresh: bool = True


class ReplacedWeights(ABC):
    """Weights of a model that are computed from other tensors, which are trained instead.

    Holds what every such kind needs to work with any optimizer; see `SharedWeights`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._entries: dict[str, Replacement] = {}

    @abstractmethod
    def _gradient(self, entry: Replacement, gradient: Tensor) -> Tensor:
        """Gradient of the trained tensor from that of the weight."""

    @abstractmethod
    def _value(self, entry: Replacement) -> Tensor:
        """The weight from the trained tensor."""

    @property
    def names(self) -> list[str]:
        """Paths of the replaced parameters."""
        return list(self._entries)

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer should train: the tensors behind the replaced weights, and the
        model's other parameters."""
        replaced = {id(self._model.get_parameter(name)) for name in self._entries}
        others = [p for p in self._model.parameters() if id(p) not in replaced]
        return [entry.trained for entry in self._entries.values()] + others

    @torch.no_grad()
    def gather(self) -> None:
        """Turn each weight's gradient into that of its trained tensor and clear the weight's.

        Call it after the backward pass (or passes) and before the optimizer's step, unless `hold`
        does. The gradient is replaced, not added to: accumulation happens on the weights.
        """
        for name, entry in self._entries.items():
            entry.fresh = True
            self._take(self._model.get_parameter(name), entry)
        self._drop_used_gradients()

    @torch.no_grad()
    def _take(self, weight: nn.Parameter, entry: Replacement) -> None:
        if weight.grad is None:
            return
        gradient = self._gradient(entry, weight.grad)
        if entry.fresh or entry.trained.grad is None:
            entry.trained.grad = gradient
        else:
            entry.trained.grad += gradient
        entry.fresh = False
        weight.grad = None

    def _drop_used_gradients(self) -> None:
        for entry in self._entries.values():
            if entry.fresh:
                entry.trained.grad = None

    @torch.no_grad()
    def apply(self) -> None:
        """Compute the model's weights anew. Call it after the optimizer's step."""
        for name, entry in self._entries.items():
            self._model.get_parameter(name).copy_(self._value(entry))

    def hold(self, optimizer: torch.optim.Optimizer) -> Handle:
        """Do what `gather` does at every backward pass and `apply` after every step.

        Gradients of several backward passes before a step add up. Gradient scalers and clipping
        see the gradients of the trained tensors, as they should, and an optimizer that calls a
        closure (L-BFGS) sees each set of values it tries. ``remove()`` of the handle ends it.
        """
        removes = [optimizer.register_step_pre_hook(
                       lambda *_: self._drop_used_gradients()).remove,
                   before_closures(optimizer, self._renew).remove,
                   optimizer.register_step_post_hook(lambda *_: self._renew()).remove]
        for name, entry in self._entries.items():
            hook = self._model.get_parameter(name).register_post_accumulate_grad_hook(
                lambda weight, entry=entry: self._take(weight, entry))
            removes.append(hook.remove)
        return Handle(removes)

    def _renew(self) -> None:
        """New values: gradients so far belong to the old ones."""
        self.apply()
        for entry in self._entries.values():
            entry.fresh = True


@dataclass(kw_only=True)
class _Shared(Replacement):
    """Codes of one matrix (int64 on its device) and the last centroids used."""

    codes: Tensor
    last: Tensor


class SharedWeights(ReplacedWeights):
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
        The weights meant are replaced in place.
    code_bits
        1 to 8: one number for every layer (`layer_weights`), or a mapping from paths or patterns
        (`resolve_weights`; the later of two that mean one weight counts), which shares the
        matrices it means and no others.
    init, seed
        As for `kmeans`.

    Raises
    ------
    ValueError
        As `share_weights`, naming the parameter; a path that the model does not have.
    """

    def __init__(self, model: nn.Module, code_bits: int | Mapping[str, int] = 4, *,
                 init: str = "linear", seed: int = 0) -> None:
        super().__init__(model)
        self._entries: dict[str, _Shared] = {}
        for name, bits in expand_weights(model, code_bits, "to share").items():
            weight = model.get_parameter(name).detach()
            try:
                codes, codebook = share_weights(weight.double().cpu().numpy(), bits,
                                                init=init, seed=seed)
            except ValueError as error:
                raise ValueError(f"{name!r}: {error}") from None
            centroids = torch.from_numpy(codebook[1:]).to(weight)
            self._entries[name] = _Shared(
                trained=nn.Parameter(centroids), last=centroids.clone(),
                codes=torch.from_numpy(codes).to(weight.device, torch.int64))
        self.apply()

    def codes(self, name: str) -> NDArray[np.uint8]:
        """Codes of a matrix, uint8 in its shape; 0 where pruned."""
        return self._entries[name].codes.cpu().numpy().astype(np.uint8)

    def codebook(self, name: str) -> NDArray[np.float32]:
        """Codebook of a matrix, float32 ``(2**code_bits,)``; entry 0 is 0."""
        centroids = self._entries[name].trained.detach().float().cpu().numpy()
        return np.concatenate((np.zeros(1, dtype=np.float32), centroids))

    def centroids(self, name: str) -> nn.Parameter:
        """The trained values of codes 1, 2, ... of a matrix."""
        return self._entries[name].trained

    def _gradient(self, entry: _Shared, gradient: Tensor) -> Tensor:
        # Summed in float32 at least: half precision would lose most of a large cluster's sum.
        wide = torch.promote_types(gradient.dtype, torch.float32)
        # Slot 0 collects the pruned weights' gradient and is dropped.
        total = gradient.new_zeros(len(entry.trained) + 1, dtype=wide)
        total.index_add_(0, entry.codes.flatten(), gradient.flatten().to(wide))
        return total[1:].to(entry.trained.dtype)

    def _value(self, entry: _Shared) -> Tensor:
        centroids = entry.trained
        centroids.copy_(torch.where(centroids == 0, entry.last, centroids))
        entry.last.copy_(centroids)
        return torch.cat((centroids.new_zeros(1), centroids))[entry.codes]
