"""Train a tanh RNN of 16 units to add 8-bit numbers, until all 65,536 sums are right."""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from adder import BITS, Adder, all_sums, bits_of, number_of, wrong_sums
from torch import nn

from openese.model.compile import size_for
from openese.model.compress import compress
from openese.model.ese_file import load, save
from openese.model.quantise import quantise
from openese.model.reference import run_reference

BATCH_SIZE = 256
CHECK_EVERY = 100


def train(seed: int, margin: float, most: int) -> tuple[Adder, int]:
    """A network that adds and the steps it took.

    Training ends when every sum is right and every output at least `margin` from 0, so that the
    accelerator's rounding decides no bit; or after `most` steps.
    """
    torch.manual_seed(seed)
    model = Adder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, sums = all_sums()
    x, wanted = torch.from_numpy(x), torch.from_numpy(bits_of(sums).astype(np.float32))
    for step in range(1, most + 1):
        batch = torch.randint(1 << 2 * BITS, (BATCH_SIZE,))
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            model(x[:, batch])[:, :, 0], wanted[:, batch])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % CHECK_EVERY == 0:
            with torch.no_grad():
                outputs = model(x)[:, :, 0]
            if float((outputs * (2 * wanted - 1)).min()) >= margin:
                return model, step
    return model, most


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--margin", type=float, default=2.0,
                        help="smallest magnitude of an output")
    parser.add_argument("--most", type=int, default=20_000, help="training steps at most")
    parser.add_argument("--output", type=Path, default=Path("binary_adder.ese"))
    choice = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.perf_counter()
    model, steps = train(choice.seed, choice.margin, choice.most)
    wrong = wrong_sums(model)
    print(f"{wrong:,} of 65,536 sums wrong after {steps:,} steps of {BATCH_SIZE} sums, "
          f"{time.perf_counter() - start:.0f} s")
    if wrong:
        return 1
    x, sums = all_sums()
    # Weights of 8 bits: 255 values for at most 256 weights lose nothing that matters.
    size = save(choice.output, compress(model, calibration=torch.from_numpy(x), code_bits=8))
    # From here on only the file counts.
    network = load(choice.output)
    integers = quantise(network, size_for(network, n_pes=8))
    raw = integers.quantise_input(x.reshape(-1, 2))[0].reshape(x.shape)
    outputs = run_reference(integers, raw).outputs[:, :, 0]
    wrong = int(np.count_nonzero(number_of(outputs > 0) != sums))
    margin = float(np.abs(integers.dequantise_output(outputs)).min())
    print(f"{choice.output.name}: {size:,} bytes; as integers of the engine {wrong:,} sums wrong, "
          f"outputs at least {margin:.2f} from 0")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
