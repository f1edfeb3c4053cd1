"""Canonical Huffman coding: every array comes back, sizes are those promised, damage is noticed."""

import time
import tracemalloc

import numpy as np
import pytest
from bitarray import bitarray
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.model import huffman


def decode_all(bits, max_symbol=huffman.MAX_SYMBOL, max_repeats=1 << 20):
    symbols, end = huffman.decode(bits, 0, max_symbol=max_symbol, max_repeats=max_repeats)
    assert end == len(bits)
    return symbols


@pytest.mark.parametrize("symbols", [
    [], [0], [7], [5] * 1000, [0, 1], [1, 0, 0], [3, 900], list(range(300)), [0] * 99 + [1],
    [huffman.MAX_SYMBOL],
])
def test_edge_cases_round_trip(symbols):
    bits = huffman.encode(np.array(symbols, dtype=np.int64))
    assert decode_all(bits).tolist() == symbols


def test_one_symbol_takes_no_bits_per_repetition():
    once, often = huffman.encode([3]), huffman.encode([3] * 100_000)
    # Only the gamma code of the count grows.
    assert len(often) - len(once) == 2 * (17 - 2)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 40) | st.integers(0, 100_000), max_size=200))
def test_any_array_round_trips_and_has_the_size_foretold(symbols):
    bits = huffman.encode(np.array(symbols, dtype=np.int64))
    assert decode_all(bits).tolist() == symbols
    assert huffman.stream_bits(np.bincount(symbols) if symbols else [0, 0]) == len(bits)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_any_integer_type_is_coded(dtype):
    symbols = np.array([[1, 2], [2, 100]], dtype=dtype)
    assert decode_all(huffman.encode(symbols)).tolist() == [1, 2, 2, 100]


def test_streams_follow_each_other_bit_by_bit():
    arrays = [[1, 1, 2], [], [4], [0, 1, 2, 3] * 5, [9] * 8]
    bits = bitarray("101")
    for array in arrays:
        bits += huffman.encode(np.array(array, dtype=np.int64))
    pos = 3
    for array in arrays:
        symbols, pos = huffman.decode(bits, pos, max_symbol=9, max_repeats=8)
        assert symbols.tolist() == array
    assert pos == len(bits)


def test_codes_are_canonical():
    table = huffman.HuffmanTable.from_counts([4, 0, 1, 1, 2])
    assert table.symbols.tolist() == [0, 2, 3, 4]
    assert table.lengths.tolist() == [1, 3, 3, 2]
    assert table.codes() == {0: bitarray("0"), 4: bitarray("10"), 2: bitarray("110"),
                             3: bitarray("111")}


def test_lengths_are_limited_and_still_form_a_complete_code():
    # Fibonacci numbers make the deepest trees: 29 bits here without a limit.
    counts = [1, 1]
    while len(counts) < 30:
        counts.append(counts[-1] + counts[-2])
    table = huffman.HuffmanTable.from_counts(counts)
    assert table.lengths.max() == huffman.MAX_LENGTH
    assert sum(2.0 ** -table.lengths) == 1
    symbols = np.repeat(np.arange(20), counts[:20])
    assert (decode_all(huffman.encode(symbols)) == symbols).all()


def test_size_stays_within_a_bit_of_entropy():
    rng = np.random.default_rng(1)
    for p in (0.04, 0.1, 0.3):
        symbols = rng.geometric(p, 100_000) - 1
        q = np.bincount(symbols) / len(symbols)
        entropy = -(q[q > 0] * np.log2(q[q > 0])).sum()
        assert entropy <= len(huffman.encode(symbols)) / len(symbols) < 1.02 * entropy


def test_too_many_distinct_symbols_are_refused():
    most = 1 << huffman.MAX_LENGTH
    assert decode_all(huffman.encode(np.arange(most))).tolist() == list(range(most))
    with pytest.raises(ValueError, match=r"^at most 32768 distinct symbols can be coded, not 32"):
        huffman.encode(np.arange(most + 1))


@pytest.mark.parametrize(("symbols", "text"), [
    ([1, -1], r"^symbols must lie in 0\.\.16777215, not in -1\.\.1$"),
    ([1 << 24], r"^symbols must lie in 0\.\.16777215, not in 16777216\.\.16777216$"),
    ([0.5], r"^symbols must be integers, not float64$"),
])
def test_wrong_symbols_are_refused(symbols, text):
    with pytest.raises(ValueError, match=text):
        huffman.encode(symbols)


def test_every_truncation_is_noticed():
    bits = huffman.encode(np.array([0, 1, 2, 3, 3, 3, 3, 9, 9] * 4))
    for length in range(len(bits)):
        with pytest.raises(ValueError, match=r"is cut off|cut off or too large"):
            huffman.decode(bits[:length], 0, max_symbol=9, max_repeats=100)


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=40))
def test_random_bits_decode_or_raise_value_error(data):
    bits = bitarray()
    bits.frombytes(data)
    try:
        symbols, end = huffman.decode(bits, 0, max_symbol=300, max_repeats=1000)
    except ValueError:
        return
    assert end <= len(bits)
    assert len(symbols) <= 1000
    assert symbols.size == 0 or 0 <= symbols.min() <= symbols.max() <= 300


def stream(count, size, *table):
    """A hand-made stream: counts, then (symbol step, bits of its length) pairs."""
    bits = bitarray()
    huffman.write_gamma(bits, count + 1)
    huffman.write_gamma(bits, size)
    for step, length in table:
        huffman.write_gamma(bits, step)
        bits += bitarray(length)
    return bits + bitarray(64)


@pytest.mark.parametrize(("bits", "text"), [
    # Three codes of one bit; one of one and one of two bits; a length of 0; of 16.
    (stream(3, 3, (1, "0001"), (1, "1"), (1, "1")), "do not form a complete code"),
    (stream(3, 2, (1, "0001"), (1, "01")), "do not form a complete code"),
    (stream(3, 2, (1, "0000"), (1, "01")), "code length is out of range"),
    (stream(3, 2, (1, "1111"), (1, "01")), "code length is out of range"),
    (stream(3, 2, (1, "0001"), (7, "1")), "symbol outside its alphabet"),
    (stream(3, 7), "larger than its alphabet"),
    (stream(1 << 40, 1, (1, "")), "repeats a symbol more than 100 times"),
    (stream(1 << 40, 2, (1, "0001"), (1, "1")), "is cut off"),
    (bitarray(60) + bitarray("1"), "cut off or too large"),
    (bitarray(60), "is cut off"),
])
def test_crafted_streams_are_refused_without_allocating(bits, text):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=text):
            huffman.decode(bits, 0, max_symbol=5, max_repeats=100)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_whole_large_layer_takes_a_fraction_of_a_second():
    symbols = np.random.default_rng(2).geometric(0.1, 325_000) - 1
    start = time.perf_counter()
    bits = huffman.encode(symbols)
    middle = time.perf_counter()
    assert (decode_all(bits) == symbols).all()
    # About 0.02 s each on one slow core.
    assert middle - start < 0.5
    assert time.perf_counter() - middle < 0.5
