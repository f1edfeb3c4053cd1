"""Recurrent networks on the engine's RTL: every output, hidden state and cell state equals the
integer reference, for all cells and options, one engine running one network after the other.
"""

from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import openese
from openese.hdl.engine import Engine
from openese.hdl.layouts import act_signature
from openese.model import host
from openese.model.compile import compile_network, size_for
from openese.model.config import PRESETS, EngineConfig
from openese.model.network import CompressedBidirectional, CompressedNetwork
from openese.model.quantise import quantise
from openese.model.random_network import RandomLayer, random_inputs, random_recurrent
from openese.model.reference import run_reference, zero_state
from openese.sim.simulate import run_engine, run_simulation, simulate
from openese.sim.simulation import Simulation
from openese.sim.streams import pack, random_stalls

CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")


def layer(cell: str, size: int, **options) -> RandomLayer:
    return RandomLayer(cell=cell, size=size, **options)


#: Every cell and option alone, then stacks in which each kind of layer follows each other kind.
STACKS = {
    **{cell: [layer(cell, 21)] for cell in CELLS},
    **{f"{cell} without bias": [layer(cell, 13, bias=False)] for cell in CELLS},
    "projection": [layer("lstm", 22, proj=9)],
    "peepholes": [layer("lstm", 17, peepholes=True)],
    "projection and peepholes": [layer("lstm", 19, proj=11, peepholes=True)],
    "one unit": [layer("lstm", 1), layer("gru", 1), layer("rnn_tanh", 1)],
    "two lstm": [layer("lstm", 15, peepholes=True), layer("lstm", 12, proj=5)],
    "three kinds": [layer("gru", 14), layer("rnn_relu", 11), layer("lstm", 9, proj=4)],
    "classifier": [layer("lstm", 16, proj=8, peepholes=True), layer("linear", 10)],
    "linear first": [layer("linear", 18, relu=True), layer("gru", 12), layer("linear", 7)],
    "linear between": [layer("rnn_tanh", 10), layer("linear", 13, relu=True), layer("lstm", 8),
                       layer("linear", 6), layer("linear", 3)],
    "twice linear first": [layer("linear", 9), layer("linear", 12), layer("lstm", 10, proj=6)],
    "no recurrence": [layer("linear", 20, relu=True), layer("linear", 5)],
}

#: PEs, channels and further fields of engines; each runs all stacks.
ENGINES = {
    "1 PE": (1, 1, {}),
    "3 PEs, 2 channels": (3, 2, {"queue_depth": 2, "input_lanes": 3}),
    "8 PEs, no pointers": (8, 1, {"pointers": False, "input_lanes": 2}),
    # Markers of two parts, and beats whose lanes are no power of two.
    "6 PEs, no pointers, 3 lanes": (6, 1, {
        "pointers": False, "input_lanes": 3, "queue_depth": 2}),
    "8 PEs, 5 channels, direct": (8, 5, {"direct_weights": True, "queue_depth": 1}),
    "32 PEs, direct, no pointers": (32, 1, {"direct_weights": True, "pointers": False}),
    "64 PEs": (64, 1, {"input_lanes": 4}),
    "4 PEs, serial cells": (4, 1, {"serial_cells": True}),
    "10 PEs, serial cells, no pointers, direct": (10, 1, {
        "serial_cells": True, "pointers": False, "direct_weights": True, "input_lanes": 5}),
}


def network_of(name: str, direct: bool, act_bits: int = 16) -> CompressedNetwork:
    return random_recurrent(sorted(STACKS).index(name), 12, STACKS[name],
                            fixed_bits=12 if direct else None, in_frac=act_bits - 4,
                            act_bits=act_bits)


def one_engine(networks: list[CompressedNetwork], n_pes: int, channels: int,
               **fields) -> EngineConfig:
    """The smallest engine that all of the networks fit."""
    sizes = [size_for(network, n_pes, channels=channels, state_depth=64, **fields)
             for network in networks]
    depths = ("spmat_depth", "ptr_depth", "bias_depth", "act_depth", "acc_depth", "codebooks",
              "program_depth", "peephole_depth")
    return sizes[0].with_(
        acc_bits=36, shift_bits=4,
        **{name: max(getattr(size, name) for size in sizes) for name in depths})


@contextmanager
def engine(config: EngineConfig, backend: str = "cxxrtl"):
    with Simulation(Engine(config), backend=backend) as simulation:
        yield simulation


def check(simulation, network, config, steps, *, seed=0, active=None, state=None, stalls=None):
    quantised = quantise(network, config)
    image = compile_network(quantised, config)
    shape = steps if config.channels == 1 else (steps, config.channels)
    raw = random_inputs(seed, network, shape, 0.8)
    reference = run_reference(quantised, raw, active=active, state=state)
    report = run_simulation(simulation, image, raw, reference, stalls=stalls, active=active,
                            state=state)
    assert report.mismatches == 0, report.first_mismatch
    assert report.outputs == reference.outputs.size
    return reference


@pytest.mark.parametrize("name", ENGINES)
def test_every_cell_and_option_on_one_engine_without_reset(name):
    n_pes, channels, fields = ENGINES[name]
    fields = {"acc_bits": 36, "shift_bits": 4} | fields
    direct = fields.get("direct_weights", False)
    networks = {stack: network_of(stack, direct, fields.get("act_bits", 16)) for stack in STACKS}
    config = one_engine(list(networks.values()), n_pes, channels, **fields)
    rng = np.random.default_rng(1)
    # Of several channels many steps take longer than Verilator's detour through Verilog.
    with engine(config, "verilator" if channels > 1 else "cxxrtl") as simulation:
        for number, (stack, network) in enumerate(networks.items()):
            steps = (1, 7, 12)[number % 3]
            stalls = {"i_act": random_stalls(number, 0.5, 200),
                      "o_act": random_stalls(number + 1, 0.5, 200)} if number % 2 else None
            active = rng.random((steps, channels)) < 0.7 if channels > 1 else None
            if stack == "no recurrence":
                active = None
            check(simulation, network, config, steps, seed=number, active=active, stalls=stalls)
            if n_pes == 8 and stack in (*CELLS, "projection and peepholes"):
                check(simulation, network, config, 300, seed=number)


@st.composite
def layers(draw) -> RandomLayer:
    cell, size = draw(st.sampled_from((*CELLS, "linear"))), draw(st.integers(1, 9))
    lstm = cell == "lstm"
    return layer(cell, size, proj=draw(st.integers(0, size - 1)) if lstm else 0,
                 peepholes=lstm and draw(st.booleans()), bias=draw(st.booleans()),
                 relu=cell == "linear" and draw(st.booleans()),
                 density=draw(st.sampled_from([0.05, 0.3, 1.0])))


SETTINGS = settings(deadline=None, max_examples=20, derandomize=True,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
RANDOM = given(
    stack=st.lists(layers(), min_size=1, max_size=3), n_pes=st.integers(1, 6),
    channels=st.sampled_from([1, 1, 2, 3]), steps=st.integers(1, 4), pointers=st.booleans(),
    direct=st.booleans(), queue_depth=st.sampled_from([1, 3, 8]),
    stall=st.sampled_from([0.0, 0.5]), given_state=st.booleans(), seed=st.integers(0, 99),
    serial=st.booleans())


def check_on_an_engine(stack, n_pes, channels, steps, pointers, direct, queue_depth, stall,
                       given_state, seed, serial):
    network = random_recurrent(seed, 5, stack, fixed_bits=12 if direct else None)
    fields = {"direct_weights": direct, "serial_cells": serial and channels == 1}
    fields |= {} if network.recurrent else {"state_depth": 0}
    config = size_for(network, n_pes, channels=channels, pointers=pointers,
                      queue_depth=queue_depth, **fields)
    quantised = quantise(network, config)
    rng = np.random.default_rng(seed)
    state = None
    if given_state and network.recurrent:
        state = zero_state(quantised, channels)
        for part in state:
            part.h[:] = rng.integers(-32768, 32768, part.h.shape)
            if part.c is not None:
                part.c[:] = rng.integers(-32768, 32768, part.c.shape)
    active = rng.random((steps, channels)) < 0.7 if channels > 1 and network.recurrent else None
    raw = random_inputs(seed, network, steps if channels == 1 else (steps, channels))
    reference = run_reference(quantised, raw, state=state, active=active)
    report = run_engine(
        compile_network(quantised, config), raw, reference, backend="amaranth", state=state,
        active=active, stalls={port: random_stalls(seed, stall) for port in ("i_act", "o_act")})
    assert report.mismatches == 0, report.first_mismatch


@settings(SETTINGS, max_examples=5)
@RANDOM
def test_some_networks_on_random_engines(**drawn):
    check_on_an_engine(**drawn)


@pytest.mark.slow
@SETTINGS
@RANDOM
def test_random_networks_on_random_engines(**drawn):
    check_on_an_engine(**drawn)


@pytest.mark.slow
def test_a_sequence_cut_anywhere_with_its_state_carried_read_back_and_restored():
    network = random_recurrent(3, 9, [layer("lstm", 13, proj=7, peepholes=True), layer("gru", 10),
                                      layer("lstm", 6)])
    config = size_for(network, 4, channels=2)
    quantised = quantise(network, config)
    image = compile_network(quantised, config)
    raw = random_inputs(5, network, (10, 2))
    whole = run_reference(quantised, raw)
    with engine(config) as simulation:
        for cut in (1, 4, 9):
            first = run_reference(quantised, raw[:cut])
            assert run_simulation(simulation, image, raw[:cut], first).mismatches == 0
            # Another sequence in between; then the state that was read back is put there again.
            other = run_reference(quantised, raw[::-1])
            assert run_simulation(simulation, image, raw[::-1], other).mismatches == 0
            second = run_reference(quantised, raw[cut:], state=first.state)
            assert np.array_equal(np.concatenate([first.outputs, second.outputs]), whole.outputs)
            report = run_simulation(simulation, image, raw[cut:], second, state=first.state)
            assert report.mismatches == 0, cut


def test_state_is_carried_over_a_stop_and_a_routine_in_the_middle():
    network = random_recurrent(4, 8, [layer("gru", 11)])
    config = size_for(network, 3)
    quantised = quantise(network, config)
    image = compile_network(quantised, config)
    raw = random_inputs(6, network, 9)
    whole = run_reference(quantised, raw)
    with Simulation(Engine(config, image), backend="amaranth") as simulation:
        got = []
        for part in np.split(raw, 3):
            beats = pack(act_signature(config).members["payload"].shape,
                         host.pack_inputs(part, config))
            result = simulation.run({"i_act": beats},
                                    {"o_act": len(part) * network.out_features})
            got.append(result.values("o_act")["data"])
            state = host.dumped(image, run_reference(quantised, raw[:len(got) * 3]).state)
            dump = simulation.run(
                {"i_host": np.concatenate([host.stop(), host.call(image.dump), host.start()])},
                {"o_act": len(state)})
            assert np.array_equal(dump.values("o_act")["data"], state)
    assert np.array_equal(np.concatenate(got).reshape(whole.outputs.shape), whole.outputs)


def test_an_idle_channel_keeps_its_state_and_disturbs_no_other():
    network = random_recurrent(8, 6, [layer("lstm", 9, proj=4), layer("gru", 5)])
    config = size_for(network, 3, channels=2)
    quantised = quantise(network, config)
    raw = random_inputs(2, network, (8, 2), 0.8)  # as `check` makes them
    active = np.ones((8, 2), dtype=bool)
    active[3:6, 0] = False
    with engine(config, "amaranth") as simulation:
        both = check(simulation, network, config, 8, seed=2, active=active)
    alone = run_reference(quantised, raw[:, 1])
    assert np.array_equal(both.outputs[:, 1], alone.outputs)
    paused = run_reference(quantised, raw[active[:, 0], 0])
    assert np.array_equal(both.outputs[active[:, 0], 0], paused.outputs)


def test_largest_magnitudes():
    """Inputs, weights, states and biases at both ends of their ranges."""
    network = random_recurrent(9, 7, [layer("lstm", 8, peepholes=True), layer("rnn_relu", 6)],
                               headroom=-3)
    config = size_for(network, 3)
    quantised = quantise(network, config)
    image = compile_network(quantised, config)
    raw = np.random.default_rng(1).choice([-32768, 32767], (12, 7))
    state = zero_state(quantised)
    for number, part in enumerate(state):
        part.h[:] = (-32768, 32767)[number]
    state[0].c[:] = -32768
    reference = run_reference(quantised, raw, state=state)
    assert reference.saturations > 0
    report = run_engine(image, raw, reference, backend="amaranth", state=state)
    assert report.mismatches == 0
    assert report.saturations == reference.saturations


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_bidirectional_layers_in_two_passes(cell):
    first = random_recurrent(1, 6, [layer(cell, 5)]), random_recurrent(2, 6, [layer(cell, 5)])
    second = random_recurrent(3, 10, [layer(cell, 4)]), random_recurrent(4, 10, [layer(cell, 4)])
    last = random_recurrent(5, 8, [layer("linear", 3)])
    network = CompressedNetwork(
        [CompressedBidirectional(*(part.layers[0] for part in first)),
         CompressedBidirectional(*(part.layers[0] for part in second)), last.layers[0]],
        in_frac=12)
    x = np.random.default_rng(0).uniform(-4, 4, (7, 6))
    report = simulate(network, x, n_pes=3, backend="amaranth")
    assert report.mismatches == 0
    expected = network.forward(x)
    error = report.raw * 2.0 ** -last.layers[0].out_frac - expected
    assert np.square(error).sum() < 1e-4 * np.square(expected).sum()


def test_amaranths_simulator_and_verilator_agree():
    network = random_recurrent(6, 5, [layer("lstm", 5, proj=3, peepholes=True), layer("gru", 4)])
    config = size_for(network, 2)
    quantised = quantise(network, config)
    image = compile_network(quantised, config)
    raw = random_inputs(1, network, 3)
    reference = run_reference(quantised, raw)
    reports = [run_engine(image, raw, reference, backend=backend)
               for backend in ("amaranth", "verilator")]
    assert [report.mismatches for report in reports] == [0, 0]
    assert reports[0].cycles == reports[1].cycles


def test_shipped_spoken_digits_on_the_engine_for_an_ice40():
    """The binary points of 16-bit activations moved to those of 13 bits; weights of 8 bits."""
    shipped = openese.load(files("openese.data") / "spoken_digits.ese")
    lost = shipped.act_bits - 13
    network = replace(shipped, act_bits=13, in_frac=shipped.in_frac - lost, layers=[
        replace(layer, **{name: getattr(layer, name) - lost for name in ("out_frac", "cell_frac")
                          if hasattr(layer, name)}) for layer in shipped.layers])
    config = PRESETS["lstm-up5k"]
    quantised = quantise(network, config)
    raw = np.random.default_rng(5).integers(-2048, 2048, (4, network.in_features))
    report = run_engine(compile_network(quantised, config), raw, run_reference(quantised, raw))
    assert report.mismatches == 0
    assert report.outputs == 4 * 10
