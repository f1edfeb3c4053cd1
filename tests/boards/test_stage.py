"""Proves that a stage loses nothing, keeps order, and cuts both directions."""

import pytest

from openese.boards.stage import Stage
from tests.hdl.helpers import play, receiver, sender, simulate


@pytest.mark.parametrize(("gaps", "stalls"), [(0.0, 0.0), (0.6, 0.0), (0.0, 0.6), (0.4, 0.4)])
def test_all_comes_through_in_order(gaps, stalls):
    dut, got = Stage(8), []
    items = [(37 * k) % 256 for k in range(60)]
    simulate(dut, sender(dut.i, items, gaps=gaps, seed=1),
             receiver(dut.o, len(items), got, stalls=stalls, seed=2))
    assert [item for _, item in got] == items


def test_an_item_every_two_cycles_and_no_path_through():
    offer = {"i.valid": 1, "i.payload": 9}
    trace = play(Stage(8), [offer] * 4 + [{**offer, "o.ready": 1}] * 4, ["i.ready", "o.valid"])
    assert [step["o.valid"] for step in trace] == [0, 1, 1, 1, 1, 0, 1, 0]
    assert [step["i.ready"] for step in trace] == [1, 0, 0, 0, 0, 1, 0, 1]
