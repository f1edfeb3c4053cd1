"""The integer reference against Python integers and exact fractions, including both rails."""

from dataclasses import replace
from fractions import Fraction
from math import floor, inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.model import reference
from openese.model.config import EngineConfig
from openese.model.network import CompressedLinear, CompressedNetwork
from openese.model.quantise import (
    QuantisedLayer,
    QuantisedNetwork,
    Widths,
    accumulator_bound,
    quantise,
)
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import accumulate, output_snr_db, run_reference, write_back

CONFIG = EngineConfig(n_pes=1)


def exact_write_back(acc, bias, shift, guard, relu, bits):
    """Round half up of the exact quotient, in fractions."""
    exact = Fraction(acc + (bias << (shift - guard)), 1 << shift)
    y = floor(exact + Fraction(1, 2))
    y = max(y, 0) if relu else y
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return min(max(y, low), high), int(not low <= y <= high)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shift", [2, 3, 5])
def test_write_back_equals_one_exact_rounding(shift, relu):
    # Every accumulator of 11 bits with every bias of 5: beyond both rails of a 6-bit activation.
    for bias in range(-16, 16):
        acc = range(-1024, 1024)
        y, clipped = write_back(acc, bias, shift=shift, bias_guard=2, relu=relu, act_bits=6)
        expected = [exact_write_back(a, bias, shift, 2, relu, 6) for a in acc]
        assert y.tolist() == [value for value, _ in expected]
        assert clipped == sum(count for _, count in expected)


def test_write_back_of_accumulators_at_the_rails():
    rails = [-(1 << 47), (1 << 47) - 1]
    for relu in (False, True):
        y, clipped = write_back(rails, -(1 << 31), shift=10, bias_guard=1, relu=relu, act_bits=16)
        expected = [exact_write_back(a, -(1 << 31), 10, 1, relu, 16) for a in rails]
        assert y.tolist() == [value for value, _ in expected]
        assert clipped == (1 if relu else 2)


def test_negative_under_relu_is_no_saturation():
    y, clipped = write_back([-(1 << 30), 1 << 30, -5], 0, shift=10, bias_guard=2, relu=True,
                            act_bits=16)
    assert y.tolist() == [0, 32767, 0]
    assert clipped == 1


def python_run(network, x):
    """The whole network in Python integers, with the smallest and largest partial sum."""
    values, clipped, low, high = [int(v) for v in x], 0, 0, 0
    for layer in network.layers:
        dense = layer.dense().tolist()
        outputs = []
        for row, bias in zip(dense, layer.bias.tolist(), strict=True):
            acc = 0
            for weight, value in zip(row, values, strict=True):
                acc += weight * value
                low, high = min(low, acc), max(high, acc)
            y, count = exact_write_back(acc, bias, layer.shift, network.widths.bias_guard,
                                        layer.relu, network.widths.act_bits)
            outputs.append(y)
            clipped += count
        values = outputs
    return values, clipped, low, high


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1 << 32), sizes=st.lists(st.integers(1, 24), min_size=2, max_size=4),
       density=st.floats(0, 1), active=st.floats(0, 1), relu=st.booleans(), bias=st.booleans(),
       headroom=st.integers(-3, 2), acc_bits=st.integers(30, 48))
def test_equals_python_integers(seed, sizes, density, active, relu, bias, headroom, acc_bits):
    network = random_network(seed, sizes, density, relu=relu, bias=bias, headroom=headroom)
    config = CONFIG.with_(acc_bits=acc_bits, bias_bits=24, shift_base=2, shift_bits=5)
    quantised = quantise(network, config)
    inputs = random_inputs(seed, network, 3, active)
    result = run_reference(quantised, inputs)
    saturations = 0
    for x, y in zip(inputs, result.outputs, strict=True):
        expected, clipped, low, high = python_run(quantised, x)
        assert y.tolist() == expected
        saturations += clipped
        assert -(1 << (acc_bits - 1)) < low
        assert high < 1 << (acc_bits - 1)
    assert result.saturations == saturations


def full_layer(rows, cols, codes, codebook, *, widths, relu=False, bias=0, weight_frac=15):
    codes = np.asarray(codes, np.uint8).reshape(rows, cols)
    col, row = np.nonzero(codes.T)
    return QuantisedLayer(
        name="fc", rows=rows, cols=cols, row_idx=row.astype(np.int32), code=codes[row, col],
        col_ptr=np.concatenate([[0], np.cumsum(np.bincount(col, minlength=cols))]),
        codebook=np.asarray(codebook, np.int64), weight_frac=weight_frac,
        bias=np.full(rows, bias, np.int64), in_frac=0, out_frac=weight_frac - widths.shift_max,
        shift=widths.shift_max, relu=relu)


def test_smallest_times_smallest():
    widths = Widths.of(CONFIG)
    layer = full_layer(2, 1, [1, 2], [0, -32768, -1, 0], widths=widths)
    network = QuantisedNetwork([layer], 0, widths)
    assert accumulate(layer, np.array([[-32768], [-1], [32767]])).tolist() == [
        [1 << 30, 32768], [32768, 1], [-32768 * 32767, -32767]]
    outputs = run_reference(network, [[-32768], [-1]]).outputs
    assert outputs.tolist() == [[(1 << 30) >> 17, 0], [0, 0]]


def test_float64_products_are_exact_at_48_bits():
    # Rows that reach the largest 48-bit accumulator with odd values in every place.
    widths = Widths.of(EngineConfig(n_pes=1, acc_bits=48, act_bits=18, weight_bits=18, shift_base=8,
                                    shift_bits=5))
    cols = 8190
    layer = full_layer(3, cols, np.r_[[1] * cols, [2] * cols, [1, 2] * (cols // 2)],
                       [0, 131071, -131071, 1], widths=widths)
    network = QuantisedNetwork([layer], 0, widths)
    rng = np.random.default_rng(0)
    inputs = np.stack([np.full(cols, -131072), np.full(cols, 131071),
                       rng.integers(-131072, 131072, cols)])
    dense = layer.dense().tolist()
    expected = [[sum(w * int(v) for w, v in zip(row, x, strict=True)) for row in dense]
                for x in inputs]
    assert accumulate(network.layers[0], inputs).tolist() == expected
    assert abs(expected[0][0]) > 1 << 46


def test_chunks_do_not_show(monkeypatch):
    network = random_network(4, [30, 20, 7], 0.4)
    quantised = quantise(network, CONFIG)
    inputs = random_inputs(4, network, 9)
    whole = run_reference(quantised, inputs).outputs
    for chunk in (1, 31, 100):
        monkeypatch.setattr(reference, "_CHUNK", chunk)
        assert run_reference(quantised, inputs).outputs.tolist() == whole.tolist()


def test_counts_of_work():
    network = random_network(6, [12, 9, 5], 0.5)
    quantised = quantise(network, CONFIG)
    inputs = random_inputs(6, network, 4, 0.5)
    inputs[2] = 0
    result = run_reference(quantised, inputs)
    for layer, x, nonzero, multiplies in zip(quantised.layers, result.activations, result.nonzero,
                                             result.multiplies, strict=True):
        assert x.shape == (4, 1, layer.cols)
        x = x[:, 0]
        dense = layer.dense() != 0
        for vector in range(4):
            assert nonzero[vector] == sum(v != 0 for v in x[vector].tolist())
            assert multiplies[vector] == sum(
                int(dense[:, j].sum()) for j in range(layer.cols) if x[vector, j])
    assert result.activations[0][:, 0].tolist() == inputs.tolist()
    assert result.nonzero[0][2] == result.multiplies[0][2] == 0


def test_zero_input_gives_the_biases():
    network = random_network(8, [6, 4], 0.5, relu=False)
    quantised = quantise(network, CONFIG)
    outputs = run_reference(quantised, np.zeros((1, 6), int)).outputs[0]
    expected = [floor(Fraction(int(b), 4) + Fraction(1, 2)) for b in quantised.layers[0].bias]
    assert outputs.tolist() == expected


def test_bias_none_equals_bias_zero():
    network = random_network(9, [6, 4], 0.5, bias=False)
    inputs = random_inputs(9, network, 5)
    without = run_reference(quantise(network, CONFIG), inputs).outputs
    network.layers[0].bias = np.zeros(4, np.float32)
    assert run_reference(quantise(network, CONFIG), inputs).outputs.tolist() == without.tolist()


def test_saturations_happen_and_are_counted_per_value():
    network = random_network(10, [16, 12], 0.8, headroom=-3, relu=False)
    quantised = quantise(network, CONFIG)
    result = run_reference(quantised, random_inputs(10, network, 20, 1.0))
    rails = int(np.isin(result.outputs, [-32768, 32767]).sum())
    assert 0 < result.saturations <= rails


@pytest.mark.parametrize(("inputs", "text"), [
    (np.zeros((2, 5), int), r"inputs must have shape \(n, 6\), not \(2, 5\)"),
    (np.zeros(6, int), r"inputs must have shape \(n, 6\) or \(n, channels, 6\), not \(6,\)"),
    (np.zeros((1, 6)), "inputs must be raw integers, not float64: quantise them first"),
    (np.full((1, 6), 32768), r"inputs must lie in -32768\.\.32767, found 32768\.\.32768"),
])
def test_wrong_inputs_are_refused(inputs, text):
    with pytest.raises(ValueError, match=text):
        run_reference(quantise(random_network(1, [6, 4]), CONFIG), inputs)


def test_no_vectors():
    result = run_reference(quantise(random_network(1, [6, 4, 3]), CONFIG), np.zeros((0, 6), int))
    assert result.outputs.shape == (0, 3)
    assert result.saturations == 0


def test_signal_to_noise_ratio():
    assert output_snr_db([3.0, 4.0], [3.0, 4.5]) == pytest.approx(20.0)
    assert output_snr_db([1.0], [1.0]) == inf
    assert output_snr_db([0.0], [0.0]) == inf
    assert output_snr_db([0.0], [1.0]) == -inf


def test_worked_example_of_the_documentation():
    layer = CompressedLinear.from_codes("fc", [[1, 2]], [0, 0.8, -0.3, 0], [0.1], relu=False,
                                        out_frac=12)
    network = quantise(CompressedNetwork([layer], 8), CONFIG)
    quantised, = network.layers
    assert quantised.codebook.tolist() == [0, 26214, -9830, 0]
    assert (quantised.weight_frac, quantised.shift) == (15, 11)
    assert accumulator_bound(quantised, 16) == 1_181_089_792
    assert quantised.bias.tolist() == [1638]
    inputs, _ = network.quantise_input([[1.5, -0.75]])
    assert inputs.tolist() == [[384, -192]]
    assert accumulate(quantised, inputs).tolist() == [[11_953_536]]
    assert run_reference(network, inputs).outputs.tolist() == [[6246]]


def test_two_layers_share_nothing():
    widths = Widths.of(CONFIG)
    layer = full_layer(2, 2, [1, 0, 0, 1], [0, 16384], widths=widths, weight_frac=17)
    second = replace(layer, name="fc2", relu=True)
    network = QuantisedNetwork([layer, second], 0, widths)
    result = run_reference(network, [[-800, 800]])
    assert result.activations[1].tolist() == [[[-100, 100]]]
    # 12.5 rounds up.
    assert result.outputs.tolist() == [[0, 13]]
