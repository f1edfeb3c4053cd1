"""The quantiser: binary points, the accumulator proof at its boundary, and every refusal.

Arithmetic is checked in Python integers and fractions, independent of the NumPy code.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.model.compile import size_for
from openese.model.config import EngineConfig
from openese.model.matrix import CompressedMatrix, FixedMatrix
from openese.model.network import CompressedLinear, CompressedNetwork, CompressedRecurrent
from openese.model.quantise import (
    ModelError,
    QuantisedNetwork,
    Widths,
    accumulator_bound,
    quantise,
)
from openese.model.random_network import RandomLayer, random_network, random_recurrent
from openese.model.reference import accumulate, run_reference

CONFIG = EngineConfig(n_pes=1)


def one_layer(codes, codebook, *, bias=None, relu=False, in_frac=8, out_frac=8, name="fc"):
    codebook = np.pad(np.asarray(codebook, np.float32), (0, 16 - len(codebook)))
    layer = CompressedLinear.from_codes(name, np.asarray(codes), codebook, bias, relu=relu,
                                        out_frac=out_frac)
    return CompressedNetwork([layer], in_frac)


def test_hand_worked_layer():
    # 1.5 needs 14 fraction bits in 16; shift = 8 + 14 - 8.
    network = one_layer([[1, 2], [0, 1]], [0, 1.5, -0.25], bias=[0.5, -1.0])
    quantised = quantise(network, CONFIG)
    layer, = quantised.layers
    assert layer.weight_frac == 14
    assert layer.codebook.tolist()[:3] == [0, 24576, -4096]
    assert layer.shift == 14
    assert layer.bias.tolist() == [512, -1024]  # out_frac 8 and 2 guard bits
    assert (layer.rescaled_bits, layer.adjustments) == (0, ())
    assert (layer.rows, layer.cols, layer.nnz, layer.code_bits) == (2, 2, 3, 4)
    assert layer.dense().tolist() == [[24576, -4096], [0, 24576]]
    assert (quantised.in_features, quantised.out_features, quantised.out_frac) == (2, 2, 8)


def test_half_steps_round_up_on_both_sides():
    step = 2.0 ** -14
    layer, = quantise(one_layer([[1, 2, 3, 4]], [0, 1, 2.5 * step, -2.5 * step, -3.5 * step]),
                      CONFIG).layers
    assert layer.codebook.tolist()[1:5] == [16384, 3, -2, -3]


def test_codes_that_no_weight_uses_cost_no_precision():
    layer, = quantise(one_layer([[1]], [0, 0.5, 1000.0, 1e-9]), CONFIG).layers
    assert layer.weight_frac == 15
    assert layer.codebook.tolist()[:4] == [0, 16384, 0, 0]


@pytest.mark.parametrize(("last", "fits"), [(16383, True), (16384, False)])
def test_accumulator_proof_is_exact_at_its_boundary(last, fits):
    # The row sum may be 65535: 65535 * 2**15 is just below 2**31, 65536 * 2**15 is 2**31.
    network = one_layer([[1, 1, 1, 2]], [0, 1.0, last / 16384])
    quantised = quantise(network, CONFIG)
    layer, = quantised.layers
    if fits:
        assert (layer.weight_frac, layer.rescaled_bits, layer.adjustments) == (14, 0, ())
        assert accumulator_bound(layer, 16) == 65535 << 15
        worst = np.full((1, 4), -32768)
        assert accumulate(layer, worst).tolist() == [[-65535 << 15]]
    else:
        assert (layer.weight_frac, layer.rescaled_bits) == (13, 1)
        assert layer.adjustments == (
            "weight_frac lowered from 14 to 13: the accumulator (acc_bits 32) must hold every "
            "possible sum",)
        assert accumulator_bound(layer, 16) == 32768 << 15


def test_negative_weights_count_by_magnitude():
    layer, = quantise(one_layer([[1, 2, 1, 2]], [0, 1.0, -1.0]), CONFIG).layers
    assert layer.rescaled_bits == 1


def test_rescaling_repeats_until_it_fits():
    layer, = quantise(one_layer([[1] * 1000], [0, 1.0]), CONFIG).layers
    # 1000 * 2**f <= 65535 needs f <= 6; the shift 8 + 6 - 8 = 6 then lowers out_frac by 4.
    assert (layer.weight_frac, layer.rescaled_bits) == (6, 8)
    assert layer.out_frac == 4
    assert layer.adjustments[1] == (
        "out_frac lowered from 8 to 4: the write-back shifts by at least 10")


def test_shift_too_large_lowers_weight_frac():
    layer, = quantise(one_layer([[1]], [0, 0.25], in_frac=12), CONFIG).layers
    assert layer.weight_frac == 13
    assert layer.shift == Widths.of(CONFIG).shift_max == 17
    assert layer.rescaled_bits == 3
    assert layer.adjustments == (
        "weight_frac lowered from 16 to 13: the write-back shifts by at most 17",)


def test_bias_too_large_lowers_out_frac():
    # 18 bits hold 131071 raw; 200 * 2**(8 + 2) is too much, 200 * 2**(7 + 2) is not.
    layer, = quantise(one_layer([[1]], [0, 1.0], bias=[200.0]), CONFIG).layers
    assert layer.out_frac == 7
    assert layer.bias.tolist() == [102400]
    assert layer.adjustments == (
        "out_frac lowered from 8 to 7: the largest bias (200) needs it to fit bias_bits (18)",)


def test_missing_bias_and_zero_layer():
    layer, = quantise(one_layer(np.zeros((3, 2), int), [0]), CONFIG).layers
    assert layer.bias.tolist() == [0, 0, 0]
    assert (layer.rescaled_bits, layer.adjustments, accumulator_bound(layer, 16)) == (0, (), 0)
    assert layer.shift == 17


def test_layers_hand_their_binary_point_on():
    network = random_network(1, [4, 5, 3])
    network.layers[0].bias[:] = 1e4
    first, second = quantise(network, CONFIG).layers
    assert first.out_frac < network.layers[0].out_frac
    assert second.in_frac == first.out_frac


@pytest.mark.parametrize(("network", "text"), [
    (one_layer([[1, 2]], [0, 1.0, 1e-6], name="a.b"),
     r"layer 'a.b': the shared weight 1e-06 would become 0 at weight_frac 14 \(the largest is 1\): "
     r"prune it, or use an engine with larger weight_bits, acc_bits or shift_bits"),
    (one_layer([[1] * 64 + [2]], [0, 1.0, 2e-4]),
     r"layer 'fc': the shared weight 0.0002 would become 0 at weight_frac 9 \(weight_frac lowered "
     r"from 14 to 9: the accumulator \(acc_bits 32\) must hold every possible sum\): prune it"),
    (one_layer([[1]], [0, 1.0], in_frac=40),
     r"layer 'fc': the shared weight 1 would become 0 at weight_frac -15 \(weight_frac lowered "
     r"from 14 to -15: the write-back shifts by at most 17\)"),
    (one_layer([[1]], [0, 1.0], bias=[1e9]),
     r"layer 'fc': nothing but the sign of its outputs would be left \(out_frac lowered from 8 to "
     r"-15: the largest bias \(1e\+09\) .*\): calibrate the network again"),
    (one_layer([[1]], [0, 1.0], in_frac=-20),
     r"layer 'fc': nothing but the sign .* \(out_frac lowered from 8 to -16: the write-back shifts "
     r"by at least 10\)"),
    (one_layer([[1]], [0, 1e30], out_frac=-70),
     r"layer 'fc': its largest weight \(1e\+30\) is beyond every format: train it again"),
])
def test_refusals(network, text):
    with pytest.raises(ModelError, match=text):
        quantise(network, CONFIG)


def test_values_that_are_not_finite_are_refused():
    network = one_layer([[1]], [0, 1.0], bias=[0.0], name="head")
    network.layers[0].codebook[1] = np.nan
    with pytest.raises(ModelError, match=r"layer 'head': weights and biases must be finite"):
        quantise(network, CONFIG)
    network = one_layer([[1]], [0, 1.0], bias=[0.0])
    network.layers[0].bias[0] = np.inf
    with pytest.raises(ModelError, match="must be finite"):
        quantise(network, CONFIG)


def test_activations_of_another_width_are_refused():
    with pytest.raises(ModelError, match=r"calibrated for act_bits 16, the engine has 12: calibr"):
        quantise(one_layer([[1]], [0, 1.0]), CONFIG.with_(act_bits=12))


def test_networks_built_by_hand_are_checked():
    network = quantise(one_layer([[1, 1]], [0, 1.0]), CONFIG)
    layer, widths = network.layers[0], network.widths

    def refused(text, **changes):
        with pytest.raises(ModelError, match=rf"^layer 'fc': {text}"):
            QuantisedNetwork([replace(layer, **changes)], network.in_frac, widths)

    book = layer.codebook
    refused("in_frac is 9 but its input has 8", in_frac=9)
    refused("code 0 must stand for weight 0", codebook=book + 1)
    refused(r"a codebook value does not fit weight_bits \(16\)", codebook=book * 2)
    refused("bias must have 1 elements", bias=np.zeros(2, np.int64))
    refused(r"a bias does not fit bias_bits \(18\)", bias=np.array([1 << 17]))
    refused("shift must be in_frac", shift=13)
    refused(r"shift 18 must lie in 10\.\.17", shift=18, weight_frac=18)
    with pytest.raises(ModelError, match="takes 2 inputs but gets 1"):
        QuantisedNetwork([layer, layer], network.in_frac, widths)
    with pytest.raises(ModelError, match="at least one layer"):
        QuantisedNetwork([], 0, widths)
    wide = quantise(one_layer([[1] * 4], [0, 1.0]), CONFIG).layers[0]
    with pytest.raises(ModelError, match=r"a row can reach 2147483648, more than acc_bits \(32\)"):
        QuantisedNetwork([replace(wide, codebook=wide.codebook * 2)], 8, widths)


def test_inputs_are_rounded_and_clipped():
    network = quantise(one_layer([[1, 1, 1]], [0, 1.0]), CONFIG)
    raw, clipped = network.quantise_input([[0.5, -0.5 / 256, 1000.0], [-128.0, 127.999, -129.0]])
    assert raw.tolist() == [[128, 0, 32767], [-32768, 32767, -32768]]
    assert clipped == 3  # 127.999 rounds to 32768
    with pytest.raises(ValueError, match=r"inputs must have shape \(n, 3\) or \(n, channels, 3\), "
                                         r"not \(3,\)"):
        network.quantise_input([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="not finite"):
        network.quantise_input([[np.nan, 0, 0]])
    assert network.dequantise_output([[256]]).tolist() == [[1.0]]


def test_only_the_widths_of_the_engine_matter():
    network = random_network(5, [20, 17, 9])
    a = quantise(network, CONFIG)
    b = quantise(network, CONFIG.with_(n_pes=64, queue_depth=1, spmat_depth=1))
    assert a.widths == b.widths
    for left, right in zip(a.layers, b.layers, strict=True):
        assert left.codebook.tolist() == right.codebook.tolist()
        assert left.bias.tolist() == right.bias.tolist()
        assert left.shift == right.shift


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1 << 32), sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4),
       density=st.floats(0, 1), code_bits=st.integers(1, 6), acc_bits=st.integers(28, 48),
       act_bits=st.integers(8, 16), weight_bits=st.integers(10, 18))
def test_every_promise_holds(seed, sizes, density, code_bits, acc_bits, act_bits, weight_bits):
    network = random_network(seed, sizes, density, code_bits, in_frac=act_bits - 4,
                             act_bits=act_bits)
    config = EngineConfig(n_pes=1, acc_bits=acc_bits, act_bits=act_bits, weight_bits=weight_bits,
                          bias_bits=24, shift_base=2, shift_bits=5, code_bits=6, entry_bits=10)
    for layer, source in zip(quantise(network, config).layers, network.layers, strict=True):
        dense = [[int(w) for w in row] for row in layer.dense()]
        largest = max(sum(abs(w) for w in row) for row in dense)
        assert accumulator_bound(layer, act_bits) == largest * 2 ** (act_bits - 1)
        assert largest * 2 ** (act_bits - 1) <= 2 ** (acc_bits - 1) - 1
        # No value is further from the trained one than half a step.
        step = Fraction(2) ** -layer.weight_frac
        for raw, value in zip(layer.codebook[layer.code], source.codebook[layer.code], strict=True):
            assert raw != 0
            assert abs(int(raw) * step - Fraction(float(value))) <= step / 2


def test_float_and_integer_networks_agree():
    network = random_network(3, [50, 40, 30, 10], 0.3)
    quantised = quantise(network, CONFIG)
    x = np.random.default_rng(0).uniform(-2, 2, (20, 50))
    raw, clipped = quantised.quantise_input(x)
    assert clipped == 0
    actual = quantised.dequantise_output(run_reference(quantised, raw).outputs)
    expected = network.forward(x)
    assert np.abs(actual - expected).max() < 0.01 * np.abs(expected).max()


def shared(*values):
    """A row of shared weights; 0 is pruned."""
    codebook = np.zeros(16, np.float32)
    codebook[1:len(values) + 1] = values
    codes = [[k + 1 if value else 0 for k, value in enumerate(values)]]
    return CompressedMatrix.from_codes(np.array(codes), codebook)


def one_unit(cell, w_ih, w_hh, *, in_frac=12, **fields):
    layer = CompressedRecurrent("cell", cell, w_ih.cols, w_hh.cols, w_ih, w_hh, **fields)
    return CompressedNetwork([layer], in_frac)


def quantised_unit(network, **widths):
    layer, = quantise(network, size_for(network, 1).with_(**widths)).layers
    return layer


@pytest.mark.parametrize("fixed_bits", [None, 12])
@pytest.mark.parametrize("in_frac", [9, 12, 15])
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "gru", "lstm", "projection"])
def test_products_of_both_matrices_have_one_binary_point(cell, in_frac, fixed_bits):
    proj = 5 if cell == "projection" else 0
    layer = RandomLayer(cell="lstm" if proj else cell, size=9, proj=proj, peepholes=bool(proj))
    network = random_recurrent(3, 6, [layer], in_frac=in_frac, fixed_bits=fixed_bits)
    config = size_for(network, 1)
    layer, = quantise(network, config).layers
    product = layer.gate_frac + layer.shift
    assert in_frac + layer.w_ih.weight_frac == layer.out_frac + layer.w_hh.weight_frac == product
    assert layer.gate_frac == (layer.out_frac if cell == "rnn_relu" else 11)
    # The worst sum over rows of both matrices, in Python integers, in PyTorch's order of blocks.
    total = {}
    for matrix, slots in ((layer.w_ih, (0, 1, 2)), (layer.w_hh, (0, 1, 3))):
        for row, weights in enumerate(matrix.dense().tolist()):
            gate, unit = divmod(row, 9)
            slot = slots[gate] if cell == "gru" else gate
            total[slot, unit] = total.get((slot, unit), 0) + sum(map(abs, weights))
    worst = max(total.values()) << 15
    assert accumulator_bound(layer, 16) == worst < 1 << (config.acc_bits - 1)
    if proj:
        assert layer.proj_shift == 15 + layer.w_hr.weight_frac - layer.out_frac


def test_the_gates_proof_takes_both_matrices_together():
    # As in the linear proof, 65535 * 2**15 fits 32 bits and 65536 * 2**15 does not.
    for last, frac in ((16383, 14), (16384, 13)):
        layer = quantised_unit(
            one_unit("rnn_tanh", shared(1.0, 1.0, 1.0), shared(last / 16384), in_frac=15),
            acc_bits=32)
        assert (layer.w_ih.weight_frac, layer.w_hh.weight_frac) == (frac, frac)
        assert accumulator_bound(layer, 16) < 1 << 31
    assert layer.adjustments[0] == (
        "weight_frac lowered from 14 to 13: the accumulator (acc_bits 32) must hold every "
        "possible sum")
    assert layer.rescaled_bits == 1


def test_the_two_parts_of_a_grus_candidate_are_proved_apart():
    columns = CompressedMatrix.from_codes(np.array([[0], [0], [1]]), [0, 0.75])
    network = CompressedNetwork([CompressedRecurrent("cell", "gru", 1, 1, columns, columns)], 15)
    layer = quantised_unit(network, acc_bits=32)
    assert layer.row_sums().tolist() == [0, 0, 24576, 24576]


def test_direct_weights_are_placed_without_rounding():
    raw_ih, raw_hh = np.array([[-2048, 3], [0, 2047]]), np.array([[5, 0], [0, -7]])
    network = one_unit("rnn_tanh", FixedMatrix.from_raw(raw_ih, 12, 11),
                       FixedMatrix.from_raw(raw_hh, 12, 11), in_frac=12)
    layer = quantised_unit(network)
    for matrix, raw in ((layer.w_ih, raw_ih), (layer.w_hh, raw_hh)):
        assert matrix.direct
        assert matrix.code_bits == 12
        exact = [[Fraction(int(w), 1 << matrix.weight_frac) for w in row]
                 for row in matrix.dense()]
        assert exact == [[Fraction(int(w), 1 << 11) for w in row] for row in raw]
    assert layer.w_ih.align == 4  # 12 bits in an operand of 16
    assert layer.adjustments == ()


def test_direct_weights_below_half_a_step_keep_one():
    # The input's weights are so large that the state's have to be lowered.
    network = one_unit("rnn_tanh", FixedMatrix.from_raw([[2047]], 12, 6),
                       FixedMatrix.from_raw([[-1]], 12, 19), in_frac=12)
    layer = quantised_unit(network)
    assert layer.w_hh.dense().tolist() == [[-1]]
    assert (layer.w_hh.weight_frac, layer.w_hh.align) == (7, 0)


def test_a_relu_cell_says_when_its_output_gets_coarser():
    layer = quantised_unit(one_unit("rnn_relu", shared(100.0), shared(0.5), out_frac=12))
    assert (layer.out_frac, layer.gate_frac, layer.shift) == (10, 10, 10)
    assert layer.adjustments == (
        "out_frac lowered from 12 to 10: the write-back shifts by at least 10",)
    # 200 * 2**(9 + 2) is beyond 18 bits, 200 * 2**(8 + 1) too, 200 * 2**(7 + 2) is not.
    layer = quantised_unit(one_unit("rnn_relu", shared(1.0), shared(0.5), out_frac=9,
                                    bias=[200.0]))
    assert layer.out_frac == layer.gate_frac == 7
    assert layer.adjustments == (
        "out_frac lowered from 9 to 7: the largest bias (200) needs it to fit bias_bits (18)",)


def test_a_relu_cell_whose_state_grows_without_bound_is_refused():
    # Its output gets coarser, and so do the state's products: no shift is ever large enough.
    with pytest.raises(ModelError, match=r"^layer 'cell': nothing but the sign of its outputs "
                                         r"would be left \(out_frac lowered from 12 to -2: "):
        quantised_unit(one_unit("rnn_relu", shared(0.5), shared(100.0), out_frac=12))


def test_a_pruned_recurrence_is_no_rescaling():
    layer = quantised_unit(one_unit("rnn_tanh", shared(0.5), shared(0.0)))
    assert (layer.rescaled_bits, layer.adjustments) == (0, ())


def lstm(**fields):
    gates = CompressedMatrix.from_codes(np.ones((4, 1), int), [0, 0.5])
    return one_unit("lstm", gates, gates, **fields)


def test_what_no_gate_can_hold_is_refused():
    with pytest.raises(ModelError, match=r"^layer 'cell': its largest bias \(20\) does not fit "
                                         r"bias_bits \(18\): use an engine with larger"):
        quantised_unit(lstm(bias=[0, 0, 20.0, 0]), bias_guard=2)
    with pytest.raises(ModelError, match=r"^layer 'cell': its largest peephole weight \(1e\+06\) "
                                         r"is beyond every format at cell_frac 12: train"):
        quantised_unit(lstm(peephole=[[1e6], [0], [0]]))
    with pytest.raises(ModelError, match=r"^layer 'cell': its gates need a write-back shift of 8, "
                                         r"the engine has 10 and up"):
        quantised_unit(one_unit("rnn_tanh", shared(200.0), shared(0.5), in_frac=12))


@pytest.mark.parametrize(("cell_frac", "shift", "moved"), [
    (15, 0, False), (12, 3, False), (8, 7, False), (6, 7, True), (17, 0, True)])
def test_cell_states_have_a_binary_point_of_three_bits(cell_frac, shift, moved):
    layer = quantised_unit(lstm(cell_frac=cell_frac))
    assert layer.cell_shift == shift
    assert layer.adjustments == ((
        f"cell_frac moved from {cell_frac} to {15 - shift}: cell states have 8 to 15 fraction "
        f"bits",) if moved else ())


@pytest.mark.parametrize("largest", [0.01, 0.9, 3.0, 40.0])
def test_peepholes_get_the_finest_format_that_holds_them(largest):
    layer = quantised_unit(lstm(peephole=[[largest], [-largest], [0]], cell_frac=12))
    # p has 25 - 12 - peep_shift fraction bits.
    step = Fraction(1, 1 << (13 - layer.peep_shift))
    for raw, value in zip(layer.peephole.ravel().tolist(), (largest, -largest, 0), strict=True):
        assert abs(raw * step - Fraction(float(np.float32(value)))) <= step / 2
    assert layer.peep_shift == 0 or 2 * abs(layer.peephole).max() > 32767


def test_inputs_of_channels():
    network = lstm()
    raw, clipped = quantise(network, size_for(network, 1)).quantise_input(
        [[[0.5], [-9.0]], [[1.0], [0.0]]])
    assert raw.tolist() == [[[2048], [-32768]], [[4096], [0]]]
    assert clipped == 1
