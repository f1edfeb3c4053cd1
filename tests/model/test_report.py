"""The compression table: hand-counted sizes, totals that add up, and the file's true bytes."""

import json

import numpy as np
import pytest

from openese.model.ese_file import code_matrix, layer_bytes, save, to_bytes
from openese.model.matrix import CompressedMatrix, FixedMatrix
from openese.model.network import (
    CompressedBidirectional,
    CompressedLinear,
    CompressedNetwork,
    CompressedRecurrent,
)
from openese.model.report import format_report, network_report

rng = np.random.default_rng(7)


def layer(codes, bias=None, name="fc", code_bits=4):
    codebook = [0, *np.linspace(-1, 1, (1 << code_bits) - 1)]
    return CompressedLinear.from_codes(name, np.asarray(codes), codebook, bias, relu=False,
                                       out_frac=8)


def sparse(rows, columns, density):
    codes = rng.integers(1, 16, (rows, columns))
    return np.where(rng.random((rows, columns)) < density, codes, 0)


def test_fixed_widths_counted_by_hand():
    # Row by row the gaps are 0, 3 and 4: with 2 index bits the 4 takes one filler; with 3 bits
    # there is none, but 3 entries of 3 + 2 bits are fewer than 4 of 2 + 2.
    codes = np.zeros((2, 8), dtype=int)
    codes.flat[[0, 4, 9]] = 1, 2, 3
    report = network_report(CompressedNetwork([layer(codes, [0, 1], code_bits=2)], 8))
    (row,) = report["rows"]
    assert (row["name"], row["shape"]) == ("fc", [2, 8])
    assert (row["weights"], row["nnz"], row["density"]) == (16, 3, 3 / 16)
    assert (row["code_bits"], row["index_bits"], row["fillers"]) == (2, 3, 0)
    assert row["original_bytes"] == 4 * 18
    assert row["rate_pq"] == 8 * 72 / (3 * 5 + 4 * 32 + 2 * 32)
    assert row["sharing_ratio"] == 3 * 32 / (3 * 2 + 4 * 32)


def test_fillers_are_counted_where_they_pay():
    codes = np.zeros((1, 400), dtype=int)
    codes[0, :100] = 1
    codes[0, 399] = 1
    (row,) = network_report(CompressedNetwork([layer(codes)], 8))["rows"]
    # 299 zeros: 149 fillers of 5 bits at one index bit, 2 of 11 bits at seven. Best are 4 bits.
    sizes = {w: (101 + (299 >> w)) * (4 + w) for w in range(1, 13)}
    best = min(sizes, key=sizes.get)
    assert (row["index_bits"], row["fillers"]) == (best, 299 >> best)


def test_bits_with_huffman_are_those_of_the_file():
    net = CompressedNetwork([layer(sparse(60, 50, 0.2), rng.normal(size=60))], 8)
    (row,) = network_report(net)["rows"]
    coding = code_matrix(net.layers[0])
    assert row["huffman_code_bits"] == len(coding.code_stream) / row["nnz"]
    assert row["huffman_index_bits"] == len(coding.gap_stream) / row["nnz"]
    assert row["bytes"] == sum(layer_bytes(net.layers[0]).values())
    assert row["rate"] == row["original_bytes"] / row["bytes"]


def test_totals_add_up_and_the_rate_is_that_of_the_file(tmp_path):
    net = CompressedNetwork([layer(sparse(40, 90, 0.1), rng.normal(size=40), "a"),
                             layer(sparse(30, 40, 0.3), None, "b")], 8, meta={"x": "y" * 50})
    report = network_report(net)
    size = save(tmp_path / "n.ese", net)
    assert report["bytes"] == size == (tmp_path / "n.ese").stat().st_size
    assert report["original_bytes"] == 4 * (3600 + 40 + 1200)
    assert report["rate"] == report["original_bytes"] / size
    for key in ("weights", "nnz", "fillers", "original_bytes"):
        assert report[key] == sum(row[key] for row in report["rows"])
    for key in ("code_bits", "index_bits", "huffman_code_bits", "huffman_index_bits"):
        total = sum(row[key] * row["nnz"] for row in report["rows"])
        assert report[key] == pytest.approx(total / report["nnz"])
    # Names, sizes, metadata and checksum, and nothing else, are the network's alone.
    rest = size - sum(row["bytes"] for row in report["rows"])
    assert 50 < rest < 120


def test_papers_example_of_sharing():
    # Deep Compression, section 3: 16 weights, 4 clusters, 32 bits: 3.2.
    net = CompressedNetwork([layer(rng.integers(1, 4, (4, 4)), code_bits=2)], 8)
    assert network_report(net)["sharing_ratio"] == 3.2


def test_the_file_of_a_pruned_network_is_really_smaller():
    codes = sparse(100, 300, 0.09)
    dense = network_report(CompressedNetwork([layer(sparse(100, 300, 1.0))], 8))
    pruned = network_report(CompressedNetwork([layer(codes)], 8))
    assert dense["rate"] > 7
    assert pruned["bytes"] < dense["bytes"] / 4
    assert pruned["rate"] > pruned["rate_pq"] > 1


def test_an_empty_layer_divides_by_nothing():
    report = network_report(CompressedNetwork([layer(np.zeros((5, 6)))], 8))
    (row,) = report["rows"]
    for key in ("nnz", "density", "code_bits", "index_bits", "huffman_code_bits", "fillers",
                "sharing_ratio"):
        assert row[key] == 0
    assert report["rate"] > 0
    assert "0.0%" in format_report(report)


def test_the_report_is_json():
    report = network_report(CompressedNetwork([layer(sparse(9, 9, 0.5))], 8))
    assert json.loads(json.dumps(report)) == report


def test_the_text_has_a_line_per_layer_and_the_true_rate():
    net = CompressedNetwork([layer(sparse(40, 90, 0.1), name="features.0"),
                             layer(sparse(30, 40, 0.3), name="größe")], 8)
    report = network_report(net)
    lines = format_report(report).splitlines()
    assert lines[0].split()[:5] == ["layer", "shape", "weights", "kept", "density"]
    assert set(lines[1]) == set(lines[4]) == {"-"}
    assert lines[2].startswith("features.0  40 x 90    3,600")
    assert lines[3].startswith("größe       30 x 40    1,200")
    assert lines[5].startswith("total")
    assert f"file: {report['bytes']:,} bytes of 19,200, true rate {report['rate']:.1f}x" in lines[7]
    assert len({len(line) for line in lines[:4]}) == 1


def recurrent():
    def fixed(rows, columns):
        return FixedMatrix.from_raw(sparse(rows, columns, 0.2).astype(int), 12, 9)

    def shared(rows, columns):
        return CompressedMatrix.from_codes(sparse(rows, columns, 0.2), np.linspace(0, 1, 16))

    gru = CompressedRecurrent("rnn.l0", "gru", 9, 10, shared(30, 9), fixed(30, 10), None,
                              rng.normal(size=40))
    back = CompressedRecurrent("rnn.l0_reverse", "gru", 9, 10, shared(30, 9), fixed(30, 10))
    lstm = CompressedRecurrent("lstm", "lstm", 20, 8, fixed(32, 20), fixed(32, 6), shared(6, 8),
                               rng.normal(size=32), rng.normal(size=(3, 8)))
    return CompressedNetwork([CompressedBidirectional(gru, back), lstm,
                              layer(sparse(5, 6, 0.5), np.ones(5))], 8)


def test_recurrent_networks_have_a_row_for_every_tensor():
    net = recurrent()
    report = network_report(net)
    assert [(row["name"], row["stored"], row["shape"]) for row in report["rows"]] == [
        ("rnn.l0.weight_ih", "shared", [30, 9]), ("rnn.l0.weight_hh", "fixed", [30, 10]),
        ("rnn.l0.bias", "dense", [40]),
        ("rnn.l0_reverse.weight_ih", "shared", [30, 9]),
        ("rnn.l0_reverse.weight_hh", "fixed", [30, 10]),
        ("lstm.weight_ih", "fixed", [32, 20]), ("lstm.weight_hh", "fixed", [32, 6]),
        ("lstm.weight_hr", "shared", [6, 8]), ("lstm.bias", "dense", [32]),
        ("lstm.peephole", "dense", [3, 8]), ("fc", "shared", [5, 6])]
    rows = {row["name"]: row for row in report["rows"]}
    matrix = net.layers[1].w_ih
    assert rows["lstm.weight_ih"]["nnz"] == matrix.nnz
    assert rows["lstm.weight_ih"]["code_bits"] == 12
    assert rows["lstm.weight_ih"]["huffman_code_bits"] == pytest.approx(
        len(code_matrix(matrix).code_stream) / matrix.nnz)
    assert [row["bytes"] for row in report["rows"][5:10]] == list(
        layer_bytes(net.layers[1]).values())
    assert (rows["lstm.peephole"]["dense"], rows["lstm.peephole"]["original_bytes"]) == (24, 96)
    weights = 2 * (270 + 300) + 640 + 192 + 48 + 30
    assert (report["weights"], report["dense"]) == (weights, 40 + 32 + 24 + 5)
    assert report["original_bytes"] == 4 * (weights + report["dense"])
    assert report["bytes"] == len(to_bytes(net))
    assert 60 < report["bytes"] - sum(row["bytes"] for row in report["rows"]) < 200
    assert json.loads(json.dumps(report)) == report
    lines = format_report(report).splitlines()
    assert len(lines) == 11 + 7
    assert lines[4].split()[:4] == ["rnn.l0.bias", "40", "40", "dense"]
