"""Choosing binary points of activations from data."""

import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openese.model.elementwise import SHIFT_MAX, unit_frac
from openese.model.ese_file import one_way
from openese.model.formats import QFormat
from openese.model.network import (
    CompressedBidirectional,
    CompressedLayer,
    CompressedLinear,
    CompressedNetwork,
    CompressedRecurrent,
)

__all__ = ["calibrate", "count_clipped"]

# Vectors computed at once: bounds memory to some megabytes for layers of thousands.
BATCH = 1024
# Numbers of a layer computed at once where layers are recurrent: 32 megabytes.
SEQUENCE_BATCH = 1 << 22


def calibrate(network: CompressedNetwork, inputs: ArrayLike, *, headroom: float = 1.0
              ) -> CompressedNetwork:
    """Choose the binary points of the input, of every layer's output and of cell states.

    The float network runs over `inputs`; each tensor gets the finest format of
    ``network.act_bits`` that holds its largest magnitude times `headroom`. Outputs are measured
    after their ReLU, since that is what is stored, and with the layer's biases, which are added
    in the output's format. Outputs of LSTM without projection, GRU and tanh cells lie between -1
    and 1 and always get ``unit_frac``; cell states get what the element-wise unit offers,
    ``unit_frac - 7`` to ``unit_frac``; both directions of a bidirectional layer get the same.

    Parameters
    ----------
    network
        Not changed; its binary points do not matter.
    inputs
        Calibration data like those to come, finite: ``(n, ...)``, flattened to
        ``(n, in_features)``, n >= 1. Where layers are recurrent, sequences
        ``(steps, n, in_features)``, or one ``(steps, in_features)``; they start from states of 0
        and should be as long as those to come.
    headroom
        1 fits the data exactly. Larger leaves room for values that the data lack; smaller clips
        the rare large ones for a finer step, and warns how many.

    Returns
    -------
    A network with the same layers and new ``in_frac``, ``out_frac`` and ``cell_frac``.

    Raises
    ------
    ValueError
        Inputs of another shape, none, or not finite; a `headroom` that is not above 0; a network
        whose states grow beyond all bounds on the data.

    Warns
    -----
    UserWarning
        Values of the calibration data are beyond the chosen formats.
    """
    if not (np.isfinite(headroom) and headroom > 0):
        raise ValueError(f"headroom must be finite and above 0, not {headroom!r}")
    x = _vectors(network, inputs)
    names = ["input", *(layer.name for layer in one_way(network))]
    largest = np.zeros((len(names), 2))
    for batch in _batches(network, x):
        for index, tensors in enumerate(_activations(network, batch)):
            for kind, tensor in enumerate(tensors):
                peak = np.abs(tensor).max()
                # Of numpy's: it keeps what is not a number.
                largest[index, kind] = np.maximum(largest[index, kind], peak)
    for name, peaks in zip(names, largest, strict=True):
        if not (peaks <= 2.0**60).all():
            raise ValueError(f"layer {name!r} grows beyond all bounds on the calibration data; "
                             f"train it to stay within some")
    in_frac = QFormat.covering(network.act_bits, largest[0, 0] * headroom).frac
    peaks = iter(largest[1:] * headroom)
    layers = [_calibrated(layer, peaks, network.act_bits) for layer in network.layers]
    result = CompressedNetwork(layers, in_frac, network.act_bits, dict(network.meta))
    if headroom < 1 or (largest[:, 1] * headroom > 1 << SHIFT_MAX).any():
        _warn(count_clipped(result, x))
    return result


def _calibrated(layer: CompressedLayer, peaks: Iterator[NDArray], act_bits: int
                ) -> CompressedLayer:
    """The layer with binary points for the next of `peaks`: largest output and cell state."""
    if isinstance(layer, CompressedBidirectional):
        ahead, back = (_calibrated(way, peaks, act_bits) for way in (layer.ahead, layer.back))
        both = min(ahead.out_frac, back.out_frac)
        return CompressedBidirectional(replace(ahead, out_frac=both), replace(back, out_frac=both))
    output, cell = next(peaks)
    if layer.bias is not None and (isinstance(layer, CompressedLinear) or layer.cell == "rnn_relu"):
        output = max(output, float(np.abs(layer.bias).max()))
    out_frac = QFormat.covering(act_bits, output).frac
    if isinstance(layer, CompressedLinear):
        return replace(layer, out_frac=out_frac)
    unit = unit_frac(act_bits)
    cell_frac = layer.cell_frac
    if layer.cell == "lstm":
        cell_frac = int(np.clip(QFormat.covering(act_bits, cell).frac, unit - SHIFT_MAX, unit))
    return replace(layer, out_frac=out_frac if _free(layer) else unit, cell_frac=cell_frac)


def _free(layer: CompressedLinear | CompressedRecurrent) -> bool:
    """Whether the layer's outputs have a binary point of their own."""
    return (isinstance(layer, CompressedLinear) or layer.cell == "rnn_relu"
            or layer.w_hr is not None)


def count_clipped(network: CompressedNetwork, inputs: ArrayLike) -> dict[str, int]:
    """How many values of the float network are beyond their formats on this data.

    Parameters
    ----------
    inputs
        As of `calibrate`.

    Returns
    -------
    Counts by tensor: ``"input"``; each layer's name with its outputs, unless they lie between -1
    and 1 by what the layer computes; ``"NAME (cell)"`` with the cell states of an LSTM.

    Raises
    ------
    ValueError
        Inputs of another shape, none, or not finite.
    """
    x = _vectors(network, inputs)
    formats = [[("input", network.in_frac)]]
    for layer in one_way(network):
        tensors = [(layer.name if _free(layer) else None, layer.out_frac)]
        if isinstance(layer, CompressedRecurrent):
            tensors.append((f"{layer.name} (cell)", layer.cell_frac))
        formats.append(tensors)
    counts = {}
    for batch in _batches(network, x):
        for tensors, forms in zip(_activations(network, batch), formats, strict=True):
            for tensor, (name, frac) in zip(tensors, forms, strict=False):
                if name is not None:
                    clipped = QFormat(network.act_bits, frac).quantise(tensor)[1]
                    counts[name] = counts.get(name, 0) + clipped
    return counts


def _warn(counts: dict[str, int]) -> None:
    clipped = ", ".join(f"{name}: {count}" for name, count in counts.items() if count)
    if clipped:
        warnings.warn(f"values of the calibration data will be clipped ({clipped}); raise headroom "
                      f"to avoid it, or train cell states to stay within {1 << SHIFT_MAX}",
                      UserWarning, stacklevel=3)


def _vectors(network: CompressedNetwork, inputs: ArrayLike) -> NDArray:
    x = np.asarray(inputs)
    features = network.in_features
    if network.recurrent:
        if x.ndim not in (2, 3) or x.shape[-1] != features or not x.size:
            raise ValueError(f"inputs must have shape (steps, n, {features}) or "
                             f"(steps, {features}), with one step or more, not {x.shape}")
    elif x.ndim < 2 or x.shape[0] < 1 or int(np.prod(x.shape[1:])) != features:
        raise ValueError(f"inputs must have shape (n, {features}) with n >= 1, or one "
                         f"that flattens to it, not {x.shape}")
    else:
        x = x.reshape(x.shape[0], -1)
    if not np.isfinite(x).all():
        raise ValueError("inputs must be finite (no NaN or infinity)")
    return x


def _batches(network: CompressedNetwork, x: NDArray) -> list[NDArray]:
    if not network.recurrent:
        return [x[start:start + BATCH] for start in range(0, len(x), BATCH)]
    if x.ndim == 2:
        return [x]
    widest = max(max(layer.in_features, layer.out_features) for layer in network.layers)
    size = max(1, SEQUENCE_BATCH // (len(x) * widest))
    return [x[:, start:start + size] for start in range(0, x.shape[1], size)]


def _activations(network: CompressedNetwork, x: NDArray) -> Iterator[list[NDArray[np.float64]]]:
    """The input, and of every layer (`one_way`) the outputs and an LSTM's cell states."""
    x = np.asarray(x, dtype=np.float64)
    yield [x]
    # States that grow beyond all bounds are found by the caller.
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in network.layers:
            if isinstance(layer, CompressedLinear):
                tensors = [CompressedNetwork([layer], 0).forward(x)]
                yield tensors
            elif isinstance(layer, CompressedRecurrent):
                tensors = _sequence(layer, x)
                yield tensors
            else:
                tensors, back = _sequence(layer.ahead, x), _sequence(layer.back, x[::-1])
                yield tensors
                yield back
                tensors = [np.concatenate([tensors[0], back[0][::-1]], axis=-1)]
            x = tensors[0]


def _sequence(layer: CompressedRecurrent, x: NDArray) -> list[NDArray[np.float64]]:
    """Outputs, and cell states of an LSTM, at every step."""
    state = layer.zero_state(*x.shape[1:-1])
    outputs, cells = [], []
    for now in x:
        y, state = layer.step(now, state)
        outputs.append(y)
        cells.append(state[1])
    return [np.array(outputs)] + ([np.array(cells)] if layer.cell == "lstm" else [])
