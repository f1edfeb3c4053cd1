"""The `.ese` file: every array comes back bit for bit, every damage is noticed, nothing is executed
and no half-written file is left. A second reader, written from `docs/ese-format.md` alone, agrees.
"""

import dataclasses
import functools
import json
import math
import re
import struct
import time
import tracemalloc
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.model import ese_file, gaps, huffman
from openese.model.ese_file import EseFileError, from_bytes, load, save, tensor_bytes, to_bytes
from openese.model.matrix import CompressedMatrix, FixedMatrix
from openese.model.network import (
    CELL_GATES,
    CompressedBidirectional,
    CompressedLinear,
    CompressedNetwork,
    CompressedRecurrent,
)
from openese.model.state import DTYPES, CompressedModel, CompressedTensor, DenseTensor

DOCS = Path(__file__).parents[2] / "docs" / "ese-format.md"


def layer(codes, codebook=None, bias=None, name="fc", relu=False, out_frac=8):
    codes = np.asarray(codes)
    if codebook is None:
        codebook = [0.0, *np.linspace(-1, 1, 15)]
    return CompressedLinear.from_codes(name, codes, codebook, bias, relu=relu, out_frac=out_frac)


def network(*layers, in_frac=12, **rest):
    return CompressedNetwork(list(layers), in_frac, **rest)


def example():
    """The network of the worked example in `docs/ese-format.md`."""
    fc = layer([[1, 0, 0, 0], [0, 0, 2, 2], [1, 0, 0, 1]], [0, 0.5, -0.25, 1], [1, -1, 0.5],
               relu=True, out_frac=10)
    return network(fc, in_frac=12, meta={"error_percent": 1.5})


def assert_same(a, b):
    """Equal types, and fields equal bit for bit, however deep."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()
        assert b.flags.writeable
    elif dataclasses.is_dataclass(a):
        assert_same(vars(a), vars(b))
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key, value in a.items():
            assert_same(value, b[key])
    else:
        assert a == b


def reseal(data):
    """Put the right length and checksum on altered contents."""
    data = data[:5] + struct.pack("<I", len(data)) + data[9:-4]
    return data + struct.pack("<I", zlib.crc32(data))


# -- equality -------------------------------------------------------------------------------------

float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def networks(draw):
    sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    layers = []
    for columns, rows in pairwise(sizes):
        code_bits = draw(st.integers(1, 8))
        code = st.just(0) | st.integers(0, (1 << code_bits) - 1)
        codes = draw(st.lists(code, min_size=rows * columns, max_size=rows * columns))
        size = (1 << code_bits) - 1
        values = draw(st.lists(float32, min_size=min(size, 3), max_size=min(size, 15)))
        codebook = [draw(st.sampled_from([0.0, -0.0])), *np.resize(values, size)]
        bias = draw(st.none() | st.lists(float32, min_size=rows, max_size=rows))
        layers.append(layer(np.reshape(codes, (rows, columns)), codebook, bias,
                            name=draw(st.text(st.characters(exclude_categories=["Cs"]))),
                            relu=draw(st.booleans()), out_frac=draw(st.integers(-128, 127))))
    meta = draw(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])),
                                st.text(max_size=3) | st.integers() | float32, max_size=2))
    return network(*layers, in_frac=draw(st.integers(-128, 127)),
                   act_bits=draw(st.integers(0, 255)), meta=meta)


@settings(deadline=None, max_examples=200)
@given(networks())
def test_any_network_comes_back_bit_for_bit(net):
    data = to_bytes(net)
    assert_same(net, from_bytes(data))
    assert_same(net, stranger_read(data))
    assert to_bytes(from_bytes(data)) == data


names = st.text(st.characters(exclude_categories=["Cs"]))


@st.composite
def matrices(draw, rows, columns):
    size = rows * columns
    if draw(st.booleans()):
        bits = draw(st.integers(2, 16))
        raw = st.just(0) | st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
        values = draw(st.lists(raw, min_size=size, max_size=size))
        return FixedMatrix.from_raw(np.reshape(values, (rows, columns)), bits,
                                    draw(st.integers(-100, 127)))
    bits = draw(st.integers(1, 8))
    code = st.just(0) | st.integers(0, (1 << bits) - 1)
    codes = draw(st.lists(code, min_size=size, max_size=size))
    values = draw(st.lists(float32, min_size=1, max_size=15))
    codebook = [draw(st.sampled_from([0.0, -0.0])), *np.resize(values, (1 << bits) - 1)]
    return CompressedMatrix.from_codes(np.reshape(codes, (rows, columns)), codebook)


def floats(shape):
    size = math.prod(shape)
    return st.none() | st.lists(float32, min_size=size, max_size=size).map(
        lambda values: np.array(values, dtype=np.float32).reshape(shape))


@st.composite
def recurrent_layers(draw, columns, out_frac):
    cell = draw(st.sampled_from(list(CELL_GATES)))
    units = draw(st.integers(1, 3))
    outputs = draw(st.integers(1, units)) if cell == "lstm" else units
    rows, slots = CELL_GATES[cell] * units, 4 if cell == "gru" else CELL_GATES[cell]
    return CompressedRecurrent(
        draw(names), cell, columns, units, draw(matrices(rows, columns)),
        draw(matrices(rows, outputs)), draw(matrices(outputs, units)) if outputs < units else None,
        draw(floats((slots * units,))), draw(floats((3, units))) if cell == "lstm" else None,
        out_frac, draw(st.integers(-128, 127)))


@st.composite
def recurrent_networks(draw):
    layers, columns = [], draw(st.integers(1, 4))
    for _ in range(draw(st.integers(1, 3))):
        out_frac = draw(st.integers(-128, 127))
        made = draw(recurrent_layers(columns, out_frac))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            codes = draw(st.lists(st.integers(0, 15), min_size=2 * columns, max_size=2 * columns))
            made = layer(np.reshape(codes, (2, columns)), bias=draw(st.none() | st.just([1.0, 2])))
        elif kind == 1:
            made = CompressedBidirectional(made, draw(recurrent_layers(columns, out_frac)))
        layers.append(made)
        columns = made.out_features
    return network(*layers, act_bits=draw(st.integers(0, 255)), meta={"note": draw(names)})


@settings(deadline=None, max_examples=100)
@given(recurrent_networks())
def test_any_recurrent_network_comes_back_bit_for_bit(net):
    data = to_bytes(net)
    assert_same(net, from_bytes(data))
    assert_same(net, stranger_read(data))
    assert to_bytes(from_bytes(data)) == data
    rows = tensor_bytes(net)
    assert sum(row["bytes"] for row in rows) == len(data)
    assert min(row["bytes"] for row in rows) >= 0


@st.composite
def dense_tensors(draw, name):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    # Any bits: NaN with payload, infinities, both zeros; often few distinct ones.
    one = st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize)
    pool = draw(st.lists(one, min_size=1, max_size=5))
    element = draw(st.sampled_from([one, st.sampled_from(pool)]))
    size = math.prod(shape)
    data = b"".join(draw(st.lists(element, min_size=size, max_size=size)))
    if dtype == np.bool_:
        data = bytes(byte & 1 for byte in data)
    return DenseTensor(name, np.frombuffer(data, dtype=dtype).reshape(shape))


@st.composite
def compressed_tensors(draw, name):
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rows, columns = shape[0], math.prod(shape[1:])
    return CompressedTensor(name, shape, draw(matrices(rows, columns)))


@st.composite
def models(draw):
    tensors = [draw(st.one_of(dense_tensors(name), compressed_tensors(name)))
               for name in draw(st.lists(names, min_size=1, max_size=4, unique=True))]
    if draw(st.booleans()):
        tensors.append(dataclasses.replace(draw(st.sampled_from(tensors)), name="again" * 20))
    return CompressedModel(tensors, draw(st.dictionaries(names, st.integers(), max_size=2)))


@settings(deadline=None, max_examples=200)
@given(models())
def test_any_model_comes_back_bit_for_bit(model):
    data = to_bytes(model)
    assert_same(model, from_bytes(data))
    assert_same(model, stranger_read(data))
    assert to_bytes(from_bytes(data)) == data
    for name, array in model.state_dict().items():
        assert_same(array, from_bytes(data)[name].array())
    rows = tensor_bytes(model)
    assert sum(row["bytes"] for row in rows) == len(data)
    assert [row["name"] for row in rows[:-1]] == [tensor.name for tensor in model.tensors]


def codes_with(gap, rows, columns, by_column):
    """A matrix whose walk has an entry, ``gap`` zeros, an entry."""
    walk = np.zeros(rows * columns, dtype=int)
    walk[[0, gap + 1]] = 1, 2
    return walk.reshape(columns, rows).T if by_column else walk.reshape(rows, columns)


rng = np.random.default_rng(3)
EDGE_CASES = {
    "all zero": np.zeros((5, 7)),
    "all equal": np.full((6, 5), 3),
    "all equal and sparse": np.where(rng.random((20, 20)) < 0.2, 9, 0),
    "one weight": [[0, 0], [0, 4]],
    "two symbols": [[1, 0, 2], [0, 1, 2]],
    "fewer values than codes": np.where(rng.random((9, 9)) < 0.5, rng.integers(1, 4, (9, 9)), 0),
    "constant gaps": np.tile([1, 0, 0, 0], (8, 5)),
    "balanced columns": np.eye(12, dtype=int) * 7,
    "empty columns and rows": np.pad(rng.integers(1, 16, (3, 3)), 4),
    "trailing zeros": np.pad(rng.integers(1, 16, (3, 3)), ((0, 40), (0, 40))),
    "1 x 1 zero": [[0]],
    "1 x 1": [[15]],
    "1 x N": rng.integers(0, 16, (1, 77)),
    "N x 1": rng.integers(0, 16, (77, 1)),
    "dense": rng.integers(1, 16, (13, 17)),
    "linked runs": np.repeat(rng.integers(0, 16, (8, 16)), 20, axis=1),
    **{f"gap of {gap} by {'column' if by_column else 'row'}":
       codes_with(gap, 100, 101, by_column)
       for gap in (0, 1, 14, 15, 16, 30, 31, 32, 63, 64, 65, 1000, 4095, 4096, 9000)
       for by_column in (False, True)},
}


@pytest.mark.parametrize("name", EDGE_CASES)
def test_edge_cases_come_back(name):
    codes = np.asarray(EDGE_CASES[name])
    for bias in (None, np.zeros(len(codes)), rng.normal(size=len(codes))):
        net = network(layer(codes, bias=bias))
        data = to_bytes(net)
        assert_same(net, from_bytes(data))
        assert_same(net, stranger_read(data))
        assert (from_bytes(data).layers[0].dense() == net.layers[0].dense()).all()
    # The same as a kernel of three dimensions, and with the codes as fixed-point weights.
    shape = (len(codes), 1, codes.shape[1])
    codebook = np.linspace(0, 1, 16)
    model = CompressedModel([
        CompressedTensor("shared", shape, CompressedMatrix.from_codes(codes, codebook)),
        CompressedTensor("fixed", shape, FixedMatrix.from_raw(codes.astype(int) * -3, 12, 9)),
        DenseTensor("dense", codes)])
    data = to_bytes(model)
    assert_same(model, from_bytes(data))
    assert_same(model, stranger_read(data))
    assert (model["fixed"].array() == np.reshape(codes, shape) * -3 / 512).all()


@pytest.mark.parametrize("code_bits", range(1, 9))
def test_every_code_width_comes_back(code_bits):
    size = 1 << code_bits
    codes = np.where(rng.random((40, 50)) < 0.3, rng.integers(1, size, (40, 50)), 0)
    net = network(layer(codes, [0, *rng.normal(size=size - 1)]))
    assert from_bytes(to_bytes(net)).layers[0].code_bits == code_bits
    assert_same(net, from_bytes(to_bytes(net)))


def test_special_floats_keep_every_bit():
    values = np.array([0x80000000, 0x00000001, 0x807FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x00800000,
                       0x3F800001], dtype=np.uint32).view(np.float32)
    net = network(layer(np.arange(7)[:, None], [-0.0, *values], values))
    assert_same(net, from_bytes(to_bytes(net)))


@pytest.mark.parametrize("name", ["", "encoder.layers.0", "schöne Größe", "層 1", "a/b\\c\n\x00",
                                  "🙂" * 40])
def test_odd_layer_names_and_meta_come_back(name):
    net = network(layer([[1]], name=name), meta={name: name, "n": 3, "x": 1e-300, "": -0.5})
    assert_same(net, from_bytes(to_bytes(net)))


def test_the_order_of_meta_is_kept():
    meta = {"z": 1, "a": 2, "m": 3}
    assert list(from_bytes(to_bytes(network(layer([[1]]), meta=meta))).meta) == ["z", "a", "m"]


def test_filler_streams_of_every_width():
    gap = np.array([0, 1, 5, 4095, 4096, 8191, 8192, 100_000, 3])
    for width in range(gaps.MAX_WIDTH + 1):
        bits = gaps.encode_gaps(gap, width)
        decoded, end = gaps.decode_gaps(bits, 0, width, len(gap))
        assert decoded.tolist() == gap.tolist()
        assert end == len(bits)


def test_the_chosen_width_is_the_smallest():
    for p in (0.01, 0.1, 0.5):
        gap = np.random.default_rng(4).geometric(p, 3000) - 1
        sizes = [len(gaps.encode_gaps(gap, width)) for width in range(gaps.MAX_WIDTH + 1)]
        assert sizes[gaps.best_width(gap)] == min(sizes)


# -- size -----------------------------------------------------------------------------------------


def test_size_of_a_random_matrix_is_within_two_per_cent_of_its_entropy():
    draw = np.random.default_rng(5)
    codes = np.where(draw.random((300, 784)) < 0.08, draw.integers(1, 16, (300, 784)), 0)
    net = network(layer(codes))
    p = net.layers[0].density
    entropy = codes.size * -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    entropy += net.layers[0].nnz * np.log2(15)
    assert entropy / 8 < len(to_bytes(net)) < 1.02 * entropy / 8 + 300


def test_walk_and_links_are_chosen_by_size():
    runs = np.repeat(rng.integers(1, 16, (64, 4)), 16, axis=1)
    runs[:, rng.random(64) < 0.3] = 0
    by_row, by_column = (ese_file.code_matrix(layer(codes)) for codes in (runs, runs.T))
    assert (by_row.by_column, by_column.by_column) == (False, True)
    assert by_row.linked
    assert by_column.linked
    random = ese_file.code_matrix(layer(rng.integers(0, 16, (64, 64))))
    assert not random.linked


def test_shared_biases_take_a_few_bits_and_others_what_they_took():
    bias = rng.normal(size=300).astype(np.float32)
    few = np.sort(bias[:15])[rng.integers(0, 15, 300)]
    codes = np.eye(300, 20, dtype=int)
    plain, different, same = (len(to_bytes(network(layer(codes, bias=b))))
                              for b in (None, bias, few))
    assert 3 * 300 < different - plain < 4 * 300
    assert same - plain < 4 * 15 + 300 / 2 + 20


def test_a_repeated_tensor_is_stored_once():
    values = rng.normal(size=(100, 20)).astype(np.float32)
    once = CompressedModel([DenseTensor("a", values)])
    twice = CompressedModel([DenseTensor("a", values), DenseTensor("b", values)])
    assert len(to_bytes(twice)) - len(to_bytes(once)) == 5
    assert [row["bytes"] for row in tensor_bytes(twice)][1] == 0
    again = from_bytes(to_bytes(twice))
    again["a"].values[0, 0] = 7
    assert again["b"].values[0, 0] == values[0, 0]


def test_a_recurrent_layer_costs_little_more_than_its_tensors():
    """Each matrix with choices of its own, and no alignment between their streams."""
    lstm = recurrent_example().layers[1]
    parts = [ese_file.code_matrix(m) for m in lstm.matrices.values()]
    parts += [ese_file.code_array(lstm.bias), ese_file.code_array(lstm.peephole)]
    alone = sum(part.bytes for part in parts)
    total = sum(ese_file.layer_bytes(lstm).values())
    assert len(parts) - 1 <= len(to_bytes(network(lstm))) - total < 60
    assert alone - len(parts) < total <= alone + 6


def test_planes_of_bytes_that_say_nothing_take_nothing():
    half = rng.normal(size=5000).astype(np.float16).astype(np.float32)
    whole = rng.normal(size=5000).astype(np.float32)
    sizes = [ese_file.code_array(array).bytes for array in (half, whole)]
    assert sizes[0] < 2.2 * 5000
    assert 3 * 5000 < sizes[1] < 4 * 5000


def test_fixed_point_weights_are_within_three_per_cent_of_their_entropy():
    draw = np.random.default_rng(5)
    raw = np.rint(draw.normal(scale=200, size=(300, 300))).astype(int)
    raw *= draw.random((300, 300)) < 0.2
    matrix = FixedMatrix.from_raw(raw, 12, 10)
    p = matrix.density
    entropy = raw.size * -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    entropy += matrix.nnz * np.log2(200 * np.sqrt(2 * np.pi * np.e))
    assert entropy < ese_file.code_matrix(matrix).bits * 1.005 < 1.03 * entropy


def test_empty_rows_and_columns_are_left_out_where_that_pays():
    draw = np.random.default_rng(9)
    codes = np.where(draw.random((200, 300)) < 0.1, draw.integers(1, 16, (200, 300)), 0)
    full = ese_file.code_matrix(layer(codes))
    assert not full.squeezed
    codes[draw.random(200) < 0.3] = 0
    codes[:, draw.random(300) < 0.5] = 0
    for matrix in (codes, codes.T):
        net = network(layer(matrix))
        coding = ese_file.code_matrix(net.layers[0])
        assert coding.squeezed
        live = matrix[matrix.any(axis=1)][:, matrix.any(axis=0)]
        alone = ese_file.code_matrix(layer(live))
        # A bit or so for each row and column says which those are.
        assert coding.bits - alone.bits < 600
        data = to_bytes(net)
        assert_same(net, from_bytes(data))
        assert_same(net, stranger_read(data))


def test_rows_of_tensor_bytes_add_up_to_the_file():
    net = network(layer(rng.integers(0, 9, (30, 20)), bias=rng.normal(size=30), name="a"),
                  layer(np.zeros((5, 30)), name="b"), meta={"note": "x" * 100})
    rows = tensor_bytes(net)
    assert [row["name"] for row in rows] == ["a.weight", "a.bias", "b.weight", "(header)"]
    assert [row["original_bytes"] for row in rows] == [2400, 120, 600, 0]
    assert sum(row["bytes"] for row in rows) == len(to_bytes(net))
    assert min(row["bytes"] for row in rows) > 0


def test_three_million_weights_take_seconds():
    draw = np.random.default_rng(6)
    codes = np.where(draw.random((2048, 1587)) < 0.1, draw.integers(1, 16, (2048, 1587)), 0)
    net = network(layer(codes))
    start = time.perf_counter()
    data = to_bytes(net)
    middle = time.perf_counter()
    again = from_bytes(data)
    end = time.perf_counter()
    assert_same(net, again)
    # About 0.1 s and 0.02 s on one slow core.
    assert middle - start < 5
    assert end - middle < 2


# -- damage ---------------------------------------------------------------------------------------


def model_example():
    """A model with a record of every kind."""
    rng = np.random.default_rng(8)
    kernel = np.where(rng.random((3, 8)) < 0.4, rng.integers(1, 4, (3, 8)), 0)
    return CompressedModel([
        CompressedTensor("k", (3, 2, 2, 2), CompressedMatrix.from_codes(kernel, [0, 1, -2, 3])),
        CompressedTensor("f", (3, 8), FixedMatrix.from_raw(kernel * 5 - 5, 6, 3)),
        DenseTensor("running_mean", rng.normal(size=4).astype(np.float32)),
        DenseTensor("batches", np.int64(70_000)),
        DenseTensor("mask", rng.random(9) < 0.5),
        DenseTensor("tied", np.int64(70_000))])


def recurrent_example():
    """A network with a layer of every kind, and a matrix of both."""
    rng = np.random.default_rng(9)

    def shared(rows, columns):
        codes = np.where(rng.random((rows, columns)) < 0.5, rng.integers(1, 4, (rows, columns)), 0)
        return CompressedMatrix.from_codes(codes, [0, 0.5, -0.25, 1])

    def fixed(rows, columns):
        return FixedMatrix.from_raw(rng.integers(-7, 8, (rows, columns)), 4, 2)

    gru = CompressedRecurrent("a.l0", "gru", 2, 2, shared(6, 2), fixed(6, 2), None,
                              rng.normal(size=8))
    back = dataclasses.replace(gru, name="a.l0_reverse", w_ih=fixed(6, 2))
    lstm = CompressedRecurrent("b", "lstm", 4, 3, fixed(12, 4), fixed(12, 1), shared(1, 3),
                               rng.normal(size=12), np.ones((3, 3)), 13, 11)
    return network(CompressedBidirectional(gru, back), lstm, layer([[1], [2]]))


@pytest.mark.parametrize("make", [example, model_example, recurrent_example])
def test_every_truncation_is_noticed(make):
    data = to_bytes(make())
    for length in range(len(data)):
        with pytest.raises(EseFileError, match=r"^net\.ese: is (truncated|not an \.ese file)"):
            from_bytes(data[:length], "net.ese")


@pytest.mark.parametrize("make", [example, model_example, recurrent_example])
def test_every_flipped_bit_is_noticed(make):
    data = to_bytes(make())
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(EseFileError, match=r"^net.ese: [^\n]+; .+$"):
            from_bytes(bytes(damaged), "net.ese")


AGAIN = "; get the file again or make it anew with `openese compress`$"


@pytest.mark.parametrize(("alter", "text"), [
    (lambda d: b"", r"^n\.ese: is not an \.ese file; make one with `openese compress`$"),
    (lambda d: b"PK\3\4" + d, r"^n\.ese: is not an \.ese file; make one with `openese compress`$"),
    (lambda d: d[:6], r"^n\.ese: is truncated after 6 bytes" + AGAIN),
    (lambda d: d[:-1],
     r"^n\.ese: is truncated \(\d+ bytes where its header says \d+\)" + AGAIN),
    (lambda d: d + b"\n",
     r"^n\.ese: has bytes after its end \(\d+ bytes where its header says \d+\)" + AGAIN),
    (lambda d: d[:4] + b"\2" + d[5:],
     r"^n\.ese: has format version 2, newer than version 1 of this openese; update openese$"),
    (lambda d: d[:4] + b"\0" + d[5:], r"^n\.ese: has the unknown format version 0" + AGAIN),
    (lambda d: d[:20] + bytes([d[20] ^ 8]) + d[21:],
     r"^n\.ese: is damaged \(its checksum is wrong\)" + AGAIN),
])
def test_errors_name_the_file_the_fault_and_the_remedy(tmp_path, monkeypatch, alter, text):
    monkeypatch.chdir(tmp_path)
    Path("n.ese").write_bytes(alter(to_bytes(example())))
    with pytest.raises(EseFileError, match=text):
        load("n.ese")


def test_an_unknown_kind_of_layer_is_named():
    data = bytearray(to_bytes(network(layer([[1]], name="encoder.rnn"))))
    kind = data.index(b"\x0bencoder.rnn") - 1
    assert data[kind] == ese_file.LINEAR
    data[kind] = 7
    with pytest.raises(EseFileError, match=r"^n.ese: layer 1 \('encoder.rnn'\) is of kind 7, which "
                                           "this openese does not know; update openese$"):
        from_bytes(reseal(bytes(data)), "n.ese")


@functools.cache
def file_of(make):
    return to_bytes(make())


@settings(deadline=None, max_examples=600)
@given(st.data())
def test_malformed_contents_with_a_right_checksum_are_refused_or_read(data):
    make = data.draw(st.sampled_from([example, model_example, recurrent_example]))
    good = bytearray(file_of(make))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(9, len(good) - 5))
        if data.draw(st.booleans()):
            good[position] = data.draw(st.integers(0, 255))
        else:
            good[position:position + data.draw(st.integers(0, 3))] = data.draw(
                st.binary(max_size=3))
            good += bytes(max(0, 13 - len(good)))
    error = ""
    try:
        net = from_bytes(reseal(bytes(good)), "n.ese")
    except EseFileError as caught:
        error = str(caught)
    if error:
        assert re.match(r"^n\.ese: [^\n]+; [^\n]+$", error)
    else:
        assert_same(net, from_bytes(to_bytes(net)))


def body_of(columns, rows, nnz, streams=b"\xff" * 8, flags=0x60, width=0, values=15):
    numbers = b"".join(map(ese_file._varint, (columns, rows, nnz)))
    return bytes((flags, width)) + numbers + b"\0" + bytes(4 * values) + streams


def recurrent_body(cell, sizes, *heads, streams=b""):
    """A recurrent layer without projection; heads are kind, flags, width, entries and numbers."""
    numbers = b"".join(map(ese_file._varint, sizes)) + b"\0\0"
    head = b"".join(bytes(h[:3]) + ese_file._varint(h[3]) + h[4] for h in heads)
    return bytes((cell,)) + numbers + head + streams


def shared_head(entries, kind=1, flags=0):
    return kind, flags, 0, entries, bytes(4)


def bidirectional_body(first, second):
    return b"\1b" + ese_file._varint(len(first)) + first + second


def crafted(*bodies, layers=None, meta=b"", kind=0):
    head = b"\x10\x18" + ese_file._varint(len(meta)) + meta
    head += ese_file._varint(len(bodies) if layers is None else layers)
    for body in bodies:
        head += bytes((kind,)) + b"\1a" + ese_file._varint(len(body)) + body
    return reseal(b"OESE\1" + bytes(4) + head + bytes(4))


EMPTY = recurrent_body(0, (1, 1), shared_head(0), shared_head(0), streams=b"\xf0")
WIDE = recurrent_body(0, (2, 1), shared_head(0), shared_head(0), streams=b"\xf0")


@pytest.mark.parametrize(("data", "text"), [
    (crafted(recurrent_body(32, (1, 1)), kind=5), "layer 'a': has the unknown flags 32"),
    (crafted(recurrent_body(0, (1, 1), shared_head(0, 3)), kind=5),
     "layer 'a': has a matrix of the unknown kind 3"),
    (crafted(recurrent_body(0, (1, 1), shared_head(0, flags=1)), kind=5),
     "layer 'a': has the unknown flags 1"),
    (crafted(recurrent_body(0, (1, 1), (2, 0, 0, 0, b"\4\4\0")), kind=5),
     "layer 'a': weights of 4 bits cannot have 4 low ones"),
    (crafted(recurrent_body(0, (1, 1), shared_head(2)), kind=5), "the number 2 is above its limit"),
    (crafted(recurrent_body(0, (1, 0), shared_head(0), shared_head(0), streams=b"\xf0"), kind=5),
     "sizes must be 1 or more"),
    (crafted(recurrent_body(3, (1 << 22, 1), shared_head(0)), kind=5),
     "more than 4194304 inputs and outputs"),
    (crafted(recurrent_body(7, (1, 1 << 20), shared_head(0)), kind=5),
     "more than 4194304 inputs and outputs"),
    (crafted(recurrent_body(3, (1 << 16, 1 << 18), shared_head(0)), kind=5), "is too large"),
    (crafted(recurrent_body(7, (1, 1000), shared_head(0), shared_head(0), streams=b"\1\xff"),
             kind=5), "a part is longer than what it lies in"),
    (crafted(recurrent_body(8, (1, 1), shared_head(0), shared_head(0), streams=b"\0\0"
                            + bytes(12) + b"\xf0"), kind=5), "layer 'a': peepholes need an LSTM"),
    (crafted(b"\x10" + EMPTY[1:3] + b"\1" + EMPTY[3:-1] + bytes((1, 0, 0, 0)) + bytes(4) + b"\xfc",
             kind=5), "layer 'a': a projection needs an LSTM"),
    (crafted(EMPTY + b"\0", kind=5), "layer 'a': something follows its last stream"),
    (crafted(EMPTY, WIDE, kind=5), "takes 2 inputs but layer 'a' gives 1"),
    (crafted(bidirectional_body(EMPTY, WIDE), kind=6),
     "layers 'a' and 'b': input_size must be equal in both directions"),
    (crafted(bidirectional_body(EMPTY, b""), kind=6), "a part is longer than what it lies in"),
    (crafted(bidirectional_body(EMPTY, EMPTY) + b"\0", kind=6), "'b': something follows its last"),
    (crafted(body_of(1 << 22, 1 << 22, 1)), "the number .* is above its limit|is too large"),
    (crafted(body_of(1 << 16, 1 << 15, 1 << 30)), "more than 16777216 stored weights"),
    (crafted(body_of(1 << 22, 1, 0)), "more than 4194304 inputs and outputs"),
    (crafted(*[body_of(1 << 20, 1, 0, b"\xc0"), body_of(1, 1 << 20, 0, b"\xc0")] * 5),
     "more than 4194304 inputs and outputs"),
    (crafted(body_of(1000, 1000, 900_000)), "the gaps are not those of 900000 entries"),
    (crafted(body_of(10, 10, 101)), "the number 101 is above its limit 100"),
    (crafted(body_of(10, 10, 0, width=13)), "the gap width 13 is above 12"),
    (crafted(body_of(0, 10, 0, b"\xc0")), "sizes must be 1 or more"),
    (crafted(layers=(1 << 32) - 1), "a part is longer than what it lies in"),
    (crafted(layers=0), "a network needs at least one layer"),
    (crafted(body_of(10, 10, 1, huffman.encode([5, 9]).tobytes(), width=32)),
     "a row or column lies outside the 10 there are"),
    (crafted(body_of(10, 10, 2, (huffman.encode([3]) + huffman.encode([4])
                                 + huffman.encode([0, 0])).tobytes(), width=32)),
     "an entry lies outside the 1 x 1 matrix|the codes are not those|Huffman"),
    (crafted(body_of(10, 10, 0, b"\xc0\0")), "something follows its last stream"),
    (crafted(body_of(10, 10, 0, b"\xc1")), "something follows its last stream"),
    (crafted(body_of(10, 10, 0, b"\xc0"), meta=b"[]"), "meta is not an object"),
    (crafted(body_of(10, 10, 0, b"\xc0"), meta=b'{"a":NaN}'), "meta is not JSON"),
    (crafted(body_of(10, 10, 0, b"\xc0"), meta=b'{"a":1e999}'), "meta is not JSON"),
    (crafted(body_of(10, 10, 0, b"\xc0"), meta=b'{"a":"\\ud800"}'), "has no UTF-8 form"),
    (crafted(body_of(10, 10, 0, b"\xc0"), meta=b'{"a":' + b"[" * 100_000), "nested too deeply"),
    (crafted(body_of(10, 10, 0, b"\xc0"), meta=b"\xff"), "can't decode byte 0xff"),
    (crafted(body_of(10, 10, 0, b"\xc0"), body_of(9, 9, 0, b"\xc0")), "takes 9 inputs but layer"),
    (reseal(b"OESE\1" + bytes(4) + b"\x80" * 6 + bytes(4)), "a number is too long"),
])
def test_crafted_files_are_refused_without_large_arrays(data, text):
    tracemalloc.start()
    try:
        with pytest.raises(EseFileError, match=f"^n.ese: is malformed .*{text}.*; make it anew"):
            from_bytes(data, "n.ese")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


# -- files ----------------------------------------------------------------------------------------


def test_save_returns_the_size_and_leaves_one_file(tmp_path):
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    for path in (folder / "größe 1.ese", str(folder / "größe 1.ese")):
        assert save(path, example()) == (folder / "größe 1.ese").stat().st_size
        assert_same(example(), load(path))
        assert [p.name for p in folder.iterdir()] == ["größe 1.ese"]


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "link.ese").symlink_to(tmp_path / "real.ese")
    save(tmp_path / "link.ese", example())
    assert (tmp_path / "link.ese").is_symlink()
    assert_same(example(), load(tmp_path / "real.ese"))


@pytest.mark.parametrize(("change", "text"), [
    ({"meta": {"x": float("nan")}}, r"meta is not JSON \(.*\); use strings and finite numbers"),
    ({"meta": {"x": object()}}, r"meta is not JSON \(.*\); use strings and finite numbers"),
    ({"meta": {1: "x"}}, "meta does not survive JSON; use strings as keys"),
    ({"meta": {"x": (1, 2)}}, "meta does not survive JSON; use strings as keys"),
    ({"meta": {"x": "\ud800"}}, "has no UTF-8 form"),
    ({"in_frac": 128}, "in_frac must be an integer from -128 to 127, not 128"),
    ({"in_frac": 1.5}, "in_frac must be an integer from -128 to 127, not 1.5"),
    ({"act_bits": 256}, "act_bits must be an integer from 0 to 255, not 256"),
    ({"layers": [layer([[1]], out_frac=-129)]},
     "layer 'fc': out_frac must be an integer from -128 to 127, not -129"),
    ({"layers": [layer([[1]], name="\udc00")]}, "the layer name .* has no UTF-8 form"),
])
def test_what_the_format_cannot_hold_is_refused_and_nothing_written(tmp_path, change, text):
    path = tmp_path / "n.ese"
    save(path, example())
    before = path.read_bytes()
    net = example()
    for key, value in change.items():
        setattr(net, key, value)
    with pytest.raises(EseFileError, match=f"^{re.escape(str(path))}: not written: .*{text}"):
        save(path, net)
    assert [p.name for p in tmp_path.iterdir()] == ["n.ese"]
    assert path.read_bytes() == before


def test_too_large_a_network_is_refused():
    wide = CompressedLinear("wide", 1 << 22, 1, np.zeros((1 << 22) + 1), [], [], [0, 1], None,
                            relu=False, out_frac=0)
    with pytest.raises(EseFileError, match=r"^more than 4194304 inputs and outputs of all .+"):
        to_bytes(network(wide))


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "dir.ese").mkdir()
    for name in ("dir.ese", "none/n.ese", "n" * 300):
        with pytest.raises(EseFileError, match=r"cannot be written \(.+\); choose a file in a "
                                               "folder that exists"):
            save(tmp_path / name, example())
    assert [p.name for p in tmp_path.iterdir()] == ["dir.ese"]
    assert not any((tmp_path / "dir.ese").iterdir())


def test_a_file_that_cannot_be_read(tmp_path):
    for name in ("none.ese", "."):
        with pytest.raises(EseFileError, match=r"cannot be read \(.+\); check the path$"):
            load(tmp_path / name)


# -- the documentation ----------------------------------------------------------------------------


def documented_lstm():
    """The network of the second worked example."""
    lstm = CompressedRecurrent(
        "a", "lstm", 1, 2, FixedMatrix.from_raw([[3], [0], [-2], [0], [1], [0], [0], [2]], 4, 2),
        CompressedMatrix.from_codes([[0], [1], [0], [0], [1], [1], [0], [0]], [0, 0.5]),
        CompressedMatrix.from_codes([[1, 1]], [0, -1]), None, np.ones((3, 2)), 15, 13)
    return network(lstm)


@pytest.mark.parametrize(("number", "make"), [(0, example), (1, documented_lstm)])
def test_the_worked_examples_of_the_documentation_are_what_the_code_writes(number, make):
    start = "\n0000 "
    text = start + DOCS.read_text(encoding="utf-8").split(start)[1 + number]
    dump = re.findall(r"^([0-9a-f]{4}) ((?: [0-9a-f]{2})+)", text, re.MULTILINE)
    data = bytes.fromhex("".join(part for _, part in dump))
    assert data == to_bytes(make())
    assert [int(offset, 16) for offset, _ in dump] == list(np.cumsum(
        [0, *(len(bytes.fromhex(part)) for _, part in dump[:-1])]))


class Bits:
    """A bit reader with the codes of the documentation, one bit at a time."""

    def __init__(self, data):
        self.bits = [byte >> (7 - i) & 1 for byte in data for i in range(8)]

    def read(self, count):
        value = 0
        for _ in range(count):
            value = 2 * value + self.bits.pop(0)
        return value

    def zeros(self):
        count = 0
        while not self.bits.pop(0):
            count += 1
        return count

    def gamma(self):
        zeros = self.zeros()
        return (1 << zeros) + self.read(zeros)

    def stream(self):
        count = self.gamma() - 1
        if not count:
            return []
        size, symbol, length, lengths = self.gamma(), -1, 0, {}
        for i in range(size):
            symbol += self.gamma()
            if size > 1:
                if i == 0:
                    length = self.read(4)
                else:
                    zeros = self.zeros()
                    length += (zeros + 1) // 2 if zeros % 2 else -(zeros // 2)
            lengths[symbol] = length
        if size == 1:
            return [symbol] * count
        codes, code, before = {}, 0, 0
        for length, symbol in sorted((length, symbol) for symbol, length in lengths.items()):
            code <<= length - before
            codes[length, code] = symbol
            code, before = code + 1, length
        symbols = []
        while len(symbols) < count:
            length, code = 1, self.read(1)
            while (length, code) not in codes:
                length, code = length + 1, 2 * code + self.read(1)
            symbols.append(codes[length, code])
        return symbols


DOCUMENTED_TYPES = ["f4", "f8", "f2", "?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]


def stranger_read(data):
    """A reader that shares nothing with the package's but the documentation."""
    pos = 9

    def take(count):
        nonlocal pos
        pos += count
        return data[pos - count:pos]

    def varint():
        value = shift = 0
        while True:
            byte = take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def signed():
        value = varint()
        return -(value + 1) // 2 if value % 2 else value // 2

    def codebook(flags):
        size = 2**((flags >> 5) + 1) - 1
        return [-0.0 if flags & 4 else 0.0, *struct.unpack(f"<{size}f", take(4 * size))]

    def array_head(count, size, usual=None):
        form = 0 if usual is not None else take(1)[0]
        if form == 1:
            return None, [take(size) for _ in range(varint())]
        planes = take(1)[0] if usual is None else usual
        stored = [i for i in range(size) if not planes >> i & 1]
        return planes, [dict(zip(stored, take(len(stored)), strict=True)) for _ in range(count)]

    def array(bits, size, planes, parts):
        if planes is None:
            return b"".join(parts[number] for number in bits.stream())
        for plane in range(size):
            if planes >> plane & 1:
                for part, byte in zip(parts, bits.stream(), strict=True):
                    part[plane] = byte
        return bytes(part[i] for part in parts for i in range(size))

    def walked(bits, width):
        where, position = [], 0
        for symbol in bits.stream():
            if symbol == 2**width:
                position += symbol
            else:
                where.append(position + symbol)
                position = where[-1] + 1
        return where

    def linked_codes(bits, flags, where):
        k = (flags >> 5) + 1
        tables = [bits.stream() for _ in range(1 + 2**min(k, 4) if flags & 16 else 1)]
        codes = []
        for i, position in enumerate(where):
            linked = flags & 16 and i and position == where[i - 1] + 1
            codes.append(tables[1 + (codes[-1] >> max(0, k - 4)) if linked else 0].pop(0))
        return codes

    def used(bits, size, squeezed):
        return np.cumsum([gap + 1 for gap in bits.stream()], dtype=int) - 1 if squeezed else (
            np.arange(size))

    def matrix(rows, columns, flags, where, entries, live_rows, live_columns):
        walk = np.zeros(len(live_rows) * len(live_columns), dtype=int)
        walk[where] = entries
        shape = len(live_rows), len(live_columns)
        whole = np.zeros((rows, columns), dtype=int)
        whole[np.ix_(live_rows, live_columns)] = (walk.reshape(shape[::-1]).T if flags & 8
                                                  else walk.reshape(shape))
        return whole

    def fixed(bits, weight_bits, low_bits):
        high = bits.stream()
        return [(h << low_bits) + bits.read(low_bits) - 2**(weight_bits - 1) for h in high]

    def rest():
        return Bits(take(end - pos))

    assert data[:5] == b"OESE\1"
    assert struct.unpack("<I", data[5:9])[0] == len(data)
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])
    act_bits, in_frac = varint(), signed()
    meta = json.loads(take(varint()) or "{}")
    items, bits = [], None

    def recurrent(name):
        cell = take(1)[0]
        kind = ["rnn_tanh", "rnn_relu", "gru", "lstm"][cell & 3]
        columns, units = varint(), varint()
        outputs = varint() if cell & 16 else units
        out_frac, cell_frac = signed(), signed()
        rows = {"gru": 3, "lstm": 4}.get(kind, 1) * units
        heads = []
        for size in [(rows, columns), (rows, outputs), *([(outputs, units)] if cell & 16 else [])]:
            what, flags, width = take(3)
            count = varint()
            numbers = (*take(2), signed()) if what == 2 else codebook(flags)
            heads.append((what, flags, width, count, numbers, size))
        shapes = [((rows + units if kind == "gru" else rows,), cell & 4), ((3, units), cell & 8)]
        arrays = [(shape, array_head(math.prod(shape), 4)) for shape, there in shapes if there]
        bits = rest()
        found = []
        for what, flags, width, count, numbers, size in heads:
            live_columns = used(bits, size[1], width & 32)
            live_rows = used(bits, size[0], width & 32)
            where = walked(bits, width & 15)
            assert len(where) == count
            entries = (fixed(bits, *numbers[:2]) if what == 2
                       else linked_codes(bits, flags, where))
            whole = matrix(*size, flags, where, entries, live_rows, live_columns)
            found.append(FixedMatrix.from_raw(whole, numbers[0], numbers[2]) if what == 2
                         else CompressedMatrix.from_codes(whole, numbers))
        values = [np.frombuffer(array(bits, 4, *head), "<f4").reshape(shape).copy()
                  for shape, head in arrays]
        assert len(bits.bits) < 8
        assert not any(bits.bits)
        return CompressedRecurrent(
            name, kind, columns, units, found[0], found[1], found[2] if cell & 16 else None,
            values[0] if cell & 4 else None, values[-1] if cell & 8 else None, out_frac, cell_frac)

    for _ in range(varint()):
        kind, name = take(1)[0], take(varint()).decode()
        end = varint() + pos
        if kind == 5:
            items.append(recurrent(name))
            assert pos == end
            continue
        if kind == 6:
            last, second = end, take(varint()).decode()
            end = varint() + pos
            ahead = recurrent(name)
            assert pos == end
            end = last
            items.append(CompressedBidirectional(ahead, recurrent(second)))
            assert pos == end
            continue
        if kind == 4:
            items.append(dataclasses.replace(items[varint()], name=name))
            assert pos == end
            continue
        if kind == 3:
            dtype = np.dtype(DOCUMENTED_TYPES[take(1)[0]])
            shape = [varint() for _ in range(take(1)[0])]
            head = array_head(math.prod(shape), dtype.itemsize)
            bits = rest()
            values = np.frombuffer(array(bits, dtype.itemsize, *head), dtype=dtype)
            items.append(DenseTensor(name, values.reshape(shape)))
        else:
            flags, width = take(2)
            if kind == 0:
                columns, rows, nnz, out_frac = varint(), varint(), varint(), signed()
            else:
                shape = [varint() for _ in range(take(1)[0])]
                rows, columns, nnz = shape[0], math.prod(shape[1:]), varint()
            if kind == 2:
                weight_bits, low_bits = take(2)
                frac = signed()
            else:
                values = codebook(flags)
            if kind == 0 and flags & 2:
                head = array_head(rows, 4, None if width & 16 else 8)
            bits = rest()
            live_columns = used(bits, columns, width & 32)
            live_rows = used(bits, rows, width & 32)
            where = walked(bits, width & 15)
            assert len(where) == nnz
            if kind == 2:
                raw = fixed(bits, weight_bits, low_bits)
                whole = matrix(rows, columns, flags, where, raw, live_rows, live_columns)
                items.append(CompressedTensor(name, shape,
                                              FixedMatrix.from_raw(whole, weight_bits, frac)))
            else:
                codes = matrix(rows, columns, flags, where, linked_codes(bits, flags, where),
                               live_rows, live_columns)
                if kind == 1:
                    items.append(CompressedTensor(name, shape,
                                                  CompressedMatrix.from_codes(codes, values)))
                else:
                    bias = array(bits, 4, *head) if flags & 2 else None
                    if bias is not None:
                        bias = np.frombuffer(bias, "<f4").copy()
                    items.append(layer(codes, values, bias, name, bool(flags & 1), out_frac))
        assert pos == end
        assert len(bits.bits) < 8
        assert not any(bits.bits)
    assert pos == len(data) - 4
    if not isinstance(items[0], CompressedTensor | DenseTensor):
        return CompressedNetwork(items, in_frac, act_bits, meta)
    assert (act_bits, in_frac) == (0, 0)
    return CompressedModel(items, meta)
