"""The integer reference: what every engine must output, bit for bit.

The arithmetic of a layer is `accumulate` and `write_back`; `run_reference` chains them over a
network and counts what the reports and the cycle model need.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openese.model.formats import QFormat, round_shift, saturate
from openese.model.quantise import QuantisedLayer, QuantisedNetwork

__all__ = ["Reference", "accumulate", "output_snr_db", "run_reference", "write_back"]

# Elements of a temporary array: 32 MB of float64.
_CHUNK = 1 << 22


@dataclass(eq=False)
class Reference:
    """Outputs of a network for ``n`` input vectors.

    Parameters
    ----------
    outputs
        int64 ``(n, out_features)``, raw.
    saturations
        Values that the write-backs of all layers had to clip.
    activations
        Per layer int32 ``(n, cols)``: the raw activations it read.
    nonzero
        Per layer int64 ``(n,)``: activations that are not 0, which is the columns broadcast.
    multiplies
        Per layer int64 ``(n,)``: stored weights in those columns. Fillers are no useful work and
        are not counted.
    """

    outputs: NDArray[np.int64]
    saturations: int
    activations: list[NDArray[np.int32]]
    nonzero: list[NDArray[np.int64]]
    multiplies: list[NDArray[np.int64]]


def accumulate(layer: QuantisedLayer, x: NDArray) -> NDArray[np.int64]:
    """Accumulators ``W x`` of raw activations ``(n, cols)``: int64 ``(n, rows)``, exact.

    The layer must be one of a `QuantisedNetwork`, whose accumulators are proved to fit 48 bits.
    Temporaries: some 100 MB, and 24 bytes per stored weight.
    """
    # Float64 matrix products run in BLAS, int64 ones do not, and here they are exact in any order
    # of summation: all terms are integers and the proof bounds every partial sum below 2**47.
    by_row = np.argsort(layer.row_idx, kind="stable")
    rows, cols = layer.row_idx[by_row], layer.columns[by_row]
    values = layer.codebook.astype(np.float64)[layer.code[by_row]]
    acc = np.empty((x.shape[0], layer.rows), dtype=np.int64)
    height, count = max(1, _CHUNK // layer.cols), max(1, _CHUNK // max(layer.rows, layer.cols))
    for top in range(0, layer.rows, height):
        bottom = min(top + height, layer.rows)
        part = slice(*np.searchsorted(rows, [top, bottom]))
        weight = np.zeros((bottom - top, layer.cols))
        weight[rows[part] - top, cols[part]] = values[part]
        for first in range(0, x.shape[0], count):
            vectors = slice(first, first + count)
            acc[vectors, top:bottom] = x[vectors].astype(np.float64) @ weight.T
    return acc


def write_back(acc: ArrayLike, bias: ArrayLike, *, shift: int, bias_guard: int, relu: bool,
               act_bits: int) -> tuple[NDArray[np.int64], int]:
    """Output activations of accumulators, and how many were saturated.

    ``(acc >> (shift - bias_guard)) + bias`` is rounded half up by ``bias_guard`` bits, then ReLU,
    then saturation. A negative value that ReLU sets to 0 is no saturation.
    """
    total = (np.asarray(acc, dtype=np.int64) >> (shift - bias_guard)) + bias
    y = round_shift(total, bias_guard)
    return saturate(np.maximum(y, 0) if relu else y, act_bits)


def run_reference(network: QuantisedNetwork, inputs: ArrayLike) -> Reference:
    """Run raw inputs, integers ``(n, in_features)``, through the network.

    Raises
    ------
    ValueError
        Inputs of another shape, not integers, or beyond ``act_bits``.
    """
    x = checked_inputs(inputs, network.in_features, network.widths.act_bits).astype(np.int32)
    saturations, activations, nonzero, multiplies = 0, [], [], []
    for layer in network.layers:
        active = x != 0
        activations.append(x)
        nonzero.append(np.count_nonzero(active, axis=1).astype(np.int64))
        multiplies.append(active @ np.diff(layer.col_ptr))
        y, clipped = write_back(
            accumulate(layer, x), layer.bias, shift=layer.shift, relu=layer.relu,
            bias_guard=network.widths.bias_guard, act_bits=network.widths.act_bits)
        saturations += clipped
        x = y.astype(np.int32)
    return Reference(y, saturations, activations, nonzero, multiplies)


def checked_inputs(inputs: ArrayLike, features: int, act_bits: int) -> NDArray[np.integer]:
    """`inputs` as an integer array ``(n, features)`` within ``act_bits``, or ``ValueError``."""
    x = np.asarray(inputs)
    if x.ndim != 2 or x.shape[1] != features:
        raise ValueError(f"inputs must have shape (n, {features}), not {x.shape}")
    if not np.issubdtype(x.dtype, np.integer):
        raise ValueError(f"inputs must be raw integers, not {x.dtype}: quantise them first")
    form = QFormat(act_bits, 0)
    if x.size and (int(x.min()) < form.min or int(x.max()) > form.max):
        raise ValueError(f"inputs must lie in {form.min}..{form.max}, found "
                         f"{int(x.min())}..{int(x.max())}")
    return x


def output_snr_db(expected: ArrayLike, actual: ArrayLike) -> float:
    """Signal-to-noise ratio of real outputs against the float network's, in dB.

    ``inf`` when they are equal, ``-inf`` when the expected outputs are all 0 and the others not.
    """
    expected = np.asarray(expected, dtype=np.float64)
    noise = float(np.square(expected - np.asarray(actual, dtype=np.float64)).sum())
    signal = float(np.square(expected).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")
