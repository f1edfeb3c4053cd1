"""The exported Verilog in a second simulator: lint, and equality with the reference."""

from pathlib import Path

import numpy as np
import pytest

import openese
from openese.hdl.engine import Engine
from openese.hdl.export import to_verilog
from openese.model.compile import compile_network, size_for
from openese.model.config import EngineConfig
from openese.model.ese_file import load
from openese.model.mnist import scale_pixels
from openese.model.quantise import quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import run_reference
from openese.sim.simulate import run_engine
from openese.sim.streams import random_stalls
from openese.sim.verilator import lint

DATA = Path(openese.__file__).with_name("data")


@pytest.mark.parametrize(("n_pes", "load_by"), [(1, "memory"), (5, "host"), (9, "memory")])
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
