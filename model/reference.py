"""The integer reference: what every engine must output, bit for bit.

The arithmetic of a layer is `accumulate` and `write_back`; `run_reference` chains them over a
network and counts what the reports and the cycle model need.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openese.model.elementwise import gru_cell, lstm_cell, tanh
from openese.model.formats import QFormat, round_shift, saturate
from openese.model.quantise import (
    QuantisedLayer,
    QuantisedMatrix,
    QuantisedNetwork,
    QuantisedRecurrent,
)

__all__ = ["LayerState", "Reference", "State", "accumulate", "output_snr_db", "run_reference",
           "write_back", "zero_state"]

# Elements of a temporary array: 32 MB of float64.
_CHUNK = 1 << 22


@dataclass(eq=False)
class LayerState:
    """The state of a recurrent layer.

    Parameters
    ----------
    h
        int64 ``(channels, out_features)``: hidden state, the last output.
    c
        int64 ``(channels, hidden)``: cell state of an LSTM, else ``None``.
    """

    h: NDArray[np.int64]
    c: NDArray[np.int64] | None


#: The state of a network: that of each recurrent layer, in order.
State = list[LayerState]


def zero_state(network: QuantisedNetwork, channels: int = 1) -> State:
    """The state before the first step of a sequence."""
    return [LayerState(
        np.zeros((channels, layer.rows), dtype=np.int64),
        np.zeros((channels, layer.hidden), dtype=np.int64) if layer.cell == "lstm" else None)
        for layer in network.layers if isinstance(layer, QuantisedRecurrent)]


@dataclass(eq=False)
class Reference:
    """Outputs of a network for ``n`` input vectors, or ``n`` steps of a sequence.

    Of a recurrent layer the matrices count one by one, as ``weight_ih``, ``weight_hh`` and
    ``weight_hr``.

    Parameters
    ----------
    outputs
        int64 ``(n, out_features)`` or ``(n, channels, out_features)``, as the inputs; raw.
    saturations
        Values that the write-backs of all layers and the cell states of LSTMs had to clip.
    activations
        Per matrix int32 ``(n, channels, cols)``: the raw activations it read.
    nonzero
        Per matrix int64 ``(n,)``: columns that are not 0 in all channels, which is the columns
        broadcast.
    multiplies
        Per matrix int64 ``(n,)``: stored weights in those columns. Fillers are no useful work and
        are not counted.
    state
        Of the recurrent layers, after the last step.
    """

    outputs: NDArray[np.int64]
    saturations: int
    activations: list[NDArray[np.int32]]
    nonzero: list[NDArray[np.int64]]
    multiplies: list[NDArray[np.int64]]
    state: State


def accumulate(layer: QuantisedMatrix, x: NDArray) -> NDArray[np.int64]:
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


def run_reference(network: QuantisedNetwork, inputs: ArrayLike, *, state: State | None = None,
                  active: ArrayLike | None = None) -> Reference:
    """Run raw inputs, integers ``(n, [channels,] in_features)``, through the network.

    Vectors are independent of each other where no layer is recurrent, else they are steps in time.

    Parameters
    ----------
    network, inputs
        Of integers within ``act_bits``.
    state
        Before the first step; ``None`` is all 0. Not changed.
    active
        bool ``(n, channels)``: channels that have a step. The others keep their state, and each
        recurrent layer gives its former output. ``None``: all.

    Raises
    ------
    ValueError
        Inputs of another shape, not integers, or beyond ``act_bits``; a state or `active` of
        another shape.
    """
    x = np.asarray(inputs)
    single = x.ndim == 2
    features = network.in_features
    if single:
        x = checked_inputs(x, features, network.widths.act_bits)[:, None]
    elif x.ndim == 3:
        x = checked_inputs(x.reshape(-1, x.shape[2]), features,
                           network.widths.act_bits).reshape(x.shape)
    else:
        raise ValueError(f"inputs must have shape (n, {features}) or (n, channels, {features}), "
                         f"not {x.shape}")
    n, channels, _ = x.shape
    active = np.ones((n, channels), bool) if active is None else np.asarray(active, dtype=bool)
    if active.shape != (n, channels):
        raise ValueError(f"active must have shape {(n, channels)}, not {active.shape}")
    state = _checked_state(network, state, channels)

    x = x.astype(np.int64)
    run = _Run(network, active)
    for layer in network.layers:
        x = run.linear(layer, x) if isinstance(layer, QuantisedLayer) else run.recurrent(
            layer, x, state.pop(0))
    return Reference(x[:, 0] if single else x, run.saturations, run.activations, run.nonzero,
                     run.multiplies, run.state)


def _checked_state(network: QuantisedNetwork, state: State | None, channels: int) -> State:
    zeros = zero_state(network, channels)
    if state is None:
        return zeros
    shapes = [[None if part is None else part.shape for part in (layer.h, layer.c)]
              for layer in zeros]
    given = [[None if part is None else np.shape(part) for part in (layer.h, layer.c)]
             for layer in state]
    if shapes != given:
        raise ValueError(f"the state's (h, c) must have the shapes {shapes}, not {given}")
    return list(state)


class _Run:
    """Runs layer after layer over all steps and gathers what `Reference` reports."""

    def __init__(self, network: QuantisedNetwork, active: NDArray[np.bool_]):
        self._widths, self._active = network.widths, active
        self.saturations = 0
        self.activations: list[NDArray[np.int32]] = []
        self.nonzero: list[NDArray[np.int64]] = []
        self.multiplies: list[NDArray[np.int64]] = []
        self.state: State = []

    def _read(self, matrix: QuantisedMatrix, x: NDArray[np.int64]) -> None:
        broadcast = (x != 0).any(axis=1)
        self.activations.append(x.astype(np.int32))
        self.nonzero.append(np.count_nonzero(broadcast, axis=1).astype(np.int64))
        self.multiplies.append(broadcast @ np.diff(matrix.col_ptr))

    def _write_back(self, acc: NDArray, bias: ArrayLike, shift: int, relu: bool = False
                    ) -> NDArray[np.int64]:
        y, clipped = write_back(acc, bias, shift=shift, relu=relu,
                                bias_guard=self._widths.bias_guard, act_bits=self._widths.act_bits)
        self.saturations += clipped
        return y

    def linear(self, layer: QuantisedLayer, x: NDArray[np.int64]) -> NDArray[np.int64]:
        """Outputs ``(n, channels, rows)`` of a linear layer."""
        self._read(layer, x)
        acc = accumulate(layer, x.reshape(-1, layer.cols)).reshape(*x.shape[:2], layer.rows)
        return self._write_back(acc, layer.bias, layer.shift, layer.relu)

    def recurrent(self, layer: QuantisedRecurrent, x: NDArray[np.int64], state: LayerState
                  ) -> NDArray[np.int64]:
        """Outputs ``(n, channels, rows)`` of a recurrent layer, step by step."""
        n, channels, _ = x.shape
        gates, units = layer.w_ih.rows // layer.hidden, layer.hidden
        inputs = accumulate(layer.w_ih, x.reshape(-1, layer.cols))
        inputs = inputs.reshape(n, channels, gates, units)
        # As in `accumulate`, products of integers in float64 are exact.
        w_hh = layer.w_hh.dense().T.astype(np.float64)
        w_hr = None if layer.w_hr is None else layer.w_hr.dense().T.astype(np.float64)
        bias = layer.bias.reshape(layer.slots, 1, units)
        h, c = state.h.astype(np.int64), None if state.c is None else state.c.astype(np.int64)
        m_before = np.zeros((channels, units), dtype=np.int64)
        before = np.empty((n, channels, layer.rows), dtype=np.int64)
        hidden = np.empty((n, channels, units), dtype=np.int64)
        outputs = np.empty((n, channels, layer.rows), dtype=np.int64)
        for t in range(n):
            before[t] = h
            own = (h.astype(np.float64) @ w_hh).astype(np.int64).reshape(channels, gates, units)
            acc = np.zeros((layer.slots, channels, units), dtype=np.int64)
            acc[list(layer.slot_of(layer.w_ih))] += inputs[t].transpose(1, 0, 2)
            acc[list(layer.slot_of(layer.w_hh))] += own.transpose(1, 0, 2)
            a = self._write_back(acc, bias, layer.shift, layer.relu)
            active = self._active[t][:, None]
            m, c = self._cell(layer, a, h, c, active)
            m = hidden[t] = m_before = np.where(active, m, m_before)
            if w_hr is not None:
                m = self._write_back((m.astype(np.float64) @ w_hr).astype(np.int64), 0,
                                     layer.proj_shift)
            h = np.where(active, m, h)
            outputs[t] = h
        self._read(layer.w_ih, x)
        self._read(layer.w_hh, before)
        if w_hr is not None:
            self._read(layer.w_hr, hidden)
        self.state.append(LayerState(h, c))
        return outputs

    def _cell(self, layer: QuantisedRecurrent, a: NDArray[np.int64], h: NDArray[np.int64],
              c: NDArray[np.int64] | None, active: NDArray[np.bool_]
              ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Hidden units and cell states of a step."""
        bits = self._widths.act_bits
        if layer.cell == "lstm":
            peephole = None if layer.peephole is None else layer.peephole[:, None]
            m, new, clipped = lstm_cell(a, c, act_bits=bits, cell_shift=layer.cell_shift,
                                        peephole=peephole, peep_shift=layer.peep_shift)
            self.saturations += int(np.count_nonzero(clipped & active))
            return m, np.where(active, new, c)
        if layer.cell == "gru":
            return gru_cell(a, h, act_bits=bits), c
        return (tanh(a[0], bits) if layer.cell == "rnn_tanh" else a[0]), c


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
