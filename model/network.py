"""The compressed network: what an ``.ese`` file stores, independent of any engine.

`CompressedLinear` keeps a pruned, weight-shared matrix as columns of (row, code) and a float32
codebook, so that it is exactly the compressed PyTorch layer. `QuantisedNetwork`
(`openese.model.quantise`) turns it into the integers the hardware computes with.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openese.model.matrix import CompressedMatrix, FixedMatrix, SharedColumns, sparse_columns

__all__ = ["CELL_GATES", "CompressedBidirectional", "CompressedLayer", "CompressedLinear",
           "CompressedNetwork", "CompressedRecurrent"]

#: Cells, and how many blocks of rows their matrices have.
CELL_GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}


@dataclass(eq=False)
class CompressedLinear(SharedColumns):
    """A pruned, weight-shared linear layer ``y = act(W x + b)`` in compressed sparse columns.

    Parameters
    ----------
    name
        Path of the module in the user's model, as ``named_modules`` gives it.
    in_features, out_features
        Columns and rows of ``W``.
    col_ptr
        int64 ``(in_features + 1,)``; column ``j`` is the slice ``col_ptr[j]:col_ptr[j + 1]``.
    row_idx
        int32 ``(nnz,)``; rows, strictly increasing within a column.
    code
        uint8 ``(nnz,)``; indices into the codebook, never 0.
    codebook
        float32 ``(2**code_bits,)``; entry 0 is exactly 0, the value of every pruned weight.
    bias
        float32 ``(out_features,)`` or ``None``.
    relu
        Whether a ReLU follows.
    out_frac
        Binary point of the output activations (signed 16 bit), from calibration.

    Raises
    ------
    ValueError
        Arrays that do not form such a layer; the text names the layer and what is wrong.
    """

    name: str
    in_features: int
    out_features: int
    col_ptr: NDArray[np.int64]
    row_idx: NDArray[np.int32]
    code: NDArray[np.uint8]
    codebook: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    relu: bool
    out_frac: int

    def __post_init__(self) -> None:
        what = f"layer {self.name!r}"
        self._check_shared(what)
        if self.bias is not None:
            self.bias = np.asarray(self.bias, dtype=np.float32)
            if self.bias.shape != (self.out_features,):
                raise ValueError(f"{what}: bias must have {self.out_features} elements, "
                                 f"not {self.bias.shape}")
            if not np.isfinite(self.bias).all():
                raise ValueError(f"{what}: bias must be finite")

    @property
    def rows(self) -> int:
        """Rows of ``W``."""
        return self.out_features

    @property
    def cols(self) -> int:
        """Columns of ``W``."""
        return self.in_features

    @classmethod
    def from_codes(cls, name: str, codes: NDArray, codebook: NDArray, bias: NDArray | None,
                   *, relu: bool, out_frac: int) -> "CompressedLinear":
        """Build a layer from a dense ``(out_features, in_features)`` array of codes."""
        rows, cols, *entries = sparse_columns(codes)
        return cls(name, cols, rows, *entries, codebook, bias, relu=relu, out_frac=out_frac)


@dataclass(eq=False)
class CompressedRecurrent:
    """A pruned recurrent layer: one direction of one layer of PyTorch's RNN, GRU or LSTM.

    Parameters
    ----------
    name
        Path of the module in the user's model; with its layer and direction where it has several
        (``"lstm.l0"``, ``"lstm.l1_reverse"``).
    cell
        ``"rnn_tanh"``, ``"rnn_relu"``, ``"gru"`` or ``"lstm"``.
    input_size, hidden_size
        Length of an input vector, and number of units.
    w_ih
        ``(gates * hidden_size, input_size)``; blocks of rows in PyTorch's order: i, f, g, o of an
        LSTM and r, z, n of a GRU.
    w_hh
        ``(gates * hidden_size, out_features)``.
    w_hr
        ``(proj_size, hidden_size)``, the projection of an LSTM, or ``None``.
    bias
        float32 ``(gates * hidden_size,)``, the sum of PyTorch's two; of a GRU
        ``(4 * hidden_size,)``: r, z (sums), n of the input, n of the state. Or ``None``.
    peephole
        float32 ``(3, hidden_size)``, diagonal weights of i, f (which see the cell state before
        the step) and o (after it), or ``None``.
    out_frac
        Binary point of the output: ``unit_frac`` of `openese.model.elementwise` but for ReLU cells
        and projections, where it is calibrated.
    cell_frac
        Binary point of an LSTM's cell state, from calibration.

    Raises
    ------
    ValueError
        Arrays that do not form such a layer; the text names the layer and what is wrong.
    """

    name: str
    cell: str
    input_size: int
    hidden_size: int
    w_ih: CompressedMatrix | FixedMatrix
    w_hh: CompressedMatrix | FixedMatrix
    w_hr: CompressedMatrix | FixedMatrix | None = None
    bias: NDArray[np.float32] | None = None
    peephole: NDArray[np.float32] | None = None
    out_frac: int = 15
    cell_frac: int = 12

    def __post_init__(self) -> None:
        def check(ok: bool, text: str) -> None:
            if not ok:
                raise ValueError(f"layer {self.name!r}: {text}")

        def check_matrix(what: str, rows: int, cols: int) -> None:
            matrix = getattr(self, what)
            check((matrix.rows, matrix.cols) == (rows, cols),
                  f"{what} must be {rows} x {cols}, not {matrix.rows} x {matrix.cols}")

        check(self.cell in CELL_GATES,
              f"cell must be one of {', '.join(CELL_GATES)}, not {self.cell!r}")
        check(self.input_size >= 1 and self.hidden_size >= 1, "sizes must be 1 or more")
        lstm = self.cell == "lstm"
        check(lstm or self.w_hr is None, f"a projection needs an LSTM, not {self.cell}")
        check(lstm or self.peephole is None, f"peepholes need an LSTM, not {self.cell}")
        rows = CELL_GATES[self.cell] * self.hidden_size
        check_matrix("w_ih", rows, self.input_size)
        check_matrix("w_hh", rows, self.out_features)
        if self.w_hr is not None:
            check_matrix("w_hr", self.w_hr.rows, self.hidden_size)
            check(self.w_hr.rows < self.hidden_size,
                  f"a projection must be smaller than hidden_size ({self.hidden_size}), "
                  f"not {self.w_hr.rows}")
        for what, shape in (("bias", (self.slots * self.hidden_size,)),
                            ("peephole", (3, self.hidden_size))):
            value = getattr(self, what)
            if value is not None:
                value = np.asarray(value, dtype=np.float32)
                setattr(self, what, value)
                check(value.shape == shape, f"{what} must have shape {shape}, not {value.shape}")
                check(bool(np.isfinite(value).all()), f"{what} must be finite")

    @property
    def slots(self) -> int:
        """Accumulators of a unit: its gates, and of a GRU the two parts of n."""
        return 4 if self.cell == "gru" else CELL_GATES[self.cell]

    @property
    def in_features(self) -> int:
        """Length of an input vector."""
        return self.input_size

    @property
    def out_features(self) -> int:
        """Length of an output vector, and of the hidden state."""
        return self.hidden_size if self.w_hr is None else self.w_hr.rows

    @property
    def matrices(self) -> dict[str, CompressedMatrix | FixedMatrix]:
        """The matrices by PyTorch's names."""
        found = {"weight_ih": self.w_ih, "weight_hh": self.w_hh, "weight_hr": self.w_hr}
        return {name: matrix for name, matrix in found.items() if matrix is not None}

    def step(self, x: NDArray, state: tuple[NDArray, NDArray | None]
             ) -> tuple[NDArray[np.float64], tuple[NDArray, NDArray | None]]:
        """One step in float64: ``(..., input_size)`` and (h, c) to the output and (h, c)."""
        h, c = state
        units = self.hidden_size
        a_x = x @ self.w_ih.dense().astype(np.float64).T
        a_h = h @ self.w_hh.dense().astype(np.float64).T
        bias = np.zeros(self.slots * units) if self.bias is None else self.bias.astype(np.float64)

        def part(values: NDArray, k: int) -> NDArray:
            return values[..., k * units:(k + 1) * units]

        if self.cell == "gru":
            r, z = (_sigmoid(part(a_x, k) + part(a_h, k) + part(bias, k)) for k in (0, 1))
            n = np.tanh(part(a_x, 2) + part(bias, 2) + r * (part(a_h, 2) + part(bias, 3)))
            h = n + z * (h - n)
        elif self.cell == "lstm":
            i, f, g, o = (part(a_x, k) + part(a_h, k) + part(bias, k) for k in range(4))
            peep = np.zeros((3, units)) if self.peephole is None else self.peephole
            i, f = i + peep[0] * c, f + peep[1] * c
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o + peep[2] * c) * np.tanh(c)
            if self.w_hr is not None:
                h = h @ self.w_hr.dense().astype(np.float64).T
        else:
            total = a_x + a_h + bias
            h = np.tanh(total) if self.cell == "rnn_tanh" else np.maximum(total, 0)
        return h, (h, c)

    def zero_state(self, *shape: int) -> tuple[NDArray, NDArray | None]:
        """(h, c) of zeros, float64; c is ``None`` but for an LSTM."""
        cell = np.zeros((*shape, self.hidden_size)) if self.cell == "lstm" else None
        return np.zeros((*shape, self.out_features)), cell

    def forward(self, x: NDArray, state: tuple[NDArray, NDArray | None] | None = None
                ) -> tuple[NDArray[np.float64], tuple[NDArray, NDArray | None]]:
        """A sequence in float64: ``(steps, ..., input_size)`` to outputs and the last (h, c)."""
        x = np.asarray(x, dtype=np.float64)
        state = self.zero_state(*x.shape[1:-1]) if state is None else state
        y = np.empty((*x.shape[:-1], self.out_features))
        for t, now in enumerate(x):
            y[t], state = self.step(now, state)
        return y, state


def _sigmoid(x: NDArray) -> NDArray:
    return 0.5 * (1 + np.tanh(0.5 * x))


@dataclass(eq=False)
class CompressedBidirectional:
    """Two recurrent layers over the same sequence, one from its end; outputs are concatenated.

    Parameters
    ----------
    ahead, back
        The layers of the forward and of the reverse direction, of equal input size.

    Raises
    ------
    ValueError
        Different input sizes or output formats.
    """

    ahead: CompressedRecurrent
    back: CompressedRecurrent

    def __post_init__(self) -> None:
        for field_ in ("input_size", "out_frac"):
            if getattr(self.ahead, field_) != getattr(self.back, field_):
                raise ValueError(f"layers {self.ahead.name!r} and {self.back.name!r}: {field_} "
                                 f"must be equal in both directions")

    @property
    def name(self) -> str:
        """Name of the layer of the forward direction."""
        return self.ahead.name

    @property
    def out_frac(self) -> int:
        """Binary point of the output."""
        return self.ahead.out_frac

    @property
    def in_features(self) -> int:
        """Length of an input vector."""
        return self.ahead.in_features

    @property
    def out_features(self) -> int:
        """Length of an output vector: both directions."""
        return self.ahead.out_features + self.back.out_features


CompressedLayer = CompressedLinear | CompressedRecurrent | CompressedBidirectional


@dataclass(eq=False)
class CompressedNetwork:
    """A chain of compressed layers with the binary point of its input.

    Parameters
    ----------
    layers
        At least one layer; the sizes of neighbours must agree.
    in_frac
        Binary point of the input activations (signed 16 bit), from calibration.
    act_bits
        Width of activations.
    meta
        Free-form facts for people: recipe, accuracies, data set. Strings and numbers only.

    Raises
    ------
    ValueError
        No layers, or neighbours whose sizes differ.
    """

    layers: list[CompressedLayer]
    in_frac: int
    act_bits: int = 16
    meta: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a network needs at least one layer")
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            if before.out_features != after.in_features:
                raise ValueError(
                    f"layer {after.name!r} takes {after.in_features} inputs but layer "
                    f"{before.name!r} gives {before.out_features}")

    @property
    def in_features(self) -> int:
        """Length of an input vector."""
        return self.layers[0].in_features

    @property
    def out_features(self) -> int:
        """Length of an output vector."""
        return self.layers[-1].out_features

    @property
    def recurrent(self) -> bool:
        """Whether any layer keeps a state."""
        return not all(isinstance(layer, CompressedLinear) for layer in self.layers)

    def forward(self, x: NDArray) -> NDArray[np.float64]:
        """Float reference: ``(n, ..., in_features)`` to ``(n, ..., out_features)`` in float64.

        The first dimension is time where layers are recurrent; states start at 0.
        """
        y = np.asarray(x, dtype=np.float64)
        for layer in self.layers:
            if isinstance(layer, CompressedBidirectional):
                y = np.concatenate([layer.ahead.forward(y)[0],
                                    layer.back.forward(y[::-1])[0][::-1]], axis=-1)
            elif isinstance(layer, CompressedRecurrent):
                y = layer.forward(y)[0]
            else:
                y = y @ layer.dense().astype(np.float64).T
                if layer.bias is not None:
                    y = y + layer.bias.astype(np.float64)
                if layer.relu:
                    y = np.maximum(y, 0.0)
        return y
