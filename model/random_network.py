"""Seeded random networks and inputs, for tests and benchmarks of engines of any shape."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openese.model.elementwise import SHIFT_MAX, unit_frac
from openese.model.formats import QFormat
from openese.model.matrix import CompressedMatrix, FixedMatrix
from openese.model.network import (
    CELL_GATES,
    CompressedLinear,
    CompressedNetwork,
    CompressedRecurrent,
)

__all__ = ["RandomLayer", "random_inputs", "random_network", "random_recurrent"]


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


@dataclass(frozen=True, kw_only=True)
class RandomLayer:
    """A layer of `random_recurrent`.

    Parameters
    ----------
    cell
        ``"rnn_tanh"``, ``"rnn_relu"``, ``"gru"``, ``"lstm"`` or ``"linear"``.
    size
        Hidden units, or outputs of a linear layer.
    proj
        Outputs of an LSTM's projection; 0: it has none.
    peepholes
        Whether an LSTM has peephole weights.
    bias
        Whether there is a bias.
    relu
        Whether a ReLU follows a linear layer.
    density
        Probability of a weight being stored.
    """

    cell: str
    size: int
    proj: int = 0
    peepholes: bool = False
    bias: bool = True
    relu: bool = False
    density: float = 0.3


def random_recurrent(seed: int, in_features: int, layers: Sequence[RandomLayer], *,
                     code_bits: int = 4, fixed_bits: int | None = None, in_frac: int = 12,
                     act_bits: int = 16, headroom: int = 1) -> CompressedNetwork:
    """A stack of recurrent and linear layers, calibrated on a random sequence.

    Weights are scaled so that gates vary and cells forget, but seldom stick at their ends.

    Parameters
    ----------
    seed
        Equal arguments give equal networks.
    in_features
        Length of an input vector.
    layers
        At least one.
    code_bits
        Width of codes of shared weights.
    fixed_bits
        Width of the fixed-point weights of recurrent layers; ``None``: they are shared.
    in_frac, act_bits
        Format of the input; the calibration sequence uses its whole range.
    headroom
        Bits between the largest calibration value and the largest output of ReLU cells,
        projections and linear layers. Negative values make them saturate.
    """
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (24, 8, in_features)) * 2.0 ** (act_bits - 1 - in_frac)
    made: list[CompressedLinear | CompressedRecurrent] = []

    def covering(y: NDArray) -> int:
        return QFormat.covering(act_bits, float(np.abs(y).max()) * 2.0 ** headroom).frac

    def codes(rows: int, cols: int, density: float) -> NDArray[np.int64]:
        return rng.integers(1, 1 << code_bits, (rows, cols)) * (rng.random((rows, cols)) < density)

    def codebook(scale: float) -> NDArray[np.float64]:
        # Kept away from 0, as in `random_network`.
        values = rng.uniform(0.1, 1.7, 1 << code_bits) * rng.choice([-1, 1], 1 << code_bits) * scale
        values[0] = 0
        return values

    def matrix(rows: int, cols: int, density: float, scale: float
               ) -> CompressedMatrix | FixedMatrix:
        if fixed_bits is None:
            return CompressedMatrix.from_codes(codes(rows, cols, density), codebook(scale))
        weights = rng.uniform(0.1, 1.7, (rows, cols)) * rng.choice([-1, 1], (rows, cols)) * scale
        form = QFormat.covering(fixed_bits, float(np.abs(weights).max()))
        raw = form.quantise(weights)[0] * (rng.random((rows, cols)) < density)
        return FixedMatrix.from_raw(raw, fixed_bits, form.frac)

    def spread(y: NDArray, density: float) -> float:
        """Standard deviation of a row of weights of about 1 times `y`."""
        return max(float(np.sqrt(np.square(y).mean() * density * y.shape[-1])), 0.25)

    for number, layer in enumerate(layers):
        name, density = f"layers.{number}", layer.density
        if layer.cell == "linear":
            offset = rng.normal(0, 0.3, layer.size) if layer.bias else None
            done = CompressedLinear.from_codes(
                name, codes(layer.size, x.shape[-1], density), codebook(1 / spread(x, density)),
                offset, relu=layer.relu, out_frac=0)
            x = CompressedNetwork([done], 0).forward(x)
            done.out_frac = covering(x)
            made.append(done)
            continue
        out = layer.proj or layer.size
        gates = CELL_GATES[layer.cell] * layer.size
        slots = 4 if layer.cell == "gru" else CELL_GATES[layer.cell]
        # Hidden states are about 0.4 from 0; a ReLU cell's must not grow from step to step.
        state = np.full(out, 0.4 if layer.cell != "rnn_relu" else 2.0)
        bias = rng.normal(0, 0.4, slots * layer.size) if layer.bias else None
        if layer.cell == "lstm" and layer.bias:
            bias[layer.size:2 * layer.size] += 0.5
        done = CompressedRecurrent(
            name, layer.cell, x.shape[-1], layer.size,
            matrix(gates, x.shape[-1], density, 1.2 / spread(x, density)),
            matrix(gates, out, density, 1.0 / spread(state, density)),
            matrix(layer.proj, layer.size, density,
                   1.5 / spread(np.ones(layer.size), density)) if layer.proj else None,
            bias, rng.normal(0, 0.15, (3, layer.size)) if layer.peepholes else None,
            unit_frac(act_bits))
        y, largest = np.empty((*x.shape[:-1], out)), 0.0
        now = done.zero_state(x.shape[1])
        for step, vector in enumerate(x):
            y[step], now = done.step(vector, now)
            if now[1] is not None:
                largest = max(largest, float(np.abs(now[1]).max()))
        # Cell states may reach twice what they did here.
        done.cell_frac = min(unit_frac(act_bits), max(
            unit_frac(act_bits) - SHIFT_MAX, QFormat.covering(act_bits, 2 * largest).frac))
        x = y
        if layer.proj or layer.cell == "rnn_relu":
            done.out_frac = covering(x)
        made.append(done)
    return CompressedNetwork(made, in_frac, act_bits, {"seed": seed})


def random_inputs(seed: int, network: CompressedNetwork, n: int | tuple[int, ...],
                  density: float = 0.5, *, negative: bool = True) -> NDArray[np.int64]:
    """Raw inputs int64 ``(n, in_features)`` over the whole range, both ends included.

    With `n` a tuple, as ``(steps, channels)``, inputs have these dimensions before the last.

    Parameters
    ----------
    seed
        Equal arguments give equal inputs.
    network
        Gives the number of inputs and their width.
    n
        Vectors, or their dimensions.
    density
        Probability of an activation not being 0.
    negative
        Whether activations below 0 occur.
    """
    rng = np.random.default_rng(seed)
    form = QFormat(network.act_bits, network.in_frac)
    shape = *((n,) if isinstance(n, int) else n), network.in_features
    low = form.min if negative else 1
    x = rng.integers(low, form.max, shape, endpoint=True)
    # A tenth lies at the ends, where arithmetic breaks first.
    x = np.where(rng.random(shape) < 0.1, rng.choice([low, form.max], shape), x)
    x[x == 0] = 1
    return x * (rng.random(shape) < density)
