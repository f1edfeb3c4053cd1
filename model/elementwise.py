"""The element-wise unit in integers: sigmoid, tanh, and the cells of recurrent layers.

Formats, with ``A`` = ``act_bits`` (16): gate pre-activations have the binary point
``gate_frac(A)`` = ``A - 5`` (they reach +-16), results of sigmoid and tanh, and the hidden state of
LSTM, GRU and tanh cells, have ``unit_frac(A)`` = ``A - 1``. An LSTM's cell state has the binary
point ``unit_frac - cell_shift``. Shapes: any, int64; every function works element by element.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from openese.model.formats import round_shift, saturate

__all__ = [
    "PEEP_SHIFT_MAX", "SHIFT_MAX", "activation_table", "gate_frac", "gru_cell", "lstm_cell",
    "peephole_frac", "sigmoid", "table_split", "tanh", "unit_frac",
]

#: Largest ``cell_shift`` and ``peep_shift``: fields of 3 bits.
SHIFT_MAX = PEEP_SHIFT_MAX = 7


def gate_frac(act_bits: int) -> int:
    """Binary point of gate pre-activations."""
    return act_bits - 5


def unit_frac(act_bits: int) -> int:
    """Binary point of values between -1 and 1: sigmoid, tanh, hidden states."""
    return act_bits - 1


def peephole_frac(act_bits: int, cell_shift: int, peep_shift: int) -> int:
    """Binary point of peephole weights, so that their product shifted by
    ``unit_frac - 1 - peep_shift`` is a gate pre-activation."""
    cell_frac = unit_frac(act_bits) - cell_shift
    return unit_frac(act_bits) - 1 - peep_shift + gate_frac(act_bits) - cell_frac


def table_split(act_bits: int) -> tuple[int, int]:
    """Bits of a magnitude that select a segment of the table, and bits left to interpolate."""
    segment = min(9, act_bits - 1)
    return segment, act_bits - 1 - segment


@cache
def activation_table(act_bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Values of tanh at the segments' starts, and their differences to the next start.

    The table covers magnitudes 0 to 8, where tanh is 1 to the last bit of 18. Segment ``k`` starts
    at ``8 k / segments``; the last ends at the largest value, so that results stay below 1.
    """
    segment, _ = table_split(act_bits)
    top = (1 << unit_frac(act_bits)) - 1
    points = np.arange((1 << segment) + 1) * (8.0 / (1 << segment))
    values = np.minimum(np.floor(np.tanh(points) * (1 << unit_frac(act_bits)) + 0.5), top)
    values = values.astype(np.int64)
    return values[:-1], np.diff(values)


def _tanh_magnitude(x: NDArray[np.int64], act_bits: int) -> NDArray[np.int64]:
    """tanh of magnitudes whose largest value, ``2**(act_bits - 1)``, stands for 8."""
    _, rest = table_split(act_bits)
    x = np.minimum(x, (1 << (act_bits - 1)) - 1)
    values, steps = activation_table(act_bits)
    index, fraction = x >> rest, x & ((1 << rest) - 1)
    return values[index] + round_shift(steps[index] * fraction, rest)


def tanh(a: NDArray[np.int64], act_bits: int) -> NDArray[np.int64]:
    """tanh of gate pre-activations: odd, monotone, magnitudes below 1."""
    magnitude = _tanh_magnitude(np.abs(a) << 1, act_bits)
    return np.where(a < 0, -magnitude, magnitude)


def sigmoid(a: NDArray[np.int64], act_bits: int) -> NDArray[np.int64]:
    """Sigmoid of gate pre-activations as ``(1 + tanh(a / 2)) / 2``: monotone, from 0 to below 1."""
    magnitude = _tanh_magnitude(np.abs(a), act_bits)
    return ((1 << unit_frac(act_bits)) + np.where(a < 0, -magnitude, magnitude)) >> 1


def lstm_cell(gates: NDArray[np.int64], cell: NDArray[np.int64], *, act_bits: int,
              cell_shift: int, peephole: NDArray[np.int64] | None = None, peep_shift: int = 0
              ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """One step of LSTM units.

    Parameters
    ----------
    gates
        ``(4, ...)``: pre-activations of i, f, g, o.
    cell
        Cell states before the step.
    cell_shift
        ``unit_frac`` minus the binary point of cell states, 0 to 7.
    peephole
        ``(3, ...)`` raw weights of i, f, o, or ``None``.
    peep_shift
        See `peephole_frac`.

    Returns
    -------
    Hidden states, new cell states, and which of these were saturated.
    """
    one = unit_frac(act_bits)
    a_i, a_f, a_g, a_o = gates

    def peep(a: NDArray, weight: NDArray, c: NDArray) -> NDArray:
        return saturate(a + round_shift(weight * c, one - 1 - peep_shift), act_bits)[0]

    if peephole is not None:
        a_i, a_f = peep(a_i, peephole[0], cell), peep(a_f, peephole[1], cell)
    i, f, g = sigmoid(a_i, act_bits), sigmoid(a_f, act_bits), tanh(a_g, act_bits)
    exact = round_shift(f * cell + (i * g >> cell_shift), one)
    new = saturate(exact, act_bits)[0]
    if peephole is not None:
        a_o = peep(a_o, peephole[2], new)
    # From the cell state's binary point to a gate's: 4 - cell_shift bits to the right.
    squashed = tanh(saturate(round_shift(new << 3, SHIFT_MAX - cell_shift), act_bits)[0], act_bits)
    return round_shift(sigmoid(a_o, act_bits) * squashed, one), new, exact != new


def gru_cell(gates: NDArray[np.int64], state: NDArray[np.int64], *, act_bits: int
             ) -> NDArray[np.int64]:
    """One step of GRU units in PyTorch's form: ``n = tanh(a2 + r a3)``, ``h = n + z (h - n)``.

    `gates` is ``(4, ...)``: pre-activations of r and z, and the input's and the state's part of n.
    """
    one = unit_frac(act_bits)
    r, z = sigmoid(gates[0], act_bits), sigmoid(gates[1], act_bits)
    n = tanh(saturate(gates[2] + round_shift(r * gates[3], one), act_bits)[0], act_bits)
    return n + round_shift(z * (state - n), one)
