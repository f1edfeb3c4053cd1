"""The compressed network: what is refused and how, and equality with dense arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.model.network import CompressedLinear, CompressedNetwork


def arguments(**changes):
    """A good layer of 3 inputs and 2 outputs, ``[[.5, 0, -1], [0, 0, .5]]``, with changes."""
    good = {"name": "net.fc", "in_features": 3, "out_features": 2, "col_ptr": [0, 1, 1, 3],
            "row_idx": [0, 0, 1], "code": [1, 2, 1], "codebook": [0, 0.5, -1, 2], "bias": [1, -1],
            "relu": False, "out_frac": 8}
    return good | changes


def test_a_good_layer():
    layer = CompressedLinear(**arguments())
    assert layer.dense().tolist() == [[0.5, 0, -1], [0, 0, 0.5]]
    assert (layer.nnz, layer.density, layer.code_bits) == (3, 0.5, 2)
    assert layer.columns.tolist() == [0, 2, 2]
    types = {key: getattr(layer, key).dtype for key in
             ("col_ptr", "row_idx", "code", "codebook", "bias")}
    assert types == {"col_ptr": np.int64, "row_idx": np.int32, "code": np.uint8,
                     "codebook": np.float32, "bias": np.float32}


@pytest.mark.parametrize(("changes", "text"), [
    ({"in_features": 0, "col_ptr": [0]}, "sizes must be 1 or more"),
    ({"out_features": 0}, "sizes must be 1 or more"),
    ({"col_ptr": [0, 1, 3]}, r"col_ptr must have 4 elements, not \(3,\)"),
    ({"col_ptr": []}, r"col_ptr must have 4 elements, not \(0,\)"),
    ({"col_ptr": [1, 1, 1, 3]}, "col_ptr must start at 0 and never decrease"),
    ({"col_ptr": [0, 2, 1, 3]}, "col_ptr must start at 0 and never decrease"),
    ({"row_idx": [0, 1]}, "row_idx and code must have 3 elements"),
    ({"code": [1, 2, 1, 1]}, "row_idx and code must have 3 elements"),
    ({"codebook": [0]}, r"codebook must have 2, 4, \.\.\. 256 entries, not \(1,\)"),
    ({"codebook": [0, 1, 2]}, r"codebook must have 2, 4, \.\.\. 256 entries, not \(3,\)"),
    ({"codebook": np.zeros(512)}, r"codebook must have 2, 4, \.\.\. 256 entries, not \(512,\)"),
    ({"codebook": [[0, 1], [2, 3]]}, r"codebook must have 2, 4, \.\.\. 256 entries, not \(2, 2\)"),
    ({"codebook": [0, 1, np.nan, 2]}, "codebook must be finite"),
    ({"codebook": [0, 1, np.inf, 2]}, "codebook must be finite"),
    ({"codebook": [1e-30, 1, 2, 3]}, "codebook entry 0 must be exactly 0"),
    ({"row_idx": [0, 0, 2]}, r"rows must lie in 0\.\.1"),
    ({"row_idx": [-1, 0, 1]}, r"rows must lie in 0\.\.1"),
    ({"code": [1, 0, 1]}, r"codes must lie in 1\.\.3"),
    ({"code": [1, 4, 1]}, r"codes must lie in 1\.\.3"),
    ({"row_idx": [0, 1, 0]}, "rows must rise strictly within each column"),
    ({"row_idx": [0, 1, 1]}, "rows must rise strictly within each column"),
    ({"bias": [1]}, r"bias must have 2 elements, not \(1,\)"),
    ({"bias": [1, np.nan]}, "bias must be finite"),
])
def test_arrays_that_form_no_layer_are_refused(changes, text):
    with pytest.raises(ValueError, match=rf"^layer 'net\.fc': {text}$"):
        CompressedLinear(**arguments(**changes))


def test_a_zero_code_may_be_minus_zero_and_a_layer_may_be_empty():
    assert CompressedLinear(**arguments(codebook=[-0.0, 1, 2, 3])).nnz == 3
    empty = CompressedLinear(**arguments(col_ptr=[0, 0, 0, 0], row_idx=[], code=[]))
    assert (empty.nnz, empty.density) == (0, 0.0)
    assert empty.dense().tolist() == [[0, 0, 0], [0, 0, 0]]


@settings(deadline=None)
@given(st.data())
def test_from_codes_keeps_every_weight(data):
    rows, columns = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    codes = np.reshape(data.draw(st.lists(st.integers(0, 7), min_size=rows * columns,
                                          max_size=rows * columns)), (rows, columns))
    codebook = np.array([0, *range(1, 8)], dtype=np.float32) / 3
    layer = CompressedLinear.from_codes("fc", codes, codebook, None, relu=True, out_frac=3)
    assert (layer.dense() == codebook[codes]).all()
    assert layer.nnz == np.count_nonzero(codes)
    assert (layer.in_features, layer.out_features) == (columns, rows)
    assert (layer.relu, layer.out_frac, layer.bias) == (True, 3, None)


def make(rows, columns, seed, name, relu=False, bias=True):
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random((rows, columns)) < 0.4, rng.integers(1, 16, (rows, columns)), 0)
    return CompressedLinear.from_codes(name, codes, [0, *rng.normal(size=15)],
                                       rng.normal(size=rows) if bias else None, relu=relu,
                                       out_frac=8)


def test_forward_is_dense_arithmetic():
    layers = [make(7, 5, 1, "a", relu=True), make(4, 7, 2, "b", bias=False), make(3, 4, 3, "c")]
    net = CompressedNetwork(layers, in_frac=8)
    assert (net.in_features, net.out_features, net.act_bits, net.meta) == (5, 3, 16, {})
    x = np.random.default_rng(4).normal(size=(6, 5))
    hidden = np.maximum(x @ layers[0].dense().T.astype(float) + layers[0].bias, 0)
    expected = hidden @ layers[1].dense().T.astype(float) @ layers[2].dense().T.astype(float)
    np.testing.assert_allclose(net.forward(x), expected + layers[2].bias, rtol=1e-12)
    assert net.forward(x).dtype == np.float64


def test_metadata_is_not_shared_between_networks():
    first, second = (CompressedNetwork([make(2, 2, 1, "a")], 8) for _ in range(2))
    first.meta["recipe"] = "x"
    assert second.meta == {}


def test_networks_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match=r"^a network needs at least one layer$"):
        CompressedNetwork([], 8)
    with pytest.raises(ValueError, match=r"^layer 'b' takes 6 inputs but layer 'a' gives 7$"):
        CompressedNetwork([make(7, 5, 1, "a"), make(4, 6, 2, "b")], 8)
