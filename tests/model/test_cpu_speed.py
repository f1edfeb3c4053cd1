"""What is timed on the CPU computes what the layer computes, in every way and with any threads."""

import numpy as np
import pytest
import torch

from openese.model.cpu_speed import cpu_times
from openese.model.random_network import RandomLayer, random_network, random_recurrent

WAYS = [("pytorch dense", 1), ("pytorch dense", 2), ("pytorch csr", 1), ("pytorch csr", 2),
        ("scipy csr", 1)]


def times(layer, **options):
    x = np.random.default_rng(1).uniform(-1, 1, layer.in_features)
    return cpu_times(layer, x, threads=(1, 2), seconds=0, runs=3, **options)


@pytest.mark.parametrize("layer", [
    random_network(1, [40, 30], 0.2).layers[0],
    random_recurrent(1, 12, [RandomLayer(cell="lstm", size=20)]).layers[0],
    random_recurrent(1, 12, [RandomLayer(cell="lstm", size=20, proj=7, peepholes=True,
                                         bias=False)], fixed_bits=12).layers[0],
], ids=["linear", "lstm", "projection and peepholes"])
def test_results_are_the_layers(layer):
    threads = torch.get_num_threads()
    found = times(layer)
    assert [(way["name"], way["threads"]) for way in found] == WAYS
    for way in found:
        assert way["error"] < 1e-5
        assert way["us"] > 0
        assert way["runs"] == 3
    assert torch.get_num_threads() == threads


def test_a_wrong_result_would_show():
    layer = random_network(1, [40, 30], 0.2).layers[0]
    dense = layer.dense()
    layer.dense = lambda: dense if (calls := next(count)) == 0 else dense * (1 + calls / 100)
    count = iter(range(9))
    assert [way["error"] > 1e-3 for way in times(layer)] == [True] * len(WAYS)


def test_other_cells():
    layer = random_recurrent(1, 12, [RandomLayer(cell="gru", size=20)]).layers[0]
    with pytest.raises(ValueError, match=r"^layer 'layers\.0': only linear layers and LSTMs can be "
                       r"timed, not gru$"):
        times(layer)
