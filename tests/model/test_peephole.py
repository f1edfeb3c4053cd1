"""PeepholeLSTM: equal to nn.LSTM without peepholes, to its equations with them, and in gradient.

Also that pruning, sharing, rounding and balancing take it as they take an ``nn.LSTM``.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from openese.model.balance import Balance, load_ratio, pe_counts
from openese.model.linear_weights import LinearWeights
from openese.model.peephole import PeepholeLSTM
from openese.model.prune import Masks, gates_of, layer_weights
from openese.model.share import SharedWeights

#: PyTorch's own remark, once a process.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

OPTIONS = [{}, {"bias": False}, {"batch_first": True}, {"proj_size": 3}, {"num_layers": 3},
           {"num_layers": 2, "proj_size": 2, "bias": False, "batch_first": True}]


def without_peepholes(lstm: PeepholeLSTM) -> nn.LSTM:
    """An nn.LSTM of the same weights, and the peepholes set to 0."""
    plain = nn.LSTM(lstm.input_size, lstm.hidden_size, lstm.num_layers, lstm.bias,
                    lstm.batch_first, proj_size=lstm.proj_size)
    state = lstm.state_dict()
    for layer in range(lstm.num_layers):
        state.pop(f"weight_ch_l{layer}")
        nn.init.zeros_(getattr(lstm, f"weight_ch_l{layer}"))
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("given", [False, True])
def test_equals_lstm_without_peepholes(options, given):
    torch.manual_seed(1)
    lstm = PeepholeLSTM(4, 5, **options)
    plain = without_peepholes(lstm)
    x = torch.randn(6, 7, 4)
    batch = 6 if lstm.batch_first else 7
    state = (torch.randn(lstm.num_layers, batch, lstm.proj_size or 5),
             torch.randn(lstm.num_layers, batch, 5))
    for got, want in zip(flat(lstm(x, state) if given else lstm(x)),
                         flat(plain(x, state) if given else plain(x)), strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "proj_size": 2}])
def test_takes_one_sequence_without_a_batch(options):
    lstm = PeepholeLSTM(4, 5, **options)
    plain = without_peepholes(lstm)
    x, state = torch.randn(6, 4), (torch.randn(1, lstm.proj_size or 5), torch.randn(1, 5))
    for got, want in zip(flat(lstm(x, state)), flat(plain(x, state)), strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def flat(result):
    output, (h, c) = result
    return output, h, c


@pytest.mark.parametrize("proj_size", [0, 2])
def test_computes_its_equations(proj_size):
    torch.manual_seed(2)
    lstm = PeepholeLSTM(3, 4, proj_size=proj_size).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
    h, c = torch.zeros(2, proj_size or 4).double(), torch.zeros(2, 4).double()
    p_i, p_f, p_o = lstm.weight_ch_l0
    outputs = []
    for now in x:
        a = now @ lstm.weight_ih_l0.T + h @ lstm.weight_hh_l0.T + bias
        a_i, a_f, a_g, a_o = a.chunk(4, dim=1)
        c_new = torch.sigmoid(a_f + p_f * c) * c + torch.sigmoid(a_i + p_i * c) * torch.tanh(a_g)
        h = torch.sigmoid(a_o + p_o * c_new) * torch.tanh(c_new)
        h = h @ lstm.weight_hr_l0.T if proj_size else h
        c = c_new
        outputs.append(h)
    output, (h_n, c_n) = lstm(x)
    torch.testing.assert_close(output, torch.stack(outputs))
    torch.testing.assert_close(h_n[0], h)
    torch.testing.assert_close(c_n[0], c)


@pytest.mark.parametrize("options", [{}, {"proj_size": 1, "num_layers": 2},
                                     {"bias": False, "batch_first": True}])
def test_gradients(options):
    torch.manual_seed(3)
    lstm = PeepholeLSTM(2, 3, **options).double()
    names = [name for name, _ in lstm.named_parameters()]
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    batch = 4 if lstm.batch_first else 2
    h = torch.randn(lstm.num_layers, batch, lstm.proj_size or 3).double().requires_grad_()
    c = torch.randn(lstm.num_layers, batch, 3).double().requires_grad_()

    def run(x, h, c, *values):
        parameters = dict(zip(names, values, strict=True))
        return flat(torch.func.functional_call(lstm, parameters, (x, (h, c))))

    assert torch.autograd.gradcheck(run, (x, h, c, *lstm.parameters()))


def test_sequence_cut_anywhere_equals_one_run():
    torch.manual_seed(4)
    lstm = PeepholeLSTM(3, 4, num_layers=2, proj_size=2)
    x = torch.randn(9, 2, 3)
    whole, state = lstm(x)
    first, middle = lstm(x[:4])
    second, end = lstm(x[4:], middle)
    torch.testing.assert_close(torch.cat((first, second)), whole)
    torch.testing.assert_close(end, state)


def test_parameters_are_those_of_lstm_and_the_peepholes():
    lstm = PeepholeLSTM(3, 16, num_layers=2, proj_size=2)
    plain = nn.LSTM(3, 16, num_layers=2, proj_size=2)
    extra = {f"weight_ch_l{k}": torch.Size((3, 16)) for k in (0, 1)}
    assert ({name: p.shape for name, p in lstm.named_parameters()}
            == {name: p.shape for name, p in plain.named_parameters()} | extra)
    assert 0 < lstm.weight_ch_l1.abs().max() <= 0.25
    other = copy.deepcopy(lstm)
    other.load_state_dict(lstm.state_dict())
    x = torch.randn(4, 1, 3)
    assert torch.equal(other(x)[0], lstm(x)[0])


def test_dropout_between_layers_only_in_training():
    torch.manual_seed(5)
    lstm = PeepholeLSTM(3, 4, num_layers=2, dropout=0.5)
    x = torch.randn(5, 2, 3)
    assert not torch.equal(lstm(x)[0], lstm(x)[0])
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])


def test_bad_arguments():
    lstm = PeepholeLSTM(3, 4)
    packed = pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 3]))
    with pytest.raises(ValueError, match="PeepholeLSTM takes no packed sequence; pad it"):
        lstm(packed)
    with pytest.raises(ValueError, match="the input must have 2 or 3 dimensions, not 4"):
        lstm(torch.zeros(1, 1, 1, 3))
    with pytest.raises(RuntimeError, match="size"):
        lstm(torch.zeros(5, 2, 2))
    with pytest.raises(RuntimeError, match="size"):
        lstm(torch.zeros(5, 2, 3), (torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)))
    with pytest.raises(TypeError, match="bidirectional"):
        PeepholeLSTM(3, 4, bidirectional=True)


def test_is_compressed_like_lstm():
    torch.manual_seed(6)
    model = nn.Sequential(PeepholeLSTM(8, 12, proj_size=6))
    names = ["0.weight_ih_l0", "0.weight_hh_l0", "0.weight_hr_l0"]
    assert list(layer_weights(model)) == names
    assert [gates_of(model, name) for name in names] == [4, 4, 1]
    masks = Masks.by_density(model, 0.25, balance=Balance(4))
    masks.apply()
    assert load_ratio(pe_counts(model[0].weight_ih_l0, Balance(4, group=4))) == 1
    peephole = model[0].weight_ch_l0.detach().clone()
    linear = LinearWeights(copy.deepcopy(model), 12)
    shared = SharedWeights(model, 4)
    assert shared.names == linear.names == names
    optimizer = torch.optim.Adam(shared.parameters(), lr=1e-2)
    shared.hold(optimizer)
    zeros = model[0].weight_hh_l0 == 0
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 2, 8))[0].square().mean().backward()
        optimizer.step()
    assert torch.equal(model[0].weight_hh_l0 == 0, zeros)
    assert len(torch.unique(model[0].weight_hh_l0)) <= 16
    assert (model[0].weight_ch_l0 != peephole).any()
