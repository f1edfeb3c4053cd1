"""The compressed network: what an ``.ese`` file stores, independent of any engine.

`CompressedLinear` keeps a pruned, weight-shared matrix as columns of (row, code) and a float32
codebook, so that it is exactly the compressed PyTorch layer. `QuantisedNetwork`
(`openese.model.quantise`) turns it into the integers the hardware computes with.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["CompressedLinear", "CompressedNetwork"]


@dataclass(eq=False)
class CompressedLinear:
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
        for name, dtype in (("col_ptr", np.int64), ("row_idx", np.int32), ("code", np.uint8)):
            given = np.asarray(getattr(self, name))
            # Converting would wrap what the type does not hold, silently.
            converted = given.astype(dtype)
            if not np.array_equal(converted, given):
                raise ValueError(f"layer {self.name!r}: {name} must be integers that fit "
                                 f"{np.dtype(dtype).name}")
            setattr(self, name, converted)
        self.codebook = np.asarray(self.codebook, dtype=np.float32)
        if self.bias is not None:
            self.bias = np.asarray(self.bias, dtype=np.float32)

        def check(ok: bool, what: str) -> None:
            if not ok:
                raise ValueError(f"layer {self.name!r}: {what}")

        check(self.in_features >= 1 and self.out_features >= 1, "sizes must be 1 or more")
        check(self.col_ptr.shape == (self.in_features + 1,),
              f"col_ptr must have {self.in_features + 1} elements, not {self.col_ptr.shape}")
        check(self.col_ptr[0] == 0 and bool((np.diff(self.col_ptr) >= 0).all()),
              "col_ptr must start at 0 and never decrease")
        check(self.row_idx.shape == self.code.shape == (int(self.col_ptr[-1]),),
              f"row_idx and code must have {int(self.col_ptr[-1])} elements")
        size = self.codebook.shape[0] if self.codebook.ndim == 1 else 0
        check(2 <= size <= 256 and size & (size - 1) == 0,
              f"codebook must have 2, 4, ... 256 entries, not {self.codebook.shape}")
        check(bool(np.isfinite(self.codebook).all()), "codebook must be finite")
        check(self.codebook[0] == 0, "codebook entry 0 must be exactly 0")
        if self.nnz:
            check(int(self.row_idx.min()) >= 0 and int(self.row_idx.max()) < self.out_features,
                  f"rows must lie in 0..{self.out_features - 1}")
            check(int(self.code.min()) >= 1 and int(self.code.max()) < size,
                  f"codes must lie in 1..{size - 1}")
            # One key per entry rises strictly exactly when rows rise strictly in every column.
            key = self.columns * self.out_features + self.row_idx
            check(bool((np.diff(key) > 0).all()), "rows must rise strictly within each column")
        if self.bias is not None:
            check(self.bias.shape == (self.out_features,),
                  f"bias must have {self.out_features} elements, not {self.bias.shape}")
            check(bool(np.isfinite(self.bias).all()), "bias must be finite")

    @property
    def nnz(self) -> int:
        """Number of stored weights."""
        return int(self.col_ptr[-1])

    @property
    def density(self) -> float:
        """Stored weights / all weights."""
        return self.nnz / (self.in_features * self.out_features)

    @property
    def code_bits(self) -> int:
        """Width of a code."""
        return int(self.codebook.shape[0] - 1).bit_length()

    @property
    def columns(self) -> NDArray[np.int64]:
        """Column of every entry, int64 ``(nnz,)``."""
        return np.repeat(np.arange(self.in_features, dtype=np.int64), np.diff(self.col_ptr))

    def dense(self) -> NDArray[np.float32]:
        """The matrix as float32 ``(out_features, in_features)``."""
        weight = np.zeros((self.out_features, self.in_features), dtype=np.float32)
        weight[self.row_idx, self.columns] = self.codebook[self.code]
        return weight

    @classmethod
    def from_codes(cls, name: str, codes: NDArray, codebook: NDArray, bias: NDArray | None,
                   *, relu: bool, out_frac: int) -> "CompressedLinear":
        """Build a layer from a dense ``(out_features, in_features)`` array of codes."""
        codes = np.asarray(codes)
        rows, cols = codes.shape
        # Transposing first makes `nonzero` walk column by column.
        col, row = np.nonzero(codes.T)
        col_ptr = np.zeros(cols + 1, dtype=np.int64)
        np.cumsum(np.bincount(col, minlength=cols), out=col_ptr[1:])
        return cls(name, cols, rows, col_ptr, row, codes[row, col], codebook, bias,
                   relu=relu, out_frac=out_frac)


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

    layers: list[CompressedLinear]
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

    def forward(self, x: NDArray) -> NDArray[np.float64]:
        """Float reference: ``(n, in_features)`` to ``(n, out_features)`` in float64."""
        y = np.asarray(x, dtype=np.float64)
        for layer in self.layers:
            y = y @ layer.dense().astype(np.float64).T
            if layer.bias is not None:
                y = y + layer.bias.astype(np.float64)
            if layer.relu:
                y = np.maximum(y, 0.0)
        return y
