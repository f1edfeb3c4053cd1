# amaranth: UnusedElaboratable=no
"""Proves the two-register buffer: order, one item per cycle, and `ready` from a register."""

import pytest
from amaranth.hdl import Signal

from openese.hdl.layouts import start_layout
from openese.hdl.skid import Skid
from openese.sim import simulation
from openese.sim.streams import random_stalls

from .helpers import SMALL, play, transfers


@pytest.mark.parametrize("gaps", [0.0, 0.5])
@pytest.mark.parametrize("stalls", [0.0, 0.2, 0.8])
def test_items_keep_their_order(gaps, stalls):
    items = [(37 * k + 5) % 256 for k in range(300)]
    patterns = {"i": random_stalls(1, gaps), "o": random_stalls(2, stalls)}
    result = simulation.run(Skid(8), {"i": items}, {"o": None}, stalls=patterns, extra_cycles=60)
    assert result.outputs["o"].tolist() == items
    if not stalls:
        assert (result.times["o"] == result.times["i"] + 1).all()
    if not gaps and not stalls:
        assert result.times["o"].tolist() == list(range(1, 301))


def test_full_rate_right_after_a_stall():
    """What the output takes in a row never waits for the input, however long it stalled."""
    pattern = "1" * 5 + "0" * 4 + "1" * 11
    result = simulation.run(Skid(8), {"i": list(range(40))}, {"o": 40}, stalls={"o": pattern})
    ready = [cycle for cycle in range(1, 200) if pattern[cycle % len(pattern)] == "1"]
    assert result.times["o"].tolist() == ready[:40]


def test_ready_does_not_depend_on_the_output_in_the_same_cycle():
    layout = start_layout(SMALL)
    offer = {"i.valid": 1, "i.payload": {"values": [-3]}}
    trace = play(Skid(layout), [offer] * 4 + [{**offer, "o.ready": 1}] * 3, ["i.ready"])
    assert [step["i.ready"] for step in trace] == [1, 1, 0, 0, 0, 1, 1]


def test_reset_empties_both_registers():
    script = [{"i.valid": 1, "i.payload": k} for k in range(3)]
    script += [{"reset": 1}, {"i.valid": 1, "i.payload": 9, "o.ready": 1}, {"o.ready": 1}]
    trace = play(Skid(8), script, ["o.valid", "o.payload", "i.ready"], extra=2, reset=Signal())
    assert transfers(trace[4:], "o") == [(1, 9)]
    assert trace[4]["i.ready"] == 1
