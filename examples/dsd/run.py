"""Dense-sparse-dense training against dense training of equally many epochs.

For every seed one dense phase is trained. From its end go on, each with the same epochs, learning
rates and order of the data: the dense baseline, and dense-sparse-dense training at every sparsity
asked for. So the arms of a seed differ in the mask of the middle phase and in nothing else.
"""

import argparse
import copy
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from openese.model.dsd import dsd_phases, run_phases
from openese.model.mnist import load_mnist, scale_pixels
from openese.model.spoken_digits import load_spoken_digits

SPLITS = ("train", "test")


class Mnist:
    """LeNet-300-100: stochastic gradient descent with momentum."""

    epochs = (8, 4, 4)
    batch_size = 128

    def __init__(self, folder: str | None) -> None:
        self.data = {}
        for split in SPLITS:
            images, labels = load_mnist(split, folder)
            self.data[split] = (torch.from_numpy(scale_pixels(images)),
                                torch.from_numpy(labels).long())

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(),
                             nn.Linear(100, 10))

    def optimizer(self, parameters, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1 * rate, momentum=0.9, weight_decay=1e-4)


class Speaker(nn.Module):
    """An LSTM of 64 units over 13 coefficients; its last output names the digit."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(13, 64, batch_first=True)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        features, lengths = x[..., :13], x[:, 0, 13].long()
        outputs, _ = self.lstm(features[:, :int(lengths.max())])
        return self.linear(outputs[torch.arange(len(x)), lengths - 1])


class Digits:
    """An LSTM over the spoken digits: Adam."""

    epochs = (20, 10, 10)
    batch_size = 50

    def __init__(self, path: str | None) -> None:
        self.data = {}
        for split in SPLITS:
            digits = load_spoken_digits(split, path)
            lengths = torch.from_numpy(digits.lengths).float()[:, None, None]
            features = torch.from_numpy(digits.features)
            # The length travels as a 14th coefficient, so that one tensor is one input.
            self.data[split] = (
                torch.cat((features, lengths.expand(-1, features.shape[1], 1)), dim=2),
                torch.from_numpy(digits.labels))

    def model(self) -> nn.Module:
        return Speaker()

    def optimizer(self, parameters, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=3e-3 * rate)


TASKS = {"mnist": Mnist, "digits": Digits}


@torch.no_grad()
def error_percent(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    wrong = sum(int((model(x).argmax(dim=1) != y).sum())
                for x, y in zip(inputs.split(1000), labels.split(1000), strict=True))
    return 100 * wrong / len(labels)


def train_from(model: nn.Module, phases, task, seed: int, first_epoch: int, label: str,
               log: Path | None) -> list[dict]:
    """Train through phases; records as `run_phases` gives them, with loss and both errors."""
    inputs, labels = task.data["train"]

    def train_epoch(optimizer, epoch):
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(
            1000 * seed + first_epoch + epoch))
        total = 0.0
        for batch in order.split(task.batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        return {"loss": total / len(inputs)}

    return run_phases(model, lambda phase: task.optimizer(model.parameters(), phase.rate),
                      train_epoch, phases, log=log, label=label)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... are run")
    parser.add_argument("--epochs", type=int, nargs=3, metavar=("DENSE", "SPARSE", "REDENSE"),
                        help="of the phases; else those of the task")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--data", help="your own files: MNIST's folder, or digits.npz; else "
                        "they are fetched")
    parser.add_argument("--threads", type=int, default=1,
                        help="equal seeds repeat a run bit for bit only with equal threads")
    parser.add_argument("--out", type=Path, help="folder for logs and the table as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    task = TASKS[options.task](options.data)
    epochs = tuple(options.epochs or task.epochs)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)

    rows = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        model = task.model()

        def run(model, phases, first_epoch, arm, seed=seed):
            log = None if options.out is None else options.out / f"{arm}-{seed}.jsonl"
            records = train_from(model, phases, task, seed, first_epoch, f"{arm}, seed {seed}", log)
            row = {"seed": seed, "arm": arm, "loss": records[-1]["loss"]}
            row |= {split: error_percent(model, *task.data[split]) for split in SPLITS}
            rows.append(row)

        run(model, dsd_phases(epochs)[:1], 0, "dense phase")
        for sparsity in [None, *options.sparsity]:
            arm = "dense baseline" if sparsity is None else f"dsd {sparsity:.0%}"
            phases = [replace(phase, sparsity=sparsity if phase.name == "sparse" else None)
                      for phase in dsd_phases(epochs, sparsity or 0)[1:]]
            run(copy.deepcopy(model), phases, epochs[0], arm)

    if options.out is not None:
        (options.out / "results.json").write_text(json.dumps(rows, indent=1))
    print(f"{options.task}: {epochs[0]} dense + {epochs[1]} sparse + {epochs[2]} dense epochs, "
          f"{options.seeds} seeds, {time.perf_counter() - start:.0f} s\n")
    print("| training | test error of each seed, % | mean | deviation | training error "
          "| better than baseline by | wins |\n|---|---|---|---|---|---|---|")
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    errors = {arm: [row["test"] for row in rows if row["arm"] == arm] for arm in arms}
    for arm in arms:
        training = statistics.mean(row["train"] for row in rows if row["arm"] == arm)
        cells = [arm, " ".join(f"{error:.2f}" for error in errors[arm]),
                 f"{statistics.mean(errors[arm]):.2f}", f"{deviation(errors[arm]):.2f}",
                 f"{training:.2f} %"]
        if arm.startswith("dsd"):
            gains = [b - e for b, e in zip(errors["dense baseline"], errors[arm], strict=True)]
            cells += [f"{statistics.mean(gains):+.2f} ± "
                      f"{deviation(gains) / math.sqrt(len(gains)):.2f}",
                      f"{sum(g > 0 for g in gains)} of {len(gains)}"]
        else:
            cells += ["", ""]
        print("| " + " | ".join(cells) + " |")
    print("\nDeviation: of the seeds. After ±: standard error of the mean of the paired gains.")


def deviation(values: list[float]) -> float:
    """Sample standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
