"""Binary points hold the data they were calibrated on, no finer format would, and clips count."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.model.calibrate import calibrate, count_clipped
from openese.model.network import CompressedLinear, CompressedNetwork


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
