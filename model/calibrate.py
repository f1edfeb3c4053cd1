"""Choosing binary points of activations from data."""

import warnings
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openese.model.formats import QFormat
from openese.model.network import CompressedLinear, CompressedNetwork

__all__ = ["calibrate", "count_clipped"]

# Vectors computed at once: bounds memory to some megabytes for layers of thousands.
BATCH = 1024


def calibrate(network: CompressedNetwork, inputs: ArrayLike, *, headroom: float = 1.0
              ) -> CompressedNetwork:
    """Choose the binary points of the input and of every layer's output.

    The float network runs over `inputs`; each tensor gets the finest format of
    ``network.act_bits`` that holds its largest magnitude times `headroom`. Outputs are measured
    after their ReLU, since that is what is stored, and with the layer's biases, which are added
    in the output's format.

    Parameters
    ----------
    network
        Not changed; its binary points do not matter.
    inputs
        Calibration data like those to come: ``(n, ...)``, flattened to
        ``(n, in_features)``; finite, n >= 1.
    headroom
        1 fits the data exactly. Larger leaves room for values that the data lack; smaller clips
        the rare large ones for a finer step, and warns how many.

    Returns
    -------
    A network with the same layers and new ``in_frac`` and ``out_frac``.

    Raises
    ------
    ValueError
        Inputs of another shape, none, or not finite; a `headroom` that is not above 0.

    Warns
    -----
    UserWarning
        Values of the calibration data are beyond the chosen formats.
    """
    if not (np.isfinite(headroom) and headroom > 0):
        raise ValueError(f"headroom must be finite and above 0, not {headroom!r}")
    x = _vectors(network, inputs)
    largest = [0.0] * (len(network.layers) + 1)
    for batch in _batches(x):
        for index, tensor in enumerate(_activations(network, batch)):
            largest[index] = max(largest[index], float(np.abs(tensor).max()))
    for index, layer in enumerate(network.layers, start=1):
        if layer.bias is not None:
            largest[index] = max(largest[index], float(np.abs(layer.bias).max()))
    fracs = [QFormat.covering(network.act_bits, m * headroom).frac for m in largest]
    layers = [replace(layer, out_frac=frac)
              for layer, frac in zip(network.layers, fracs[1:], strict=True)]
    result = CompressedNetwork(layers, fracs[0], network.act_bits, dict(network.meta))
    if headroom < 1:
        _warn(count_clipped(result, x))
    return result


def count_clipped(network: CompressedNetwork, inputs: ArrayLike) -> dict[str, int]:
    """How many values of the float network are beyond their formats on this data.

    Parameters
    ----------
    inputs
        ``(n, ...)``, flattened to ``(n, in_features)``; finite, n >= 1.

    Returns
    -------
    Counts by tensor: ``"input"``, then each layer's name with its outputs.

    Raises
    ------
    ValueError
        Inputs of another shape, none, or not finite.
    """
    x = _vectors(network, inputs)
    names = ["input"] + [layer.name for layer in network.layers]
    formats = [QFormat(network.act_bits, frac)
               for frac in (network.in_frac, *(layer.out_frac for layer in network.layers))]
    counts = dict.fromkeys(names, 0)
    for batch in _batches(x):
        for name, form, tensor in zip(names, formats, _activations(network, batch), strict=True):
            counts[name] += form.quantise(tensor)[1]
    return counts


def _warn(counts: dict[str, int]) -> None:
    clipped = ", ".join(f"{name}: {count}" for name, count in counts.items() if count)
    if clipped:
        warnings.warn(f"values of the calibration data will be clipped ({clipped}); "
                      f"raise headroom to avoid it", UserWarning, stacklevel=3)


def _vectors(network: CompressedNetwork, inputs: ArrayLike) -> NDArray:
    x = np.asarray(inputs)
    if x.ndim < 2 or x.shape[0] < 1 or int(np.prod(x.shape[1:])) != network.in_features:
        raise ValueError(f"inputs must have shape (n, {network.in_features}) with n >= 1, or one "
                         f"that flattens to it, not {x.shape}")
    x = x.reshape(x.shape[0], -1)
    if not np.isfinite(x).all():
        raise ValueError("inputs must be finite (no NaN or infinity)")
    return x


def _batches(x: NDArray) -> list[NDArray]:
    return [x[start:start + BATCH] for start in range(0, len(x), BATCH)]


def _activations(network: CompressedNetwork, x: NDArray) -> list[NDArray[np.float64]]:
    """The input and the output of every layer in float64."""
    tensors = [np.asarray(x, dtype=np.float64)]
    for layer in network.layers:
        tensors.append(_one_layer(layer, network).forward(tensors[-1]))
    return tensors


def _one_layer(layer: CompressedLinear, network: CompressedNetwork) -> CompressedNetwork:
    return CompressedNetwork([layer], network.in_frac, network.act_bits)
