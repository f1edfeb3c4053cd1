"""Fixed-point number formats, the one rounding function and the one saturation function.

Everything the hardware computes is defined by the integer functions of this file. Every other
module of the project, NumPy or Amaranth, is tested for equality with them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["QFormat", "round_shift", "saturate"]


def _integers(x: ArrayLike) -> NDArray[np.int64]:
    x = np.asarray(x)
    if x.size and not np.issubdtype(x.dtype, np.integer):
        raise TypeError(f"raw values must be integers, not {x.dtype}")
    return x.astype(np.int64)


def round_shift(x: ArrayLike, shift: int) -> NDArray[np.int64]:
    """Divide integers by ``2**shift``, rounding half up: ``floor(x / 2**shift + 1/2)``.

    Shapes: any; int64 in, int64 out. ``shift`` = 0 returns the input. The sum
    ``x + 2**(shift - 1)`` must fit int64.
    """
    if shift < 0:
        raise ValueError(f"shift must be 0 or more, not {shift!r}")
    x = _integers(x)
    return x if shift == 0 else (x + (1 << (shift - 1))) >> shift


def saturate(x: ArrayLike, bits: int) -> tuple[NDArray[np.int64], int]:
    """Clip integers to signed ``bits``; returns the clipped array and how many values were clipped.
    """
    x = _integers(x)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    clipped = np.clip(x, low, high)
    return clipped, int(np.count_nonzero(clipped != x))


@dataclass(frozen=True)
class QFormat:
    """A signed fixed-point format: the real value of a raw integer is ``raw * 2**-frac``.

    Parameters
    ----------
    bits
        Width including the sign, 2 to 32.
    frac
        Position of the binary point. May be negative (steps larger than 1) or larger than
        ``bits`` (all values far below 1).

    Raises
    ------
    ValueError
        A width out of range.
    """

    bits: int
    frac: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 32:
            raise ValueError(f"bits must be 2 to 32, not {self.bits!r}")

    @property
    def min(self) -> int:
        """Smallest raw value."""
        return -(1 << (self.bits - 1))

    @property
    def max(self) -> int:
        """Largest raw value."""
        return (1 << (self.bits - 1)) - 1

    @property
    def step(self) -> float:
        """Real value of one unit in the last place."""
        return 2.0 ** -self.frac

    def quantise(self, x: ArrayLike) -> tuple[NDArray[np.int64], int]:
        """Nearest raw values (half rounds up) and how many had to be saturated.

        Raises ``ValueError`` for values that are not finite.
        """
        x = np.asarray(x, dtype=np.float64)
        if not np.isfinite(x).all():
            raise ValueError("cannot quantise values that are not finite (NaN or infinity)")
        # Clipping first keeps huge values from overflowing int64. Adding 0.5 would itself round,
        # so the half is looked for in the fraction, which is exact.
        scaled = np.clip(x * 2.0**self.frac, -(2.0**40), 2.0**40)
        floor = np.floor(scaled)
        raw = floor + (scaled - floor >= 0.5)
        return saturate(raw.astype(np.int64), self.bits)

    def dequantise(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Real values of raw integers."""
        return np.asarray(raw, dtype=np.float64) * self.step

    @classmethod
    def covering(cls, bits: int, magnitude: float, max_frac: int = 24) -> "QFormat":
        """The finest format of ``bits`` that holds ``+magnitude`` and ``-magnitude``.

        ``magnitude`` = 0 gives ``max_frac``, which also bounds how fine the format can get.
        """
        if not np.isfinite(magnitude) or magnitude < 0:
            raise ValueError(f"magnitude must be finite and not negative, not {magnitude!r}")
        if magnitude > 2.0**64:
            raise ValueError(f"magnitude must be at most 2**64, not {magnitude!r}")
        frac = max_frac
        while cls(bits, frac).quantise(magnitude)[1]:
            frac -= 1
        return cls(bits, frac)
