"""From the float compressed network to the integers the hardware computes with.

`quantise` picks every binary point, quantises codebooks and biases and proves, from the actual
weights, that no accumulator can leave its width. What had to be given up for that is recorded in
`QuantisedLayer.rescaled_bits` and `QuantisedLayer.adjustments`, never done silently.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openese.model.config import EngineConfig
from openese.model.elementwise import (
    PEEP_SHIFT_MAX,
    SHIFT_MAX,
    gate_frac,
    peephole_frac,
    unit_frac,
)
from openese.model.formats import QFormat
from openese.model.matrix import FixedMatrix, SparseColumns
from openese.model.network import (
    CompressedBidirectional,
    CompressedLinear,
    CompressedNetwork,
    CompressedRecurrent,
)

__all__ = ["ModelError", "QuantisedLayer", "QuantisedMatrix", "QuantisedNetwork",
           "QuantisedRecurrent", "Widths", "accumulator_bound", "quantise"]

# Finest binary point considered; the write-back shift bounds it long before.
_FINEST = 64


class ModelError(ValueError):
    """A model that cannot be computed exactly as promised; names the layer and what to do."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The part of an engine configuration that decides the value of every bit of a result.

    Engines with equal widths give equal outputs whatever their number of PEs, queues and memories.
    The fields are those of `EngineConfig`.
    """

    act_bits: int
    weight_bits: int
    acc_bits: int
    bias_bits: int
    bias_guard: int
    shift_base: int
    shift_bits: int
    direct_weights: bool
    code_bits: int

    @property
    def max_align(self) -> int:
        """Largest left shift of a direct weight on its way to the multiplier."""
        return self.weight_bits - self.code_bits

    @classmethod
    def of(cls, config: EngineConfig) -> "Widths":
        """The widths of an engine."""
        values = {name: getattr(config, name) for name in cls.__dataclass_fields__}
        if not config.direct_weights:
            # How many values a codebook may have decides what fits, not what is computed.
            values["code_bits"] = 0
        return cls(**values)

    @property
    def shift_min(self) -> int:
        """Smallest write-back shift the engine can make."""
        return self.shift_base + self.bias_guard

    @property
    def shift_max(self) -> int:
        """Largest write-back shift the engine can make."""
        return self.shift_min + (1 << self.shift_bits) - 1

    @property
    def acc_max(self) -> int:
        """Largest magnitude of an accumulator, the same in both directions."""
        return (1 << (self.acc_bits - 1)) - 1


@dataclass(eq=False, kw_only=True)
class QuantisedMatrix:
    """A sparse matrix of integers.

    Parameters
    ----------
    rows, cols, col_ptr, row_idx
        The columns, as in `CompressedMatrix`.
    code
        Index of every entry into the codebook.
    codebook
        int64 ``(2**code_bits,)``, raw weights at ``weight_frac``; codes that no weight uses are 0.
        Of a direct matrix the values of two's complement numbers of ``code_bits``, in that order,
        times ``2**align``.
    weight_frac
        Binary point of the codebook.
    direct, align
        Entries hold their weights themselves, not codes (ESE), ``align`` bits above the binary
        point's last.
    """

    rows: int
    cols: int
    col_ptr: NDArray[np.int64]
    row_idx: NDArray[np.int32]
    code: NDArray[np.uint16]
    codebook: NDArray[np.int64]
    weight_frac: int
    direct: bool = False
    align: int = 0

    @property
    def nnz(self) -> int:
        """Number of stored weights."""
        return int(self.col_ptr[-1])

    @property
    def code_bits(self) -> int:
        """Width of a code, or of a direct weight."""
        return int(self.codebook.shape[0] - 1).bit_length()

    @property
    def columns(self) -> NDArray[np.int64]:
        """Column of every entry, int64 ``(nnz,)``."""
        return np.repeat(np.arange(self.cols, dtype=np.int64), np.diff(self.col_ptr))

    def dense(self) -> NDArray[np.int64]:
        """The matrix of raw weights, int64 ``(rows, cols)``."""
        weight = np.zeros((self.rows, self.cols), dtype=np.int64)
        weight[self.row_idx, self.columns] = self.codebook[self.code]
        return weight

    def row_sums(self) -> NDArray[np.int64]:
        """Sum of the magnitudes of every row's weights, int64 ``(rows,)``."""
        # bincount adds in float64, exact here: integers, and 2**18 * 65536 columns < 2**53.
        return np.bincount(self.row_idx, weights=np.abs(self.codebook)[self.code].astype(float),
                           minlength=self.rows).astype(np.int64)


@dataclass(eq=False, kw_only=True)
class QuantisedLayer(QuantisedMatrix):
    """One linear layer in integers: ``y = act(round((W x) / 2**shift + b))``.

    Parameters
    ----------
    name
        Path of the module in the user's model.
    rows, cols, col_ptr, row_idx, code, codebook, weight_frac, direct, align
        As of `QuantisedMatrix`; rows are outputs, columns inputs.
    bias
        int64 ``(rows,)``, raw at ``out_frac + bias_guard``; zeros for a layer without bias.
    in_frac, out_frac
        Binary points of input and output activations.
    shift
        ``in_frac + weight_frac - out_frac``: the write-back divides by ``2**shift``.
    relu
        Whether a ReLU follows.
    rescaled_bits
        Bits by which ``weight_frac`` lies below the finest that its width allows.
    adjustments
        One sentence for every binary point that had to be moved, and why.
    """

    name: str
    bias: NDArray[np.int64]
    in_frac: int
    out_frac: int
    shift: int
    relu: bool
    rescaled_bits: int = 0
    adjustments: tuple[str, ...] = ()


@dataclass(eq=False, kw_only=True)
class QuantisedRecurrent:
    """One recurrent layer in integers; `openese.model.reference` says what it computes.

    Parameters
    ----------
    name, cell, hidden
        As of `CompressedRecurrent`.
    w_ih, w_hh, w_hr
        Matrices with rows in PyTorch's order; ``w_hr`` is ``None`` without a projection.
    bias
        int64 ``(slots * hidden,)``, raw at ``gate_frac + bias_guard``: all units' first
        accumulators, then all second ones, ...
    in_frac, out_frac
        Binary points of inputs, and of outputs, which are the hidden state.
    gate_frac, shift
        Binary point of pre-activations, and what the accumulators are divided by for it. Both
        matrices' products have the binary point ``gate_frac + shift``.
    proj_shift
        The same of the projection, whose results have the binary point ``out_frac``.
    cell_shift, peephole, peep_shift
        As of `openese.model.elementwise.lstm_cell`; ``peephole`` int64 ``(3, hidden)`` or ``None``.
    rescaled_bits, adjustments
        As of `QuantisedLayer`.
    """

    name: str
    cell: str
    hidden: int
    w_ih: QuantisedMatrix
    w_hh: QuantisedMatrix
    w_hr: QuantisedMatrix | None
    bias: NDArray[np.int64]
    in_frac: int
    out_frac: int
    gate_frac: int
    shift: int
    proj_shift: int = 0
    cell_shift: int = 0
    peephole: NDArray[np.int64] | None = None
    peep_shift: int = 0
    rescaled_bits: int = 0
    adjustments: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Length of an output vector."""
        return self.hidden if self.w_hr is None else self.w_hr.rows

    @property
    def cols(self) -> int:
        """Length of an input vector."""
        return self.w_ih.cols

    @property
    def slots(self) -> int:
        """Accumulators of a unit."""
        return len(self.bias) // self.hidden

    @property
    def relu(self) -> bool:
        """Whether the write-back clips pre-activations at 0."""
        return self.cell == "rnn_relu"

    def slot_of(self, matrix: QuantisedMatrix) -> tuple[int, ...]:
        """Accumulator of a unit that each block of rows of ``w_ih`` or ``w_hh`` adds to."""
        if self.cell != "gru":
            return tuple(range(self.slots))
        return (0, 1, 3) if matrix is self.w_hh else (0, 1, 2)

    def row_sums(self) -> NDArray[np.int64]:
        """Magnitudes of all weights that add into each accumulator, as the biases are ordered."""
        total = np.zeros((self.slots, self.hidden), dtype=np.int64)
        for matrix in (self.w_ih, self.w_hh):
            total[list(self.slot_of(matrix))] += matrix.row_sums().reshape(-1, self.hidden)
        return total.ravel()


def accumulator_bound(part: QuantisedMatrix | QuantisedRecurrent, act_bits: int) -> int:
    """Largest magnitude that any partial sum of any accumulator can reach, for any input in any
    order; of a recurrent layer, those of its gates.

    It is ``max over accumulators of sum |w| * 2**(act_bits - 1)``, in a Python int.
    """
    return int(part.row_sums().max(initial=0)) << (act_bits - 1)


@dataclass(eq=False)
class QuantisedNetwork:
    """A chain of quantised layers that an engine of these widths computes exactly.

    Parameters
    ----------
    layers
        At least one; sizes and binary points of neighbours agree.
    in_frac
        Binary point of the input.
    widths
        Widths for which the layers were quantised.

    Raises
    ------
    ModelError
        A layer that breaks a promise the hardware relies on: a value wider than its format, a
        shift the engine cannot make, or a row that could overflow the accumulator. Checked for
        every network, quantised or built by hand.
    """

    layers: list[QuantisedLayer | QuantisedRecurrent]
    in_frac: int
    widths: Widths

    def __post_init__(self) -> None:
        if not self.layers:
            raise ModelError("a network needs at least one layer")
        cols, frac = self.layers[0].cols, self.in_frac
        for layer in self.layers:
            self._check(layer, cols, frac)
            cols, frac = layer.rows, layer.out_frac

    def _check(self, layer: QuantisedLayer | QuantisedRecurrent, cols: int, in_frac: int) -> None:
        widths = self.widths

        def check(ok: bool, what: str) -> None:
            if not ok:
                raise ModelError(f"layer {layer.name!r}: {what}")

        def fits(values: NDArray, bits: int) -> bool:
            form = QFormat(bits, 0)
            return bool((values >= form.min).all() and (values <= form.max).all())

        def check_matrix(matrix: QuantisedMatrix) -> None:
            check(matrix.codebook[0] == 0, "code 0 must stand for weight 0")
            check(fits(matrix.codebook, widths.weight_bits),
                  f"a codebook value does not fit weight_bits ({widths.weight_bits})")
            check(matrix.direct == widths.direct_weights,
                  f"direct weights are {matrix.direct}, the engine's {widths.direct_weights}")

        def check_shift(shift: int) -> None:
            check(widths.shift_min <= shift <= widths.shift_max,
                  f"shift {shift} must lie in {widths.shift_min}..{widths.shift_max}")

        def check_bound(part: QuantisedMatrix | QuantisedRecurrent) -> None:
            bound = accumulator_bound(part, widths.act_bits)
            check(bound <= widths.acc_max,
                  f"a row can reach {bound}, more than acc_bits ({widths.acc_bits}) hold: "
                  f"lower weight_frac")

        check(layer.cols == cols, f"takes {layer.cols} inputs but gets {cols}")
        check(layer.in_frac == in_frac, f"in_frac is {layer.in_frac} but its input has {in_frac}")
        linear = isinstance(layer, QuantisedLayer)
        for matrix in (layer,) if linear else (layer.w_ih, layer.w_hh):
            check_matrix(matrix)
        size = layer.rows if linear else layer.slots * layer.hidden
        check(layer.bias.shape == (size,), f"bias must have {size} elements")
        check(fits(layer.bias, widths.bias_bits),
              f"a bias does not fit bias_bits ({widths.bias_bits})")
        if linear:
            check(layer.shift == layer.in_frac + layer.weight_frac - layer.out_frac,
                  "shift must be in_frac + weight_frac - out_frac")
        check_shift(layer.shift)
        check_bound(layer)
        if linear:
            return
        for matrix, frac in ((layer.w_ih, layer.in_frac), (layer.w_hh, layer.out_frac)):
            check(frac + matrix.weight_frac == layer.gate_frac + layer.shift,
                  "products of both matrices must have the binary point gate_frac + shift")
        check(0 <= layer.cell_shift <= SHIFT_MAX and 0 <= layer.peep_shift <= PEEP_SHIFT_MAX,
              f"cell_shift and peep_shift must lie in 0..{SHIFT_MAX}")
        if layer.peephole is not None:
            check(fits(layer.peephole, widths.act_bits), "a peephole weight does not fit act_bits")
        if layer.w_hr is not None:
            check_matrix(layer.w_hr)
            check_shift(layer.proj_shift)
            check_bound(layer.w_hr)
            check(layer.proj_shift
                  == unit_frac(widths.act_bits) + layer.w_hr.weight_frac - layer.out_frac,
                  "proj_shift must be unit_frac + weight_frac - out_frac")

    @property
    def recurrent(self) -> bool:
        """Whether any layer keeps a state."""
        return any(isinstance(layer, QuantisedRecurrent) for layer in self.layers)

    @property
    def in_features(self) -> int:
        """Length of an input vector."""
        return self.layers[0].cols

    @property
    def out_features(self) -> int:
        """Length of an output vector."""
        return self.layers[-1].rows

    @property
    def out_frac(self) -> int:
        """Binary point of the outputs."""
        return self.layers[-1].out_frac

    def quantise_input(self, x: ArrayLike) -> tuple[NDArray[np.int64], int]:
        """Raw inputs int64 of real ones ``(n, [channels,] in_features)``, and how many had to be
        clipped.

        Raises ``ValueError`` for another shape or values that are not finite.
        """
        x = np.asarray(x, dtype=np.float64)
        if x.ndim not in (2, 3) or x.shape[-1] != self.in_features:
            raise ValueError(f"inputs must have shape (n, {self.in_features}) or (n, channels, "
                             f"{self.in_features}), not {x.shape}")
        return QFormat(self.widths.act_bits, self.in_frac).quantise(x)

    def dequantise_output(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Real values of raw outputs."""
        return QFormat(self.widths.act_bits, self.out_frac).dequantise(raw)


def quantise(network: CompressedNetwork, config: EngineConfig) -> QuantisedNetwork:
    """Quantise a compressed network for engines with the widths of `config`.

    Each codebook gets the finest binary point that ``weight_bits`` holds, then the finest for
    which every row provably stays inside the accumulator, then one for which the write-back shift
    exists. A bias that does not fit, or a shift that would be too small, makes the output coarser.

    Parameters
    ----------
    network
        The float network with calibrated binary points.
    config
        Only its widths matter (`Widths`): every engine with equal widths gives equal bits.

    Raises
    ------
    ModelError
        Activations of another width, values that are not finite, a weight that would become 0,
        an output that would keep no more than its sign. The text names the layer.
    """
    if network.act_bits != config.act_bits:
        raise ModelError(
            f"the network was calibrated for act_bits {network.act_bits}, the engine has "
            f"{config.act_bits}: calibrate again or use an engine with act_bits "
            f"{network.act_bits}")
    widths = Widths.of(config)
    layers, frac = [], network.in_frac
    for layer in network.layers:
        if isinstance(layer, CompressedBidirectional):
            raise ModelError(
                f"layer {layer.name!r} is bidirectional, which takes two runs of an engine: "
                f"simulate it, or split it with openese.model.stages")
        if isinstance(layer, CompressedRecurrent) and not config.recurrent:
            raise ModelError(
                f"layer {layer.name!r} is recurrent, the engine has no element-wise unit: use one "
                f"with state_depth")
        make = _quantise_recurrent if isinstance(layer, CompressedRecurrent) else _quantise_layer
        layers.append(make(layer, frac, widths))
        frac = layers[-1].out_frac
    return QuantisedNetwork(layers, network.in_frac, widths)


class _Weights:
    """A matrix on its way to integers: raw weights at any binary point.

    Of a `FixedMatrix`, and of a codebook whose engine stores weights directly, every value is
    rounded to ``code_bits``; of a codebook else to ``weight_bits``.
    """

    def __init__(self, name: str, matrix: SparseColumns, widths: Widths):
        self.name, self.matrix, self.direct = name, matrix, widths.direct_weights
        if isinstance(matrix, FixedMatrix):
            if not self.direct:
                raise ModelError(
                    f"layer {name!r} has fixed-point weights of {matrix.bits} bits, the engine "
                    f"codebooks: use an engine with direct_weights, or share the weights")
            if matrix.bits > widths.code_bits:
                raise ModelError(
                    f"layer {name!r} has fixed-point weights of {matrix.bits} bits, the engine "
                    f"takes code_bits {widths.code_bits}: use fewer bits or a wider engine")
            self.values = matrix.values.astype(np.float64)
        else:
            # Codes that no weight uses must not cost the others precision.
            used = np.bincount(matrix.code, minlength=matrix.codebook.shape[0]) > 0
            self.values = np.where(used, matrix.codebook.astype(np.float64), 0.0)
            if self.direct:
                self.values = self.values[matrix.code]
        self.bits = widths.code_bits if self.direct else widths.weight_bits
        largest = float(np.abs(self.values).max(initial=0.0))
        if not np.isfinite(largest):
            raise ModelError(f"layer {name!r}: weights and biases must be finite (NaN or "
                             f"infinity found): train it again")
        try:
            self.finest = QFormat.covering(self.bits, largest, _FINEST).frac
        except ValueError:
            raise ModelError(f"layer {name!r}: its largest weight ({largest:g}) is beyond every "
                             f"format: train it again") from None
        if isinstance(matrix, FixedMatrix) and not QFormat(
                self.bits, self.finest + 1).quantise(self.values)[1]:
            self.finest += 1  # the largest magnitude is the smallest number of the format
        #: Finest binary point at which a direct weight fits its entry.
        self.native = self.finest
        if self.direct:
            self.finest += widths.max_align

    def raw(self, frac: int) -> NDArray[np.int64]:
        """Raw values of the codebook, or of every entry of a direct matrix."""
        align = self.align(frac)
        raw = QFormat(self.bits, frac - align).quantise(self.values)[0]
        if self.direct:
            # At 0 a weight would be pruned unasked.
            lost = (raw == 0) & (self.values != 0)
            raw[lost] = np.sign(self.values[lost]).astype(np.int64)
        return raw << align

    def align(self, frac: int) -> int:
        """Left shift of direct weights at this binary point."""
        return max(0, frac - self.native) if self.direct else 0

    def quantised(self, frac: int, why: str) -> QuantisedMatrix:
        """The matrix at this binary point; ``ModelError`` if a shared weight would vanish."""
        return QuantisedMatrix(**self.fields(frac, why))

    def fields(self, frac: int, why: str) -> dict:
        """Arguments of `QuantisedMatrix`."""
        matrix, raw = self.matrix, self.raw(frac)
        if self.direct:
            numbers = np.arange(1 << self.bits, dtype=np.int64)
            codebook = np.where(numbers >> (self.bits - 1), numbers - (1 << self.bits), numbers)
            code = (raw >> self.align(frac) & ((1 << self.bits) - 1)).astype(np.uint16)
            codebook <<= self.align(frac)
        else:
            vanished = self.values[(raw == 0) & (self.values != 0)]
            if vanished.size:
                raise ModelError(
                    f"layer {self.name!r}: the shared weight {vanished[0]:g} would become 0 at "
                    f"weight_frac {frac} ({why}): prune it, or use an engine with larger "
                    f"weight_bits, acc_bits or shift_bits")
            codebook, code = raw, matrix.code
        return {"rows": matrix.rows, "cols": matrix.cols, "col_ptr": matrix.col_ptr,
                "row_idx": matrix.row_idx, "code": code, "codebook": codebook,
                "weight_frac": frac, "direct": self.direct,
                "align": self.align(frac)}

    def row_sums(self, frac: int) -> NDArray[np.int64]:
        """Magnitudes of every row at this binary point, int64 ``(rows,)``."""
        raw = np.abs(self.raw(frac)).astype(np.float64)
        raw = raw if self.direct else raw[self.matrix.code]
        return np.bincount(self.matrix.row_idx, weights=raw,
                           minlength=self.matrix.rows).astype(np.int64)


def _fitting_frac(widths: Widths, finest: int, row_sum) -> int:
    """Finest binary point up to `finest` at which every accumulator provably fits."""
    frac = finest
    while row_sum(frac) << (widths.act_bits - 1) > widths.acc_max:
        frac -= 1
    return frac


def _quantise_layer(layer: CompressedLinear, in_frac: int, widths: Widths) -> QuantisedLayer:
    weights = _Weights(layer.name, layer, widths)
    bias = _finite_bias(layer, layer.out_features)
    coarser_weights, coarser_outputs = [], []
    out_frac = _bias_frac(layer.out_frac, bias, widths)
    if out_frac < layer.out_frac:
        coarser_outputs.append(_bias_sentence(layer.out_frac, out_frac, bias, widths))
    frac = _fitting_frac(widths, weights.finest,
                         lambda frac: int(weights.row_sums(frac).max(initial=0)))
    if frac < weights.finest:
        coarser_weights.append(_proof_sentence(weights.finest, frac, widths))
    frac, out_frac = _fit_shift(
        in_frac, frac, out_frac, widths, weights.values.any(), coarser_weights, coarser_outputs)
    _check_outputs(layer, out_frac, widths, coarser_outputs)
    largest = float(np.abs(weights.values).max(initial=0.0))
    return QuantisedLayer(
        name=layer.name,
        **weights.fields(frac, "; ".join(coarser_weights) or f"the largest is {largest:g}"),
        bias=QFormat(widths.bias_bits, out_frac + widths.bias_guard).quantise(bias)[0],
        in_frac=in_frac, out_frac=out_frac, shift=in_frac + frac - out_frac, relu=layer.relu,
        rescaled_bits=weights.finest - frac if weights.values.any() else 0,
        adjustments=(*coarser_weights, *coarser_outputs))


def _finite_bias(layer: CompressedLinear | CompressedRecurrent, size: int) -> NDArray[np.float64]:
    bias = np.zeros(size) if layer.bias is None else layer.bias.astype(np.float64)
    if not np.isfinite(bias).all():
        raise ModelError(f"layer {layer.name!r}: weights and biases must be finite (NaN or "
                         f"infinity found): train it again")
    return bias


def _bias_frac(frac: int, bias: NDArray, widths: Widths) -> int:
    """Finest binary point up to `frac` of results at which every bias fits."""
    while QFormat(widths.bias_bits, frac + widths.bias_guard).quantise(bias)[1]:
        frac -= 1
    return frac


def _bias_sentence(before: int, after: int, bias: NDArray, widths: Widths) -> str:
    return (f"out_frac lowered from {before} to {after}: the largest bias "
            f"({np.abs(bias).max():g}) needs it to fit bias_bits ({widths.bias_bits})")


def _proof_sentence(before: int, after: int, widths: Widths) -> str:
    return (f"weight_frac lowered from {before} to {after}: the accumulator (acc_bits "
            f"{widths.acc_bits}) must hold every possible sum")


def _fit_shift(in_frac: int, frac: int, out_frac: int, widths: Widths, any_weight: bool,
               coarser_weights: list[str], coarser_outputs: list[str]) -> tuple[int, int]:
    """Binary points of weights and outputs for which the engine's write-back has a shift."""
    shift = in_frac + frac - out_frac
    if shift > widths.shift_max:
        lowered = frac - (shift - widths.shift_max)
        if any_weight:
            coarser_weights.append(
                f"weight_frac lowered from {frac} to {lowered}: the write-back shifts by at most "
                f"{widths.shift_max}")
        frac = lowered
    elif shift < widths.shift_min:
        lowered = out_frac - (widths.shift_min - shift)
        coarser_outputs.append(
            f"out_frac lowered from {out_frac} to {lowered}: the write-back shifts by at least "
            f"{widths.shift_min}")
        out_frac = lowered
    return frac, out_frac


def _check_outputs(layer: CompressedLinear | CompressedRecurrent, out_frac: int, widths: Widths,
                   coarser_outputs: list[str]) -> None:
    if layer.out_frac - out_frac > widths.act_bits - 2:
        raise ModelError(
            f"layer {layer.name!r}: nothing but the sign of its outputs would be left "
            f"({'; '.join(coarser_outputs)}): calibrate the network again, or use an engine with "
            f"a smaller shift_base or larger bias_bits")


def _quantise_recurrent(layer: CompressedRecurrent, in_frac: int, widths: Widths,
                        relu_frac: int | None = None) -> QuantisedRecurrent:
    """The layer in integers; ``relu_frac`` is the binary point that the write-back's smallest
    shift leaves a ReLU cell, if that is below the layer's."""
    one, act_bits = unit_frac(widths.act_bits), widths.act_bits
    w_ih = _Weights(f"{layer.name}.weight_ih", layer.w_ih, widths)
    w_hh = _Weights(f"{layer.name}.weight_hh", layer.w_hh, widths)
    bias = _finite_bias(layer, layer.slots * layer.hidden_size)
    coarser_weights, coarser_outputs = [], []
    fields: dict = {}

    # What the gates' shift depends on: the binary points of results and of the state.
    relu = layer.cell == "rnn_relu"
    out_frac = layer.out_frac if relu or layer.w_hr is not None else one
    if relu_frac is not None:
        coarser_outputs.append(
            f"out_frac lowered from {out_frac} to {relu_frac}: the write-back shifts by at least "
            f"{widths.shift_min}")
        out_frac = relu_frac
    if layer.w_hr is not None:
        out_frac = _quantise_projection(layer, out_frac, widths, fields, coarser_weights,
                                        coarser_outputs)
    gates = out_frac if relu else gate_frac(act_bits)
    fitting = _bias_frac(gates, bias, widths)
    if fitting < gates and relu:
        coarser_outputs.append(_bias_sentence(gates, fitting, bias, widths))
        gates = out_frac = fitting
    elif fitting < gates:
        raise ModelError(
            f"layer {layer.name!r}: its largest bias ({np.abs(bias).max():g}) does not fit "
            f"bias_bits ({widths.bias_bits}): use an engine with larger bias_bits")

    slots = {id(w_ih): (0, 1, 2), id(w_hh): (0, 1, 3)} if layer.cell == "gru" else {}

    def row_sum(product_frac: int) -> int:
        total = np.zeros((layer.slots, layer.hidden_size), dtype=np.int64)
        for weights, frac in ((w_ih, in_frac), (w_hh, out_frac)):
            rows = list(slots.get(id(weights), range(layer.slots)))
            total[rows] += weights.row_sums(product_frac - frac).reshape(-1, layer.hidden_size)
        return int(total.max())

    # Products of both matrices add up, so they have one binary point.
    finest = min(in_frac + w_ih.finest if w_ih.values.any() else 1 << 20,
                 out_frac + w_hh.finest if w_hh.values.any() else 1 << 20)
    finest = finest if finest < 1 << 20 else gates + widths.shift_max
    product = _fitting_frac(widths, finest, row_sum)
    if product < finest:
        coarser_weights.append(_proof_sentence(finest - in_frac, product - in_frac, widths))
    product, lowered = _fit_shift(0, product, gates, widths, True, coarser_weights,
                                  coarser_outputs)
    if lowered < gates:
        if not relu:
            raise ModelError(
                f"layer {layer.name!r}: its gates need a write-back shift of "
                f"{product - gates}, the engine has {widths.shift_min} and up: use an engine with "
                f"a smaller shift_base")
        # The state's products get coarser with the state, so that this may not end by itself.
        _check_outputs(layer, lowered, widths, coarser_outputs)
        return _quantise_recurrent(layer, in_frac, widths, lowered)
    _check_outputs(layer, out_frac, widths, coarser_outputs)

    if layer.cell == "lstm":
        shift = one - layer.cell_frac
        fields["cell_shift"] = min(max(shift, 0), SHIFT_MAX)
        if fields["cell_shift"] != shift:
            coarser_outputs.append(
                f"cell_frac moved from {layer.cell_frac} to {one - fields['cell_shift']}: cell "
                f"states have {one - SHIFT_MAX} to {one} fraction bits")
        if layer.peephole is not None:
            fields |= _quantise_peepholes(layer, fields["cell_shift"], act_bits)
    why = "; ".join(coarser_weights) or "both matrices' products have one binary point"
    return QuantisedRecurrent(
        name=layer.name, cell=layer.cell, hidden=layer.hidden_size,
        w_ih=w_ih.quantised(product - in_frac, why), w_hh=w_hh.quantised(product - out_frac, why),
        bias=QFormat(widths.bias_bits, gates + widths.bias_guard).quantise(bias)[0],
        in_frac=in_frac, out_frac=out_frac, gate_frac=gates, shift=product - gates,
        rescaled_bits=max([0] + [
            weights.finest - (product - frac)
            for weights, frac in ((w_ih, in_frac), (w_hh, out_frac)) if weights.values.any()]),
        adjustments=(*coarser_weights, *coarser_outputs), **({"w_hr": None} | fields))


def _quantise_projection(layer: CompressedRecurrent, out_frac: int, widths: Widths, fields: dict,
                         coarser_weights: list[str], coarser_outputs: list[str]) -> int:
    """Adds ``w_hr`` and its shift to `fields`; returns the binary point of the output."""
    weights = _Weights(f"{layer.name}.weight_hr", layer.w_hr, widths)
    one = unit_frac(widths.act_bits)
    frac = _fitting_frac(widths, weights.finest,
                         lambda frac: int(weights.row_sums(frac).max(initial=0)))
    if frac < weights.finest:
        coarser_weights.append(f"projection: {_proof_sentence(weights.finest, frac, widths)}")
    frac, out_frac = _fit_shift(one, frac, out_frac, widths, weights.values.any(),
                                coarser_weights, coarser_outputs)
    why = "; ".join(coarser_weights) or "its binary point"
    fields["w_hr"] = weights.quantised(frac, why)
    fields["proj_shift"] = one + frac - out_frac
    return out_frac


def _quantise_peepholes(layer: CompressedRecurrent, cell_shift: int, act_bits: int) -> dict:
    # The product is shifted by unit_frac - 1 - peep_shift, which leaves a bit to round.
    for shift in range(min(PEEP_SHIFT_MAX, act_bits - 3) + 1):
        form = QFormat(act_bits, peephole_frac(act_bits, cell_shift, shift))
        raw, clipped = form.quantise(layer.peephole)
        if not clipped:
            return {"peephole": raw, "peep_shift": shift}
    raise ModelError(
        f"layer {layer.name!r}: its largest peephole weight ({np.abs(layer.peephole).max():g}) is "
        f"beyond every format at cell_frac {unit_frac(act_bits) - cell_shift}: train it again")
