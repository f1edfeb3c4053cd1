"""Time pruning, sharing, packing and coding a matrix, and decoding it; no training.

    python bench/compression.py --json

The matrix has the size of ESE's layer, 3.25 M weights, of which 10 % are kept, with 4-bit codes.
The rows differ in the way it is pruned and shared. ``naive`` is the same work in the way of the
open Deep Compression repositories, written anew here: k-means over all pairs of value and
centroid, a Huffman tree over the non-zeros, the gaps and the columns' lengths, one Python step per
element to code it and one per bit to decode it. Files decode to the same network, bit for bit, or
this stops.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush

import numpy as np
import torch
from tqdm import tqdm

from openese.model.balance import Balance, balanced_mask, load_ratio, pe_counts
from openese.model.ese_file import from_bytes, to_bytes
from openese.model.network import CompressedLinear, CompressedNetwork
from openese.model.pack import pack_layer
from openese.model.prune import density_mask
from openese.model.share import share_weights

ROWS, COLUMNS, DENSITY, CODE_BITS, N_PES, INDEX_BITS = 4096, 794, 0.1, 4, 64, 4
CASES = {
    "by magnitude": (None, "linear"),
    "balanced per PE": (Balance(N_PES), "linear"),
    "balanced per PE and column": (Balance(N_PES, per_column=True), "linear"),
    "by magnitude, optimal clusters": (None, "optimal"),
}


class Clock:
    """Seconds of each step, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, function: Callable):
        """Run a function, note how long it took, and return what it returned."""
        begin = time.perf_counter()
        result = function()
        self.seconds[name] = time.perf_counter() - begin
        return result


def ours(weight: torch.Tensor, balance: Balance | None, init: str) -> tuple[dict, dict]:
    """Everything once: seconds per step, and facts about the result."""
    clock = Clock()

    def prune() -> np.ndarray:
        mask = (density_mask(weight, DENSITY) if balance is None
                else balanced_mask(weight, DENSITY, balance))
        return (weight * mask).numpy()

    pruned = clock("prune", prune)
    codes, codebook = clock("share", lambda: share_weights(pruned, CODE_BITS, init=init))
    layer = clock("columns", lambda: CompressedLinear.from_codes(
        "layer", codes, codebook, None, relu=False, out_frac=8))
    clock("pack", lambda: pack_layer(layer.col_ptr, layer.row_idx, layer.code, ROWS, N_PES,
                                     INDEX_BITS, CODE_BITS))
    network = CompressedNetwork([layer], in_frac=8)
    data = clock("encode", lambda: to_bytes(network))
    decoded = clock("decode", lambda: from_bytes(data)).layers[0]
    same = all(np.array_equal(getattr(layer, field), getattr(decoded, field))
               for field in ("col_ptr", "row_idx", "code"))
    if not same or layer.codebook.tobytes() != decoded.codebook.tobytes():
        raise SystemExit("the decoded network is another one")
    error = float(np.square(codebook[codes].astype(np.float64) - pruned).sum())
    counts = pe_counts(torch.from_numpy(pruned), Balance(N_PES))
    return clock.seconds, {"weights": weight.numel(), "nonzeros": layer.nnz, "bytes": len(data),
                           "rate": round(4 * weight.numel() / len(data), 2),
                           "squared_error": round(error, 2),
                           "max_over_mean": round(load_ratio(counts), 4)}


def naive_kmeans(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's iterations with every distance, as a general k-means computes them.

    Centroids in the gap that pruning left around 0 stay idle: fewer codes, a larger error.
    """
    centroids = np.linspace(values.min(), values.max(), k)
    before = None
    for _ in range(300):
        nearest = np.abs(values[:, None] - centroids).argmin(axis=1)
        if before is not None and np.array_equal(nearest, before):
            break
        before = nearest
        count = np.bincount(nearest, minlength=k)
        total = np.bincount(nearest, values, k)
        centroids = np.where(count > 0, total / np.maximum(count, 1), centroids)
    return nearest, centroids


def naive_tree(symbols: list):
    """Huffman tree of nested pairs; one step per element to count, as a dictionary does."""
    counts = {}
    for symbol in symbols:
        counts[symbol] = counts.get(symbol, 0) + 1
    heap = [(count, number, symbol) for number, (symbol, count) in enumerate(counts.items())]
    heapify(heap)
    number = len(heap)
    while len(heap) > 1:
        (a, _, left), (b, _, right) = heappop(heap), heappop(heap)
        heappush(heap, (a + b, number, (left, right)))
        number += 1
    return heap[0][2]


def naive_encode(symbols: list, tree) -> str:
    """The codes as a text of 0 and 1."""
    codes, stack = {}, [(tree, "")]
    while stack:
        node, code = stack.pop()
        if isinstance(node, tuple):
            stack += [(node[0], code + "0"), (node[1], code + "1")]
        else:
            codes[node] = code
    return "".join(codes[symbol] for symbol in symbols)


def naive_decode(text: str, tree) -> list:
    """Down the tree bit by bit."""
    symbols, node = [], tree
    for bit in text:
        node = node[bit == "1"]
        if not isinstance(node, tuple):
            symbols.append(node)
            node = tree
    return symbols


def naive(weight: torch.Tensor) -> tuple[dict, dict]:
    """The same work, naively."""
    clock = Clock()

    def prune() -> np.ndarray:
        magnitude = weight.abs().numpy()
        return weight.numpy() * (magnitude > np.percentile(magnitude, 100 * (1 - DENSITY)))

    pruned = clock("prune", prune)
    column, row = np.nonzero(pruned.T)
    values = pruned[row, column].astype(np.float64)
    code, centroids = clock("share", lambda: naive_kmeans(values, (1 << CODE_BITS) - 1))
    lengths = np.bincount(column, minlength=COLUMNS)
    gaps = np.diff(row, prepend=0)
    gaps[np.flatnonzero(np.diff(column, prepend=-1))] = row[
        np.flatnonzero(np.diff(column, prepend=-1))]
    streams = [code.tolist(), gaps.tolist(), lengths.tolist()]
    trees = []

    def encode() -> list[str]:
        trees.extend(naive_tree(stream) for stream in streams)
        return [naive_encode(s, t) for s, t in zip(streams, trees, strict=True)]

    texts = clock("encode", encode)
    decoded = clock("decode", lambda: [naive_decode(text, tree)
                                       for text, tree in zip(texts, trees, strict=True)])
    if decoded != streams:
        raise SystemExit("the naive coding is wrong")
    return clock.seconds, {"weights": weight.numel(), "nonzeros": len(row),
                           "bytes": sum(len(text) for text in texts) // 8,
                           "squared_error": round(float(np.square(
                               centroids[code] - values).sum()), 2)}


def measure(name: str, run: Callable[[], tuple[dict, dict]], runs: int) -> dict:
    """Median seconds of every step, over several runs."""
    found = [run() for _ in tqdm(range(runs), desc=name, file=sys.stderr, leave=False)]
    steps = {step: round(statistics.median(seconds[step] for seconds, _ in found), 4)
             for step in found[0][0]}
    compress = round(sum(value for step, value in steps.items() if step != "decode"), 3)
    return {"name": name, **found[0][1], "seconds": {**steps, "all but decode": compress},
            "runs": runs}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--runs", type=int, default=3, help="of each case")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) * 0.05
    rows = [measure(name, lambda case=case: ours(weight, *case), args.runs)
            for name, case in CASES.items()]
    slow = measure("naive", lambda: naive(weight), args.runs)
    # Against the row that prunes and shares alike; the naive way has no packing.
    common = ("prune", "share", "encode", "decode")
    fast = rows[0]["seconds"]
    slow["ratio"] = {step: round(slow["seconds"][step] / fast[step], 1) for step in common}
    slow["ratio"]["all"] = round(sum(slow["seconds"][s] for s in common)
                                 / sum(fast[s] for s in common), 1)
    rows.append(slow)
    if args.json:
        print(json.dumps({"rows": rows, "threads": args.threads}))
        return
    for row in rows:
        steps = ", ".join(f"{step} {value:.2f}" for step, value in row["seconds"].items())
        print(f"{row['name']}: {row['nonzeros']} of {row['weights']} weights, "
              f"{row['bytes']} bytes; seconds: {steps}")
    print("naive / ours:", ", ".join(f"{k} {v}x" for k, v in slow["ratio"].items()))


if __name__ == "__main__":
    main()
