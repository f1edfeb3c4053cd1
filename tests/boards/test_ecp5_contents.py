# amaranth: UnusedElaboratable=no
"""Proves where the words of a memory are in an ECP5 design: in Yosys's netlist for every shape of
memory, in nextpnr's configuration for a whole engine that was built with its contents; which
contents are taken out of a design; and that a design is refused in which they cannot be found."""

import dataclasses
import json
import random
import re

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from openese.boards import build as build_module
from openese.boards import ecp5_contents as contents
from openese.boards.build import build, find_board
from openese.boards.ecp5 import ECP5
from openese.boards.platforms import BOARDS
from openese.hdl.engine import Engine
from openese.hdl.export import run_yosys, take_memories, to_rtlil
from openese.model.compile import compile_network
from openese.model.config import EngineConfig
from openese.model.quantise import quantise
from openese.model.random_network import random_network

SMALL = EngineConfig(n_pes=1, spmat_depth=512, ptr_depth=64, bias_depth=16, act_depth=64,
                     acc_depth=16, codebooks=2, program_depth=8)


def small_image(seed):
    return compile_network(quantise(random_network(seed, [12, 9, 4], 0.5), SMALL), SMALL)


class Words(wiring.Component):
    """A memory that nothing in the design knows the contents of."""

    def __init__(self, depth, width, rows, distributed):
        self._sizes = depth, width, rows, distributed
        super().__init__({"x": In(1), "y": Out(1)})

    def elaborate(self, platform):
        m = Module()
        depth, width, rows, distributed = self._sizes
        m.submodules.words = words = memory.Memory(
            shape=width, depth=depth, init=rows,
            attrs={"ram_style": "distributed"} if distributed else {})
        write = words.write_port()
        read = words.read_port(domain="comb" if distributed else "sync")
        # One long shift register feeds all inputs.
        chain = self.x
        for port in (write.en, write.addr, write.data, read.addr):
            bits = Signal(len(port))
            m.d.sync += bits.eq(bits << 1 | chain)
            m.d.comb += port.eq(bits)
            chain = bits[-1]
        after = Signal()
        m.d.sync += after.eq(read.data.xor() ^ chain)
        m.d.comb += self.y.eq(after)
        return m


@pytest.mark.parametrize(("depth", "width", "distributed", "parts"), [
    (2048, 9, False, 1), (6145, 9, False, 4), (1280, 14, False, 2), (4096, 13, False, 4),
    (1000, 25, False, 2), (300, 41, False, 2), (9000, 5, False, 5), (8192, 2, False, 1),
    (40, 18, True, 15), (5, 41, True, 11),
])
def test_netlist(depth, width, distributed, parts):
    draw = random.Random(depth)
    rows = [draw.getrandbits(width) for _ in range(depth)]
    rtlil = to_rtlil(Words(depth, width, rows, distributed), "top",
                     find_board("ulx3s-85f").platform())
    [known] = take_memories(rtlil)[1]
    assert known.rows == tuple(rows)
    script = ["read_rtlil top.il", *ECP5.prepare,
              f"{ECP5.synthesis} -top top {ECP5.synthesis_options}", "write_json top.json"]
    results, _ = run_yosys(script, {"top.il": rtlil}, ["top.json"])
    found = 0
    for name, cell in json.loads(results["top.json"])["modules"]["top"]["cells"].items():
        parameters = cell["parameters"]
        if cell["type"] == "DP16KD":
            place = contents.Place("words", contents._split(name)[2], max(
                int(parameters[f"DATA_WIDTH_{port}"], 2) for port in "AB"))
            # Sixteen times 18 bits, in steps of 20.
            slices = [parameters[f"INITVAL_{k:02X}"][::-1] for k in range(64)]
            bits = [text[20 * k:20 * k + 18] for text in slices for k in range(16)]
            got = np.array([list(word) for word in bits]).reshape(2048, 9)
            expected = contents._part(known, place)
        elif cell["type"] == "TRELLIS_DPR16X4":
            place = contents.Place("words", contents._split(name)[2], 0)
            got = np.array(list(parameters["INITVAL"][::-1])).reshape(16, 4)
            # nextpnr's order of the words is not Yosys's.
            expected = contents._part(known, place).T[contents._LUT_ORDER]
        else:
            continue
        np.testing.assert_array_equal(got == "1", expected.astype(bool))
        found += 1
    assert found == parts
    assert contents.unplaced(results["top.json"], [known]) == []


def test_memory_in_registers_is_unplaced():
    rtlil = to_rtlil(Words(2, 3, [5, 2], False), "top", find_board("ulx3s-85f").platform())
    script = ["read_rtlil top.il", "synth_ecp5 -top top", "write_json top.json"]
    results, _ = run_yosys(script, {"top.il": rtlil}, ["top.json"])
    structure, [known] = contents.take_contents(rtlil)
    assert known.rows == (5, 2)
    assert take_memories(structure)[1][0].rows != (5, 2)
    assert contents.unplaced(results["top.json"], [known]) == ["words"]


def test_taken_contents():
    """Those of the model, of every PE alike; not what nothing writes, not zeros."""
    config = EngineConfig(n_pes=4, spmat_depth=64, ptr_depth=32, state_depth=16)
    image = compile_network(quantise(random_network(3, [6, 8], 0.5), config), config)
    rtlil = to_rtlil(Engine(config, image))
    structure, taken = contents.take_contents(rtlil)
    assert {re.sub(r"\d+", "", known.path) for known in taken} == {
        "cluster_.pe_.spmat_read.words", "cluster_.pe_.ptr_read.words",
        "cluster_.pe_.decode.codebook", "cells.pre_activations.biases_", "sequencer.program"}
    before, after = ({m.path: m for m in take_memories(text)[1]} for text in (rtlil, structure))
    assert len(taken) == 4 * 4 + 1
    for known in taken:
        assert known == before[known.path]
        assert after[known.path].rows != known.rows
    for part in ("spmat_read.words", "decode.codebook"):
        assert len({after[f"cluster_0.pe_{k}.{part}"].rows for k in range(4)}) == 1
    for path in before.keys() - {known.path for known in taken}:
        assert after[path] == before[path]
    # Another model of the same shape leaves the same design.
    other = compile_network(quantise(random_network(4, [6, 8], 0.3), config), config)
    assert contents.take_contents(to_rtlil(Engine(config, other)))[0] == structure


def test_contents_that_are_not_found():
    memory = contents.MemoryContents("serial.words", 9, 2048, (1, 2))
    routed = {"modules": {"top": {"cells": {"serial.words.0.0": {
        "type": "DP16KD", "parameters": {"DATA_WIDTH_A": "1001", "DATA_WIDTH_B": "1001"},
        "attributes": {"WID": "11", "NEXTPNR_BEL": "X1/Y2/EBR0"}}}}}}
    known = contents._pattern(9, 2048)
    words = [f"{word:03x}" for word in known]
    text = ".bram_init 3\n" + "".join(" ".join(words[k:k + 8]) + "\n" for k in range(0, 2048, 8))
    [place] = contents.locate(json.dumps(routed), text, [memory])
    assert (place["memory"], place["block"], place["width"]) == ("serial.words", 3, 9)
    after = contents.insert(text, [place], [memory])
    assert after.startswith(".bram_init 3\n001 002 000 000 000 000 000 000\n000 ")
    assert len(after) == len(text)

    message = ("the contents of memory serial.words (2048 x 9 bits) cannot be told in the routed "
               "design")
    wrong = text.replace(words[100], f"{known[100] ^ 1:03x}")
    for broken, cells in ((wrong, routed), (text.replace("_init 3", "_init 4"), routed),
                          (text, {"modules": {"top": {"cells": {}}}})):
        with pytest.raises(contents.ContentsError, match=f"^{re.escape(message)}$"):
            contents.locate(json.dumps(cells), broken, [memory])


@pytest.mark.slow
def test_design_built_with_its_contents(tmp_path, monkeypatch):
    """Where nothing is replaced, the routed design holds everything where the rules say."""
    board = dataclasses.replace(
        BOARDS["ulx3s-12f"], family=dataclasses.replace(ECP5, replacement=None))
    monkeypatch.setitem(build_module.BOARDS, "ulx3s-12f", board)
    report = build(small_image(1), "ulx3s-12f", out_dir=tmp_path, target_mhz=60,
                   allow_timing_miss=True, progress=False)
    folder = tmp_path / report.directory.rsplit("/", 1)[1]
    places = contents._places(
        json.loads((folder / "routed.json").read_text())["modules"]["top"]["cells"])
    blocks, luts = contents._read((folder / "top.config").read_text())
    checked = set()
    for known in take_memories((folder / "top.il").read_text())[1]:
        for place in places.get(known.path, ()):
            np.testing.assert_array_equal(contents._at(place, blocks, luts),
                                          contents._part(known, place), known.path)
            if any(known.rows):
                checked.add(known.path.rsplit(".", 2)[-2])
    assert checked >= {"spmat_read", "ptr_read", "decode", "write_back", "sequencer"}
