# amaranth: UnusedElaboratable=no
"""Proves what an engine costs on ECP5: block RAMs by the sizes of its memories, one multiplier per
PE, no cell that a device lacks; and that an unknown board is refused."""

import re

import pytest

from openese.boards.build import KEEP, synthesise
from openese.hdl.engine import Engine
from openese.model.config import PRESETS

from .netlists import ecp5_memories

#: Every cell a netlist for nextpnr may hold.
KNOWN = {"CCU2C", "DP16KD", "L6MUX21", "LUT4", "MULT18X18D", "PFUMX", "TRELLIS_DPR16X4",
         "TRELLIS_FF"}


def test_block_rams_and_multipliers():
    config = PRESETS["ulx3s-85f"].with_(n_pes=2, input_lanes=2)
    cells = synthesise(Engine(config), keep=KEEP).cells
    assert set(cells) <= KNOWN
    assert cells["MULT18X18D"] == config.n_pes
    # 2048 entries of 9 bits take one block, 2048 pointers of 13 bits two, 256 activations of 16
    # bits one; everything else is LUT RAM.
    assert (config.spmat_word_bits, config.ptr_word_bits) == (9, 13)
    assert cells["DP16KD"] == config.n_pes * (1 + 2 + 1)
    # Codebook and accumulators of a PE alone: 64 x 16 and 32 x 32 bits.
    assert cells["TRELLIS_DPR16X4"] >= config.n_pes * (4 * 4 + 2 * 8)


def test_twice_the_entries_take_twice_the_blocks():
    config = PRESETS["ulx3s-85f"].with_(n_pes=1, input_lanes=1, spmat_depth=4096)
    assert ecp5_memories(Engine(config))["DP16KD"] == 2 + 2 + 1


def test_unknown_board():
    message = "no board is called 'nexys'; there are: ulx3s-12f, ulx3s-25f, "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        synthesise(Engine(PRESETS["demo"]), "nexys")
