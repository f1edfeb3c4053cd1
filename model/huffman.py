"""Canonical Huffman coding of arrays of small non-negative integers.

A stream carries its own length and code table, so streams can follow each other bit by bit:

====================  ==========================================================================
part                  bits
====================  ==========================================================================
number of symbols n   gamma(n + 1); an empty stream ends here
symbols in the table  gamma(m)
each of the m         gamma(symbol - the symbol before it), the first against -1; then, if m > 1,
                      its code length: 4 bits for the first, for the others the difference to
                      the length before it as a signed unary number
the n codes           most significant bit first; none at all when m = 1
====================  ==========================================================================

gamma(v) is Elias' gamma code of v >= 1: as many zeros as v has bits after its first, then v in
binary. The signed unary number d is 2 d - 1 zeros if d > 0, else -2 d zeros, and then a one. Codes
are canonical: shorter codes first, equal lengths in order of the symbols, counting upwards.
"""

from dataclasses import dataclass
from itertools import islice

import numpy as np
from bitarray import bitarray
from bitarray.util import ba2int, canonical_decode, canonical_huffman, int2ba
from numpy.typing import ArrayLike, NDArray

__all__ = ["MAX_LENGTH", "HuffmanTable", "decode", "encode", "read_gamma", "stream_bits",
           "write_gamma"]

# Longest code in bits. 15 costs next to nothing against unlimited codes, since only symbols rarer
# than one in ten thousand would get longer ones, and lets 4 bits hold a length.
MAX_LENGTH = 15
# Symbols are used as indices into a table of counts.
MAX_SYMBOL = (1 << 24) - 1


def write_gamma(bits: bitarray, value: int) -> None:
    """Append Elias' gamma code of ``value`` >= 1."""
    bits.extend(int2ba(value, 2 * value.bit_length() - 1))


def read_gamma(bits: bitarray, start: int) -> tuple[int, int]:
    """Value of the gamma code at bit ``start`` and the position behind it.

    Raises ``ValueError`` where no code of at most 48 bits follows.
    """
    zeros, first = _read_zeros(bits, start)
    end = first + zeros + 1
    if zeros > 47 or end > len(bits):
        raise ValueError("a number in a Huffman stream is cut off or too large")
    return ba2int(bits[first:end]), end


def _read_zeros(bits: bitarray, start: int) -> tuple[int, int]:
    """How many zeros stand at ``start``, and the position of the one that ends them."""
    first = bits.find(1, start)
    if first < 0:
        raise ValueError("a Huffman stream is cut off")
    return first - start, first


@dataclass(frozen=True, eq=False)
class HuffmanTable:
    """The symbols in use, rising, and the length of the code of each.

    Parameters
    ----------
    symbols
        int64 ``(m,)``, strictly increasing, not negative.
    lengths
        int64 ``(m,)``, 1 to `MAX_LENGTH` each; ``[0]`` when there is only one symbol, which
        needs no bits.
    """

    symbols: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def from_counts(cls, counts: ArrayLike) -> "HuffmanTable":
        """The best table for symbols ``0..len(counts) - 1`` seen ``counts`` times each.

        Raises ``ValueError`` for more distinct symbols than codes of `MAX_LENGTH` bits.
        """
        counts = np.asarray(counts, dtype=np.int64)
        symbols = np.flatnonzero(counts)
        if len(symbols) > 1 << MAX_LENGTH:
            raise ValueError(f"at most {1 << MAX_LENGTH} distinct symbols can be coded, "
                             f"not {len(symbols)}")
        if len(symbols) < 2:
            return cls(symbols, np.zeros(len(symbols), dtype=np.int64))
        counts = counts[symbols]
        while True:
            codes, _, _ = canonical_huffman(dict(enumerate(counts.tolist())))
            lengths = np.array([len(codes[i]) for i in range(len(symbols))], dtype=np.int64)
            if lengths.max() <= MAX_LENGTH:
                return cls(symbols, lengths)
            # Flatter counts give a flatter tree; all ones would give the flattest of all.
            counts = (counts + 1) >> 1

    @property
    def order(self) -> NDArray[np.int64]:
        """Positions in ``symbols`` in the order of the canonical codes."""
        return np.lexsort((self.symbols, self.lengths))

    def codes(self) -> dict[int, bitarray]:
        """The code of every symbol."""
        codes, code, length = {}, 0, 0
        for i in self.order.tolist():
            code <<= int(self.lengths[i]) - length
            length = int(self.lengths[i])
            codes[int(self.symbols[i])] = int2ba(code, length) if length else bitarray()
            code += 1
        return codes

    def write(self, bits: bitarray) -> None:
        """Append the table to ``bits``."""
        write_gamma(bits, len(self.symbols))
        previous, length = -1, 0
        for symbol, new in zip(self.symbols.tolist(), self.lengths.tolist(), strict=True):
            write_gamma(bits, symbol - previous)
            if length:
                difference = new - length
                zeros = 2 * difference - 1 if difference > 0 else -2 * difference
                bits.extend(int2ba(1, zeros + 1))
            elif new:
                bits.extend(int2ba(new, 4))
            previous, length = symbol, new

    @classmethod
    def read(cls, bits: bitarray, start: int, max_symbol: int) -> tuple["HuffmanTable", int]:
        """The table at bit ``start`` and the position behind it.

        Raises ``ValueError`` for a table that is cut off, has a symbol above ``max_symbol``, or
        whose lengths do not form a complete code.
        """
        size, pos = read_gamma(bits, start)
        # Checked before the loop, so that its length is bounded by what the caller expects.
        if size > max_symbol + 1:
            raise ValueError("a Huffman table is larger than its alphabet")
        symbols, lengths = [], []
        symbol, length = -1, 0
        for _ in range(size):
            step, pos = read_gamma(bits, pos)
            symbol += step
            if size > 1 and not lengths:
                if pos + 4 > len(bits):
                    raise ValueError("a Huffman stream is cut off")
                length, pos = ba2int(bits[pos:pos + 4]), pos + 4
            elif size > 1:
                zeros, first = _read_zeros(bits, pos)
                length += (zeros + 1) >> 1 if zeros & 1 else -(zeros >> 1)
                pos = first + 1
            if size > 1 and not 1 <= length <= MAX_LENGTH:
                raise ValueError("a Huffman code length is out of range")
            symbols.append(symbol)
            lengths.append(length)
        if symbol > max_symbol:
            raise ValueError("a Huffman table has a symbol outside its alphabet")
        if size > 1 and sum(1 << (MAX_LENGTH - n) for n in lengths) != 1 << MAX_LENGTH:
            raise ValueError("the code lengths of a Huffman table do not form a complete code")
        return cls(np.array(symbols, dtype=np.int64), np.array(lengths, dtype=np.int64)), pos


def stream_bits(counts: ArrayLike) -> int:
    """Size in bits, table included, of a stream whose symbols are seen ``counts`` times each."""
    counts = np.asarray(counts, dtype=np.int64)
    bits = bitarray()
    write_gamma(bits, int(counts.sum()) + 1)
    if not counts.any():
        return len(bits)
    table = HuffmanTable.from_counts(counts)
    table.write(bits)
    return len(bits) + int(counts[table.symbols] @ table.lengths)


def encode(symbols: ArrayLike) -> bitarray:
    """Code an array of non-negative integers.

    Parameters
    ----------
    symbols
        Integers from 0 to 2**24 - 1, any shape; coded in C order. At most 2**15 distinct values.

    Raises
    ------
    ValueError
        A symbol out of range, something that is no integer, too many distinct values.
    """
    symbols = np.asarray(symbols).reshape(-1)
    if symbols.size and not np.issubdtype(symbols.dtype, np.integer):
        raise ValueError(f"symbols must be integers, not {symbols.dtype}")
    if symbols.size and not 0 <= int(symbols.min()) <= int(symbols.max()) <= MAX_SYMBOL:
        raise ValueError(f"symbols must lie in 0..{MAX_SYMBOL}, not in "
                         f"{int(symbols.min())}..{int(symbols.max())}")
    bits = bitarray()
    write_gamma(bits, symbols.size + 1)
    if symbols.size:
        table = HuffmanTable.from_counts(np.bincount(symbols.astype(np.int64)))
        table.write(bits)
        if len(table.symbols) > 1:
            bits.encode(table.codes(), symbols.tolist())
    return bits


def decode(bits: bitarray, start: int, *, max_symbol: int,
           max_repeats: int) -> tuple[NDArray[np.int64], int]:
    """Decode the stream at bit ``start``; returns the int64 symbols and the position behind it.

    A stream of one repeated symbol spends no bits on it, so its length says nothing of the array
    it asks for: ``max_repeats`` bounds that. Of any other stream every symbol takes a bit or more.

    Raises
    ------
    ValueError
        Anything but a whole, well-formed stream of symbols up to ``max_symbol``.
    """
    count, pos = read_gamma(bits, start)
    count -= 1
    if count == 0:
        return np.zeros(0, dtype=np.int64), pos
    table, pos = HuffmanTable.read(bits, pos, max_symbol)
    if len(table.symbols) == 1:
        if count > max_repeats:
            raise ValueError(f"a Huffman stream repeats a symbol more than {max_repeats} times")
        return np.full(count, table.symbols[0], dtype=np.int64), pos
    if count > len(bits) - pos:
        raise ValueError("a Huffman stream is cut off")
    order = table.order
    coded = canonical_decode(bits[pos:], np.bincount(table.lengths).tolist(), order.tolist())
    try:
        index = np.fromiter(islice(coded, count), dtype=np.int64, count=count)
    except ValueError:
        # Any bits are codes of a complete table, unless they end within one.
        raise ValueError("a Huffman stream is cut off") from None
    return table.symbols[index], pos + int(table.lengths[index].sum())
