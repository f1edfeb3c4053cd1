"""Cycle model of recurrent programs: every output in the cycle in which the RTL gives it.

Feed-forward networks are compared in ``tests/integration/test_engine.py``.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openese.hdl.engine import Engine
from openese.model import host
from openese.model.compile import compile_network, size_for
from openese.model.network import CompressedNetwork
from openese.model.quantise import quantise
from openese.model.random_network import (
    RandomLayer,
    random_inputs,
    random_network,
    random_recurrent,
)
from openese.model.reference import run_reference
from openese.sim.cycle_model import predict_cycles
from openese.sim.simulation import Simulation
from openese.sim.streams import pack


def predicted(network: CompressedNetwork, inputs, n_pes: int, *, active=None, **overrides):
    """The prediction, the reference and the image of a network on an engine of this size."""
    config = size_for(network, n_pes, **overrides)
    quantised = quantise(network, config)
    image = compile_network(quantised, config)
    reference = run_reference(quantised, inputs, active=active)
    return predict_cycles(image, reference), reference, image


def check(network: CompressedNetwork, inputs, n_pes: int, *, active=None, **overrides) -> None:
    """Compare with the RTL: outputs, and cycles in which only the element-wise unit works."""
    prediction, _, image = predicted(network, inputs, n_pes, active=active, **overrides)
    engine = Engine(image.config, image)
    beats = pack(engine.i_act.payload.shape(), host.pack_inputs(inputs, image.config, active))
    with Simulation(engine) as simulation:
        result = simulation.run({"i_act": beats}, {"o_act": prediction.outputs.size})
        answer = simulation.run({"i_host": host.read(host.Register.EXPOSED)}, {"o_host": 1})
    assert np.array_equal(result.times["o_act"], prediction.outputs.ravel())
    # The unit is busy for one more cycle when it has given its last output.
    assert int(answer.outputs["o_host"][0]) - int(prediction.exposed.sum()) in (0, 1)


STACKS = {
    "lstm": [RandomLayer(cell="lstm", size=13)],
    "projected": [RandomLayer(cell="lstm", size=14, proj=5, peepholes=True)],
    "gru": [RandomLayer(cell="gru", size=9)],
    "rnn": [RandomLayer(cell="rnn_tanh", size=11), RandomLayer(cell="rnn_relu", size=6)],
    "mixed": [RandomLayer(cell="linear", size=12, relu=True), RandomLayer(cell="gru", size=10),
              RandomLayer(cell="lstm", size=9, proj=4), RandomLayer(cell="linear", size=5)],
    "last_linear": [RandomLayer(cell="lstm", size=10), RandomLayer(cell="linear", size=7)],
}


@pytest.mark.parametrize(("stack", "n_pes", "options"), [
    ("lstm", 1, {}),
    ("lstm", 5, {"queue_depth": 1}),
    ("projected", 3, {"queue_depth": 2, "pointers": False}),
    ("projected", 8, {"input_lanes": 4}),
    ("gru", 4, {"queue_depth": 1, "pointers": False}),
    ("rnn", 3, {"queue_depth": 16}),
    ("mixed", 4, {"input_lanes": 2}),
    ("mixed", 1, {"queue_depth": 2, "pointers": False}),
    ("last_linear", 3, {"queue_depth": 1}),
    ("lstm", 5, {"queue_depth": 1, "serial_cells": True}),
    ("projected", 3, {"queue_depth": 2, "pointers": False, "serial_cells": True}),
    ("gru", 1, {"serial_cells": True}),
    ("mixed", 4, {"input_lanes": 2, "serial_cells": True}),
])
def test_every_output_of_recurrent_networks(stack, n_pes, options):
    network = random_recurrent(n_pes, 10, STACKS[stack])
    check(network, random_inputs(n_pes, network, 4, 0.7), n_pes, **options)


def test_trees_of_two_levels_and_direct_weights():
    network = random_recurrent(9, 10, STACKS["projected"], fixed_bits=12)
    check(network, random_inputs(9, network, 3, 0.7), 9, queue_depth=2)


@pytest.mark.parametrize("pointers", [True, False])
def test_channels_and_steps_that_some_of_them_lack(pointers):
    network = random_recurrent(5, 6, STACKS["last_linear"])
    inputs = random_inputs(5, network, (4, 2), 0.3)
    active = np.array([[1, 1], [0, 1], [0, 0], [1, 0]], dtype=bool)
    check(network, inputs, 3, channels=2, active=active, pointers=pointers)


def test_dense_columns_of_a_feed_forward_network():
    network = random_network(4, [23, 18, 7], 0.3)
    check(network, random_inputs(4, network, 3, 0.5), 3, pointers=False, queue_depth=2)


@st.composite
def engines(draw):
    seed, n_pes = draw(st.integers(0, 2**16)), draw(st.integers(1, 6))
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        cell = draw(st.sampled_from(["rnn_tanh", "rnn_relu", "gru", "lstm", "linear"]))
        size = draw(st.integers(2, 12))
        layers.append(RandomLayer(
            cell=cell, size=size, density=draw(st.sampled_from([0.05, 0.3, 0.9])),
            proj=draw(st.integers(0, size - 1)) if cell == "lstm" else 0))
    network = random_recurrent(seed, draw(st.integers(1, 16)), layers)
    inputs = random_inputs(seed, network, draw(st.integers(1, 4)),
                           draw(st.sampled_from([0.0, 0.3, 1.0])))
    lanes = draw(st.sampled_from([k for k in range(1, n_pes + 1) if n_pes % k == 0]))
    return network, inputs, n_pes, {
        "queue_depth": draw(st.integers(1, 9)), "input_lanes": lanes,
        "pointers": draw(st.booleans()), "serial_cells": draw(st.booleans())}


@settings(max_examples=5, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(engines())
def test_any_recurrent_engine(engine):
    network, inputs, n_pes, options = engine
    check(network, inputs, n_pes, **options)


@pytest.mark.parametrize("options", [{}, {"pointers": False}, {"serial_cells": True}], ids=str)
def test_linear_networks_on_recurrent_engines(options):
    """Their layers go through the element-wise unit, each when the one before has settled."""
    check(random_network(6, [30, 21, 17, 8], 0.3), random_inputs(6, random_network(6, [30, 8]), 5),
          5, state_depth=4, **options)


@pytest.mark.parametrize("pointers", [True, False])
def test_columns_and_entries_are_those_of_the_step(pointers):
    network = random_recurrent(8, 12, STACKS["mixed"])
    inputs = random_inputs(8, network, 5, 0.4)
    prediction, reference, image = predicted(network, inputs, 4, pointers=pointers)
    assert len(prediction.layers) == 5
    for step, layers in enumerate(prediction.layers):
        assert [one.name for one in layers] == [table.name for table in image.layers]
        for number, (one, table) in enumerate(zip(layers, image.layers, strict=True)):
            if pointers:
                assert one.useful == reference.multiplies[number][step]
                assert one.columns == reference.nonzero[number][step]
            else:
                assert (one.entries, one.fillers) == (table.lengths.sum(), table.fillers.sum())
                assert one.columns == table.in_features
            assert 0 < one.matrix_cycles <= one.cycles


def test_cycles_of_a_step_settle_and_stalls_are_counted():
    network = random_recurrent(3, 30, [RandomLayer(cell="lstm", size=64, density=0.5)])
    inputs = random_inputs(3, network, 6, 1.0)
    shallow, _, _ = predicted(network, inputs, 4, queue_depth=1)
    deep, _, _ = predicted(network, inputs, 4, queue_depth=128)
    w_hh = [layers[1] for layers in shallow.layers]
    assert all(one.stalls > 0 for one in w_hh[1:])
    assert sum(one.stalls for layers in deep.layers for one in layers) == 0
    # A step takes its entries in the slowest PE, and what the matrices leave uncovered.
    entries = sum(one.entries for one in shallow.layers[3]) / 4
    assert entries < shallow.cycles[3] < 1.5 * entries + 200
    assert deep.cycles[3] <= shallow.cycles[3]
    assert (np.diff(shallow.starts) > 0).all()
    assert (shallow.exposed <= shallow.cycles).all()
