"""Pruning in steps: prune, retrain, prune deeper; or a little at every few training steps.

How to train is the user's own business: `prune_iteratively` calls the user's function, and
`GradualPruning` attaches to the user's optimizer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from openese.model.balance import Balance
from openese.model.prune import Handle, LayerPruning, Masks, expand_weights

__all__ = ["GradualPruning", "PruningStep", "cubic_density", "geometric_densities",
           "prune_iteratively"]

Density = float | Mapping[str, float]
MakeMasks = Callable[[nn.Module, Any], Masks]


def geometric_densities(final: Density, steps: int) -> list[Density]:
    """Densities of `steps` pruning steps down to `final`, each the same share of the one before.

    `final` is a density or a mapping to densities, and so is each element; the last one is
    `final`. Raises ``ValueError`` for a density that is not above 0 and at most 1, or no steps.
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, not {steps!r}")

    def at(number: int, density: float) -> float:
        if not 0 < density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, not {density!r}")
        return density ** (number / steps) if number < steps else density

    return [{path: at(n, d) for path, d in final.items()} if isinstance(final, Mapping)
            else at(n, final) for n in range(1, steps + 1)]


def cubic_density(progress: float, final: float, initial: float = 1.0) -> float:
    """Density at a point of a gradual schedule: ``final + (initial - final) (1 - progress)**3``.

    Fast at first, while there is much to remove, and slower towards the end (Zhu and Gupta 2017).
    `progress` below 0 counts as 0 and above 1 as 1. Raises ``ValueError`` for densities out of
    range or rising.
    """
    if not 0 <= final <= initial <= 1:
        raise ValueError(f"densities must fall from initial to final within 0 to 1, "
                         f"not from {initial!r} to {final!r}")
    return final + (initial - final) * (1 - min(max(progress, 0.0), 1.0)) ** 3


@dataclass(frozen=True)
class PruningStep:
    """What one round of pruning and retraining did.

    Parameters
    ----------
    target
        What the masks were made for, as given.
    layers
        The masks' table, with the weights as they were before retraining.
    pruned_score, score
        What `evaluate` returned after pruning and after retraining; ``None`` without it.
    """

    target: Any
    layers: list[LayerPruning]
    pruned_score: float | None
    score: float | None


def prune_iteratively(model: nn.Module, targets: Sequence[Any],
                      train: Callable[[nn.Module, Callable[[], None]], object], *,
                      masks: MakeMasks = Masks.by_density,
                      evaluate: Callable[[nn.Module], float] | None = None,
                      ) -> tuple[Masks, list[PruningStep]]:
    """Prune, retrain, prune deeper. One target is one-shot pruning.

    Parameters
    ----------
    model
        Trained; changed in place.
    targets
        One per round, for `masks`: with the default a density or a mapping to densities
        (`geometric_densities` makes such lists).
    train
        ``train(model, step_hook)`` retrains the model in any way and calls ``step_hook()`` after
        every step of its optimizer, which sets pruned weights back to 0. What it returns is not
        used.
    masks
        ``masks(model, target)`` makes the masks of a round; `Masks.by_density` (with a balance:
        ``functools.partial(Masks.by_density, balance=Balance(64))``), `Masks.by_quality`,
        `Masks.by_budget` or a function of your own. Weights pruned before are 0 and stay so.
    evaluate
        Measures the model after pruning and after retraining, for the record.

    Returns
    -------
    masks : of the last round
    steps : one `PruningStep` per round

    Raises
    ------
    ValueError
        No targets; a `train` that moved pruned weights and did not call ``step_hook`` at last: it
        would have trained another network than the one that is kept.
    """
    if not targets:
        raise ValueError("need at least one target")
    steps = []
    for number, target in enumerate(targets, start=1):
        current = masks(model, target)
        current.apply()
        layers = current.table()
        before = evaluate(model) if evaluate else None
        train(model, current.apply)
        for name in current.names:
            if model.get_parameter(name).detach()[~current[name]].any():
                raise ValueError(f"round {number}: pruned weights of {name!r} came back in "
                                 f"training; call step_hook() after every optimizer step")
        steps.append(PruningStep(target, layers, before, evaluate(model) if evaluate else None))
    return current, steps


class GradualPruning:
    """Masks that tighten while the user's training runs, along `cubic_density`.

    ::

        gradual = GradualPruning(model, 0.1, begin=500, end=5000, every=100)
        gradual.hold(optimizer)         # then an ordinary training loop

    After `begin` steps of the optimizer, after every `every` more and after `end`, the masks are
    made anew for the density of that moment; after `end` it is `final`, and from then on the
    masks only hold. A pruned weight never comes back: each set of masks lies within the last.

    Parameters
    ----------
    model
        Changed in place. Weights that are 0 at the start are pruned already.
    final
        Density for every layer, or a mapping from paths or patterns (`Masks.by_density`).
    begin, end, every
        In optimizer steps; ``0 <= begin < end``, ``every >= 1``.
    initial
        Density at `begin`.
    balance
        As for `Masks.by_density`.

    Raises
    ------
    ValueError
        Densities or steps out of range, a path that means nothing.
    """

    def __init__(self, model: nn.Module, final: Density, *, begin: int, end: int, every: int,
                 initial: float = 1.0, balance: Balance | None = None) -> None:
        if not 0 <= begin < end or every < 1:
            raise ValueError(f"need 0 <= begin < end and every >= 1, not begin {begin!r}, "
                             f"end {end!r}, every {every!r}")
        self._final = expand_weights(model, final, "to prune")
        for name, density in self._final.items():
            try:
                cubic_density(0.0, density, initial)
            except ValueError as error:
                raise ValueError(f"{name!r}: {error}") from None
        self._model, self._balance, self._initial = model, balance, initial
        self._begin, self._end, self._every = begin, end, every
        self._steps = 0
        self._masks = Masks(model, {name: model.get_parameter(name).detach() != 0
                                    for name in self._final})

    @property
    def masks(self) -> Masks:
        """The masks as they are now; always the same object."""
        return self._masks

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self._steps

    def densities(self) -> dict[str, float]:
        """What the schedule wants of each matrix now, by path; nothing yet before `begin`."""
        if self._steps < self._begin:
            return {}
        progress = (self._steps - self._begin) / (self._end - self._begin)
        return {name: cubic_density(progress, final, self._initial)
                for name, final in self._final.items()}

    def apply(self) -> None:
        """Tighten the masks if this is the moment, and set pruned weights to 0."""
        since, last = self._steps - self._begin, self._end - self._begin
        if 0 <= since <= last and (since % self._every == 0 or since == last):
            self._masks.load_state_dict(Masks.by_density(
                self._model, self.densities(), balance=self._balance).state_dict())
        self._masks.apply()

    def step(self) -> None:
        """Count a step of the optimizer and `apply`. Call it after each, or `hold` once."""
        self._steps += 1
        self.apply()

    def hold(self, optimizer: torch.optim.Optimizer) -> Handle:
        """`apply` now and `step` after every step of `optimizer`; see `Masks.hold`."""
        self.apply()
        masks = self._masks.hold(optimizer)
        counting = optimizer.register_step_post_hook(lambda *_: self.step())
        return Handle([masks.remove, counting.remove])

    def state_dict(self) -> dict[str, Any]:
        """Steps and masks, to be saved beside the states of model and optimizer."""
        return {"steps": self._steps, "masks": self._masks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; raises ``ValueError`` for another model's masks."""
        if set(state["masks"]) != set(self._masks.names):
            raise ValueError(f"the state has masks of {', '.join(state['masks']) or 'nothing'}, "
                             f"the schedule prunes {', '.join(self._masks.names)}")
        self._masks.load_state_dict(state["masks"])
        self._steps = int(state["steps"])
