"""Random networks and inputs: repeatable, and as the arguments ask."""

import numpy as np

from openese.model.config import EngineConfig
from openese.model.quantise import quantise
from openese.model.random_network import (
    RandomLayer,
    random_inputs,
    random_network,
    random_recurrent,
)
from openese.model.reference import run_reference


def test_equal_seeds_give_equal_networks_and_inputs():
    a, b = (random_network(3, [20, 30, 10], 0.3) for _ in range(2))
    other = random_network(4, [20, 30, 10], 0.3)
    for left, right, different in zip(a.layers, b.layers, other.layers, strict=True):
        assert left.dense().tolist() == right.dense().tolist()
        assert left.bias.tolist() == right.bias.tolist()
        assert left.dense().tolist() != different.dense().tolist()
    assert random_inputs(1, a, 5).tolist() == random_inputs(1, b, 5).tolist()


def test_one_value_per_layer_or_one_for_all():
    network = random_network(1, [50, 60, 40], [0.0, 1.0], [2, 4], relu=[False, True],
                             bias=[True, False])
    first, second = network.layers
    assert (first.density, second.density) == (0, 1)
    assert (first.code_bits, second.code_bits) == (2, 4)
    assert (first.relu, second.relu) == (False, True)
    assert first.bias is not None
    assert second.bias is None
    assert [layer.relu for layer in random_network(1, [5, 5, 5, 5]).layers] == [True, True, False]


def test_inputs_have_the_density_and_both_ends():
    network = random_network(1, [1000, 2])
    inputs = random_inputs(1, network, 20, 0.3)
    assert abs(np.count_nonzero(inputs) / inputs.size - 0.3) < 0.02
    assert (inputs.min(), inputs.max()) == (-32768, 32767)
    assert random_inputs(1, network, 5, 1.0).all()
    assert not random_inputs(1, network, 5, 0.0).any()
    assert random_inputs(1, network, 5, negative=False).min() == 0


def test_negative_headroom_saturates():
    config = EngineConfig(n_pes=1, bias_bits=24)
    saturations = []
    for headroom in (3, -3):
        network = random_network(2, [40, 30], 0.5, headroom=headroom, relu=False)
        inputs = random_inputs(2, network, 20)
        saturations.append(run_reference(quantise(network, config), inputs).saturations)
    assert saturations[0] == 0 < saturations[1]


LAYERS = [RandomLayer(cell="lstm", size=20, proj=8, peepholes=True),
          RandomLayer(cell="gru", size=9),
          RandomLayer(cell="rnn_relu", size=6, bias=False), RandomLayer(cell="linear", size=4)]


def test_recurrent_networks_are_as_asked():
    a, b = (random_recurrent(5, 7, LAYERS) for _ in range(2))
    lstm, gru, rnn, linear = a.layers
    assert (lstm.cell, lstm.hidden_size, lstm.out_features) == ("lstm", 20, 8)
    assert lstm.peephole is not None
    assert (gru.cell, gru.slots, gru.out_frac) == ("gru", 4, 15)
    assert rnn.bias is None
    assert (linear.out_features, linear.relu) == (4, False)
    for left, right in zip(lstm.matrices.values(), b.layers[0].matrices.values(), strict=True):
        assert left.dense().tolist() == right.dense().tolist()
        assert left.code_bits == 4
    fixed = random_recurrent(5, 7, LAYERS, fixed_bits=12)
    assert fixed.layers[0].w_ih.bits == 12
    assert random_inputs(1, a, (5, 3)).shape == (5, 3, 7)


def test_cells_work_in_their_interesting_range():
    network = random_recurrent(6, 7, [RandomLayer(cell="lstm", size=40, peepholes=True)])
    layer, = network.layers
    x = random_inputs(6, network, (100, 4)) / 2.0 ** network.in_frac
    y, (_, c) = layer.forward(x)
    assert 0.1 < y.std() < 0.8
    assert 0.2 < c.std() < 8
    assert 8 <= layer.cell_frac <= 15
