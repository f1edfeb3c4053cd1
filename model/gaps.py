"""The two streams of a sparse matrix: where its entries are, and which codes they hold.

The matrix is walked in some order. Each entry has a gap, the number of zeros walked over since the
entry before, across the ends of rows or columns. A gap of ``2**width`` or more is preceded by
fillers that stand for ``2**width`` zeros each; unlike in a PE's memory a filler is a symbol of its
own, ``2**width``, and has no code.

The walk may be squeezed: rows and columns without any entry are left out, and two more streams tell
which those are. Pixels where no digit has ink, or units that nothing uses, then cost nothing.

Codes may be linked: one that follows its predecessor without a gap is then coded with a table of
that predecessor's own, since weights of neighbouring pixels resemble each other.

Fixed-point weights have no codes. Of each, the highest bits are Huffman-coded; the lowest, which
are noise, follow as they are, so that the table stays small.
"""

import numpy as np
from bitarray import bitarray
from numpy.typing import NDArray

from openese.model import huffman

__all__ = ["LINK_BITS", "MAX_WIDTH", "best_low_bits", "best_width", "decode_codes", "decode_fixed",
           "decode_gaps", "decode_used", "encode_codes", "encode_fixed", "encode_gaps", "squeeze"]

# Widest gap symbol in bits; a wider one would need a table larger than the fillers it saves.
MAX_WIDTH = 12
# The code before is told apart by this many of its highest bits, which bounds the tables to 17.
LINK_BITS = 4


def best_width(gap: NDArray[np.int64]) -> int:
    """The width that makes the stream of these gaps smallest."""
    # Every width's counts follow from those of the widest: no second pass over the gaps.
    counts = np.bincount(gap & ((1 << MAX_WIDTH) - 1), minlength=1 << MAX_WIDTH)
    fillers = int((gap >> MAX_WIDTH).sum())
    sizes = []
    for width in range(MAX_WIDTH, -1, -1):
        sizes.append((huffman.stream_bits(np.append(counts, fillers)), width))
        # One bit less: a filler becomes two, and the upper half of the gaps needs one more.
        half = len(counts) >> 1
        fillers = 2 * fillers + int(counts[half:].sum())
        counts = counts[:half] + counts[half:]
    return min(sizes)[1]


def squeeze(index: NDArray[np.int64], size: int
            ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Leave out what no entry uses of ``size`` rows or columns.

    Returns the number of unused ones before each that is used, and the index of every entry among
    those used.
    """
    used = np.bincount(index, minlength=size) > 0
    return np.diff(np.flatnonzero(used), prepend=-1) - 1, (np.cumsum(used) - 1)[index]


def decode_used(bits: bitarray, start: int, size: int) -> tuple[NDArray[np.int64], int]:
    """The rows or columns used, of ``size``, rising, and the position behind their stream.

    Raises ``ValueError`` for a stream of others.
    """
    unused, pos = huffman.decode(bits, start, max_symbol=size, max_repeats=size)
    used = np.cumsum(unused + 1) - 1
    if len(used) and used[-1] >= size:
        raise ValueError(f"a row or column lies outside the {size} there are")
    return used, pos


def encode_gaps(gap: NDArray[np.int64], width: int) -> bitarray:
    """The stream of gaps, int64 ``(nnz,)``, and the fillers they need."""
    fillers = gap >> width
    symbols = np.full(len(gap) + int(fillers.sum()), 1 << width, dtype=np.int64)
    symbols[np.cumsum(fillers + 1) - 1] = gap & ((1 << width) - 1)
    return huffman.encode(symbols)


def decode_gaps(bits: bitarray, start: int, width: int, nnz: int) -> tuple[NDArray[np.int64], int]:
    """The gaps of ``nnz`` entries, int64, and the position behind them.

    Raises ``ValueError`` for a stream that does not hold exactly those.
    """
    filler = 1 << width
    symbols, pos = huffman.decode(bits, start, max_symbol=filler, max_repeats=nnz)
    real = np.flatnonzero(symbols != filler)
    if len(real) != nnz or (len(symbols) and symbols[-1] == filler):
        raise ValueError(f"the gaps are not those of {nnz} entries")
    # Before entry i stand as many fillers as symbols that are no entries' since entry i - 1.
    return symbols[real] + filler * (np.diff(real, prepend=-1) - 1), pos


def encode_codes(code: NDArray[np.uint8], gap: NDArray[np.int64], code_bits: int,
                 linked: bool) -> bitarray:
    """The codes of the entries with these gaps: one stream per table, in order of their numbers.

    If ``linked``, a code whose gap is 0 is coded with table 1 + the highest `LINK_BITS` bits of
    the code before it; every other code, and the first, with table 0.
    """
    if not linked:
        return huffman.encode(code)
    table = np.zeros(len(code), dtype=np.int64)
    before = code[:-1].astype(np.int64) >> max(0, code_bits - LINK_BITS)
    table[1:] = np.where(gap[1:] == 0, 1 + before, 0)
    bits = bitarray()
    for number in range(_tables(code_bits, linked)):
        bits += huffman.encode(code[table == number])
    return bits


def decode_codes(bits: bitarray, start: int, gap: NDArray[np.int64], code_bits: int,
                 linked: bool) -> tuple[NDArray[np.uint8], int]:
    """The codes of the entries with these gaps, and the position behind them.

    Raises ``ValueError`` for streams that do not hold exactly those.
    """
    nnz, pos, streams = len(gap), start, []
    for _ in range(_tables(code_bits, linked)):
        codes, pos = huffman.decode(bits, pos, max_symbol=(1 << code_bits) - 1, max_repeats=nnz)
        streams.append(codes.astype(np.uint8))
    if sum(len(codes) for codes in streams) != nnz:
        raise ValueError(f"the codes are not those of {nnz} entries")
    if not linked:
        return streams[0], pos
    # Each code picks the stream that holds the next one, so they must be taken one by one.
    unlinked, *after = [iter(codes.tobytes()) for codes in streams]
    shift = max(0, code_bits - LINK_BITS)
    result, source = bytearray(), unlinked
    try:
        for adjacent in (gap == 0).tolist():
            # Where the first gap of all is 0, nothing stands before it.
            code = next(source if adjacent else unlinked)
            source = after[code >> shift]
            result.append(code)
    except StopIteration:
        raise ValueError("a stream of codes ends early") from None
    return np.frombuffer(result, dtype=np.uint8), pos


def _tables(code_bits: int, linked: bool) -> int:
    return 1 + (1 << min(code_bits, LINK_BITS)) if linked else 1


def best_low_bits(entry: NDArray[np.int64], bits: int) -> int:
    """How many of the lowest of ``bits`` bits to store as they are, for the smallest size."""
    counts = np.bincount(entry, minlength=1 << bits)
    sizes = []
    for low_bits in range(bits):
        if np.count_nonzero(counts) <= 1 << huffman.MAX_LENGTH:
            sizes.append((huffman.stream_bits(counts) + low_bits * len(entry), low_bits))
        counts = counts.reshape(-1, 2).sum(axis=1)
    return min(sizes)[1]


def encode_fixed(entry: NDArray[np.int64], low_bits: int) -> bitarray:
    """One stream of the highest bits of non-negative integers, then all their lowest bits."""
    bits = huffman.encode(entry >> low_bits)
    digits = entry[:, np.newaxis] >> np.arange(low_bits - 1, -1, -1) & 1
    bits.pack(digits.astype(np.bool_).tobytes())
    return bits


def decode_fixed(bits: bitarray, start: int, nnz: int, width: int, low_bits: int
                 ) -> tuple[NDArray[np.int64], int]:
    """The integers of ``width`` bits of ``nnz`` entries, int64, and the position behind them.

    Raises ``ValueError`` for streams that do not hold exactly those.
    """
    high, pos = huffman.decode(bits, start, max_symbol=(1 << (width - low_bits)) - 1,
                               max_repeats=nnz)
    end = pos + nnz * low_bits
    if len(high) != nnz or end > len(bits):
        raise ValueError(f"the fixed-point weights are not those of {nnz} entries")
    digits = np.frombuffer(bits[pos:end].unpack(), dtype=np.uint8).reshape(nnz, low_bits)
    low = digits.astype(np.int64) @ (1 << np.arange(low_bits - 1, -1, -1, dtype=np.int64))
    return (high << low_bits) + low, end
