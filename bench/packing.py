"""Time packing a matrix for the processing elements.

    python bench/packing.py --json

One row for ESE's layer (3.25 M weights, 10 % of them stored) and one for 3.25 M stored weights.
"""

import argparse
import json
import statistics
import sys
import time

import numpy as np
from tqdm import tqdm

from openese.model.pack import pack_layer

N_PES, INDEX_BITS, CODE_BITS = 64, 4, 4


def random_columns(rows: int, cols: int, density: float, seed: int = 0):
    """Compressed sparse columns of a random matrix with exactly ``density`` of it stored."""
    rng = np.random.default_rng(seed)
    nnz = round(rows * cols * density)
    # Distinct places in column-major order; a few more are drawn than needed, then thinned.
    place = np.unique(rng.integers(0, rows * cols, round(nnz * 1.2)))
    place = np.sort(rng.choice(place, nnz, replace=False))
    col_ptr = np.searchsorted(place, np.arange(cols + 1, dtype=np.int64) * rows)
    return (col_ptr, (place % rows).astype(np.int32),
            rng.integers(1, 1 << CODE_BITS, nnz, dtype=np.uint8))


def measure(name: str, rows: int, cols: int, density: float, runs: int) -> dict:
    """Pack one matrix `runs` times."""
    columns = random_columns(rows, cols, density)
    seconds = []
    for _ in tqdm(range(runs), desc=name, file=sys.stderr, leave=False):
        begin = time.perf_counter()
        packed = pack_layer(*columns, rows, N_PES, INDEX_BITS, CODE_BITS)
        seconds.append(time.perf_counter() - begin)
    return {
        "name": name, "rows_out": rows, "columns": cols, "density": density, "n_pes": N_PES,
        "weights": len(columns[1]), "entries": int(packed.lengths.sum()),
        "fillers": int(packed.fillers.sum()), "runs": runs,
        "seconds": statistics.median(seconds), "seconds_min": min(seconds),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--runs", type=int, default=7, help="times to pack each matrix")
    args = parser.parse_args()
    rows = [measure("ese-layer", 4096, 794, 0.1, args.runs),
            measure("3.25M-stored", 4096, 7935, 0.1, args.runs)]
    if args.json:
        print(json.dumps({"rows": rows}))
        return
    for row in rows:
        print(f"{row['name']}: {row['weights']} weights, {row['entries']} entries in "
              f"{row['seconds']:.3f} s (median of {row['runs']}, best {row['seconds_min']:.3f} s)")


if __name__ == "__main__":
    main()
