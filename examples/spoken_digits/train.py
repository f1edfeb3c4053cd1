"""Train, prune, quantise: spoken digits for the engine, in two kinds of weights.

Float training; load-balance-aware pruning in steps, retrained after each; then from the pruned
weights, once each: 4-bit codebooks with trained centroids, and 12-bit fixed point as in ESE,
trained through the rounding. Every stage runs for a fixed number of epochs and the last weights
are taken; the test split is evaluated, never used.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from speech import HIDDEN, PROJECTION, Recordings, Speech, accuracy, load, mean_over_frames
from torch import nn

from openese.model.balance import Balance
from openese.model.compress import compress, layer_biases, share_biases
from openese.model.ese_file import save, tensor_bytes
from openese.model.linear_weights import LinearWeights
from openese.model.prune import Masks
from openese.model.share import SharedWeights

BATCH_SIZE = 50
NOISE = 0.3  # standard deviation added to standardised coefficients
# Of lstm.weight_ih_l0, weight_hh_l0, weight_hr_l0 and linear.weight in each pruning step.
STEPS = ((0.50, 0.40, 0.50, 0.60), (0.30, 0.20, 0.30, 0.45), (0.20, 0.12, 0.20, 0.40),
         (0.18, 0.08, 0.14, 0.40))
MATRICES = ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hr_l0", "linear.weight")


def batches(data: Recordings, generator: torch.Generator) -> list[torch.Tensor]:
    """Indices of batches: recordings of like lengths together, in an order of its own."""
    jitter = torch.rand(len(data), generator=generator) * 6
    order = torch.argsort(data.lengths + jitter).split(BATCH_SIZE)
    return [order[i] for i in torch.randperm(len(order), generator=generator)]


def train(model: nn.Module, parameters, data: Recordings, *, epochs: int, rate: float, seed: int,
          hold: Callable[[torch.optim.Optimizer], object] | None = None) -> None:
    """Adam, its rate falling to 0 along half a cosine; noise on the features."""
    optimizer = torch.optim.Adam(parameters, lr=rate)
    if hold is not None:
        hold(optimizer)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of dropout
    steps = epochs * len(batches(data, torch.Generator()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    model.train()
    for _ in range(epochs):
        for batch in batches(data, generator):
            lengths = data.lengths[batch]
            x = data.features[batch, :int(lengths.max())]
            x = x + NOISE * torch.randn(x.shape, generator=generator)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(mean_over_frames(model(x), lengths),
                                               data.labels[batch])
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def add_biases(model: Speech) -> None:
    """Move the LSTM's second biases into the first, as `compress` does."""
    model.lstm.bias_ih_l0 += model.lstm.bias_hh_l0
    model.lstm.bias_hh_l0.zero_()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--projection", type=int, default=PROJECTION)
    parser.add_argument("--pes", type=int, default=8, help="PEs to balance the weights over")
    parser.add_argument("--epochs", type=int, nargs=4, default=[40, 12, 40, 10],
                        metavar=("FLOAT", "STEP", "LAST", "QUANTISED"),
                        help="of float training, after each pruning step, after the last one, "
                        "and of quantised weights")
    parser.add_argument("--data", help="your own digits.npz; else it is fetched")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the files")
    parser.add_argument("--threads", type=int, default=1,
                        help="equal seeds repeat a run bit for bit only with equal threads")
    choice = parser.parse_args(arguments)
    torch.set_num_threads(choice.threads)
    start = time.perf_counter()
    data = {split: load(split, choice.data) for split in ("train", "validation", "test")}
    float_epochs, step_epochs, last_epochs, quantised_epochs = choice.epochs
    rows = []

    def measure(model: nn.Module, stage: str) -> None:
        rows.append((stage, *(accuracy(model, data[split]) for split in data)))
        figures = ", ".join(f"{split} {figure:.1f} %"
                            for split, figure in zip(data, rows[-1][1:], strict=True))
        print(f"{time.perf_counter() - start:6.0f} s  {stage:24} {figures}", flush=True)

    torch.manual_seed(choice.seed)
    model = Speech(choice.hidden, choice.projection)
    seed = 100 * choice.seed
    train(model, list(model.parameters()), data["train"], epochs=float_epochs, rate=4e-3,
          seed=seed)
    measure(model, "float")
    for step, densities in enumerate(STEPS, 1):
        masks = Masks.by_density(model, dict(zip(MATRICES, densities, strict=True)),
                                 balance=Balance(choice.pes))
        masks.apply()
        epochs = last_epochs if step == len(STEPS) else step_epochs
        train(model, list(model.parameters()), data["train"], epochs=epochs, rate=2e-3,
              seed=seed + step, hold=masks.hold)
        measure(model, f"pruned, step {step}")

    calibration = data["train"].features
    choice.out.mkdir(parents=True, exist_ok=True)
    for kind, name, bits in (("shared", "spoken_digits.ese", 4),
                             ("linear", "spoken_digits_12_bit.ese", 12)):
        quantised = copy.deepcopy(model)
        add_biases(quantised)
        if kind == "shared":
            share_biases(quantised, 4)
        held = (SharedWeights(quantised, bits) if kind == "shared"
                else LinearWeights(quantised, {path: bits for path in MATRICES[:3]}))
        # Of the network's own parameters the codebooks' training leaves the shared biases alone.
        biases = {id(bias) for bias in layer_biases(quantised).values()}
        trained = [parameter for parameter in held.parameters()
                   if kind == "linear" or id(parameter) not in biases]
        train(quantised, trained, data["train"], epochs=quantised_epochs, rate=4e-4,
              seed=seed + 50, hold=held.hold)
        measure(quantised, f"{kind}, {bits} bits")
        network = compress(quantised, calibration=calibration, weights=kind, code_bits=bits,
                           bias_bits=4 if kind == "shared" else None)
        size = save(choice.out / name, network)
        tensors = tensor_bytes(network)
        original = sum(row["original_bytes"] for row in tensors)
        print(f"{name}: {size:,} bytes, {original / size:.1f}x less than {original:,}")
        for row in tensors:
            print(f"    {row['name']:24} {row['original_bytes']:9,} -> {row['bytes']:6,} bytes")

    print("\n| matrix | weights | kept | density |\n|---|---|---|---|")
    for row in masks.table():
        print(f"| {row.name} | {row.weights:,} | {row.nonzeros:,} | {row.density:.1%} |")
    kept = sum(row.nonzeros for row in masks.table())
    total = sum(row.weights for row in masks.table())
    print(f"| all | {total:,} | {kept:,} | {kept / total:.1%} |")
    print("\n| stage | training | validation | test |\n|---|---|---|---|")
    for stage, *figures in rows:
        print(f"| {stage} | " + " | ".join(f"{figure:.1f} %" for figure in figures) + " |")


if __name__ == "__main__":
    main()
