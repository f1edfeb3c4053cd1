"""Linear fixed-point weights, as in ESE: integers with one binary point per matrix.

The alternative to shared weights (`openese.model.share`) where a codebook would be too coarse:
ESE stores 12 bits per weight and no table. Fine-tuning keeps full-precision copies and passes the
gradient of the rounded weights straight through to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from openese.model.formats import QFormat
from openese.model.prune import expand_weights
from openese.model.share import ReplacedWeights, Replacement

__all__ = ["LinearWeights", "linear_codebook", "linear_quantise"]

MIN_BITS, MAX_BITS = 2, 16
# Finest binary point: far below any trained weight, and 2**-frac stays an ordinary float32.
MAX_FRAC = 40


def _check_bits(bits: int) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be {MIN_BITS} to {MAX_BITS}, not {bits!r}")


def linear_quantise(weight: ArrayLike, bits: int) -> tuple[NDArray[np.int32], int]:
    """Round a matrix to signed fixed point, its binary point from its own range.

    Parameters
    ----------
    weight
        Finite numbers of any shape; zeros are pruned weights.
    bits
        Width including the sign, 2 to 16. ESE's is 12.

    Returns
    -------
    raw : int32, the shape of `weight`; 0 exactly where the weight is 0
    frac : binary point; the value of a raw weight is ``raw * 2**-frac``

    Notes
    -----
    `frac` is the largest at which the matrix' largest magnitude fits with either sign, so that
    nothing is saturated. Rounding is to nearest, half up (`QFormat.quantise`), except that a
    weight too small for it becomes one step of its own sign: at 0 it would be pruned unasked, and
    with it the equal counts of a balanced matrix.

    Raises
    ------
    ValueError
        `bits` out of range, weights that are not finite.
    """
    _check_bits(bits)
    weight = np.asarray(weight, dtype=np.float64)
    if not np.isfinite(weight).all():
        raise ValueError("linear quantisation needs finite weights (no NaN or infinity)")
    largest = float(np.abs(weight).max()) if weight.size else 0.0
    fmt = QFormat.covering(bits, largest, MAX_FRAC)
    raw, _ = fmt.quantise(weight)
    raw[(raw == 0) & (weight != 0)] = 1
    return np.copysign(raw, weight).astype(np.int32), fmt.frac


def linear_codebook(bits: int, frac: int) -> NDArray[np.float32]:
    """Values of the codes ``raw mod 2**bits``: float32 ``(2**bits,)``, in two's complement order.

    Entry 0 is 0, as in every codebook, so that up to 8 bits codes and codebook are those of an
    ordinary shared matrix. Raises ``ValueError`` for `bits` out of range.
    """
    _check_bits(bits)
    code = np.arange(1 << bits)
    raw = np.where(code >> (bits - 1), code - (1 << bits), code)
    return (raw * 2.0**-frac).astype(np.float32)


@dataclass(kw_only=True)
class _Linear(Replacement):
    """Format of one matrix, and where it is pruned (bool on its device)."""

    fmt: QFormat
    pruned: Tensor


class LinearWeights(ReplacedWeights):
    """Matrices of a model in linear fixed point, fine-tuned straight through the rounding.

    On construction the weights of the model are replaced by their rounded values. An optimizer
    then trains full-precision copies, whose gradient is taken to be that of the rounded weights;
    pruned weights stay 0, the binary point stays where the range at construction put it, and
    copies stay within the range of the format::

        linear = LinearWeights(model, bits=12)
        optimizer = torch.optim.Adam(linear.parameters(), lr=1e-4)
        linear.hold(optimizer)          # then an ordinary training loop

    Parameters
    ----------
    model
        The weights meant are replaced in place; floating point of any width that holds `bits`.
    bits
        2 to 16: one number for every layer (`layer_weights`), or a mapping from paths or patterns
        (`resolve_weights`; the later of two that mean one weight counts).

    Raises
    ------
    ValueError
        As `linear_quantise`, naming the parameter; a path that the model does not have.
    """

    def __init__(self, model: nn.Module, bits: int | Mapping[str, int] = 12) -> None:
        super().__init__(model)
        self._entries: dict[str, _Linear] = {}
        for name, width in expand_weights(model, bits, "to quantise").items():
            weight = model.get_parameter(name).detach()
            try:
                raw, frac = linear_quantise(weight.double().cpu().numpy(), width)
            except ValueError as error:
                raise ValueError(f"{name!r}: {error}") from None
            self._entries[name] = _Linear(
                trained=nn.Parameter(weight.clone()), fmt=QFormat(width, frac),
                pruned=torch.from_numpy(raw == 0).to(weight.device))
        self.apply()

    def raw(self, name: str) -> NDArray[np.int32]:
        """Raw weights of a matrix, int32 in its shape; 0 where pruned."""
        return self._raw(self._entries[name]).cpu().numpy().astype(np.int32)

    def frac(self, name: str) -> int:
        """Binary point of a matrix."""
        return self._entries[name].fmt.frac

    def codes(self, name: str) -> NDArray[np.uint16]:
        """Codes of a matrix for `codebook`, uint16 in its shape: raw weights modulo 2**bits."""
        return (self.raw(name) & ((1 << self._entries[name].fmt.bits) - 1)).astype(np.uint16)

    def codebook(self, name: str) -> NDArray[np.float32]:
        """`linear_codebook` of a matrix."""
        fmt = self._entries[name].fmt
        return linear_codebook(fmt.bits, fmt.frac)

    @torch.no_grad()
    def _raw(self, entry: _Linear) -> Tensor:
        """What `linear_quantise` does, on the trained copy's device and at its fixed point."""
        fmt = entry.fmt
        scaled = entry.trained.double() * 2.0**fmt.frac
        floor = scaled.floor()
        raw = (floor + (scaled - floor >= 0.5)).clamp(-fmt.max, fmt.max)
        raw = torch.where(raw == 0, torch.where(scaled < 0, -1.0, 1.0).to(raw), raw)
        return raw.masked_fill(entry.pruned, 0)

    def _gradient(self, entry: _Linear, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(entry.pruned, 0)

    def _value(self, entry: _Linear) -> Tensor:
        limit = entry.fmt.max * entry.fmt.step
        entry.trained.clamp_(-limit, limit).masked_fill_(entry.pruned, 0)
        return self._raw(entry) * entry.fmt.step
