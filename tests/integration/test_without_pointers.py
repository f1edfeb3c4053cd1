"""Proves that feed-forward engines without pointers equal the reference in every output and the
cycle model in every cycle: their columns are queued without what a matrix's columns share."""

import numpy as np
import pytest

from openese.model.compile import compile_network
from openese.model.config import EngineConfig
from openese.model.quantise import quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import run_reference
from openese.sim.cycle_model import predict_cycles
from openese.sim.simulate import run_engine


@pytest.mark.parametrize(("n_pes", "queue_depth", "widths"), [
    (4, 1, {"input_lanes": 2}),
    (9, 2, {"direct_weights": True, "entry_bits": 12, "code_bits": 8, "min_code_bits": 8}),
    # Markers of five parts.
    (5, 3, {"act_bits": 6}),
])
def test_outputs_and_cycles(n_pes, queue_depth, widths):
    config = EngineConfig(n_pes=n_pes, queue_depth=queue_depth, spmat_depth=2048, act_depth=64,
                          acc_depth=32, pointers=False, **widths)
    network = random_network(3, [40, 30, 20, 7], 0.3, in_frac=config.act_bits - 4,
                             act_bits=config.act_bits)
    quantised, inputs = quantise(network, config), random_inputs(1, network, 12)
    image, reference = compile_network(quantised, config), run_reference(quantised, inputs)
    report = run_engine(image, inputs, reference)
    assert report.mismatches == 0
    np.testing.assert_array_equal(report.raw, reference.outputs)
    cycles = np.asarray(list(predict_cycles(image, reference).cycles))
    assert report.cycles_per_vector == cycles[1:].mean()
