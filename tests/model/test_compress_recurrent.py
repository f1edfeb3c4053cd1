"""A compressed recurrent network is the pruned and shared PyTorch model, whatever cell and options.

Compared: every matrix bit for bit, and whole sequences in float64 to rounding.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from openese.model.compress import compress, load_into
from openese.model.linear_weights import LinearWeights
from openese.model.matrix import CompressedMatrix, FixedMatrix
from openese.model.network import CompressedBidirectional, CompressedLinear
from openese.model.peephole import PeepholeLSTM
from openese.model.prune import Masks
from openese.model.share import SharedWeights

# On a busy machine threads that wait for each other cost far more than these sizes gain.
torch.set_num_threads(1)
# PyTorch's own remark, once a process.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

MODULES = {
    "rnn": lambda: nn.RNN(5, 6),
    "relu": lambda: nn.RNN(5, 6, nonlinearity="relu", batch_first=True),
    "gru": lambda: nn.GRU(5, 6),
    "gru without bias": lambda: nn.GRU(5, 6, num_layers=2, bias=False, batch_first=True),
    "gru both ways": lambda: nn.GRU(5, 6, num_layers=2, bidirectional=True, dropout=0.5),
    "lstm": lambda: nn.LSTM(5, 6, batch_first=True),
    "lstm without bias": lambda: nn.LSTM(5, 6, bias=False),
    "three layers": lambda: nn.LSTM(5, 6, num_layers=3, dropout=0.3),
    "projection": lambda: nn.LSTM(5, 6, num_layers=2, proj_size=4),
    "projection both ways": lambda: nn.LSTM(5, 6, num_layers=2, proj_size=2, bidirectional=True,
                                            batch_first=True),
    "peepholes": lambda: PeepholeLSTM(5, 6),
    "peepholes and projection": lambda: PeepholeLSTM(5, 6, num_layers=2, proj_size=3, bias=False,
                                                     batch_first=True),
}


class Tagger(nn.Module):
    """A recurrent module between two Linear layers."""

    def __init__(self, module, last=False):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
        self.rnn = module
        outputs = (module.proj_size or module.hidden_size) * (1 + module.bidirectional)
        self.second = nn.Linear(outputs, 4)
        self.last = last

    def forward(self, x):
        out, _ = self.rnn(self.first(x))
        if self.last:
            out = out[:, -1] if self.rnn.batch_first else out[-1]
        return self.second(out)


def sequences(module, features=3, steps=9, n=4, seed=0):
    x = torch.randn(steps, n, features, generator=torch.Generator().manual_seed(seed))
    return x.transpose(0, 1) if module.batch_first else x


def time_first(module, x):
    return x.transpose(0, 1) if module.batch_first else x


def assert_equal_parameters(a, b):
    """Equal but for recurrent biases, of which the sums count."""
    for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        if ".bias_" not in name:
            assert torch.equal(x, y), name


@pytest.mark.parametrize("weights", ["shared", "linear"])
@pytest.mark.parametrize("case", MODULES)
def test_computes_what_the_pruned_and_shared_model_computes(case, weights):
    torch.manual_seed(1)
    model = Tagger(MODULES[case]())
    x = sequences(model.rnn)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    network = compress(model, calibration=x, density=0.5, weights=weights)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())

    by_hand = copy.deepcopy(model)
    Masks.by_density(by_hand, 0.5).apply()
    if weights == "linear":
        SharedWeights(by_hand, {"first": 8, "second": 8})
        LinearWeights(by_hand, {"rnn": 12})
    else:
        SharedWeights(by_hand, 4)
    loaded = copy.deepcopy(model)
    load_into(loaded, network)
    assert_equal_parameters(loaded, by_hand)
    by_hand.double().eval()
    loaded.double().eval()
    with torch.no_grad():
        expected, again = (time_first(model.rnn, m(x.double())) for m in (by_hand, loaded))
    got = network.forward(time_first(model.rnn, x).numpy())
    # Sums of biases are rounded to float32.
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got, again, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", MODULES)
def test_a_recurrent_module_alone(case):
    torch.manual_seed(2)
    module = MODULES[case]().eval()
    x = sequences(module, 5)
    network = compress(module, calibration=x)
    load_into(module, network)
    module.double()
    with torch.no_grad():
        expected = time_first(module, module(x.double())[0])
    got = network.forward(time_first(module, x).numpy())
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(network.forward(time_first(module, x)[:, 0].numpy()),
                               expected[:, 0], rtol=1e-11, atol=1e-11)


def test_names_and_kinds_of_layers():
    model = Tagger(nn.LSTM(5, 6, num_layers=2, bidirectional=True))
    x = sequences(model.rnn)
    network = compress(model, calibration=x, weights="linear")
    assert [type(layer) for layer in network.layers] == [
        CompressedLinear, CompressedBidirectional, CompressedBidirectional, CompressedLinear]
    assert [layer.name for layer in network.layers] == ["first.0", "rnn.l0", "rnn.l1", "second"]
    assert network.layers[2].back.name == "rnn.l1_reverse"
    assert {type(m) for m in network.layers[1].back.matrices.values()} == {FixedMatrix}
    assert network.layers[1].ahead.w_hh.bits == 12
    assert network.layers[0].code_bits == 8
    model = Tagger(PeepholeLSTM(5, 6, proj_size=2))
    network = compress(model, calibration=x, code_bits=3)
    assert [layer.name for layer in network.layers] == ["first.0", "rnn", "second"]
    lstm = network.layers[1]
    assert {type(m) for m in lstm.matrices.values()} == {CompressedMatrix}
    assert {m.code_bits for m in lstm.matrices.values()} == {3}
    assert np.array_equal(lstm.peephole, model.rnn.weight_ch_l0.detach())
    assert "output" not in network.meta
    assert [layer.cell for layer in compress(nn.RNN(3, 2), calibration=x).layers] == ["rnn_tanh"]


def test_biases_are_added_up():
    x = sequences(nn.GRU(3, 2))
    for module, slots in ((nn.LSTM(3, 2), 4), (nn.RNN(3, 2), 1)):
        (layer,) = compress(module, calibration=x).layers
        assert layer.bias.shape == (2 * slots,)
        assert np.array_equal(layer.bias, (module.bias_ih_l0 + module.bias_hh_l0).detach())
    gru = nn.GRU(3, 2)
    (layer,) = compress(gru, calibration=x).layers
    first, second = (b.detach().numpy() for b in (gru.bias_ih_l0, gru.bias_hh_l0))
    assert np.array_equal(layer.bias, np.concatenate((first[:4] + second[:4], first[4:],
                                                      second[4:])))
    load_into(gru, compress(gru, calibration=x))
    assert not gru.bias_hh_l0[:4].any()
    assert np.array_equal(gru.bias_hh_l0[4:].detach(), second[4:])


def test_biases_may_be_shared():
    torch.manual_seed(0)
    (layer,) = compress(nn.LSTM(3, 20), calibration=sequences(nn.LSTM(3, 20)), bias_bits=3).layers
    assert len(np.unique(layer.bias)) <= 8
    (layer,) = compress(nn.GRU(3, 20), calibration=sequences(nn.LSTM(3, 20)), bias_bits=3).layers
    assert len(np.unique(layer.bias)) <= 16


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_last_step(batch_first):
    torch.manual_seed(3)
    model = Tagger(nn.LSTM(5, 6, batch_first=batch_first), last=True)
    x = sequences(model.rnn)
    network = compress(model, calibration=x, meta={"data": "noise", "output": "all"})
    assert network.meta == {"data": "noise", "output": "last"}
    load_into(model, network)
    with torch.no_grad():
        expected = model.double()(x.double())
    got = network.forward(time_first(model.rnn, x).numpy())
    assert got.shape == (9, 4, 4)
    np.testing.assert_allclose(got[-1], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("weights", ["shared", "linear"])
def test_a_model_quantised_in_training_passes_bit_for_bit(weights):
    torch.manual_seed(4)
    model = Tagger(PeepholeLSTM(5, 8, proj_size=4, batch_first=True))
    x = sequences(model.rnn)
    masks = Masks.by_density(model, {"rnn": 0.3})
    masks.apply()
    if weights == "linear":
        quantised = LinearWeights(model, {"rnn": 8})
        SharedWeights(model, {"first": 6, "second": 6})
    else:
        quantised = SharedWeights(model, 5)
    optimizer = torch.optim.Adam(quantised.parameters(), lr=1e-2)
    quantised.hold(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    options = {"shared": 5, "linear": {"*rnn*": 8, "first.0": 6, "second": 6}}
    network = compress(model, calibration=x, weights=weights, code_bits=options[weights])
    loaded = copy.deepcopy(model)
    load_into(loaded, network)
    assert_equal_parameters(loaded, model)
    assert network.layers[1].w_hh.nnz == round(0.3 * 8 * 4 * 4)


def test_densities_by_path_and_pattern():
    model = Tagger(nn.LSTM(5, 6, num_layers=2))
    network = compress(model, calibration=sequences(model.rnn),
                       density={"rnn": 0.5, "*.weight_hh_l1": 0.25, "second": 0.75},
                       code_bits={"*": 4, "rnn.weight_ih_l0": 2})
    _, first, second, last = network.layers
    assert [first.w_ih.nnz, first.w_hh.nnz, second.w_ih.nnz, second.w_hh.nnz, last.nnz] == [
        60, 72, 72, 36, 18]
    assert [first.w_ih.code_bits, first.w_hh.code_bits] == [2, 4]


def test_binary_points_come_from_the_sequences():
    module = nn.LSTM(2, 2, batch_first=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
    x = np.full((1, 9, 2), 20.0)
    network = compress(module, calibration=x)
    assert (network.in_frac, network.layers[0].out_frac, network.layers[0].cell_frac) == (
        10, 15, 11)
    assert compress(module, calibration=x[0, :3]).layers[0].cell_frac == 13


@pytest.mark.parametrize(("options", "text"), [
    ({"weights": "fixed"}, "weights must be one of shared, linear, not 'fixed'"),
    ({"weights": "linear", "code_bits": 17}, "'rnn.weight_ih_l0': code_bits must be 2 to 16, not"),
    ({"weights": "linear", "code_bits": {"rnn": 12, "first": 12, "second": 8}},
     "'first.0.weight': code_bits must be 1 to 8, not 12"),
    ({"code_bits": 12}, "code_bits must be 1 to 8, not 12"),
    ({"code_bits": {"rnn.weight_hh_l0": 4, "second": 4}},
     "code_bits must name every layer; missing: first.0, rnn.weight_ih_l0$"),
    ({"density": {"rnn.bias_ih_l0": 0.5}}, "density: 'rnn.bias_ih_l0.* is no matrix"),
    ({"calibration": torch.zeros(4, 9, 5)},
     r"calibration must have shape \(n, steps, 3\) or \(steps, 3\), as the model takes it, "
     r"not \(4, 9, 5\)"),
    ({"calibration": torch.zeros(0, 9, 3)}, "with one step or more"),
])
def test_wrong_options_are_named(options, text):
    model = Tagger(nn.LSTM(5, 6, batch_first=True))
    with pytest.raises(ValueError, match=text):
        compress(model, **{"calibration": sequences(model.rnn), **options})


def test_linear_weights_need_a_recurrent_layer():
    with pytest.raises(ValueError, match="weights='linear' needs a recurrent layer; the model has"):
        compress(nn.Linear(3, 2), calibration=torch.zeros(2, 3), weights="linear")


def test_another_module_is_refused_and_left_alone():
    network = compress(Tagger(nn.LSTM(5, 6)), calibration=sequences(nn.LSTM(3, 3)))
    for module, text in (
            (nn.LSTM(5, 6, num_layers=2), "the compressed model has no 'rnn.bias_hh_l1'"),
            (nn.LSTM(5, 6, bias=False), "the module has no 'rnn.bias_hh_l0'"),
            (PeepholeLSTM(5, 6), "the compressed model has no 'rnn.weight_ch_l0'"),
            (nn.LSTM(5, 7), "shape"), (nn.GRU(5, 6), "shape")):
        other = Tagger(module)
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=text):
            load_into(other, network)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
