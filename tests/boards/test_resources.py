"""Proves that the list of an engine's memories is that of its RTL, and that block RAMs are counted
as Yosys will use them: never fewer, and no more but where it mixes shapes.
"""

import re
from collections import Counter

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from openese.hdl.engine import Engine
from openese.model.compile import compile_network, size_for
from openese.model.config import PRESETS, EngineConfig
from openese.model.quantise import quantise
from openese.model.random_network import random_network
from openese.model.resources import EngineMemory, block_rams, engine_memories, engine_report

from .netlists import ecp5_memories

LSTM = EngineConfig(n_pes=2, state_depth=48, peephole_depth=20, acc_bits=36, shift_bits=4)

CONFIGS = [
    PRESETS["demo"], LSTM, LSTM.with_(channels=3, pointers=False),
    LSTM.with_(direct_weights=True, code_bits=12, entry_bits=17, peephole_depth=0, n_pes=5),
    LSTM.with_(serial_cells=True), LSTM.with_(serial_cells=True, state_depth=5, peephole_depth=0),
    EngineConfig(n_pes=2, pointers=False),
    # Lanes and groups of central activations: 3 of 2, 1 of 5, 4 of 1.
    LSTM.with_(pointers=False, n_pes=6, input_lanes=3), LSTM.with_(pointers=False, n_pes=5),
    LSTM.with_(pointers=False, n_pes=4, input_lanes=4, channels=2),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_all_memories_of_the_rtl(config):
    found = Counter((int(words), int(width)) for width, words in re.findall(
        r"^\s*memory width (\d+) size (\d+) ", rtlil.convert(Engine(config)), re.M))
    listed = Counter()
    for entry in engine_memories(config):
        listed[entry.words, entry.width] += entry.count
    assert found == listed


class Memories(wiring.Component):
    """Memories beside each other, each with all of its ports outside."""

    def __init__(self, sizes: list[EngineMemory]):
        self.sizes = sizes
        super().__init__({"x": In(1), "y": Out(1)})

    def elaborate(self, platform):
        m = Module()
        chain = self.x
        for k, size in enumerate(self.sizes):
            lane = size.width // size.lanes
            m.submodules[f"memory_{k}"] = mem = memory.Memory(
                shape=data.ArrayLayout(lane, size.lanes), depth=size.words, init=[])
            write = mem.write_port(granularity=1 if size.lanes > 1 else None)
            read = mem.read_port()
            # One long shift register feeds all inputs, so that Yosys has nothing to simplify.
            for port in (write.en, write.addr, write.data, read.addr, read.en):
                value = port.as_value() if hasattr(port, "as_value") else port
                bits = Signal(len(value), name=f"bits_{k}")
                m.d.sync += bits.eq(bits << 1 | chain)
                m.d.comb += value.eq(bits)
                chain = bits[-1]
            after = Signal(name=f"after_{k}")
            m.d.sync += after.eq(read.data.as_value().xor() ^ chain)
            chain = after
        m.d.comb += self.y.eq(chain)
        return m


@pytest.mark.parametrize(("words", "width", "lanes"), [
    (64, 18, 1), (72, 18, 1), (96, 9, 1), (128, 9, 1), (6144, 9, 1), (6145, 9, 1), (1536, 16, 1),
    (1024, 48, 1), (512, 25, 1), (40, 34, 2), (32, 34, 2), (48, 48, 3), (256, 51, 3)])
def test_block_rams_are_those_of_yosys(words, width, lanes):
    size = EngineMemory("", 1, words, width, lanes)
    cells = ecp5_memories(Memories([size]))
    assert cells.get("DP16KD", 0) == size.brams
    assert bool(cells.get("TRELLIS_DPR16X4", 0)) == (size.brams == 0)


@pytest.mark.parametrize("pointers", [True, False])
def test_block_rams_of_an_engine(pointers):
    config = LSTM.with_(n_pes=1, channels=2, spmat_depth=300, ptr_depth=40, act_depth=100,
                        pointers=pointers)
    cells = ecp5_memories(Engine(config))
    assert cells["DP16KD"] == sum(entry.brams for entry in engine_memories(config))


def test_central_activations_are_counted_once():
    """However many PEs there are, their activations are the same number."""
    def acts(config: EngineConfig) -> EngineMemory:
        [found] = [part for part in engine_memories(config) if part.name == "activations"]
        return found

    config = LSTM.with_(pointers=False, n_pes=32, act_depth=64)
    assert acts(config) == EngineMemory("activations", 1, 2048, 16)
    assert acts(config.with_(input_lanes=4)) == EngineMemory("activations", 4, 512, 16)
    assert (acts(config).brams, acts(config.with_(input_lanes=4)).brams) == (2, 4)
    # 24 groups take the words of 32.
    assert acts(config.with_(n_pes=24)).words == 2048
    # Every PE has its own where not all of them are broadcast, or PEs write them.
    for other in (config.with_(pointers=True), config.with_(state_depth=0, peephole_depth=0)):
        assert acts(other) == EngineMemory("activations", 32, 64, 17)


def test_shapes_of_a_block():
    assert [block_rams(*size) for size in ((2048, 9), (2049, 9), (512, 36), (512, 37), (16385, 1))
            ] == [1, 2, 1, 2, 2]


def test_devices():
    network = random_network(1, [12, 9], 0.5)
    config = size_for(network, 2)
    image = compile_network(quantise(network, config), config)
    assert engine_report(image, "LFE5U-25F")["brams_available"] == 56
    with pytest.raises(ValueError, match=r"^no device is called 'LFE5U-12F'; there are: LFE5U"):
        engine_report(image, "LFE5U-12F")
