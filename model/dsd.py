"""Dense-sparse-dense training: a driver around any training step.

Follows Han et al. 2017 ("DSD"): train, prune by magnitude and retrain under that fixed mask, then
drop the mask, so that the pruned weights start again at 0, and train everything at a tenth of the
learning rate. The result is a dense network; the time under the mask is a regulariser.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from openese.model.prune import Masks

__all__ = ["CheckpointError", "Phase", "dsd_phases", "run_phases"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one optimizer, all of it dense or all of it under one mask.

    Parameters
    ----------
    name
        For logs: ``"dense"``, ``"sparse"``, ``"redense"`` or any other.
    epochs
        How often the user's training step is called, 0 or more.
    rate
        Factor on the learning rate, for the function that makes the phase's optimizer.
    sparsity
        Share of weights to prune when the phase starts, 0 to 1: one number for every layer, or a
        mapping from paths for these alone, both as `Masks.by_density` takes ``1 - sparsity``.
        ``None``: no mask.

    Raises
    ------
    ValueError
        A number out of range.
    """

    name: str
    epochs: int
    rate: float = 1.0
    sparsity: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"phase {self.name!r}: epochs must be 0 or more, not {self.epochs!r}")
        if not self.rate > 0:
            raise ValueError(f"phase {self.name!r}: rate must be positive, not {self.rate!r}")
        shares = self.sparsity.values() if isinstance(self.sparsity, Mapping) else [self.sparsity]
        for share in shares:
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"phase {self.name!r}: sparsity must be 0 to 1, not {share!r}")


def dsd_phases(epochs: tuple[int, int, int], sparsity: float | Mapping[str, float] = 0.3, *,
               iterations: int = 1, restart_rate: float = 0.1) -> list[Phase]:
    """The phases of dense-sparse-dense training.

    Parameters
    ----------
    epochs
        Of the dense, the sparse and the last dense phase.
    sparsity
        Of the sparse phase. The paper finds 0.25 to 0.5 good for most networks.
    iterations
        How often sparse and last dense phase are gone through; 1 is D-S-D, 2 is D-S-D-S-D.
        For other sparsities in later iterations add up lists, as in
        ``dsd_phases((150, 50, 50), 0.5) + dsd_phases((0, 50, 50), 0.25)[1:]``.
    restart_rate
        Factor on the learning rate at every restart of the pruned weights. A sparse phase keeps
        the rate of the phase before it.

    Raises
    ------
    ValueError
        A number out of range.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, not {iterations!r}")
    dense, sparse, redense = epochs
    phases, rate = [Phase("dense", dense)], 1.0
    for _ in range(iterations):
        phases.append(Phase("sparse", sparse, rate, sparsity))
        rate *= restart_rate
        phases.append(Phase("redense", redense, rate))
    return phases


class CheckpointError(ValueError):
    """A checkpoint cannot be written or belongs to another run; the text says why."""


def run_phases(model: nn.Module,
               make_optimizer: Callable[[Phase], Any],
               train_epoch: Callable[[torch.optim.Optimizer, int], Mapping[str, Any] | None],
               phases: Sequence[Phase], *,
               log: str | os.PathLike | None = None,
               checkpoint: str | os.PathLike | None = None,
               label: str = "dsd", progress: bool = True) -> list[dict[str, Any]]:
    """Train a model through phases, pruning and restoring as they say.

    A phase with a sparsity starts by pruning: its mask comes from the magnitudes at that moment
    and holds, unchanged, after every step of the phase's optimizer (`Masks.hold`). When the phase
    is over the mask is dropped, so the pruned weights go on from 0. Every phase has an optimizer
    of its own, without momentum from the one before.

    A dense baseline of as many epochs goes through the same driver: give its phases no sparsity.

    Parameters
    ----------
    model
        Trained in place.
    make_optimizer
        Called with the phase when it starts. Returns an optimizer whose learning rate is scaled
        by ``phase.rate``, or a pair of it and a scheduler, whose ``step()`` is called after each
        epoch.
    train_epoch
        Called with that optimizer and the number of the epoch, 0, 1, ... over all phases. Trains
        for what the user calls an epoch, with ``optimizer.step()`` in it, and returns what shall
        be logged (numbers or strings by name), or nothing. Seeding the order of the data from the
        epoch's number makes a resumed run equal an uninterrupted one.
    log
        File that gets one line of JSON per epoch: the records returned.
    checkpoint
        File written after every epoch with all that is needed to go on: weights, mask, optimizer,
        scheduler, records, and the state of PyTorch's CPU generator (not of other generators). If
        it exists when the function is called, training goes on from there. Tensors are stored as
        safetensors and the rest as JSON, so reading one never runs code.
    label, progress
        Progress bar over all epochs on standard error, with this name.

    Returns
    -------
    One record per epoch: ``epoch``, ``phase`` (name), ``phase_number``, ``rate`` (that of the
    optimizer's first group in that epoch), ``density`` (of the masked matrices at its end, 1 in
    a phase without mask), ``seconds``, and what `train_epoch` returned.

    Raises
    ------
    CheckpointError
        The checkpoint is damaged or of another model or other phases, cannot be written, or the
        optimizer or scheduler holds something that is neither tensor nor plain data.
    ValueError
        As `Masks.by_density`; a metric with the name of one of the driver's own.
    """
    phases = list(phases)
    records: list[dict[str, Any]] = []
    saved = None
    if checkpoint is not None and Path(checkpoint).exists():
        saved = _load(checkpoint, model, phases)
        records = saved["records"]
    if log is not None:
        Path(log).write_text("".join(json.dumps(record) + "\n" for record in records))
    total, first = sum(phase.epochs for phase in phases), 0
    with tqdm(total=total, initial=len(records), desc=label, disable=not progress) as bar:
        for number, phase in enumerate(phases):
            end = first + phase.epochs
            # A phase without epochs still prunes; one that the checkpoint is beyond did.
            if saved is None or number > saved["phase"] or len(records) < end:
                resumed, saved = saved, None
                _run_phase(model, make_optimizer, train_epoch, number, phase, end, records,
                           resumed, log, checkpoint, phases, bar)
            first = end
    return records


def _run_phase(model, make_optimizer, train_epoch, number, phase, end, records, resumed, log,
               checkpoint, phases, bar) -> None:
    """The epochs of one phase, from its start or from what `_load` gave as `resumed`."""
    made = make_optimizer(phase)
    optimizer, scheduler = made if isinstance(made, tuple) else (made, None)
    masks = handle = None
    # A checkpoint written at the end of the phase before has no part of this one.
    if resumed is not None and resumed["phase"] != number:
        resumed = None
    if resumed is not None:
        optimizer.load_state_dict(resumed["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(resumed["scheduler"])
    if phase.sparsity is not None:
        masks = (Masks(model, resumed["masks"]) if resumed is not None
                 else _prune(model, phase.sparsity))
        handle = masks.hold(optimizer)
    try:
        while len(records) < end:
            start = time.perf_counter()
            rate = float(optimizer.param_groups[0]["lr"])
            metrics = {name: value.item() if hasattr(value, "item") else value for name, value
                       in (train_epoch(optimizer, len(records)) or {}).items()}
            record = {"epoch": len(records), "phase": phase.name, "phase_number": number,
                      "rate": rate, "density": _density(masks),
                      "seconds": round(time.perf_counter() - start, 3)}
            if clash := record.keys() & metrics.keys():
                raise ValueError(f"train_epoch returned {', '.join(sorted(clash))}, which the "
                                 f"driver logs itself; choose another name")
            records.append({**record, **metrics})
            if scheduler is not None:
                scheduler.step()
            if log is not None:
                with open(log, "a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
            if checkpoint is not None:
                _save(checkpoint, {
                    "phases": [asdict(p) for p in phases], "phase": number, "records": records,
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "scheduler": None if scheduler is None else scheduler.state_dict(),
                    "masks": {} if masks is None else masks.state_dict(),
                    "generator": torch.get_rng_state()})
            bar.update()
            bar.set_postfix(phase=phase.name, **{
                name: f"{value:.4g}" for name, value in metrics.items()
                if isinstance(value, float)})
    finally:
        if handle is not None:
            handle.remove()


def _prune(model: nn.Module, sparsity: float | Mapping[str, float]) -> Masks:
    if isinstance(sparsity, Mapping):
        return Masks.by_density(model, {path: 1 - share for path, share in sparsity.items()})
    return Masks.by_density(model, 1 - sparsity)


def _density(masks: Masks | None) -> float:
    if masks is None:
        return 1.0
    rows = masks.table()
    return sum(row.nonzeros for row in rows) / sum(row.weights for row in rows)


# -- checkpoints ----------------------------------------------------------------------------------

FORMAT = "openese-training-1"


def _save(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Write nested plain data with tensors in it; the file appears whole or not at all."""
    tensors: dict[str, Tensor] = {}
    try:
        text = json.dumps(_pack(state, tensors, "checkpoint"))
        target = Path(os.path.realpath(path))
        part = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            save_file(tensors, part, metadata={"format": FORMAT, "state": text})
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{os.fspath(path)}: cannot be written ({error})") from error


def _load(path: str | os.PathLike, model: nn.Module, phases: list[Phase]) -> dict[str, Any]:
    """Read a checkpoint, and put its weights and generator state in place."""
    name = os.fspath(path)
    again = "delete it to start anew"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{name}: is no checkpoint of this driver; {again}")
            names = file.keys()
            state = _unpack(json.loads(metadata["state"]),
                            {key: file.get_tensor(key) for key in names})
    except CheckpointError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name}: is damaged ({error}); {again}") from error
    if state["phases"] != [asdict(phase) for phase in phases]:
        raise CheckpointError(f"{name}: was written with other phases; give the same or {again}")
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise CheckpointError(f"{name}: is of another model ({error}); {again}") from None
    torch.set_rng_state(state["generator"])
    return state


def _pack(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """JSON for nested dicts, lists and tuples; tensors are replaced by their numbers."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        key = str(len(tensors))
        # Cloned: safetensors takes no two tensors that share memory, as tied weights do.
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"dict": [[_pack(k, tensors, where), _pack(v, tensors, f"{where}[{k!r}]")]
                         for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]}
    raise CheckpointError(f"{where} is a {type(value).__name__}; a checkpoint holds tensors and "
                          f"plain data only")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, content), = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
    items = [_unpack(v, tensors) for v in content]
    return items if kind == "list" else tuple(items)
