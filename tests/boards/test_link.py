# amaranth: UnusedElaboratable=no
"""Proves the serial link without faults: an engine is loaded, run and read out through it, equal
to the reference; and what the arguments may be."""

import re

import numpy as np
import pytest

from openese.boards.host import pack_beats
from openese.boards.link import Link
from openese.boards.protocol import Identification, beat_bytes
from openese.model.compile import compile_network, size_for
from openese.model.config import EngineConfig
from openese.model.host import MAGIC, Register, load_words, pack_inputs, read, start
from openese.model.quantise import quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import run_reference

from .bench import Line, LinkBench

CONFIG = EngineConfig(n_pes=2, input_lanes=2)


def test_engine_over_the_link():
    network = random_network(3, [24, 16, 12], 0.4)
    config = size_for(network, 4, input_lanes=2)
    quantised = quantise(network, config)
    image = compile_network(quantised, config)
    inputs = random_inputs(4, network, 6)
    expected = run_reference(quantised, inputs).outputs
    line = Line(LinkBench(config))
    for session in (1, 2):
        line.open(session)
        end = line.end
        assert end.identification == Identification.of(config)
        end.send_words([*load_words(image, config), *start()])
        end.send_beats(pack_beats(pack_inputs(inputs, config)), beat_bytes(config))
        line.run(lambda end=end: len(end.activations) == expected.size)
        end.send_words(np.concatenate([read(each) for each in (
            Register.MAGIC, Register.PASSES, Register.ERRORS)]))
        line.run(lambda end=end: len(end.words) == 3)
        assert np.array_equal(np.reshape(end.activations, expected.shape), expected)
        assert np.flatnonzero(end.last).tolist() == [11, 23, 35, 47, 59, 71]
        assert list(end.words) == [MAGIC, 6, 0]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Link(CONFIG.with_(act_bits=17)),
     "the serial link carries activations of at most 16 bits, not 17; lower act_bits"),
])
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
