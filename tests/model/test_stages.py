"""How networks with bidirectional layers are cut into runs, and which binary points these get."""

import numpy as np

from openese.model.network import CompressedBidirectional, CompressedNetwork
from openese.model.random_network import RandomLayer, random_recurrent
from openese.model.stages import Stage, split_stages


def layer(seed: int, in_features: int, cell: str, size: int):
    return random_recurrent(seed, in_features, [RandomLayer(cell=cell, size=size)]).layers[0]


def both(seed: int, in_features: int, cell: str, size: int) -> CompressedBidirectional:
    parts = [layer(seed + k, in_features, cell, size) for k in (0, 1)]
    parts[1].out_frac = parts[0].out_frac
    return CompressedBidirectional(*parts)


def test_a_network_of_one_direction_is_one_run():
    network = random_recurrent(1, 4, [RandomLayer(cell="gru", size=3),
                                      RandomLayer(cell="linear", size=2)])
    stage, = split_stages(network)
    run, = stage.networks
    assert run.layers == network.layers
    assert (run.in_frac, run.act_bits) == (network.in_frac, network.act_bits)


def test_binary_points_are_handed_on():
    layers = [layer(1, 5, "linear", 4), both(2, 4, "rnn_relu", 3), both(4, 6, "lstm", 2),
              layer(6, 4, "gru", 3), layer(7, 3, "linear", 2)]
    stages = split_stages(CompressedNetwork(layers, 11))
    assert [[len(run.layers) for run in stage.networks] for stage in stages] == [
        [1], [1, 1], [1, 1], [2]]
    before = 11
    for stage in stages:
        assert {run.in_frac for run in stage.networks} == {before}
        before = stage.networks[0].layers[-1].out_frac
    moved = stages[1].with_in_frac(3)
    assert [run.in_frac for run in moved.networks] == [3, 3]
    assert [run.layers for run in moved.networks] == [run.layers for run in stages[1].networks]


def test_a_network_may_start_with_both_directions():
    stages = split_stages(CompressedNetwork([both(2, 4, "gru", 3)], 9))
    assert [[run.in_frac for run in stage.networks] for stage in stages] == [[9, 9]]


def test_consecutive_bidirectional_layers_compute_what_the_network_does():
    network = CompressedNetwork([both(2, 4, "rnn_relu", 3), both(4, 6, "lstm", 2)], 12)
    x = np.random.default_rng(0).uniform(-4, 4, (8, 2, 4))
    y = x
    for stage in split_stages(network):
        y = stage.joined([run.forward(stage.directed(k, y))
                          for k, run in enumerate(stage.networks)])
    assert np.allclose(y, network.forward(x), rtol=0, atol=1e-12)


def test_the_second_run_goes_backwards_and_its_outputs_are_turned_round():
    stage = Stage(tuple(split_stages(CompressedNetwork([both(2, 4, "gru", 3)], 9))[0].networks))
    steps = np.arange(6).reshape(3, 2)
    assert stage.directed(0, steps).tolist() == steps.tolist()
    assert stage.directed(1, steps).tolist() == [[4, 5], [2, 3], [0, 1]]
    assert stage.joined([steps, steps]).tolist() == [[0, 1, 4, 5], [2, 3, 2, 3], [4, 5, 0, 1]]
