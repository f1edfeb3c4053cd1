"""The reference of recurrent networks: close to PyTorch, exact in how sequences are cut."""

import numpy as np
import pytest
import torch
from torch import nn

from openese.model.compile import size_for
from openese.model.compress import compress
from openese.model.network import CompressedBidirectional, CompressedNetwork
from openese.model.peephole import PeepholeLSTM
from openese.model.quantise import ModelError, quantise
from openese.model.random_network import RandomLayer, random_inputs, random_recurrent
from openese.model.reference import output_snr_db, run_reference, zero_state
from openese.model.stages import split_stages

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")

CELLS = {
    "tanh": lambda: nn.RNN(9, 20),
    "relu": lambda: nn.RNN(9, 20, nonlinearity="relu"),
    "gru": lambda: nn.GRU(9, 20),
    "lstm": lambda: nn.LSTM(9, 20),
    "lstm without bias": lambda: nn.LSTM(9, 20, bias=False),
    "projection": lambda: nn.LSTM(9, 20, proj_size=8),
    "peepholes": lambda: PeepholeLSTM(9, 20, proj_size=8),
    "two layers": lambda: nn.GRU(9, 20, num_layers=2),
}


class Tagger(nn.Module):
    def __init__(self, cell: nn.Module, features: int):
        super().__init__()
        self.cell, self.out = cell, nn.Linear(features, 5)

    def forward(self, x):
        y, _ = self.cell(x)
        return self.out(y)


@pytest.mark.parametrize("weights", ["shared", "linear"])
@pytest.mark.parametrize("name", CELLS)
def test_long_sequences_stay_close_to_pytorch(name, weights):
    torch.manual_seed(1)
    cell = CELLS[name]()
    model = Tagger(cell, getattr(cell, "proj_size", 0) or 20).eval()
    x = torch.randn(200, 6, 9)
    network = compress(model, calibration=x, density=0.5, weights=weights)
    quantised = quantise(network, size_for(network, 1, channels=6))
    raw, clipped = quantised.quantise_input(x.numpy())
    assert clipped == 0
    result = run_reference(quantised, raw)
    expected = network.forward(x.numpy())
    assert output_snr_db(expected, quantised.dequantise_output(result.outputs)) > 40


def stack():
    return random_recurrent(2, 7, [
        RandomLayer(cell="lstm", size=9, proj=5, peepholes=True), RandomLayer(cell="gru", size=8),
        RandomLayer(cell="linear", size=6), RandomLayer(cell="rnn_tanh", size=4)])


def test_a_sequence_cut_anywhere_equals_one_run():
    network = stack()
    quantised = quantise(network, size_for(network, 1, channels=2))
    raw = random_inputs(1, network, (11, 2))
    whole = run_reference(quantised, raw)
    for cut in range(12):
        first = run_reference(quantised, raw[:cut])
        second = run_reference(quantised, raw[cut:], state=first.state)
        assert np.array_equal(np.concatenate([first.outputs, second.outputs]), whole.outputs)
        for one, other in zip(second.state, whole.state, strict=True):
            assert np.array_equal(one.h, other.h)
            assert (one.c is None) == (other.c is None)
            assert one.c is None or np.array_equal(one.c, other.c)


def test_channels_are_independent_and_idle_ones_keep_their_state():
    network = stack()
    quantised = quantise(network, size_for(network, 1, channels=3))
    raw = random_inputs(1, network, (9, 3))
    active = np.random.default_rng(3).random((9, 3)) < 0.6
    together = run_reference(quantised, raw, active=active)
    for c in range(3):
        alone = run_reference(quantised, raw[active[:, c], c])
        assert np.array_equal(together.outputs[active[:, c], c], alone.outputs)


def test_wrong_states_and_channels_are_refused():
    network = stack()
    quantised = quantise(network, size_for(network, 1, channels=2))
    raw = random_inputs(1, network, (3, 2))
    with pytest.raises(ValueError, match=r"^active must have shape \(3, 2\), not \(3,\)$"):
        run_reference(quantised, raw, active=np.ones(3, bool))
    with pytest.raises(ValueError, match=r"^the state's \(h, c\) must have the shapes "):
        run_reference(quantised, raw, state=zero_state(quantised, 1))


def test_what_cannot_be_quantised_is_refused():
    shared, fixed = stack(), random_recurrent(1, 4, [RandomLayer(cell="lstm", size=3)],
                                              fixed_bits=12)
    config = size_for(shared, 1)
    with pytest.raises(ModelError, match=r"is recurrent, the engine has no element-wise unit"):
        quantise(shared, config.with_(state_depth=0, peephole_depth=0))
    with pytest.raises(ModelError, match=r"has fixed-point weights of 12 bits, the engine "
                                         r"codebooks: use an engine with direct_weights"):
        quantise(fixed, config)
    with pytest.raises(ModelError, match=r"fixed-point weights of 12 bits, the engine takes "
                                         r"code_bits 8"):
        quantise(fixed, size_for(fixed, 1).with_(code_bits=8, min_code_bits=8))
    both = CompressedBidirectional(*(random_recurrent(
        k, 4, [RandomLayer(cell="gru", size=3)]).layers[0] for k in (1, 2)))
    with pytest.raises(ModelError, match=r"is bidirectional, which takes two runs"):
        quantise(CompressedNetwork([both], 12), config)


def test_stages_compute_what_the_network_does():
    both = CompressedBidirectional(*(random_recurrent(
        k, 4, [RandomLayer(cell="gru", size=3)]).layers[0] for k in (1, 2)))
    before = random_recurrent(3, 5, [RandomLayer(cell="linear", size=4)]).layers[0]
    after = random_recurrent(4, 6, [RandomLayer(cell="rnn_tanh", size=2)]).layers[0]
    network = CompressedNetwork([before, both, after], 12)
    x = np.random.default_rng(0).uniform(-4, 4, (8, 5))
    y = x
    stages = split_stages(network)
    assert [len(stage.networks) for stage in stages] == [1, 2, 1]
    for stage in stages:
        y = stage.joined([part.forward(stage.directed(run, y))
                          for run, part in enumerate(stage.networks)])
    assert np.allclose(y, network.forward(x))
