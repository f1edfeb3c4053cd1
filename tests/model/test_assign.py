"""Reordered units: the same outputs, in float and in integers, and evener PEs."""

import numpy as np
import pytest

from openese.model.assign import assign_units
from openese.model.compile import compile_network, size_for
from openese.model.network import CompressedBidirectional, CompressedNetwork
from openese.model.quantise import quantise
from openese.model.random_network import (
    RandomLayer,
    random_inputs,
    random_network,
    random_recurrent,
)
from openese.model.reference import run_reference

STACK = [RandomLayer(cell="lstm", size=40, proj=17, peepholes=True, density=0.1),
         RandomLayer(cell="gru", size=23), RandomLayer(cell="linear", size=19, relu=True),
         RandomLayer(cell="lstm", size=30, density=0.1), RandomLayer(cell="rnn_relu", size=21),
         RandomLayer(cell="lstm", size=26, proj=11)]


@pytest.mark.parametrize("fixed_bits", [None, 12])
@pytest.mark.parametrize("n_pes", [1, 4, 7, 64])
def test_outputs_are_the_same(n_pes, fixed_bits):
    network = random_recurrent(1, 9, STACK, fixed_bits=fixed_bits)
    moved = assign_units(network, n_pes)
    x = np.random.default_rng(0).uniform(-4, 4, (12, 9))
    assert np.allclose(network.forward(x), moved.forward(x), rtol=1e-9, atol=1e-9)
    config = size_for(network, 1)
    raw = random_inputs(1, network, 12)
    before, after = (run_reference(quantise(each, config), raw) for each in (network, moved))
    assert np.array_equal(before.outputs, after.outputs)
    assert before.saturations == after.saturations
    assert [count.tolist() for count in before.multiplies] == [
        count.tolist() for count in after.multiplies]


def test_pes_get_equally_much_to_do():
    network = random_network(3, [60, 256, 10], 0.1)
    counts = {}
    for name, each in (("plain", network), ("assigned", assign_units(network, 16))):
        config = size_for(each, 16, entry_bits=12)
        image = compile_network(quantise(each, config), config)
        counts[name] = image.layers[0].lengths.sum(axis=1)
    assert counts["plain"].sum() == counts["assigned"].sum()
    assert counts["assigned"].max() <= 1.02 * counts["assigned"].mean()
    assert counts["plain"].max() > 1.1 * counts["plain"].mean()


def test_bidirectional_layers_and_their_inputs_stay_as_they_are():
    both = CompressedBidirectional(*(random_recurrent(
        k, 6, [RandomLayer(cell="gru", size=8)]).layers[0] for k in (1, 2)))
    first = random_recurrent(3, 5, [RandomLayer(cell="linear", size=6)]).layers[0]
    network = CompressedNetwork([first, both], 12)
    assert assign_units(network, 2).layers == network.layers


def test_the_number_of_pes_is_checked():
    network = random_network(3, [6, 5], 0.5)
    with pytest.raises(ValueError, match=r"^n_pes must be an integer from 1 to 256, not 0$"):
        assign_units(network, 0)
