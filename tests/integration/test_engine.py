"""The whole engine: every output bit equals the integer reference, every cycle the cycle model.

One network gives the same outputs on every engine, so `EXPECTED` is computed once.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openese.hdl.engine import Engine
from openese.model import host
from openese.model.compile import compile_network, size_for
from openese.model.config import EngineConfig
from openese.model.network import CompressedLinear, CompressedNetwork
from openese.model.quantise import accumulator_bound, quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import accumulate, run_reference
from openese.sim.cycle_model import predict_cycles
from openese.sim.simulate import run_engine
from openese.sim.simulation import Simulation
from openese.sim.streams import pack, random_stalls

NETWORK = random_network(7, [37, 29, 11], [0.3, 0.5])
INPUTS = random_inputs(7, NETWORK, 3, 0.5, negative=True)
REFERENCE = run_reference(quantise(NETWORK, EngineConfig(n_pes=1)), INPUTS)
EXPECTED = REFERENCE.outputs
ACTIVE = [activations[:, 0] != 0 for activations in REFERENCE.activations]
#: Of other sizes, and of the same.
OTHER = random_network(8, [20, 41, 30, 5], 0.4, relu=False)
ALIKE = random_network(9, [37, 29, 11], [0.3, 0.5])
#: An engine of 4 PEs for all of them: one that is compiled serves every test.
SIZES = {name: max(getattr(size_for(network, 4), name) for network in (NETWORK, OTHER, ALIKE))
         for name in ("spmat_depth", "ptr_depth", "bias_depth", "act_depth", "acc_depth",
                      "codebooks", "program_depth")}


def compiled(network: CompressedNetwork, n_pes: int, **overrides):
    config = size_for(network, n_pes, **overrides)
    quantised = quantise(network, config)
    return quantised, compile_network(quantised, config)


def check(network, inputs, n_pes, *, backend="amaranth", stalls=None, load="memory", **overrides):
    """Run, compare with the reference; returns the report."""
    quantised, image = compiled(network, n_pes, **overrides)
    reference = run_reference(quantised, inputs)
    report = run_engine(image, inputs, reference, backend=backend, stalls=stalls, load=load)
    assert report.mismatches == 0, report.first_mismatch
    return report


def stamps(image, inputs, n_outputs, backend="amaranth"):
    """Cycle of every output transfer."""
    engine = Engine(image.config, image)
    with Simulation(engine, backend=backend) as simulation:
        result = simulation.run(
            {"i_act": pack(engine.i_act.payload.shape(), host.pack_inputs(inputs, image.config))},
            {"o_act": n_outputs})
    return result.times["o_act"]


@pytest.mark.parametrize("n_pes", [1, 2, 3, 4, 5, 8, 16, 64])
def test_pe_counts(n_pes):
    report = check(NETWORK, INPUTS, n_pes)
    assert np.array_equal(report.raw, EXPECTED)


@pytest.mark.parametrize("queue_depth", [1, 2, 8, 16])
@pytest.mark.parametrize("n_pes", [1, 3, 8])
def test_queue_depths(n_pes, queue_depth):
    report = check(NETWORK, INPUTS, n_pes, queue_depth=queue_depth)
    assert np.array_equal(report.raw, EXPECTED)


@pytest.mark.parametrize("index_bits", [3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("n_pes", [1, 4])
def test_index_widths(n_pes, index_bits):
    report = check(NETWORK, INPUTS, n_pes, entry_bits=index_bits + 4)
    assert np.array_equal(report.raw, EXPECTED)
    # A gap needs a filler when it is longer than the index can say; count from the dense matrices.
    fillers = 0
    for layer, active in zip(NETWORK.layers, ACTIVE, strict=True):
        for column, vectors in enumerate(active.sum(axis=0)):
            for pe in range(n_pes):
                rows = np.flatnonzero(layer.dense()[pe::n_pes, column])
                gaps = np.diff(rows, prepend=-1) - 1
                fillers += int(vectors) * int((gaps >> index_bits).sum())
    assert report.fillers == fillers
    assert (fillers > 0) == (n_pes == 1 and index_bits == 3)


@pytest.mark.parametrize("code_bits", [1, 2, 3, 4, 5])
def test_one_engine_takes_every_split_of_the_word(code_bits):
    network = random_network(code_bits, [40, 30, 7], 0.3, code_bits=code_bits)
    inputs = random_inputs(code_bits, network, 2)
    check(network, inputs, 2, entry_bits=8, code_bits=5, min_code_bits=1)


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_input_lanes(lanes):
    report = check(NETWORK, INPUTS, 8, input_lanes=lanes)
    assert np.array_equal(report.raw, EXPECTED)


@pytest.mark.parametrize("seed", range(6))
def test_stalls_on_both_streams(seed):
    stalls = {"i_act": random_stalls(seed, 0.5), "o_act": random_stalls(seed + 100, 0.6)}
    report = check(NETWORK, INPUTS, 1 + seed, stalls=stalls, queue_depth=1 + seed)
    assert np.array_equal(report.raw, EXPECTED)


def test_host_load_equals_memory_contents(backend):
    report = check(NETWORK, INPUTS, 4, load="host", backend=backend, **SIZES)
    assert np.array_equal(report.raw, EXPECTED)


def test_another_model_without_reset(backend):
    """Two models of different sizes one after the other, vectors before and after, no reset."""
    other_inputs = random_inputs(8, OTHER, 2, negative=True)
    config = size_for(NETWORK, 4, **SIZES)
    engine = Engine(config)
    lanes = engine.i_act.payload.shape()
    with Simulation(engine, backend=backend) as simulation:
        for network, inputs in [(NETWORK, INPUTS), (OTHER, other_inputs), (NETWORK, INPUTS)]:
            quantised = quantise(network, config)
            reference = run_reference(quantised, inputs)
            image = compile_network(quantised, config)
            words = np.concatenate([host.load_words(image, config), host.start()])
            simulation.run({"i_host": words}, {})
            for _ in range(2):
                result = simulation.run({"i_act": pack(lanes, host.pack_inputs(inputs, config))},
                                        {"o_act": reference.outputs.size})
                got = result.values("o_act")["data"][:, 0]
                assert np.array_equal(got.reshape(reference.outputs.shape), reference.outputs)
            passes = simulation.run({"i_host": np.concatenate(
                [host.stop(), host.read(host.Register.PASSES)])}, {"o_host": 1})
            assert passes.outputs["o_host"][0] % 2 == 0
            errors = simulation.run({"i_host": host.read(host.Register.ERRORS)}, {"o_host": 1})
            assert errors.outputs["o_host"][0] == 0


def test_load_into_a_running_engine(backend):
    """A LOAD without STOP first finishes the pass under way, then replaces the model."""
    images = [compiled(network, 4, **SIZES)[1] for network in (NETWORK, ALIKE)]
    config = images[0].config
    engine = Engine(config, images[0])
    lanes = engine.i_act.payload.shape()
    expected = run_reference(quantise(ALIKE, config), INPUTS).outputs
    with Simulation(engine, backend=backend) as simulation:
        first = simulation.run({"i_act": pack(lanes, host.pack_inputs(INPUTS[:1], config))},
                               {"o_act": EXPECTED.shape[1]})
        assert np.array_equal(first.values("o_act")["data"][:, 0], EXPECTED[0])
        simulation.run({"i_host": np.concatenate(
            [host.load_words(images[1], config), host.start()])}, {})
        result = simulation.run({"i_act": pack(lanes, host.pack_inputs(INPUTS, config))},
                                {"o_act": expected.size})
    assert np.array_equal(result.values("o_act")["data"][:, 0], expected.ravel())


def test_reset_in_the_middle_of_a_run(backend):
    """A run broken off by reset leaves nothing in the accumulators."""
    quantised, image = compiled(NETWORK, 4, **SIZES)
    reference = run_reference(quantised, INPUTS)
    engine = Engine(image.config, image)
    beats = pack(engine.i_act.payload.shape(), host.pack_inputs(INPUTS, image.config))
    with Simulation(engine, backend=backend) as simulation:
        # A few outputs of the first vector only; the second is being multiplied.
        simulation.run({"i_act": beats}, {"o_act": EXPECTED.shape[1] + 1})
        simulation.reset()
        result = simulation.run({"i_act": beats}, {"o_act": EXPECTED.size})
    got = result.values("o_act")["data"][:, 0]
    assert np.array_equal(got.reshape(EXPECTED.shape), reference.outputs)


# -- edge cases -----------------------------------------------------------------------------------


def layer(codes, codebook=(0, 0.5, -0.25, 0.75), bias=None, *, relu=False, out_frac=8, name="fc"):
    return CompressedLinear.from_codes(
        name, np.atleast_2d(codes), np.array(codebook, np.float32),
        None if bias is None else np.array(bias, np.float32), relu=relu, out_frac=out_frac)


def column_with_gap(gap: int, tail: int = 0):
    """One column: an entry, `gap` rows of zeros, an entry, `tail` rows of zeros."""
    codes = np.zeros((gap + 2 + tail, 3), dtype=int)
    codes[[0, gap + 1], 0] = 1, 2
    codes[gap + 1, 2] = 3
    return codes


EDGE_NETWORKS = {
    "1x1": [layer([[1]], bias=[0.5])],
    "1xN": [layer([[1, 2, 3, 0, 1, 1, 2]])],
    "Nx1": [layer([[1], [0], [2], [3], [0], [1], [2]])],
    "all zero layer": [layer(np.zeros((5, 6), int), bias=[1, -1, 0.5, 0, 2])],
    "all zero layer, no bias": [layer(np.zeros((5, 6), int))],
    "all equal weights": [layer(np.ones((9, 6), int))],
    "empty columns and rows": [layer([[0, 1, 0, 2], [0, 0, 0, 0], [0, 3, 0, 0]])],
    "empty PE": [layer(np.where(np.arange(12)[:, None] % 3 == 1, 0, 1) * np.ones((1, 5), int))],
    "rows below PEs": [layer([[1, 2, 3], [3, 2, 1]])],
    "bias only": [layer(np.zeros((3, 2), int), bias=[3, -3, 0.125], relu=True)],
    "no bias": [layer([[1, 2], [2, 1], [3, 3]]), layer([[1, 2, 3]], relu=True, name="out")],
    "odd names": [layer([[1, 2], [2, 1]], name="encoder.0.блок/ x"),
                  layer([[3, 1]], name="")],
    **{f"gap {gap}": [layer(column_with_gap(gap))] for gap in (15, 16, 31, 32, 65, 100)},
    "trailing zeros": [layer(column_with_gap(20, tail=40))],
}


@pytest.mark.parametrize("n_pes", [
    3, *(pytest.param(n_pes, marks=pytest.mark.slow) for n_pes in (1, 2, 5))])
@pytest.mark.parametrize("name", EDGE_NETWORKS)
def test_edge_cases(name, n_pes):
    network = CompressedNetwork(EDGE_NETWORKS[name], in_frac=8)
    inputs = random_inputs(3, network, 3, 0.8, negative=True)
    inputs[1] = 0  # a vector of zeros between others
    check(network, inputs, n_pes)


@pytest.mark.parametrize("weight", [-1.0, 1.0])
@pytest.mark.parametrize("value", [-32768, 32767, -1])
def test_largest_magnitudes_in_every_pe_at_once(value, weight):
    """All products of one sign and as large as they get: accumulators at their proved bound,
    outputs at both rails, every saturation counted."""
    network = CompressedNetwork(
        [layer(np.ones((6, 32), int), codebook=(0, weight), out_frac=9)], in_frac=12)
    quantised = compiled(network, 3)[0]
    inputs = np.full((2, 32), value)
    report = check(network, inputs, 3)
    reached = np.abs(accumulate(quantised.layers[0], inputs)).max()
    bound = accumulator_bound(quantised.layers[0], 16)
    if value == -1:
        assert report.saturations == 0
        assert (report.raw == -4 * weight).all()
    else:
        assert reached == bound * abs(value) // 32768
        assert report.saturations == report.outputs
        assert (report.raw == (32767 if value * weight > 0 else -32768)).all()


def test_saturations_are_counted_by_the_engine():
    network = CompressedNetwork(
        [layer(np.ones((10, 8), int), codebook=(0, 1.0), bias=[1.0] * 10, out_frac=13)],
        in_frac=10)
    inputs = np.full((3, 8), 20000)
    report = check(network, inputs, 4, load="host")
    assert report.saturations == 30


def test_negative_activations_are_not_zeros():
    """Behind a layer without ReLU negative values must reach the next layer."""
    network = CompressedNetwork(
        [layer([[2, 2], [2, 2], [1, 1]]), layer([[1, 1, 3]], name="out")], in_frac=8)
    inputs = np.array([[100, 200], [-100, -200]])
    report = check(network, inputs, 2)
    assert (report.raw != 0).all()


def test_padding_lanes_never_count():
    """Stale memory beyond the end of a vector is no activation: 8 inputs, then only 5 on 4 PEs."""
    wide = random_network(1, [8, 8], 0.9)
    narrow = random_network(2, [5, 6], 0.9)
    sizes = [size_for(n, 4) for n in (wide, narrow)]
    config = sizes[0].with_(**{f: max(getattr(s, f) for s in sizes) for f in (
        "spmat_depth", "ptr_depth", "bias_depth", "act_depth", "acc_depth")})
    engine = Engine(config)
    lanes = engine.i_act.payload.shape()
    with Simulation(engine, backend="amaranth") as simulation:
        for network, inputs in [(wide, np.full((2, 8), 99)), (narrow, np.full((2, 5), 7))]:
            quantised = quantise(network, config)
            image = compile_network(quantised, config)
            simulation.run(
                {"i_host": np.concatenate([host.load_words(image, config), host.start()])}, {})
            beats = host.pack_inputs(inputs, config)
            if network is narrow:  # garbage instead of zeros in the padding
                beats = beats.reshape(2, -1)
                beats[:, 5:] = 12345
                beats = beats.reshape(-1, 1)
            expected = run_reference(quantised, inputs).outputs
            result = simulation.run({"i_act": pack(lanes, beats)}, {"o_act": expected.size})
            got = result.values("o_act")["data"][:, 0]
            assert np.array_equal(got.reshape(expected.shape), expected)
            simulation.run({"i_host": host.stop()}, {})


# -- generated engines ----------------------------------------------------------------------------

SETTINGS = settings(deadline=None, max_examples=25, derandomize=True,
                    suppress_health_check=[HealthCheck.too_slow])
FEW = settings(SETTINGS, max_examples=6)


@st.composite
def engines(draw):
    """A random small network, inputs, and the engine to run it on."""
    seed = draw(st.integers(0, 2**16))
    sizes = draw(st.lists(st.integers(1, 24), min_size=2, max_size=4))
    n_pes = draw(st.integers(1, 9))
    code_bits = draw(st.integers(1, 4))
    network = random_network(seed, sizes, draw(st.sampled_from([0.05, 0.3, 0.9])),
                             code_bits=code_bits, relu=draw(st.booleans()),
                             bias=draw(st.booleans()))
    inputs = random_inputs(seed, network, draw(st.integers(1, 4)),
                           draw(st.sampled_from([0.0, 0.2, 1.0])), negative=draw(st.booleans()))
    lanes = draw(st.sampled_from([k for k in range(1, n_pes + 1) if n_pes % k == 0]))
    return network, inputs, n_pes, {
        "queue_depth": draw(st.integers(1, 9)), "input_lanes": lanes, "code_bits": 4,
        "min_code_bits": draw(st.integers(1, code_bits)),
        "entry_bits": draw(st.integers(5, 12)),
    }


def check_with_stalls(engine, seed):
    network, inputs, n_pes, overrides = engine
    check(network, inputs, n_pes, **overrides, stalls={
        "i_act": random_stalls(seed, 0.3), "o_act": random_stalls(seed + 1, 0.3)})


@FEW
@given(engines(), st.integers(0, 2**16))
def test_some_engines_equal_the_reference(engine, seed):
    check_with_stalls(engine, seed)


@pytest.mark.slow
@SETTINGS
@given(engines(), st.integers(0, 2**16))
def test_any_engine_equals_the_reference(engine, seed):
    check_with_stalls(engine, seed)


@SETTINGS
@given(engines())
def test_cycle_model_is_exact(engine):
    network, inputs, n_pes, overrides = engine
    quantised, image = compiled(network, n_pes, **overrides)
    reference = run_reference(quantised, inputs)
    predicted = predict_cycles(image, reference).outputs
    assert np.array_equal(stamps(image, inputs, reference.outputs.size), predicted.ravel())


@pytest.mark.parametrize(("n_pes", "queue_depth"), [(4, 1), (16, 2), (64, 8)])
def test_cycle_model_is_exact_where_queues_fill(n_pes, queue_depth):
    network = random_network(n_pes, [70, 150, 20], [0.4, 0.2])
    inputs = random_inputs(n_pes, network, 2, 0.9)
    quantised, image = compiled(network, n_pes, queue_depth=queue_depth)
    reference = run_reference(quantised, inputs)
    prediction = predict_cycles(image, reference)
    assert np.array_equal(stamps(image, inputs, reference.outputs.size),
                          prediction.outputs.ravel())
    if queue_depth < 8:
        assert sum(one.stalls for vector in prediction.layers for one in vector) > 0
