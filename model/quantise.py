"""From the float compressed network to the integers the hardware computes with.

`quantise` picks every binary point, quantises codebooks and biases and proves, from the actual
weights, that no accumulator can leave its width. What had to be given up for that is recorded in
`QuantisedLayer.rescaled_bits` and `QuantisedLayer.adjustments`, never done silently.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openese.model.config import EngineConfig
from openese.model.formats import QFormat
from openese.model.network import CompressedLinear, CompressedNetwork

__all__ = ["ModelError", "QuantisedLayer", "QuantisedNetwork", "Widths", "accumulator_bound",
           "quantise"]

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

    @classmethod
    def of(cls, config: EngineConfig) -> "Widths":
        """The widths of an engine."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})

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
class QuantisedLayer:
    """One layer in integers: ``y = act(round((W x) / 2**shift + b))``.

    Parameters
    ----------
    name
        Path of the module in the user's model.
    rows, cols
        Outputs and inputs of the layer.
    col_ptr, row_idx, code
        The columns, as in `CompressedLinear`.
    codebook
        int64 ``(2**code_bits,)``, raw weights at ``weight_frac``; codes that no weight uses are 0.
    weight_frac
        Binary point of the codebook.
    bias
        int64 ``(rows,)``, raw at ``out_frac + bias_guard``; zeros for a layer without bias.
    in_frac, out_frac
        Binary points of input and output activations.
    shift
        ``in_frac + weight_frac - out_frac``: the write-back divides by ``2**shift``.
    relu
        Whether a ReLU follows.
    rescaled_bits
        Bits by which ``weight_frac`` lies below the finest that ``weight_bits`` allows.
    adjustments
        One sentence for every binary point that had to be moved, and why.
    """

    name: str
    rows: int
    cols: int
    col_ptr: NDArray[np.int64]
    row_idx: NDArray[np.int32]
    code: NDArray[np.uint8]
    codebook: NDArray[np.int64]
    weight_frac: int
    bias: NDArray[np.int64]
    in_frac: int
    out_frac: int
    shift: int
    relu: bool
    rescaled_bits: int = 0
    adjustments: tuple[str, ...] = ()

    @property
    def nnz(self) -> int:
        """Number of stored weights."""
        return int(self.col_ptr[-1])

    @property
    def code_bits(self) -> int:
        """Width of a code."""
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


def accumulator_bound(layer: QuantisedLayer, act_bits: int) -> int:
    """Largest magnitude that any partial sum of any row can reach, for any input in any order.

    It is ``max over rows of sum |w| * 2**(act_bits - 1)``, in a Python int.
    """
    return _row_sum(layer.row_idx, layer.code, layer.codebook) << (act_bits - 1)


def _row_sum(row_idx: NDArray, code: NDArray, codebook: NDArray) -> int:
    if not len(row_idx):
        return 0
    # bincount adds in float64, which is exact here: integers, and 2**18 * 65536 columns < 2**53.
    sums = np.bincount(row_idx, weights=np.abs(codebook).astype(np.float64)[code])
    return int(sums.max())


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

    layers: list[QuantisedLayer]
    in_frac: int
    widths: Widths

    def __post_init__(self) -> None:
        if not self.layers:
            raise ModelError("a network needs at least one layer")
        cols, frac = self.layers[0].cols, self.in_frac
        for layer in self.layers:
            self._check(layer, cols, frac)
            cols, frac = layer.rows, layer.out_frac

    def _check(self, layer: QuantisedLayer, cols: int, in_frac: int) -> None:
        widths = self.widths

        def check(ok: bool, what: str) -> None:
            if not ok:
                raise ModelError(f"layer {layer.name!r}: {what}")

        def fits(values: NDArray, bits: int) -> bool:
            form = QFormat(bits, 0)
            return bool((values >= form.min).all() and (values <= form.max).all())

        check(layer.cols == cols, f"takes {layer.cols} inputs but gets {cols}")
        check(layer.in_frac == in_frac, f"in_frac is {layer.in_frac} but its input has {in_frac}")
        check(layer.codebook[0] == 0, "code 0 must stand for weight 0")
        check(fits(layer.codebook, widths.weight_bits),
              f"a codebook value does not fit weight_bits ({widths.weight_bits})")
        check(layer.bias.shape == (layer.rows,), f"bias must have {layer.rows} elements")
        check(fits(layer.bias, widths.bias_bits),
              f"a bias does not fit bias_bits ({widths.bias_bits})")
        check(layer.shift == layer.in_frac + layer.weight_frac - layer.out_frac,
              "shift must be in_frac + weight_frac - out_frac")
        check(widths.shift_min <= layer.shift <= widths.shift_max,
              f"shift {layer.shift} must lie in {widths.shift_min}..{widths.shift_max}")
        bound = accumulator_bound(layer, widths.act_bits)
        check(bound <= widths.acc_max,
              f"a row can reach {bound}, more than acc_bits ({widths.acc_bits}) hold: "
              f"lower weight_frac")

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
        """Raw inputs int64 ``(n, in_features)`` of real ones, and how many had to be clipped.

        Raises ``ValueError`` for another shape or values that are not finite.
        """
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"inputs must have shape (n, {self.in_features}), not {x.shape}")
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
        layers.append(_quantise_layer(layer, frac, widths))
        frac = layers[-1].out_frac
    return QuantisedNetwork(layers, network.in_frac, widths)


def _quantise_layer(layer: CompressedLinear, in_frac: int, widths: Widths) -> QuantisedLayer:
    # Codes that no weight uses must not cost the others precision.
    used = np.bincount(layer.code, minlength=layer.codebook.shape[0]) > 0
    values = np.where(used, layer.codebook.astype(np.float64), 0.0)
    bias = np.zeros(layer.out_features) if layer.bias is None else layer.bias.astype(np.float64)
    if not (np.isfinite(values).all() and np.isfinite(bias).all()):
        raise ModelError(f"layer {layer.name!r}: weights and biases must be finite (NaN or "
                         f"infinity found): train it again")

    coarser_weights, coarser_outputs = [], []
    out_frac = _bias_frac(layer, bias, widths)
    if out_frac < layer.out_frac:
        coarser_outputs.append(
            f"out_frac lowered from {layer.out_frac} to {out_frac}: the largest bias "
            f"({np.abs(bias).max():g}) needs it to fit bias_bits ({widths.bias_bits})")

    largest = float(np.abs(values).max())
    try:
        finest = QFormat.covering(widths.weight_bits, largest, _FINEST).frac
    except ValueError:
        raise ModelError(f"layer {layer.name!r}: its largest weight ({largest:g}) is beyond every "
                         f"format: train it again") from None
    frac = _accumulator_frac(layer, values, finest, widths)
    if frac < finest:
        coarser_weights.append(
            f"weight_frac lowered from {finest} to {frac}: the accumulator (acc_bits "
            f"{widths.acc_bits}) must hold every possible sum")

    shift = in_frac + frac - out_frac
    if shift > widths.shift_max:
        lowered = frac - (shift - widths.shift_max)
        if values.any():
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
    if layer.out_frac - out_frac > widths.act_bits - 2:
        raise ModelError(
            f"layer {layer.name!r}: nothing but the sign of its outputs would be left "
            f"({'; '.join(coarser_outputs)}): calibrate the network again, or use an engine with "
            f"a smaller shift_base or larger bias_bits")

    codebook = QFormat(widths.weight_bits, frac).quantise(values)[0]
    vanished = values[(codebook == 0) & (values != 0)]
    if vanished.size:
        why = "; ".join(coarser_weights) or f"the largest is {largest:g}"
        raise ModelError(
            f"layer {layer.name!r}: the shared weight {vanished[0]:g} would become 0 at "
            f"weight_frac {frac} ({why}): prune it, or use an engine with larger weight_bits, "
            f"acc_bits or shift_bits")
    return QuantisedLayer(
        name=layer.name, rows=layer.out_features, cols=layer.in_features, col_ptr=layer.col_ptr,
        row_idx=layer.row_idx, code=layer.code, codebook=codebook, weight_frac=frac,
        bias=QFormat(widths.bias_bits, out_frac + widths.bias_guard).quantise(bias)[0],
        in_frac=in_frac, out_frac=out_frac, shift=in_frac + frac - out_frac, relu=layer.relu,
        rescaled_bits=finest - frac if values.any() else 0,
        adjustments=(*coarser_weights, *coarser_outputs))


def _bias_frac(layer: CompressedLinear, bias: NDArray, widths: Widths) -> int:
    """Finest ``out_frac`` up to the calibrated one at which every bias fits."""
    frac = layer.out_frac
    while QFormat(widths.bias_bits, frac + widths.bias_guard).quantise(bias)[1]:
        frac -= 1
    return frac


def _accumulator_frac(layer: CompressedLinear, values: NDArray, finest: int,
                      widths: Widths) -> int:
    """Finest ``weight_frac`` up to `finest` at which every row provably fits the accumulator."""
    frac = finest
    while True:
        codebook, _ = QFormat(widths.weight_bits, frac).quantise(values)
        row_sum = _row_sum(layer.row_idx, layer.code, codebook)
        if row_sum << (widths.act_bits - 1) <= widths.acc_max:
            return frac
        frac -= 1
