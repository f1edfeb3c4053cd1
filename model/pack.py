"""Relative-index packing of one matrix for N processing elements (EIE, section III-B).

Row ``i`` belongs to PE ``i mod N`` as its local row ``i // N``. A PE stores the non-zeros of its
rows column by column as entries (z, code), z being the local rows skipped since the entry before.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PackedLayer", "pack_layer", "unpack_layer"]


@dataclass(eq=False)
class PackedLayer:
    """One matrix as the memories of N PEs.

    An entry word is ``code | z << code_bits | flag << (code_bits + index_bits)``. A skip longer
    than ``2**index_bits - 1`` rows takes fillers: entries of code 0 with the largest z, each of
    which occupies one row itself. The flag marks the entry two places before the last of its
    column, so that a PE knows the end early enough to go on to the next column without a bubble.

    A sequential matrix is read in order, without pointers, and its words have no flag: z goes on
    from the end of a column to the beginning of the next. Columns are ``height`` rows high in every
    PE. A last entry of code 0, which counts nowhere, lies in the first row behind the matrix.

    Parameters
    ----------
    n_rows, n_cols, n_pes
        Size of the matrix, number of PEs.
    index_bits, code_bits
        Widths of z and of the code.
    sequential
        How it is packed.
    entries
        Per PE uint32: its words, columns in order, without gaps.
    lengths
        int32 ``(n_pes, n_cols)``: entries of every column, fillers included.
    fillers
        int32 ``(n_pes, n_cols)``: how many of them are fillers.
    """

    n_rows: int
    n_cols: int
    n_pes: int
    index_bits: int
    code_bits: int
    sequential: bool
    entries: list[NDArray[np.uint32]]
    lengths: NDArray[np.int32]
    fillers: NDArray[np.int32]

    @property
    def height(self) -> int:
        """Rows of a PE."""
        return -(-self.n_rows // self.n_pes)


def pack_layer(col_ptr: NDArray[np.int64], row_idx: NDArray[np.int32],
               code: NDArray[np.unsignedinteger], n_rows: int, n_pes: int, index_bits: int,
               code_bits: int, *, sequential: bool = False) -> PackedLayer:
    """Pack a matrix in compressed sparse columns (`CompressedLinear`) for `n_pes` PEs.

    Time and memory are linear in entries plus ``n_pes`` x columns; no Python loop over either.

    Parameters
    ----------
    col_ptr, row_idx, code
        The columns; rows rise strictly within a column, and no code is 0.
    n_rows, n_pes
        Size of the matrix, number of PEs.
    index_bits, code_bits
        Widths of z and of the code.
    sequential
        Pack for an engine without pointers: see `PackedLayer`.

    Raises
    ------
    ValueError
        Widths or a PE count out of range, or a code wider than ``code_bits``.
    """
    for name, value, low, high in (("n_pes", n_pes, 1, 256), ("index_bits", index_bits, 1, 23),
                                   ("code_bits", code_bits, 1, 16)):
        if not low <= value <= high:
            raise ValueError(f"{name} must be {low} to {high}, not {value!r}")
    if len(code) and int(code.max()) >> code_bits:
        raise ValueError(f"code {int(code.max())} does not fit code_bits ({code_bits})")
    n_cols = len(col_ptr) - 1
    lengths = np.zeros((n_pes, n_cols), dtype=np.int32)
    fillers = np.zeros((n_pes, n_cols), dtype=np.int32)
    if not (len(row_idx) or sequential):
        empty = np.zeros(0, dtype=np.uint32)
        return PackedLayer(n_rows, n_cols, n_pes, index_bits, code_bits, sequential,
                           [empty] * n_pes, lengths, fillers)

    local, pe = np.divmod(row_idx.astype(np.int32, copy=False), np.int32(n_pes))
    pe = pe.astype(np.uint8)
    column = np.repeat(np.arange(n_cols, dtype=np.int32), np.diff(col_ptr))
    if sequential:
        pe = np.concatenate([pe, np.arange(n_pes, dtype=np.uint8)])
        column = np.concatenate([column, np.full(n_pes, n_cols, dtype=np.int32)])
        local = np.concatenate([local, np.zeros(n_pes, dtype=local.dtype)])
        code = np.concatenate([code, np.zeros(n_pes, code.dtype)])
    # Entries come sorted by column and row. A stable sort by PE alone therefore sorts by PE, column
    # and row, and on 8-bit keys NumPy's stable sort is a radix sort.
    order = np.argsort(pe, kind="stable")
    local, pe, column, code = local[order], pe[order], column[order], code[order]
    if sequential:
        return _pack_in_order(column * np.int64(-(-n_rows // n_pes)) + local, pe, code, n_rows,
                              n_cols, n_pes, index_bits, code_bits)

    first = np.ones(len(pe), dtype=bool)
    first[1:] = (column[1:] != column[:-1]) | (pe[1:] != pe[:-1])
    place, words = _words(local, first, code, index_bits, code_bits)

    # A run of one PE and one column ends where the next begins.
    start = np.flatnonzero(first)
    count = np.diff(start, append=len(pe))
    end = place[start + count - 1]
    length = np.diff(end, prepend=-1)
    run = pe[start], column[start]
    lengths[run] = length
    fillers[run] += length - count
    words[end[length >= 3] - 2] |= np.uint32(1 << (index_bits + code_bits))

    entries = np.split(words, np.cumsum(lengths.sum(axis=1, dtype=np.int64))[:-1])
    return PackedLayer(n_rows, n_cols, n_pes, index_bits, code_bits, False, entries, lengths,
                       fillers)


def _words(position: NDArray, first: NDArray[np.bool_], code: NDArray, index_bits: int,
           code_bits: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Entries at rising positions and the fillers between them: their places, and all words.

    A skip is counted from the entry before, and from position 0 where `first`.
    """
    skip = position.copy()
    skip[1:] -= np.where(first[1:], 0, position[:-1] + 1)
    place = np.arange(len(position)) + np.cumsum(skip >> index_bits)
    z_max = (1 << index_bits) - 1
    words = np.full(int(place[-1]) + 1, z_max << code_bits, dtype=np.uint32)
    words[place] = (skip & z_max) << code_bits | code
    return place, words


def _pack_in_order(position: NDArray[np.int64], pe: NDArray[np.uint8], code: NDArray, n_rows: int,
                   n_cols: int, n_pes: int, index_bits: int, code_bits: int) -> PackedLayer:
    """A sequential matrix of entries at these positions, the last one of every PE behind it."""
    first = np.ones(len(pe), dtype=bool)
    first[1:] = pe[1:] != pe[:-1]
    place, words = _words(position, first, code, index_bits, code_bits)
    ends = place[np.append(first[1:], True)]
    count = np.diff(ends, prepend=-1)
    packed = PackedLayer(n_rows, n_cols, n_pes, index_bits, code_bits, True,
                         np.split(words, ends[:-1] + 1), *np.zeros((2, n_pes, n_cols), np.int32))
    inside = np.ones(len(words), dtype=bool)
    inside[ends] = False
    cell = (np.repeat(np.arange(n_pes), count) * n_cols
            + _positions(words, count, packed) // packed.height)[inside]
    filler = (words[inside] & ((1 << code_bits) - 1)) == 0
    for counts, cells in ((packed.lengths, cell), (packed.fillers, cell[filler])):
        counts.ravel()[:] = np.bincount(cells, minlength=n_pes * n_cols)
    return packed


def _positions(words: NDArray, runs: NDArray[np.int64], packed: PackedLayer) -> NDArray[np.int64]:
    """Where entries are, counted from the beginning of their run of so many words."""
    # Every entry moves on by its skip and by the row it occupies; each run starts from -1.
    z = words.astype(np.int64) >> packed.code_bits & ((1 << packed.index_bits) - 1)
    moved = np.cumsum(z + 1)
    before = np.concatenate([[0], moved])[np.cumsum(runs) - runs]
    return moved - np.repeat(before, runs) - 1


def unpack_layer(packed: PackedLayer) -> tuple[NDArray[np.int64], NDArray[np.int32],
                                               NDArray[np.unsignedinteger]]:
    """The inverse of `pack_layer`: ``(col_ptr, row_idx, code)``, codes above 8 bits in uint16."""
    words = np.concatenate(packed.entries)
    code = words & ((1 << packed.code_bits) - 1)
    if packed.sequential:
        runs = np.array([len(entries) for entries in packed.entries])
        pe = np.repeat(np.arange(packed.n_pes), runs)
        column, local = np.divmod(_positions(words, runs, packed), packed.height)
    else:
        runs = packed.lengths.ravel().astype(np.int64)
        local = _positions(words, runs, packed)
        pe, column = np.divmod(np.repeat(np.arange(len(runs)), runs), packed.n_cols)

    weight = np.flatnonzero(code)
    row = local[weight] * packed.n_pes + pe[weight]
    column, code = column[weight], code[weight]
    order = np.lexsort((row, column))
    col_ptr = np.zeros(packed.n_cols + 1, dtype=np.int64)
    np.cumsum(np.bincount(column, minlength=packed.n_cols), out=col_ptr[1:])
    narrow = np.uint8 if packed.code_bits <= 8 else np.uint16
    return col_ptr, row[order].astype(np.int32), code[order].astype(narrow)
