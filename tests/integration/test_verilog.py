"""The exported Verilog in a second simulator: lint, and equality with the reference."""

from pathlib import Path

import numpy as np
import pytest

import openese
from openese.hdl.engine import Engine
from openese.hdl.export import take_memories, to_rtlil, to_verilog
from openese.model.compile import compile_network, size_for
from openese.model.config import EngineConfig
from openese.model.ese_file import load
from openese.model.mnist import scale_pixels
from openese.model.quantise import quantise
from openese.model.random_network import (
    RandomLayer,
    random_inputs,
    random_network,
    random_recurrent,
)
from openese.model.reference import run_reference
from openese.sim.simulate import run_engine, run_simulation
from openese.sim.streams import describe, random_stalls
from openese.sim.verilator import VerilogSimulation, lint

DATA = Path(openese.__file__).with_name("data")


@pytest.mark.parametrize(("n_pes", "load_by"), [
    (1, "memory"), (5, "host"), pytest.param(9, "memory", marks=pytest.mark.slow)])
def test_verilog_equals_the_reference(n_pes, load_by):
    network = random_network(n_pes, [40, 31, 9], 0.4, relu=False)
    config = size_for(network, n_pes)
    quantised = quantise(network, config)
    inputs = random_inputs(n_pes, network, 4, negative=True)
    report = run_engine(
        compile_network(quantised, config), inputs, run_reference(quantised, inputs),
        backend="verilator", load=load_by,
        stalls={"i_act": random_stalls(1, 0.3), "o_act": random_stalls(2, 0.3)})
    assert report.mismatches == 0


def test_exported_verilog_holds_the_model(tmp_path):
    """The file as users get it, its memories full: no simulator writes into them."""
    network = random_network(3, [40, 31, 9], 0.4)
    config = size_for(network, 3)
    quantised = quantise(network, config)
    inputs = random_inputs(3, network, 4)
    image = compile_network(quantised, config)
    engine = Engine(config, image)
    (tmp_path / "top.v").write_text(to_verilog(engine))
    with VerilogSimulation([tmp_path / "top.v"], "top", describe(engine)) as simulation:
        report = run_simulation(simulation, image, inputs, run_reference(quantised, inputs),
                                load="memory")
    assert report.mismatches == 0
    assert report.outputs == 4 * 9


LSTM = [RandomLayer(cell="lstm", size=12, proj=5, peepholes=True), RandomLayer(cell="gru", size=7)]


@pytest.mark.parametrize(("n_pes", "layers", "fields"), [
    (9, None, {}), (2, None, {"pointers": False}), (3, None, {"direct_weights": True}),
    (4, LSTM, {}), (2, LSTM, {"serial_cells": True}),
    pytest.param(9, LSTM, {"pointers": False, "direct_weights": True}, marks=pytest.mark.slow),
    pytest.param(1, LSTM, {"channels": 3}, marks=pytest.mark.slow),
])
def test_a_model_is_nothing_but_contents_of_memories(n_pes, layers, fields):
    """What a compiled simulator writes into an engine without contents is what a model adds."""
    bits = 12 if fields.get("direct_weights") else None
    layers = [RandomLayer(cell="linear", size=13, relu=True)] if layers is None else layers
    network = random_recurrent(1, 12, layers, fixed_bits=bits)
    config = size_for(network, n_pes, **fields)
    assert config.recurrent == (layers is LSTM)
    image = compile_network(quantise(network, config), config)
    full, wanted = take_memories(to_rtlil(Engine(config, image)))
    engine = Engine(config, image)
    blank, memories = take_memories(to_rtlil(engine.blank()))
    contents = engine.contents()
    engine._MustUse__used = True
    assert blank == full
    assert len(contents) >= n_pes
    got = {memory.path: memory.rows for memory in memories}
    for path, words in contents.items():
        assert not any(got[path])
        assert any(words)
        got[path] = (*words, *got[path][len(words):])
    assert got == {memory.path: memory.rows for memory in wanted}


@pytest.mark.slow
def test_shipped_model_gives_equal_bits_and_cycles_in_both_simulators():
    network = load(DATA / "lenet_300_100.ese")
    config = size_for(network, 8, input_lanes=4)
    quantised = quantise(network, config)
    with np.load(DATA / "mnist_256.npz", allow_pickle=False) as digits:
        raw, _ = quantised.quantise_input(scale_pixels(digits["images"][:16]))
    image, reference = compile_network(quantised, config), run_reference(quantised, raw)
    reports = [run_engine(image, raw, reference, backend=backend)
               for backend in ("cxxrtl", "verilator")]
    assert [report.mismatches for report in reports] == [0, 0]
    assert reports[0].cycles == reports[1].cycles
    assert np.array_equal(reports[0].raw, reports[1].raw)


@pytest.mark.parametrize("n_pes", [1, 4])
def test_verilog_lints(n_pes):
    """Also the smallest engine, where widths of 0 would lurk."""
    lint(to_verilog(Engine(EngineConfig(n_pes=n_pes, act_depth=2, acc_depth=1, bias_depth=1,
                                        spmat_depth=1, ptr_depth=1, codebooks=1,
                                        program_depth=2)), name="openese"), top="openese")
