"""LeNet-5 on MNIST: train with distorted copies, prune gradually, share, and decode the file.

The convolutional network of *Deep Compression* (Han et al. 2016, table 3). Convolutions are
compressed, not run: the file holds the state of the PyTorch model.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lenets import dense_lenet_5, lenet_5, lessons, load_digits, options, prune, share

from openese.model.compress import compress_weights, layer_biases, load_into, share_biases
from openese.model.ese_file import load, save, tensor_bytes
from openese.model.report import format_report, network_report
from openese.model.train import error_percent

# Of the network with all its biases, as the paper counts it.
FLOAT_BYTES = 4 * 431_080
BATCH_SIZE = 256
ROUNDS = 6
BIAS_BITS = 3
LAYERS = ("conv1", "conv2", "ip1", "ip2")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = options(__doc__.splitlines()[0], "lenet_5.ese")
    parser.add_argument("--copies", type=int, default=1, help="distorted copies of the digits")
    parser.add_argument("--epochs", type=int, nargs=3, default=[1, 2, 1],
                        metavar=("PRUNE", "RETRAIN", "CENTROIDS"),
                        help="passes over the digits and all copies")
    parser.add_argument("--density", type=float, nargs=4, default=[0.5, 0.08, 0.016, 0.12],
                        metavar=tuple(name.upper() for name in LAYERS))
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
    measure("dense")
    dense_error = error_percent(model, *digits["test"])
    # The network is its own teacher.
    lesson = lessons(model, digits["train"], choice.copies)
    prune_epochs, retrain_epochs, centroid_epochs = choice.epochs
    seed = 100 * choice.seed
    model.drop1.p = model.drop2.p = 0.0
    masks = prune(model, lesson, dict(zip(LAYERS, choice.density, strict=True)),
                  rounds=ROUNDS, epochs=prune_epochs, retrain_epochs=retrain_epochs,
                  batch_size=BATCH_SIZE, weight_decay=0.02, seed=seed)
    table = masks.table()
    measure("pruned")
    # Biases are shared first and stay as they are while the centroids of the weights learn.
    share_biases(model, BIAS_BITS)
    for bias in layer_biases(model).values():
        bias.requires_grad_(False)
    share(model, lesson, choice.code_bits, epochs=centroid_epochs, batch_size=BATCH_SIZE,
          seed=seed + 50)
    measure("shared")

    size = save(choice.output, compress_weights(model, code_bits=choice.code_bits,
                                                bias_bits=BIAS_BITS))
    # From here on only the file counts.
    state = load(choice.output)
    decoded = lenet_5()
    load_into(decoded, state)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), decoded.parameters(),
                                                 strict=True))
    error = error_percent(decoded, *digits["test"])

    print()
    for row in table:
        print(f"{row.name:12} {row.nonzeros:7,} of {row.weights:7,} weights, {row.density:.2%}")
    for row in tensor_bytes(state):
        print(f"{row['name']:12} {row['original_bytes']:9,} -> {row['bytes']:6,} bytes")
    print("\n" + format_report(network_report(state)))
    print(f"\n{choice.output.name}: {size:,} bytes, {FLOAT_BYTES / size:.1f}x less than "
          f"{FLOAT_BYTES:,}; decoded {'equal' if same else 'DIFFERENT'}; test error {error:.2f} % "
          f"(dense {dense_error:.2f} %); {time.perf_counter() - start:.0f} s")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
