"""LeNet-300-100 as small as it gets: distilled, pruned to 3 %, shared to 7 values per layer.

Where ``reproduce.py`` follows Deep Compression's own recipe, this one spends more training: a dense
LeNet-5 is the teacher, copies of the digits are distorted, pruning is gradual. Hidden layers have
no biases, and hidden units are sorted so that the gaps between weights are cheap to code.
"""

import argparse
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lenets import adamw, dense_lenet_5, lessons, load_digits, options, prune, share

from openese.model.compress import compress, load_into
from openese.model.config import PRESETS
from openese.model.ese_file import load, save, tensor_bytes
from openese.model.quantise import quantise
from openese.model.reference import run_reference
from openese.model.report import format_report, network_report
from openese.model.train import error_percent, train

# Of the network with all its biases, as the paper counts it.
FLOAT_BYTES = 4 * 266_610
BATCH_SIZE = 256
WEIGHT_DECAY = 0.02
ROUNDS = 12


def student() -> nn.Sequential:
    """784-300-100-10 with ReLU; layers named as in the paper, biases in the last one only."""
    return nn.Sequential(OrderedDict(
        ip1=nn.Linear(784, 300, bias=False), relu1=nn.ReLU(),
        ip2=nn.Linear(300, 100, bias=False), relu2=nn.ReLU(), ip3=nn.Linear(100, 10)))


@torch.no_grad()
def sort_units(model: nn.Sequential) -> None:
    """Put hidden units with many weights first; the network computes the same."""
    for here, after in ((model.ip1, model.ip2), (model.ip2, model.ip3)):
        order = torch.argsort((here.weight != 0).sum(dim=1), descending=True, stable=True)
        here.weight.copy_(here.weight[order])
        after.weight.copy_(after.weight[:, order])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = options(__doc__.splitlines()[0], "lenet_300_100_small.ese")
    parser.add_argument("--copies", type=int, default=5, help="distorted copies of the digits")
    parser.add_argument("--epochs", type=int, nargs=4, default=[5, 6, 8, 2],
                        metavar=("DENSE", "PRUNE", "RETRAIN", "CENTROIDS"),
                        help="passes over the digits and all copies")
    parser.add_argument("--density", type=float, nargs=3, default=[0.032, 0.055, 0.25],
                        metavar=("IP1", "IP2", "IP3"))
    parser.add_argument("--code-bits", type=int, default=3)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    choice = parse(arguments)
    start = time.perf_counter()
    torch.set_num_threads(choice.threads)
    digits = load_digits(choice.mnist)

    def measure(stage: str) -> None:
        print(f"{time.perf_counter() - start:6.0f} s  {stage:10} held out "
              f"{error_percent(model, *digits['held out']):.2f} %, training "
              f"{error_percent(model, *digits['train']):.2f} %", flush=True)

    model = dense_lenet_5(digits["train"], choice.dense, choice.seed)
    measure("teacher")
    lesson = lessons(model, digits["train"], choice.copies)
    dense_epochs, prune_epochs, retrain_epochs, centroid_epochs = choice.epochs
    seed = 100 * choice.seed
    torch.manual_seed(choice.seed)
    model = student()
    train(model, adamw(model.parameters(), 2e-3, WEIGHT_DECAY), *lesson, epochs=dense_epochs,
          batch_size=BATCH_SIZE, seed=seed, label="dense")
    measure("dense")
    masks = prune(model, lesson, dict(zip(("ip1", "ip2", "ip3"), choice.density, strict=True)),
                  rounds=ROUNDS, epochs=prune_epochs, retrain_epochs=retrain_epochs,
                  batch_size=BATCH_SIZE, weight_decay=WEIGHT_DECAY, seed=seed)
    table = masks.table()
    measure("pruned")
    sort_units(model)
    share(model, lesson, choice.code_bits, epochs=centroid_epochs, batch_size=BATCH_SIZE,
          seed=seed + 50)
    measure("shared")

    size = save(choice.output, compress(model, calibration=digits["train"][0],
                                        code_bits=choice.code_bits))
    # From here on only the file counts.
    network = load(choice.output)
    decoded = student()
    load_into(decoded, network)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), decoded.parameters(),
                                                 strict=True))
    error = error_percent(decoded, *digits["test"])
    x, labels = (tensor.numpy() for tensor in digits["test"])
    integers = quantise(network, PRESETS["demo"])
    outputs = run_reference(integers, integers.quantise_input(x)[0]).outputs
    integer_error = 100 * float(np.mean(outputs.argmax(axis=1) != labels))

    print()
    for row in table:
        print(f"{row.name:12} {row.nonzeros:7,} of {row.weights:7,} weights, {row.density:.2%}")
    for row in tensor_bytes(network):
        print(f"{row['name']:12} {row['original_bytes']:9,} -> {row['bytes']:6,} bytes")
    print("\n" + format_report(network_report(network)))
    print(f"\n{choice.output.name}: {size:,} bytes, {FLOAT_BYTES / size:.1f}x less than "
          f"{FLOAT_BYTES:,}; decoded {'equal' if same else 'DIFFERENT'}; test error {error:.2f} %, "
          f"as integers {integer_error:.2f} %; {time.perf_counter() - start:.0f} s")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
