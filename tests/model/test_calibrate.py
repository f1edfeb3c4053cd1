"""Binary points hold the data they were calibrated on, no finer format would, and clips count."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.model.calibrate import calibrate, count_clipped
from openese.model.matrix import CompressedMatrix
from openese.model.network import (
    CompressedBidirectional,
    CompressedLinear,
    CompressedNetwork,
    CompressedRecurrent,
)


def network(*layers):
    """Layers as (weight rows, bias, relu), every weight its own code."""
    built = []
    for index, (weight, bias, relu) in enumerate(layers):
        weight = np.array(weight, dtype=np.float32)
        values = np.unique(weight[weight != 0])
        codebook = np.zeros(16, dtype=np.float32)
        codebook[1:len(values) + 1] = values
        codes = np.where(weight == 0, 0, np.searchsorted(values, weight) + 1)
        built.append(CompressedLinear.from_codes(
            f"l{index}", codes, codebook, None if bias is None else np.array(bias, np.float32),
            relu=relu, out_frac=0))
    return CompressedNetwork(built, in_frac=0, meta={"dataset": "none"})


def fracs(net):
    return [net.in_frac] + [layer.out_frac for layer in net.layers]


def test_binary_points_by_hand():
    net = network(([[2.0, 0.0], [0.0, -3.0]], [0.5, 0.0], True), ([[1.0, 1.0]], None, False))
    x = np.array([[1.0, 0.25], [-0.5, -1.5]])
    # Inputs reach 1.5, the first outputs max(2.5, 4.5) after ReLU, the last 4.5.
    result = calibrate(net, x)
    assert fracs(result) == [14, 12, 12]
    assert result.meta == net.meta
    assert fracs(net) == [0, 0, 0]
    assert count_clipped(result, x) == {"input": 0, "l0": 0, "l1": 0}


def test_negative_outputs_count_only_without_relu():
    weight = [[-100.0]]
    x = np.array([[1.0], [0.0]])
    assert fracs(calibrate(network((weight, None, False)), x))[1] == 8
    assert fracs(calibrate(network((weight, [1.0], True)), x))[1] == 14


def test_a_bias_larger_than_any_output_fits():
    net = network(([[-60.0]], [64.0], False))
    result = calibrate(net, np.array([[1.0]]))
    assert result.layers[0].out_frac == 8


def test_exactly_a_power_of_two_is_not_clipped():
    """+1.0 needs raw 2**14: at 2**15 it would saturate to 32767."""
    net = network(([[1.0]], None, False))
    x = np.array([[1.0], [-1.0]])
    assert fracs(calibrate(net, x)) == [14, 14]
    assert count_clipped(calibrate(net, x), x) == {"input": 0, "l0": 0}


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_formats_hold_the_data_and_one_bit_finer_would_not(seed, scale):
    rng = np.random.default_rng(seed)
    weight = rng.choice([-1.5, -0.25, 0.0, 0.75], size=(5, 4))
    net = network((weight, rng.normal(size=5), True), (weight.T, None, False))
    x = rng.normal(size=(20, 4)) * scale
    result = calibrate(net, x)
    assert not any(count_clipped(result, x).values())
    if result.in_frac < 24:
        finer = CompressedNetwork(result.layers, result.in_frac + 1)
        assert count_clipped(finer, x)["input"] > 0


def test_headroom():
    net = network(([[1.0]], None, False))
    x = np.array([[1.0], [-0.1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fracs(calibrate(net, x, headroom=2.0)) == [13, 13]
    with pytest.warns(UserWarning, match=r"will be clipped \(input: 1, l0: 1\); raise headroom"):
        result = calibrate(net, x, headroom=0.25)
    assert fracs(result) == [16, 16]


def test_clips_are_counted_on_other_data():
    net = calibrate(network(([[1.0]], None, False)), np.array([[0.9]]))
    assert count_clipped(net, np.array([[0.5], [1.5], [-2.0]])) == {"input": 2, "l0": 2}


def test_batches_make_no_difference():
    net = network(([[1.0, 2.0]], [0.1], False))
    x = np.random.default_rng(0).normal(size=(3000, 2))
    x[2999] = 50.0
    assert fracs(calibrate(net, x)) == fracs(calibrate(net, x[2999:]))
    assert count_clipped(calibrate(net, x[:10]), x)["l0"] >= 1


def test_inputs_of_any_shape_that_flattens():
    net = network(([[1.0, 2.0, 0.0, 1.0]], None, False))
    x = np.ones((3, 2, 2), dtype=np.float32)
    assert fracs(calibrate(net, x)) == fracs(calibrate(net, x.reshape(3, 4)))


def test_zero_data_and_a_zero_layer():
    net = network(([[0.0]], [0.0], True))
    assert fracs(calibrate(net, np.zeros((1, 1)))) == [24, 24]


@pytest.mark.parametrize(("x", "text"), [
    (np.ones((2, 3)), r"inputs must have shape \(n, 2\).*not \(2, 3\)"),
    (np.ones(2), r"not \(2,\)"),
    (np.ones((0, 2)), r"with n >= 1"),
    (np.array([[1.0, np.nan]]), "finite"),
    (np.array([[1.0, np.inf]]), "finite"),
])
def test_wrong_inputs_are_named(x, text):
    net = network(([[1.0, 1.0]], None, False))
    for function in (calibrate, count_clipped):
        with pytest.raises(ValueError, match=text):
            function(net, x)


@pytest.mark.parametrize("headroom", [0, -1, float("nan"), float("inf")])
def test_wrong_headroom_is_named(headroom):
    net = network(([[1.0]], None, False))
    with pytest.raises(ValueError, match="headroom must be finite and above 0"):
        calibrate(net, np.ones((1, 1)), headroom=headroom)


# -- recurrent layers -----------------------------------------------------------------------------


def matrix(rows, columns, value=1.0):
    return CompressedMatrix.from_codes(np.ones((rows, columns), int), [0, value])


def recurrent(cell, gates, *, w_hh=0.0, proj=None, bias=None, name="rnn", inputs=1):
    """One unit whose input weights are 1."""
    units = 2 if proj else 1
    w_hh = CompressedMatrix.from_codes(np.full((gates * units, 1), int(w_hh != 0)), [0, w_hh])
    return CompressedRecurrent(name, cell, inputs, units, matrix(gates * units, inputs), w_hh,
                               matrix(1, 2, proj) if proj else None, bias)


def test_a_relu_cell_and_its_binary_points_by_hand():
    # h = max(0, x + h / 2) over 4, 4, -8: 4, 6, 0.
    net = CompressedNetwork([recurrent("rnn_relu", 1, w_hh=0.5)], 0)
    x = np.array([[4.0], [4.0], [-8.0]])
    result = calibrate(net, x)
    assert (result.in_frac, result.layers[0].out_frac) == (11, 12)
    assert calibrate(net, x[:1]).layers[0].out_frac == 12
    assert calibrate(net, x[:1] / 2).layers[0].out_frac == 13
    assert count_clipped(result, 2 * x) == {"input": 0, "rnn": 2}
    # A bias is added in the output's format.
    biased = CompressedNetwork([recurrent("rnn_relu", 1, bias=[-40.0])], 0)
    assert calibrate(biased, x).layers[0].out_frac == 9


@pytest.mark.parametrize(("cell", "gates"), [("rnn_tanh", 1), ("gru", 3), ("lstm", 4)])
@pytest.mark.parametrize("act_bits", [16, 12])
def test_outputs_between_minus_one_and_one_have_unit_frac(cell, gates, act_bits):
    net = CompressedNetwork([recurrent(cell, gates)], 0, act_bits)
    for size in (0.01, 100.0):
        result = calibrate(net, np.full((5, 3, 1), size))
        assert result.layers[0].out_frac == act_bits - 1
        assert result.in_frac == (act_bits + 5 if size < 1 else act_bits - 8)
    assert "rnn" not in count_clipped(result, np.ones((2, 1)))


@pytest.mark.parametrize(("x", "steps", "frac"), [
    (1e-3, 9, 15), (0.5, 1, 15), (20.0, 1, 14), (20.0, 2, 13), (20.0, 9, 11), (20.0, 100, 8)])
def test_cell_states_have_what_the_largest_needs(x, steps, frac):
    """With all gates open, c grows by 1 a step."""
    net = CompressedNetwork([recurrent("lstm", 4)], 0)
    data = np.full((steps, 1), x)
    result = calibrate(net, data)
    assert result.layers[0].cell_frac == frac
    assert count_clipped(result, data) == {"input": 0, "rnn (cell)": 0}


def test_cell_states_beyond_what_an_engine_holds_are_told():
    net = CompressedNetwork([recurrent("lstm", 4)], 0)
    with pytest.warns(UserWarning, match=r"clipped \(rnn \(cell\): 3\); .*cell states to stay "
                                         "within 128$"):
        result = calibrate(net, np.full((130, 1), 20.0))
    assert result.layers[0].cell_frac == 8
    assert count_clipped(result, np.full((260, 1), 20.0))["rnn (cell)"] > 100


def test_a_projection_has_a_binary_point_of_its_own():
    net = CompressedNetwork([recurrent("lstm", 4, proj=3.0)], 0)
    # One step: h is a little below tanh(1) = 0.76, twice 3 h is 4.57.
    assert calibrate(net, np.full((1, 1), 20.0)).layers[0].out_frac == 12


def test_both_directions_share_the_coarser_binary_point():
    for order in (1, -1):
        ways = [recurrent("lstm", 4, proj=size, name=f"l{size}") for size in (3.0, 0.1)][::order]
        layer = CompressedBidirectional(*ways)
        after = CompressedLinear("fc", 2, 1, [0, 1, 2], [0, 0], [1, 1], [0, 1], None, relu=False,
                                 out_frac=0)
        x = np.full((4, 2, 1), 20.0)
        result = calibrate(CompressedNetwork([layer, after], 0), x)
        assert [result.layers[0].ahead.out_frac, result.layers[0].back.out_frac] == [12, 12]
        assert [way.name for way in (result.layers[0].ahead, result.layers[0].back)] == [
            way.name for way in ways]
        assert result.layers[1].out_frac == 12
        assert set(count_clipped(result, x)) == {"input", "l3.0", "l3.0 (cell)", "l0.1",
                                                 "l0.1 (cell)", "fc"}


def test_many_sequences_and_one_by_one_make_no_difference(monkeypatch):
    x = np.random.default_rng(1).normal(size=(7, 40, 3)) * 4
    layers = [recurrent("lstm", 4, w_hh=0.5, proj=1.5, inputs=3), recurrent("gru", 3)]
    net = CompressedNetwork(layers, 0)
    whole = calibrate(net, x)
    monkeypatch.setattr("openese.model.calibrate.SEQUENCE_BATCH", 50)
    parts = calibrate(net, x)
    single = [calibrate(net, x[:, i]) for i in range(40)]
    for get in (lambda n: n.in_frac, lambda n: n.layers[0].cell_frac,
                lambda n: n.layers[0].out_frac):
        assert get(whole) == get(parts) == min(map(get, single))


@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 2, 2), (0, 3), (5, 0, 3), (5, 2, 2, 3)])
def test_wrong_sequences_are_named(shape):
    net = CompressedNetwork([recurrent("gru", 3, inputs=3)], 0)
    for function in (calibrate, count_clipped):
        with pytest.raises(ValueError, match=r"inputs must have shape \(steps, n, 3\) or "
                                             r"\(steps, 3\), with one step or more, not \("):
            function(net, np.ones(shape))


def test_states_that_explode_are_named():
    net = CompressedNetwork([recurrent("rnn_relu", 1, w_hh=1e30)], 0)
    for steps in (4, 40):
        with pytest.raises(ValueError, match="layer 'rnn' grows beyond all bounds on the calib"):
            calibrate(net, np.ones((steps, 1)))
