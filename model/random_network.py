"""Seeded random networks and inputs, for tests and benchmarks of engines of any shape."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from openese.model.formats import QFormat
from openese.model.network import CompressedLinear, CompressedNetwork

__all__ = ["random_inputs", "random_network"]


def random_network(seed: int, sizes: Sequence[int], density: float | Sequence[float] = 0.2,
                   code_bits: int | Sequence[int] = 4, *, relu: bool | Sequence[bool] | None = None,
                   bias: bool | Sequence[bool] = True, in_frac: int = 12, act_bits: int = 16,
                   headroom: int = 1) -> CompressedNetwork:
    """A network with random positions, codes, codebooks and biases, calibrated on random inputs.

    Parameters
    ----------
    seed
        Equal arguments give equal networks.
    sizes
        Features of the input and of every layer's output.
    density
        Probability of a weight being stored, for all layers or one per layer.
    code_bits
        Width of codes, for all layers or one per layer.
    relu
        Whether a ReLU follows, likewise. ``None``: after every layer but the last.
    bias
        Whether there is a bias, likewise.
    in_frac, act_bits
        Format of the input; inputs use its whole range.
    headroom
        Bits between the largest calibration output and the largest activation. Negative values
        make outputs saturate.
    """
    rng = np.random.default_rng(seed)
    n_layers = len(sizes) - 1

    def per_layer(value) -> list:
        return list(value) if isinstance(value, Sequence) else [value] * n_layers

    relu = [True] * (n_layers - 1) + [False] if relu is None else per_layer(relu)
    top = 2.0 ** (act_bits - 1 - in_frac)
    x = rng.uniform(-top, top, (32, sizes[0]))
    layers = []
    for number, (density_, bits, relu_, bias_) in enumerate(zip(
            per_layer(density), per_layer(code_bits), relu, per_layer(bias), strict=True)):
        cols, rows = sizes[number:number + 2]
        codes = rng.integers(1, 1 << bits, (rows, cols)) * (rng.random((rows, cols)) < density_)
        scale = 1 / np.sqrt(max(1.0, density_ * cols))
        # Kept away from 0, as pruning does, so that no value is lost when it is quantised.
        codebook = rng.uniform(0.1, 1, 1 << bits) * rng.choice([-1, 1], 1 << bits) * scale
        codebook[0] = 0
        offset = rng.normal(0, np.abs(x).max() / 8, rows) if bias_ else None
        layer = CompressedLinear.from_codes(f"layers.{number}", codes, codebook, offset,
                                            relu=relu_, out_frac=0)
        x = CompressedNetwork([layer], 0).forward(x)
        largest = float(np.abs(x).max())
        layer.out_frac = QFormat.covering(act_bits, largest * 2.0 ** headroom).frac
        layers.append(layer)
    return CompressedNetwork(layers, in_frac, act_bits, {"seed": seed})


def random_inputs(seed: int, network: CompressedNetwork, n: int, density: float = 0.5, *,
                  negative: bool = True) -> NDArray[np.int64]:
    """Raw inputs int64 ``(n, in_features)`` over the whole range, both ends included.

    Parameters
    ----------
    seed
        Equal arguments give equal inputs.
    network
        Gives the number of inputs and their width.
    n
        Vectors.
    density
        Probability of an activation not being 0.
    negative
        Whether activations below 0 occur.
    """
    rng = np.random.default_rng(seed)
    form = QFormat(network.act_bits, network.in_frac)
    shape = n, network.in_features
    low = form.min if negative else 1
    x = rng.integers(low, form.max, shape, endpoint=True)
    # A tenth lies at the ends, where arithmetic breaks first.
    x = np.where(rng.random(shape) < 0.1, rng.choice([low, form.max], shape), x)
    x[x == 0] = 1
    return x * (rng.random(shape) < density)
