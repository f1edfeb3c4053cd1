"""Sparse matrices of compressed tensors: shared weights, or fixed-point weights stored directly.

Both keep their non-zeros in compressed sparse columns and are exact: `dense` gives, bit for bit,
the matrix that was compressed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CompressedMatrix", "FixedMatrix", "SharedColumns", "SparseColumns", "sparse_columns"]


class SparseColumns:
    """What all matrices in compressed sparse columns have in common.

    A subclass has ``rows``, ``cols``, ``col_ptr``, ``row_idx`` and ``values``, as
    `CompressedMatrix` describes them.
    """

    rows: int
    cols: int
    col_ptr: NDArray[np.int64]
    row_idx: NDArray[np.int32]

    def _convert(self, what: str, **types: type) -> None:
        """Give integer fields their types; converting must not wrap what a type does not hold."""
        for name, dtype in types.items():
            given = np.asarray(getattr(self, name))
            converted = given.astype(dtype)
            if not np.array_equal(converted, given):
                raise ValueError(f"{what}: {name} must be integers that fit "
                                 f"{np.dtype(dtype).name}")
            setattr(self, name, converted)

    def _check_columns(self, what: str, entries: str) -> None:
        """Raise ``ValueError`` unless col_ptr, row_idx and the field `entries` form a matrix."""
        def check(ok: bool, text: str) -> None:
            if not ok:
                raise ValueError(f"{what}: {text}")

        check(self.rows >= 1 and self.cols >= 1, "sizes must be 1 or more")
        check(self.col_ptr.shape == (self.cols + 1,),
              f"col_ptr must have {self.cols + 1} elements, not {self.col_ptr.shape}")
        check(self.col_ptr[0] == 0 and bool((np.diff(self.col_ptr) >= 0).all()),
              "col_ptr must start at 0 and never decrease")
        check(self.row_idx.shape == getattr(self, entries).shape == (self.nnz,),
              f"row_idx and {entries} must have {self.nnz} elements")
        if self.nnz:
            check(int(self.row_idx.min()) >= 0 and int(self.row_idx.max()) < self.rows,
                  f"rows must lie in 0..{self.rows - 1}")
            # One key per entry rises strictly exactly when rows rise strictly in every column.
            key = self.columns * self.rows + self.row_idx
            check(bool((np.diff(key) > 0).all()), "rows must rise strictly within each column")

    @property
    def nnz(self) -> int:
        """Number of stored weights."""
        return int(self.col_ptr[-1])

    @property
    def density(self) -> float:
        """Stored weights / all weights."""
        return self.nnz / (self.rows * self.cols)

    @property
    def columns(self) -> NDArray[np.int64]:
        """Column of every entry, int64 ``(nnz,)``."""
        return np.repeat(np.arange(self.cols, dtype=np.int64), np.diff(self.col_ptr))

    def dense(self) -> NDArray[np.float32]:
        """The matrix as float32 ``(rows, cols)``."""
        weight = np.zeros((self.rows, self.cols), dtype=np.float32)
        weight[self.row_idx, self.columns] = self.values
        return weight


class SharedColumns(SparseColumns):
    """`SparseColumns` whose entries are codes of a codebook."""

    code: NDArray[np.uint8]
    codebook: NDArray[np.float32]

    def _check_shared(self, what: str) -> None:
        """Convert the arrays and raise ``ValueError`` unless they form such a matrix."""
        self._convert(what, col_ptr=np.int64, row_idx=np.int32, code=np.uint8)
        self.codebook = np.asarray(self.codebook, dtype=np.float32)
        self._check_columns(what, "code")
        size = self.codebook.shape[0] if self.codebook.ndim == 1 else 0
        if not (2 <= size <= 256 and size & (size - 1) == 0):
            raise ValueError(f"{what}: codebook must have 2, 4, ... 256 entries, "
                             f"not {self.codebook.shape}")
        if not np.isfinite(self.codebook).all():
            raise ValueError(f"{what}: codebook must be finite")
        if self.codebook[0] != 0:
            raise ValueError(f"{what}: codebook entry 0 must be exactly 0")
        if self.nnz and not 1 <= int(self.code.min()) <= int(self.code.max()) < size:
            raise ValueError(f"{what}: codes must lie in 1..{size - 1}")

    @property
    def code_bits(self) -> int:
        """Width of a code."""
        return int(self.codebook.shape[0] - 1).bit_length()

    @property
    def values(self) -> NDArray[np.float32]:
        """Value of every entry, float32 ``(nnz,)``."""
        return self.codebook[self.code]


@dataclass(eq=False)
class CompressedMatrix(SharedColumns):
    """A pruned, weight-shared matrix in compressed sparse columns.

    Parameters
    ----------
    rows, cols
        Size of the matrix.
    col_ptr
        int64 ``(cols + 1,)``; column ``j`` is the slice ``col_ptr[j]:col_ptr[j + 1]``.
    row_idx
        int32 ``(nnz,)``; rows, strictly increasing within a column.
    code
        uint8 ``(nnz,)``; indices into the codebook, never 0.
    codebook
        float32 ``(2**code_bits,)``, 1 to 8 bits; entry 0 is exactly 0, the value of every pruned
        weight.

    Raises
    ------
    ValueError
        Arrays that do not form such a matrix; the text says what is wrong.
    """

    rows: int
    cols: int
    col_ptr: NDArray[np.int64]
    row_idx: NDArray[np.int32]
    code: NDArray[np.uint8]
    codebook: NDArray[np.float32]

    def __post_init__(self) -> None:
        self._check_shared("matrix")

    @classmethod
    def from_codes(cls, codes: NDArray, codebook: NDArray) -> "CompressedMatrix":
        """Build a matrix from a dense ``(rows, cols)`` array of codes."""
        return cls(*sparse_columns(codes), codebook)


@dataclass(eq=False)
class FixedMatrix(SparseColumns):
    """A pruned matrix of fixed-point weights, as ESE stores them: no codebook, ``raw * 2**-frac``.

    Parameters
    ----------
    rows, cols, col_ptr, row_idx
        As of `CompressedMatrix`.
    raw
        int32 ``(nnz,)``; signed integers of `bits` bits, never 0.
    bits
        Width of a weight including its sign, 2 to 16.
    frac
        Binary point, -100 to 127: every value is exact in float32.

    Raises
    ------
    ValueError
        Arrays that do not form such a matrix; the text says what is wrong.
    """

    rows: int
    cols: int
    col_ptr: NDArray[np.int64]
    row_idx: NDArray[np.int32]
    raw: NDArray[np.int32]
    bits: int
    frac: int

    def __post_init__(self) -> None:
        what = "fixed-point matrix"
        self._convert(what, col_ptr=np.int64, row_idx=np.int32, raw=np.int32)
        self._check_columns(what, "raw")
        for name, low, high in (("bits", 2, 16), ("frac", -100, 127)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{what}: {name} must be an integer from {low} to {high}, "
                                 f"not {value!r}")
        limit = 1 << (self.bits - 1)
        if self.nnz and not (-limit <= int(self.raw.min()) <= int(self.raw.max()) < limit
                             and self.raw.all()):
            raise ValueError(f"{what}: raw weights must lie in {-limit}..{limit - 1} and not be 0")

    @property
    def code_bits(self) -> int:
        """Width of a weight."""
        return self.bits

    @property
    def values(self) -> NDArray[np.float32]:
        """Value of every entry, float32 ``(nnz,)``."""
        return np.ldexp(self.raw.astype(np.float32), -self.frac)

    @classmethod
    def from_raw(cls, raw: NDArray, bits: int, frac: int) -> "FixedMatrix":
        """Build a matrix from a dense ``(rows, cols)`` array of raw integers."""
        return cls(*sparse_columns(raw), bits, frac)


def sparse_columns(matrix: NDArray) -> tuple[int, int, NDArray, NDArray, NDArray]:
    """Rows, columns, col_ptr, row_idx and the non-zeros themselves, column by column."""
    matrix = np.asarray(matrix)
    if matrix.ndim != 2:
        raise ValueError(f"a matrix has two dimensions, not {matrix.ndim}")
    rows, cols = matrix.shape
    # Transposing first makes `nonzero` walk column by column.
    col, row = np.nonzero(matrix.T)
    col_ptr = np.zeros(cols + 1, dtype=np.int64)
    np.cumsum(np.bincount(col, minlength=cols), out=col_ptr[1:])
    return rows, cols, col_ptr, row, matrix[row, col]
