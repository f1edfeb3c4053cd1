"""Magnitude pruning and masks that hold through any training.

Follows Han et al. 2015 ("Learning both Weights and Connections"): weights of small magnitude are
removed, layer by layer, and the rest is retrained. Parameters are addressed by path, so that what
holds for a Linear holds for the matrices of a recurrent layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "LayerPruning",
    "Masks",
    "density_mask",
    "linear_weights",
    "quality_mask",
    "resolve_weight",
]


def linear_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of every ``nn.Linear`` of a model, by the parameter's path, in module order."""
    return {
        f"{path}.weight" if path else "weight": module.weight
        for path, module in model.named_modules() if isinstance(module, nn.Linear)
    }


def resolve_weight(model: nn.Module, path: str) -> str:
    """Path of the matrix that `path` means: a parameter's path, or a module's with a ``weight``.

    ``"net.0.weight"`` and ``"net.0"`` mean the weight of the Linear at ``net.0``;
    ``"rnn.weight_ih_l0"`` that matrix of a recurrent layer.

    Raises
    ------
    ValueError
        No such parameter, or one that is no matrix (a bias); the text lists what there is.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    weight = f"{path}.weight" if path else "weight"
    name = path if path in parameters else weight
    if name not in parameters:
        known = ", ".join(repr(n) for n, p in parameters.items() if p.ndim == 2) or "none"
        raise ValueError(f"the model has no weight {path!r}; its matrices: {known}")
    if parameters[name].ndim != 2:
        raise ValueError(f"{name!r} is no matrix: shape {tuple(parameters[name].shape)}")
    return name


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
    if keep == 0:
        return torch.zeros_like(weight, dtype=torch.bool)
    smallest = magnitude.kthvalue(magnitude.numel() - keep + 1).values
    mask = magnitude > smallest
    ties = torch.nonzero(magnitude == smallest).flatten()
    mask[ties[:keep - int(mask.sum())]] = True
    return mask.view(weight.shape)


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


class Masks:
    """Masks of pruned matrices, by parameter path, that hold through any optimizer.

    Momentum, weight decay and Adam's moments move pruned weights although their gradient is 0,
    so the masks are applied after every step: call `apply` there, or once `hold`, which does it
    for you. Nothing else of the model is touched: a bias that is 0 trains on.

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
    def by_density(cls, model: nn.Module, density: float | Mapping[str, float]) -> "Masks":
        """Masks that keep a share of the weights by magnitude (`density_mask`).

        One number prunes every ``nn.Linear`` to that density; a mapping from paths prunes the
        named matrices and no others.
        """
        return cls._build(model, density, density_mask)

    @classmethod
    def by_quality(cls, model: nn.Module, quality: float | Mapping[str, float]) -> "Masks":
        """Masks that keep magnitudes above quality x standard deviation (`quality_mask`)."""
        return cls._build(model, quality, quality_mask)

    @classmethod
    def from_zeros(cls, model: nn.Module) -> "Masks":
        """Masks of every ``nn.Linear`` that keep exactly the weights that are not 0 now."""
        return cls(model, {n: p.detach() != 0 for n, p in linear_weights(model).items()})

    @classmethod
    def _build(cls, model, values, function) -> "Masks":
        if not isinstance(values, Mapping):
            values = dict.fromkeys(linear_weights(model), values)
            if not values:
                raise ValueError("the model has no nn.Linear to prune")
        masks = {}
        for path, value in values.items():
            name = resolve_weight(model, path)
            try:
                masks[name] = function(model.get_parameter(name), value)
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
        for name, mask in self._masks.items():
            parameter = self._model.get_parameter(name)
            if mask.device != parameter.device:
                mask = self._masks[name] = mask.to(parameter.device)
            # Filled, not multiplied: -w * 0 would leave a negative zero.
            parameter.masked_fill_(~mask, 0)
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~mask, 0)

    def hold(self, optimizer: torch.optim.Optimizer):
        """`apply` now and after every step of `optimizer`; returns a handle with ``remove()``."""
        self.apply()
        return optimizer.register_step_post_hook(lambda *_: self.apply())

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
