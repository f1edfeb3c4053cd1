"""Packing: against a packer that walks row by row, back through `unpack_layer`, and the edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.model.network import CompressedLinear
from openese.model.pack import pack_layer, unpack_layer


def columns_of(codes):
    codes = np.asarray(codes, np.uint8)
    size = max(2, 1 << int(codes.max()).bit_length())
    layer = CompressedLinear.from_codes("m", codes, np.zeros(size), None, relu=False, out_frac=0)
    return layer.col_ptr, layer.row_idx, layer.code


def pack(codes, n_pes, index_bits=4, code_bits=4, sequential=False):
    return pack_layer(*columns_of(codes), len(codes), n_pes, index_bits, code_bits,
                      sequential=sequential)


def walk(codes, pe, n_pes, index_bits, code_bits, sequential):
    """Words, lengths and fillers of one PE, one row at a time."""
    z_max = (1 << index_bits) - 1
    words, lengths, fillers, zeros = [], [], [], 0
    height = -(-len(codes) // n_pes)

    def filler():
        lengths[-1] += 1
        fillers[-1] += 1
        return z_max << code_bits

    for column in np.asarray(codes).T:
        lengths.append(0)
        fillers.append(0)
        own, entries = column[pe::n_pes].tolist(), []
        if sequential:
            # Every PE's columns are equally high, and the zeros of one go on in the next.
            own += [0] * (height - len(own))
        else:
            zeros = 0
        for code in own:
            if code:
                # Zeros before a weight: as many fillers as needed, each standing for z_max + 1.
                while not sequential and zeros > z_max:
                    entries.append(filler())
                    zeros -= z_max + 1
                entries.append(zeros << code_bits | code)
                lengths[-1] += 1
                zeros = 0
            elif sequential and zeros == z_max:
                entries.append(filler())
                zeros = 0
            else:
                zeros += 1
        if len(entries) >= 3 and not sequential:
            entries[-3] |= 1 << (index_bits + code_bits)
        words += entries
    return words + [zeros << code_bits] * sequential, lengths, fillers


def check(codes, n_pes, index_bits=4, code_bits=4, sequential=False):
    codes = np.asarray(codes)
    packed = pack(codes, n_pes, index_bits, code_bits, sequential)
    assert packed.lengths.shape == packed.fillers.shape == (n_pes, codes.shape[1])
    assert len(packed.entries) == n_pes
    for pe in range(n_pes):
        words, lengths, fillers = walk(codes, pe, n_pes, index_bits, code_bits, sequential)
        assert packed.entries[pe].dtype == np.uint32
        assert packed.entries[pe].tolist() == words
        assert packed.lengths[pe].tolist() == lengths
        assert packed.fillers[pe].tolist() == fillers
    for back, original in zip(unpack_layer(packed), columns_of(codes), strict=True):
        assert back.tolist() == original.tolist()
        assert back.dtype == original.dtype
    return packed


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 1 << 32), rows=st.integers(1, 150), cols=st.integers(1, 12),
       density=st.one_of(st.floats(0, 1), st.floats(0, 0.05)),
       n_pes=st.sampled_from([1, 2, 3, 4, 5, 7, 16, 64, 256]), index_bits=st.integers(1, 8),
       code_bits=st.integers(1, 8), sequential=st.booleans())
def test_equals_the_walk_and_unpacks(seed, rows, cols, density, n_pes, index_bits, code_bits,
                                     sequential):
    rng = np.random.default_rng(seed)
    codes = rng.integers(1, 1 << code_bits, (rows, cols)) * (rng.random((rows, cols)) < density)
    check(codes, n_pes, index_bits, code_bits, sequential)


@pytest.mark.parametrize("n_pes", [1, 3])
@pytest.mark.parametrize(("gap", "fillers"), [
    (0, 0), (1, 0), (14, 0), (15, 0), (16, 1), (17, 1), (31, 1), (32, 2), (33, 2), (47, 2), (48, 3),
    (64, 4), (65, 4), (200, 12),
])
@pytest.mark.parametrize("leading", [True, False])
def test_gaps_in_one_pe(gap, fillers, n_pes, leading):
    column = np.zeros((n_pes * (gap + 2), 1), np.uint8)
    column[(gap + 1) * n_pes if not leading else gap * n_pes] = 5
    if not leading:
        column[0] = 3
    packed = check(column, n_pes)
    assert int(packed.fillers[0, 0]) == fillers
    assert int(packed.fillers[1:].sum()) == int(packed.lengths[1:].sum()) == 0
    assert int(packed.entries[0][-1]) & 0xFF == (gap % 16) << 4 | 5


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_one_flag_two_places_before_the_last(length):
    packed = check(np.ones((length, 2), np.uint8), 1)
    flags = [int(word) >> 8 for word in packed.entries[0]]
    column = [int(length - 3 == place) for place in range(length)]
    assert flags == column * 2


def test_fillers_count_towards_the_flag():
    column = np.zeros((40, 1), np.uint8)
    column[36] = 1
    # Two fillers and the weight: the flag is on the first filler.
    assert check(column, 1).entries[0].tolist() == [0x1F0, 0x0F0, 0x041]


def test_trailing_zeros_cost_nothing():
    column = np.zeros((1000, 1), np.uint8)
    column[0] = 1
    assert check(column, 1).entries[0].tolist() == [1]


@pytest.mark.parametrize("n_pes", [1, 2, 3, 5, 16, 64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 4), (16, 16), (17, 5), (63, 2),
                                   (64, 2), (65, 2)])
def test_shapes(shape, n_pes):
    rng = np.random.default_rng(0)
    check(rng.integers(0, 16, shape), n_pes)
    check(np.full(shape, 15), n_pes)
    check(np.zeros(shape, np.uint8), n_pes)


def test_empty_column_row_and_pe():
    codes = np.random.default_rng(1).integers(1, 16, (20, 6))
    codes[:, [0, 3, 5]] = 0
    codes[[7, 8]] = 0
    codes[2::4] = 0
    packed = check(codes, 4)
    assert len(packed.entries[2]) == 0
    assert packed.lengths[:, [0, 3, 5]].sum() == 0


def test_sequential_entries_go_on_in_the_next_column():
    codes = np.array([[1, 0, 2], [3, 0, 0], [0, 0, 4]])
    packed = check(codes, 2, sequential=True)
    assert packed.height == 2
    # PE 0 has rows 0 and 2 of every column, PE 1 row 1 and one that is not there. The last entry is
    # the first row behind the matrix.
    assert [words.tolist() for words in packed.entries] == [[1, 0x32, 4, 0], [3, 0x50]]
    assert packed.lengths.tolist() == [[1, 0, 2], [1, 0, 0]]
    assert packed.fillers.sum() == 0
    # Fillers lie in the columns that they reach.
    codes = np.zeros((20, 3), np.uint8)
    codes[17, 1] = 5
    packed = check(codes, 1, sequential=True)
    assert packed.entries[0].tolist() == [0xF0, 0xF0, 0x55, 0xF0, 0x60]
    assert packed.lengths.tolist() == [[1, 2, 1]]
    assert packed.fillers.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(("positions", "fillers"), [(15, 0), (16, 1), (31, 1), (32, 2)])
def test_what_ends_a_sequential_matrix_may_take_fillers(positions, fillers):
    packed = check(np.zeros((1, positions), np.uint8), 1, sequential=True)
    assert packed.entries[0].tolist() == [0xF0] * fillers + [positions % 16 << 4]
    assert packed.lengths.sum() == packed.fillers.sum() == fillers


@pytest.mark.parametrize("sequential", [False, True])
def test_wide_codes(sequential):
    """Weights stored directly are codes of up to 16 bits."""
    codes = np.random.default_rng(2).integers(0, 1 << 16, (9, 7)) * (np.arange(7) != 3)
    col_ptr = np.concatenate([[0], np.cumsum((codes != 0).sum(axis=0))])
    column, row = np.nonzero(codes.T)
    code = codes[row, column].astype(np.uint16)
    packed = pack_layer(col_ptr, row.astype(np.int32), code, 9, 2, 5, 16, sequential=sequential)
    for back, original in zip(unpack_layer(packed), (col_ptr, row, code), strict=True):
        assert back.tolist() == original.tolist()
    assert unpack_layer(packed)[2].dtype == np.uint16


@pytest.mark.parametrize(("arguments", "text"), [
    ((0, 4, 4), "n_pes must be 1 to 256, not 0"),
    ((257, 4, 4), "n_pes must be 1 to 256, not 257"),
    ((1, 0, 4), "index_bits must be 1 to 23, not 0"),
    ((1, 4, 17), "code_bits must be 1 to 16, not 17"),
    ((1, 4, 2), r"code 7 does not fit code_bits \(2\)"),
])
def test_wrong_arguments_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        pack([[7]], *arguments)
