"""Time from a dense matrix to its `.ese` file and back, without training.

    python bench/coding.py --json

One matrix of ESE's size, 3.25 M weights of which 10 % are kept: prune by magnitude, share to 4-bit
codes, pack for 64 PEs, Huffman-code into a file, decode. The row ``python-loops`` codes and decodes
the same gaps and codes as scripts do that walk a Huffman tree symbol by symbol and bit by bit.
"""

import argparse
import heapq
import json
import sys
import time
from collections import Counter

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from openese.model.compress import compress_weights
from openese.model.ese_file import from_bytes, to_bytes
from openese.model.pack import pack_layer
from openese.model.plots import entry_gaps
from openese.model.prune import Masks
from openese.model.share import SharedWeights

ROWS, COLS, DENSITY, CODE_BITS = 4096, 794, 0.1, 4
N_PES, INDEX_BITS = 64, 4


def ours() -> tuple[dict, list[list[int]]]:
    """Seconds of every step, and the symbols for the loops."""
    torch.manual_seed(0)
    model = nn.Linear(COLS, ROWS, bias=False)
    nn.init.normal_(model.weight)
    times = {}

    def step(name: str, function):
        begin = time.perf_counter()
        result = function()
        times[name] = time.perf_counter() - begin
        return result

    step("prune", lambda: Masks.by_density(model, DENSITY).apply())
    step("share", lambda: SharedWeights(model, CODE_BITS))
    compressed = compress_weights(model, code_bits=CODE_BITS)
    matrix = compressed["weight"].matrix
    step("pack", lambda: pack_layer(matrix.col_ptr, matrix.row_idx, matrix.code, ROWS, N_PES,
                                    INDEX_BITS, CODE_BITS))
    data = step("encode", lambda: to_bytes(compressed))
    again = step("decode", lambda: from_bytes(data))
    if again["weight"].array().tobytes() != model.weight.detach().numpy().tobytes():
        raise RuntimeError("the file does not decode to the matrix")
    row = {"name": "openese", "weights": ROWS * COLS, "entries": matrix.nnz, "bytes": len(data),
           "rate": 4 * ROWS * COLS / len(data), **times,
           "seconds": sum(times.values()) - times["decode"]}
    # Gaps of one byte are enough at this density.
    return row, [np.minimum(entry_gaps(matrix), 255).tolist(), matrix.code.tolist()]


def tree_codes(symbols: list[int]) -> tuple[object, dict[int, str]]:
    """A Huffman tree of nested pairs, and the code of every symbol as a text of 0s and 1s."""
    counts = Counter(symbols)
    heap = [(count, symbol, symbol) for symbol, count in counts.items()]
    heapq.heapify(heap)
    number = 1 << 32
    while len(heap) > 1:
        (a, _, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (a + b, number, (left, right)))
        number += 1
    codes: dict[int, str] = {}

    def name(node: object, code: str) -> None:
        if isinstance(node, tuple):
            name(node[0], code + "0")
            name(node[1], code + "1")
        else:
            codes[node] = code

    name(heap[0][2], "")
    return heap[0][2], codes


def loops(streams: list[list[int]]) -> dict:
    """The same streams, coded into texts and decoded bit by bit along the tree."""
    encode = decode = 0.0
    for symbols in tqdm(streams, desc="python loops", file=sys.stderr, leave=False):
        begin = time.perf_counter()
        tree, codes = tree_codes(symbols)
        text = ""
        for symbol in symbols:
            text += codes[symbol]
        middle = time.perf_counter()
        decoded, node = [], tree
        for bit in text:
            node = node[bit == "1"]
            if not isinstance(node, tuple):
                decoded.append(node)
                node = tree
        end = time.perf_counter()
        if decoded != symbols:
            raise RuntimeError("the loops do not decode what they coded")
        encode, decode = encode + middle - begin, decode + end - middle
    return {"name": "python-loops", "entries": len(streams[0]), "encode": encode,
            "decode": decode}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (default 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    row, streams = ours()
    slow = loops(streams)
    if args.json:
        print(json.dumps({"rows": [row, slow]}))
        return
    print(f"{row['weights']:,} weights, {row['entries']:,} kept: "
          + ", ".join(f"{name} {row[name]:.3f} s"
                      for name in ("prune", "share", "pack", "encode", "decode"))
          + f"; to the file {row['seconds']:.2f} s, {row['bytes']:,} bytes, {row['rate']:.1f}x")
    print(f"python loops over the same symbols: encode {slow['encode']:.3f} s "
          f"({slow['encode'] / row['encode']:.1f} times), decode {slow['decode']:.3f} s "
          f"({slow['decode'] / row['decode']:.1f} times)")


if __name__ == "__main__":
    main()
