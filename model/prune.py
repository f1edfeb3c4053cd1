"""Magnitude pruning and masks that hold through any training.

Follows Han et al. 2015 ("Learning both Weights and Connections"): weights of small magnitude are
removed, layer by layer, and the rest is retrained. Parameters are addressed by path, so that what
holds for a Linear holds for the matrices of a recurrent layer and of the user's own modules.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn

from openese.model.balance import Balance, balanced_mask

__all__ = [
    "Handle",
    "LayerPruning",
    "Masks",
    "before_closures",
    "density_mask",
    "expand_weights",
    "gates_of",
    "layer_weights",
    "quality_mask",
    "resolve_weight",
    "resolve_weights",
]

Value = TypeVar("Value")
LAYERS = "Linear, Conv2d or recurrent layer"
SCALES = (None, "std", "norm")


def layer_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of every layer that can be compressed, by the parameter's path, in module order.

    These are the ``weight`` of ``nn.Linear`` and ``nn.Conv2d`` and the matrices (``weight_ih...``,
    ``weight_hh...``, ``weight_hr...``) of ``nn.RNN``, ``nn.GRU``, ``nn.LSTM`` and their cells. A
    parameter that two layers share appears once, under its first path.

    Raises
    ------
    ValueError
        A layer whose weight is not its own parameter: parametrized, pruned by
        ``torch.nn.utils.prune``, or lazy and not run yet.
    """
    found: dict[str, nn.Parameter] = {}
    seen = set()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            names = ["weight"]
        elif isinstance(module, nn.RNNBase):
            kinds = ["ih", "hh", "hr"] if module.proj_size else ["ih", "hh"]
            ends = ["", "_reverse"] if module.bidirectional else [""]
            names = [f"weight_{kind}_l{layer}{end}" for layer in range(module.num_layers)
                     for end in ends for kind in kinds]
        elif isinstance(module, nn.RNNCellBase):
            names = ["weight_ih", "weight_hh"]
        else:
            continue
        own = dict(module.named_parameters(recurse=False))
        for name in names:
            if name not in own or nn.parameter.is_lazy(own[name]):
                raise ValueError(
                    f"{path!r} ({type(module).__name__}) has no {name!r} of its own to compress; "
                    f"remove its parametrization or torch.nn.utils.prune, or run a lazy layer once")
            if id(own[name]) not in seen:
                seen.add(id(own[name]))
                found[f"{path}.{name}" if path else name] = own[name]
    return found


def gates_of(model: nn.Module, name: str) -> int:
    """Number of gates stacked in the rows of a weight: 4 in an LSTM, 3 in a GRU, else 1."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if not own.startswith(("weight_ih", "weight_hh")):
        return 1
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return 4
    return 3 if isinstance(module, nn.GRU | nn.GRUCell) else 1


def resolve_weights(model: nn.Module, path: str) -> list[str]:
    """Paths of the weights that `path` means, at least one, in the model's order.

    In this order of precedence: a parameter's path; a module's path, which means its ``weight``
    or all layers in it (`layer_weights`); a pattern with ``*``, ``?`` or ``[...]`` as of
    ``fnmatch``, in which ``*`` crosses dots, of the paths of parameters with two dimensions or
    more. ``"net.0"`` means ``"net.0.weight"``, ``"rnn"`` all matrices of the recurrent layer
    ``rnn``, ``"*.weight_hh_l*"`` the recurrent matrices of every layer.

    Raises
    ------
    ValueError
        Nothing of that name, or only a parameter with one dimension (a bias); the text lists what
        there is.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    weight = f"{path}.weight" if path else "weight"
    name = path if path in parameters else weight
    if name in parameters:
        if parameters[name].ndim < 2:
            raise ValueError(f"{name!r} is no matrix: shape {tuple(parameters[name].shape)}")
        return [name]
    if path in dict(model.named_modules(remove_duplicate=False)):
        inside = f"{path}." if path else ""
        found = [inside + name for name in layer_weights(model.get_submodule(path))]
    else:
        found, seen = [], set()
        for name, parameter in parameters.items():
            if parameter.ndim >= 2 and id(parameter) not in seen and fnmatchcase(name, path):
                seen.add(id(parameter))
                found.append(name)
    if not found:
        known = ", ".join(repr(n) for n, p in parameters.items() if p.ndim >= 2) or "none"
        raise ValueError(f"the model has no weight {path!r}; its matrices: {known}")
    return found


def resolve_weight(model: nn.Module, path: str) -> str:
    """The one weight that `path` means (`resolve_weights`).

    Raises ``ValueError`` as that does, and where the path means several weights.
    """
    names = resolve_weights(model, path)
    if len(names) > 1:
        raise ValueError(f"{path!r} means several weights: {', '.join(map(repr, names))}")
    return names[0]


def expand_weights(model: nn.Module, values: Value | Mapping[str, Value], purpose: str
                   ) -> dict[str, Value]:
    """A value for each weight that is meant, by the parameter's path.

    One value goes to every layer's weights (`layer_weights`). A mapping goes from paths and
    patterns (`resolve_weights`) to values and touches the weights named and no others; where two
    keys mean the same weight the later one counts.

    Raises
    ------
    ValueError
        No weight is meant (names `purpose`), a path that means nothing, or two paths of one and
        the same tensor.
    """
    if not isinstance(values, Mapping):
        values = dict.fromkeys(layer_weights(model), values)
    expanded = {name: value for path, value in values.items()
                for name in resolve_weights(model, path)}
    if not expanded:
        raise ValueError(f"the model has no {LAYERS} {purpose}; name its weights by a pattern")
    paths: dict[int, str] = {}
    for name in expanded:
        other = paths.setdefault(id(model.get_parameter(name)), name)
        if other != name:
            raise ValueError(f"{name!r} and {other!r} are one and the same tensor; name one")
    return expanded


def _largest(score: Tensor, keep: int) -> Tensor:
    """Mask of the `keep` largest scores of a vector; the first among equals."""
    mask = torch.zeros_like(score, dtype=torch.bool)
    if keep:
        smallest = score.kthvalue(score.numel() - keep + 1).values
        mask = score > smallest
        ties = torch.nonzero(score == smallest).flatten()
        mask[ties[:keep - int(mask.sum())]] = True
    return mask


def density_mask(weight: Tensor, density: float) -> Tensor:
    """Keep the ``round(density * numel)`` weights of largest magnitude.

    Returns a bool tensor of the same shape, True where kept. The count is exact: among equal
    magnitudes the first in memory order are kept. A weight that is 0 is pruned already and never
    kept, so that pruning again cannot revive it and the count is at most that of the non-zeros.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density must be 0 to 1, not {density!r}")
    magnitude = weight.detach().abs().flatten()
    keep = min(round(density * magnitude.numel()), int(torch.count_nonzero(magnitude)))
    return _largest(magnitude, keep).view(weight.shape)


def quality_mask(weight: Tensor, quality: float) -> Tensor:
    """Keep weights with ``|w| > quality * std(w)``; bool, True where kept.

    The standard deviation is that of the non-zero weights (population, about their mean), so
    that a layer pruned before is measured by what is left of it.
    """
    if not quality >= 0:
        raise ValueError(f"quality must be 0 or more, not {quality!r}")
    return weight.detach().abs() > quality * _std(weight)


def _std(weight: Tensor) -> float:
    alive = weight.detach()[weight.detach() != 0].double()
    return float(alive.std(unbiased=False)) if alive.numel() else 0.0


@dataclass(frozen=True)
class LayerPruning:
    """What pruning left of one matrix: a row of the pruning table.

    Parameters
    ----------
    name
        Path of the parameter.
    weights, nonzeros
        Number of weights before and after.
    threshold
        Smallest magnitude kept; 0 where nothing is.
    """

    name: str
    weights: int
    nonzeros: int
    threshold: float

    @property
    def density(self) -> float:
        """Non-zeros / weights ("alive")."""
        return self.nonzeros / self.weights

    @property
    def rate(self) -> float:
        """Weights / non-zeros; infinite where nothing is left."""
        return self.weights / self.nonzeros if self.nonzeros else float("inf")


def before_closures(optimizer: torch.optim.Optimizer, prepare: Callable[[], None]):
    """Call `prepare` before each call of a closure that is given to ``optimizer.step``.

    Without a closure, nothing is called. Returns the hook's handle.
    """
    def before(_, args: tuple, kwargs: dict):
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            return None

        def evaluate():
            prepare()
            return closure()

        return args[:1], {**kwargs, "closure": evaluate}

    return optimizer.register_step_pre_hook(before)


class Handle:
    """Ends what a ``hold`` began, once, by `remove`; like a hook's handle in PyTorch."""

    def __init__(self, removes: Iterable[Callable[[], None]]) -> None:
        self._stack = ExitStack()
        for remove in removes:
            self._stack.callback(remove)

    def remove(self) -> None:
        """Take the hooks off; nothing happens the second time."""
        self._stack.close()


class Masks:
    """Masks of pruned matrices, by parameter path, that hold through any optimizer.

    Momentum, weight decay and Adam's moments move pruned weights although their gradient is 0,
    so the masks are applied after every step: call `apply` there, or once `hold`, which does it
    for you. Nothing else of the model is touched: a bias that is 0 trains on. Parameters are
    changed in place, so that what a recurrent layer keeps of them (``_flat_weights``) stays right.

    Parameters
    ----------
    model
        The model whose parameters the masks belong to; its weights are not changed until `apply`.
    masks
        Bool tensors, True where a weight is kept, by the path of a parameter or of its module.

    Raises
    ------
    ValueError
        A path the model does not have, or a mask of another shape or type.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self._model = model
        self._masks: dict[str, Tensor] = {}
        for path, mask in masks.items():
            name = resolve_weight(model, path)
            self._check(name, mask)
            self._masks[name] = mask.detach().clone()

    @classmethod
    def by_density(cls, model: nn.Module, density: float | Mapping[str, float], *,
                   balance: Balance | None = None) -> "Masks":
        """Masks that keep a share of each matrix by magnitude.

        Parameters
        ----------
        model
            Weights that are 0 are pruned already and stay so.
        density
            One number for every layer (`layer_weights`), or a mapping from paths or patterns
            (`resolve_weights`; the later of two that mean one weight counts), which prunes the
            matrices it means and no others.
        balance
            Prune to equal counts per PE (`balanced_mask`). Without a `group` of its own the gates
            of a recurrent layer stay together.

        Raises
        ------
        ValueError
            A density out of range, a path that means nothing, weights that are not finite.
        """
        if balance is None:
            return cls._build(model, density, lambda _, weight, d: density_mask(weight, d))

        def mask(name: str, weight: Tensor, value: float) -> Tensor:
            group = balance.group or gates_of(model, name)
            return balanced_mask(weight, value, replace(balance, group=group))

        return cls._build(model, density, mask)

    @classmethod
    def by_quality(cls, model: nn.Module, quality: float | Mapping[str, float]) -> "Masks":
        """Masks that keep magnitudes above quality x standard deviation (`quality_mask`).

        `quality` is one number or a mapping, as the density of `by_density`.
        """
        return cls._build(model, quality, lambda _, weight, q: quality_mask(weight, q))

    @classmethod
    def by_budget(cls, model: nn.Module, density: float, *, weights: Iterable[str] | None = None,
                  scale: str | None = None, minimum: float = 0.0) -> "Masks":
        """Masks that keep a share of all weights together: one threshold for every layer.

        Parameters
        ----------
        density
            Of all the weights meant; the count is exact, as in `density_mask`.
        weights
            Paths or patterns (`resolve_weights`); ``None`` means every layer.
        scale
            What each matrix's magnitudes are divided by before they are compared: ``None``
            nothing, ``"std"`` the standard deviation of its non-zeros, ``"norm"`` its L2 norm,
            which spares small matrices.
        minimum
            Density that every matrix keeps whatever the threshold, so that none is cut off.

        Raises
        ------
        ValueError
            As `by_density`; an unknown scale, a minimum that is not between 0 and `density`.
        """
        if not 0 <= density <= 1:
            raise ValueError(f"density must be 0 to 1, not {density!r}")
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(map(repr, SCALES))}, not {scale!r}")
        if not 0 <= minimum <= density:
            raise ValueError(f"minimum must be 0 to the density {density!r}, not {minimum!r}")
        values = minimum if weights is None else dict.fromkeys(weights, minimum)
        # The minimum's masks first: they check the weights, too.
        floor = cls._build(model, values, lambda _, weight, d: density_mask(weight, d))
        scores = []
        for name, forced in floor._masks.items():
            weight = model.get_parameter(name).detach()
            score = weight.abs().double()
            if scale is not None and weight.any():
                score = score / (_std(weight) or 1.0) if scale == "std" else score / score.norm()
            scores.append(score.masked_fill(forced, torch.inf).flatten().cpu())
        scores = torch.cat(scores)
        keep = min(round(density * scores.numel()), int(torch.count_nonzero(scores)))
        kept = _largest(scores, max(keep, int(scores.isinf().sum())))
        parts = kept.split([mask.numel() for mask in floor._masks.values()])
        return cls(model, {name: part.view(mask.shape).to(mask.device) for (name, mask), part
                           in zip(floor._masks.items(), parts, strict=True)})

    @classmethod
    def from_zeros(cls, model: nn.Module) -> "Masks":
        """Masks of every layer (`layer_weights`) that keep exactly the weights not 0 now."""
        return cls(model, {n: p.detach() != 0 for n, p in layer_weights(model).items()})

    @classmethod
    def _build(cls, model, values, function) -> "Masks":
        masks = {}
        for name, value in expand_weights(model, values, "to prune").items():
            weight = model.get_parameter(name).detach()
            if not weight.isfinite().all():
                raise ValueError(f"{name!r}: its weights are not all finite (NaN or infinity)")
            try:
                masks[name] = function(name, weight, value)
            except ValueError as error:
                raise ValueError(f"{name!r}: {error}") from None
        return cls(model, masks)

    def _check(self, name: str, mask: Tensor) -> None:
        shape = self._model.get_parameter(name).shape
        if mask.dtype != torch.bool or mask.shape != shape:
            raise ValueError(f"mask of {name!r} must be bool {tuple(shape)}, "
                             f"not {mask.dtype} {tuple(mask.shape)}")

    def __getitem__(self, name: str) -> Tensor:
        """The mask of a parameter, by its path; bool, True where kept."""
        return self._masks[name]

    @property
    def names(self) -> list[str]:
        """Paths of the masked parameters."""
        return list(self._masks)

    @torch.no_grad()
    def apply(self) -> None:
        """Set pruned weights, and their gradients where there are any, to exactly 0.

        Call it after every optimizer step. Called after the backward pass as well, it keeps
        pruned weights out of a gradient's norm.
        """
        for name in self._masks:
            parameter = self._model.get_parameter(name)
            # Filled, not multiplied: -w * 0 would leave a negative zero.
            parameter.masked_fill_(~self._mask(name, parameter), 0)
            self._mask_gradient(name, parameter)

    def _mask(self, name: str, parameter: Tensor) -> Tensor:
        if self._masks[name].device != parameter.device:
            self._masks[name] = self._masks[name].to(parameter.device)
        return self._masks[name]

    @torch.no_grad()
    def _mask_gradient(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(~self._mask(name, parameter), 0)

    def hold(self, optimizer: torch.optim.Optimizer) -> Handle:
        """`apply` now and after every step of `optimizer`; ``remove()`` of the handle ends it.

        Until then the gradients of pruned weights are 0 as soon as a backward pass has made them,
        and count in no gradient's norm. An optimizer that calls a closure within its step
        (L-BFGS) finds them 0 at each call, whatever it tried.

        A mask stays where it is: call ``remove()`` before you reorder the rows or columns of a
        weight, and make new masks afterwards (`from_zeros`).
        """
        self.apply()
        removes = [before_closures(optimizer, self.apply).remove,
                   optimizer.register_step_post_hook(lambda *_: self.apply()).remove]
        for name in self._masks:
            hook = self._model.get_parameter(name).register_post_accumulate_grad_hook(
                lambda parameter, name=name: self._mask_gradient(name, parameter))
            removes.append(hook.remove)
        return Handle(removes)

    def table(self) -> list[LayerPruning]:
        """One row per matrix, from the masks and the weights as they are now."""
        rows = []
        for name, mask in self._masks.items():
            weight = self._model.get_parameter(name).detach()
            alive = weight[mask.to(weight.device)].abs()
            rows.append(LayerPruning(name, mask.numel(), int(mask.sum()),
                                     float(alive.min()) if alive.numel() else 0.0))
        return rows

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, by parameter path, to be saved beside the model's ``state_dict``."""
        return {name: mask.clone() for name, mask in self._masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over masks saved by `state_dict`; names and shapes must be those of the model.

        Raises ``ValueError`` and changes nothing when they are not.
        """
        self._masks = Masks(self._model, state)._masks
