"""Linear fixed-point weights: range, rounding, pattern, and training straight through them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from openese.model.linear_weights import LinearWeights, linear_codebook, linear_quantise
from openese.model.network import CompressedLinear
from openese.model.prune import Masks

torch.set_num_threads(1)


def make_model(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4)).to(dtype)
    Masks.by_density(model, 0.4).apply()
    return model


def loss_of(model, seed=0):
    x = torch.randn(32, 12, generator=torch.Generator().manual_seed(seed),
                    dtype=model[0].weight.dtype)
    return nn.functional.cross_entropy(model(x), x[:, :4].argmax(dim=1))


@settings(deadline=None, max_examples=150)
@given(weight=hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=8),
                         elements=st.floats(-1e4, 1e4, width=32)),
       bits=st.integers(2, 16))
def test_every_weight_is_within_half_a_step(weight, bits):
    raw, frac = linear_quantise(weight, bits)
    assert raw.dtype == np.int32
    assert raw.shape == weight.shape
    assert np.array_equal(raw == 0, weight == 0), "the pattern is kept"
    high = (1 << (bits - 1)) - 1
    assert np.abs(raw).max() <= high
    step = 2.0**-frac
    error = np.abs(raw * step - weight.astype(np.float64))
    tiny = np.abs(weight) < step / 2
    assert (error[~tiny] <= step / 2).all()
    assert (np.abs(raw[tiny & (weight != 0)]) == 1).all()
    assert (np.sign(raw) == np.sign(weight)).all()
    if frac < 40:
        # One bit finer, and the largest no longer fits.
        assert np.floor(np.abs(weight.astype(np.float64)).max() * 2 / step + 0.5) > high


@pytest.mark.parametrize(("largest", "frac"), [
    # ESE's 12 bits: 4 before the point and 8 behind it for one of its matrices, 1 and 11 for most.
    (5.72, 8), (0.7, 11), (1.0, 10), (2047 / 2048, 11), (8.0, 7), (3000.0, -1),
])
def test_the_binary_point_comes_from_the_range(largest, frac):
    for sign in (1, -1):
        assert linear_quantise([[sign * largest, 0.1]], 12)[1] == frac


@pytest.mark.parametrize("weight", [np.zeros((2, 3)), np.zeros((0, 3)), np.full((1, 1), -0.0)])
def test_nothing_to_quantise(weight):
    raw, _ = linear_quantise(weight, 8)
    assert raw.shape == weight.shape
    assert not raw.any()


@pytest.mark.parametrize("bits", [2, 5, 8, 12, 16])
def test_a_linear_codebook_is_in_order_of_twos_complement(bits):
    codebook = linear_codebook(bits, 3)
    assert codebook.shape == (1 << bits,)
    assert codebook[0] == 0
    assert codebook[1] == 0.125
    assert codebook[-1] == -0.125
    assert codebook.min() == -(2.0 ** (bits - 4))
    assert len(np.unique(codebook)) == 1 << bits


@pytest.mark.parametrize("bits", [3, 8, 12])
def test_weights_are_replaced_by_what_the_function_says(bits):
    model = make_model()
    expected = linear_quantise(model[0].weight.detach().numpy(), bits)
    linear = LinearWeights(model, {"0": bits})
    assert linear.names == ["0.weight"]
    assert np.array_equal(linear.raw("0.weight"), expected[0])
    assert linear.frac("0.weight") == expected[1]
    weight = model[0].weight.detach().numpy()
    assert np.array_equal(weight, expected[0] * 2.0**-expected[1])
    assert np.array_equal(weight, linear.codebook("0.weight")[linear.codes("0.weight")])


def test_eight_bits_make_an_ordinary_compressed_layer():
    model = make_model()
    linear = LinearWeights(model, 8)
    layer = CompressedLinear.from_codes("0", linear.codes("0.weight"), linear.codebook("0.weight"),
                                        None, relu=True, out_frac=8)
    assert np.array_equal(layer.dense(), model[0].weight.detach().numpy())
    assert layer.nnz == 96


OPTIMIZERS = {
    "momentum+decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("bits", [4, 12])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fine_tuning_keeps_format_and_pattern(name, bits):
    model = make_model()
    linear = LinearWeights(model, bits)
    optimizer = OPTIMIZERS[name](linear.parameters())
    linear.hold(optimizer)
    raw, frac = linear.raw("0.weight"), linear.frac("0.weight")
    first = sum(loss_of(model, seed).item() for seed in range(5))

    def closure():
        optimizer.zero_grad()
        loss = sum(loss_of(model, seed) for seed in range(5))
        loss.backward()
        return loss

    for _ in range(30):
        optimizer.step(closure)
        now = linear.raw("0.weight")
        assert np.array_equal(now == 0, raw == 0)
        assert np.abs(now).max() < 1 << (bits - 1)
        assert linear.frac("0.weight") == frac
        assert np.array_equal(model[0].weight.detach().numpy(), now * 2.0**-frac)
    assert sum(loss_of(model, seed).item() for seed in range(5)) < first
    assert (linear.raw("0.weight") != raw).any()


def test_the_gradient_goes_straight_through():
    model = make_model(torch.float64)
    linear = LinearWeights(model, 6)
    plain = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4)).double()
    plain.load_state_dict(model.state_dict())
    loss_of(plain).backward()
    loss_of(model).backward()
    linear.gather()
    pruned = model[0].weight == 0
    copy = linear.parameters()[0]
    assert torch.equal(copy.grad, plain[0].weight.grad.masked_fill(pruned, 0))
    assert model[0].weight.grad is None


def test_small_steps_add_up_in_the_copy():
    """Each step moves a weight by a tenth of a step of the format; ten of them by one."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.75)
    linear = LinearWeights(model, 4)
    assert linear.frac("weight") == 3
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.0125)
    linear.hold(optimizer)
    seen = []
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        seen.append(int(linear.raw("weight")[0, 0]))
    assert seen[0] == 6
    assert seen[-1] == 5
    assert seen == sorted(seen, reverse=True)


def test_copies_stay_in_range_and_signs_may_change_but_zero_is_skipped():
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.25, 0.0]]))
    linear = LinearWeights(model, 4)
    copy = linear.parameters()[0]
    with torch.no_grad():
        copy.copy_(torch.tensor([[9.0, 0.001, 7.0]]))
    linear.apply()
    assert linear.raw("weight").tolist() == [[7, 1, 0]]
    assert copy[0].tolist() == pytest.approx([7 * 2.0**-linear.frac("weight"), 0.001, 0.0])


def test_twelve_bits_are_enough():
    """Output of a network with 12-bit weights against float: the weights' own precision."""
    model = make_model()
    x = torch.randn(100, 12, generator=torch.Generator().manual_seed(1))
    before = model(x).detach()
    LinearWeights(model, 12)
    error = (model(x) - before).detach().square().mean() / before.square().mean()
    assert error < 1e-6


def test_recurrent_layers_and_patterns():
    torch.manual_seed(0)
    rnn = nn.LSTM(6, 5, num_layers=2)
    Masks.by_density(rnn, 0.5).apply()
    linear = LinearWeights(rnn, {"weight_*": 12, "weight_hh_l1": 8})
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.01)
    linear.hold(optimizer)
    before = {name: linear.raw(name) for name in linear.names}
    rnn(torch.randn(7, 3, 6))[0].square().mean().backward()
    optimizer.step()
    assert len(linear.names) == 4
    for name in linear.names:
        assert (linear.raw(name) != before[name]).any()
        assert int((rnn.get_parameter(name) != 0).sum()) == rnn.get_parameter(name).numel() // 2


@pytest.mark.parametrize(("call", "text"), [
    (lambda: linear_quantise([[1.0]], 1), "bits must be 2 to 16, not 1"),
    (lambda: linear_codebook(17, 0), "bits must be 2 to 16, not 17"),
    (lambda: linear_quantise([[np.nan]], 8), "finite weights"),
    (lambda: LinearWeights(make_model(), {"0": 40}), "'0.weight': bits must be 2 to 16, not 40"),
    (lambda: LinearWeights(nn.ReLU()), "no Linear, Conv2d or recurrent layer to quantise"),
])
def test_wrong_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()
