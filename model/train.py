"""A plain training loop for classifiers, enough to retrain compressed models."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

__all__ = ["error_percent", "train"]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, *,
          epochs: int, batch_size: int = 128, cosine: bool = True, seed: int = 0,
          after_step: Callable[[], None] | None = None, label: str = "train",
          progress: bool = True) -> list[float]:
    """Train with cross entropy on data held in memory.

    Parameters
    ----------
    model
        Left in evaluation mode.
    optimizer
        Any; `Masks.hold` and `SharedWeights.hold` attach to it.
    inputs, labels
        ``(n, ...)``, and int64 ``(n,)`` or the probability of each class, float ``(n, classes)``;
        on the model's device.
    epochs, batch_size
        Passes over the data; samples per step (the last batch may be smaller).
    cosine
        Lower every learning rate from its value to 0 along half a cosine; else keep it. The
        rates are restored at the end.
    seed
        Of the shuffling and of dropout; PyTorch's global generator is left as it was. Equal
        seeds repeat a run bit for bit on the same machine and number of threads.
    after_step
        Called after every optimizer step.
    label, progress
        Progress bar on standard error, with this name.

    Returns
    -------
    Mean training loss of every epoch.

    Raises
    ------
    ValueError
        Sizes that do not fit, or a loss that stops being finite (says in which epoch).
    """
    n = len(inputs)
    if n == 0 or len(labels) != n:
        raise ValueError(f"need as many labels as inputs, and one or more; "
                         f"not {len(labels)} and {n}")
    if epochs < 0 or batch_size < 1:
        raise ValueError(f"epochs must be 0 or more and batch_size 1 or more, "
                         f"not {epochs!r} and {batch_size!r}")
    rates = [group["lr"] for group in optimizer.param_groups]
    steps_per_epoch = math.ceil(n / batch_size)
    steps = epochs * steps_per_epoch
    losses = []
    model.train()
    with torch.random.fork_rng(), tqdm(total=steps, desc=label, disable=not progress) as bar:
        torch.manual_seed(seed)
        for epoch in range(epochs):
            total = torch.zeros((), device=inputs.device)
            for index, batch in enumerate(torch.randperm(n).to(inputs.device).split(batch_size)):
                if cosine:
                    done = (epoch * steps_per_epoch + index) / steps
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * (1 + math.cos(math.pi * done)) / 2
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                if after_step is not None:
                    after_step()
                total += loss.detach() * len(batch)
                bar.update()
            losses.append(float(total) / n)
            if not math.isfinite(losses[-1]):
                raise ValueError(f"the loss is {losses[-1]} in epoch {epoch + 1}; "
                                 f"lower the learning rate")
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    model.eval()
    return losses


@torch.no_grad()
def error_percent(model: nn.Module, inputs: Tensor, labels: Tensor, *,
                  batch_size: int = 4096) -> float:
    """Share of wrong predictions (largest output) in per cent, in evaluation mode.

    The model's mode is restored.
    """
    if len(inputs) == 0 or len(labels) != len(inputs):
        raise ValueError(f"need as many labels as inputs, and one or more; "
                         f"not {len(labels)} and {len(inputs)}")
    was_training = model.training
    model.eval()
    wrong = 0
    for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
        wrong += int((model(x).argmax(dim=1) != y).sum())
    model.train(was_training)
    return 100 * wrong / len(inputs)
