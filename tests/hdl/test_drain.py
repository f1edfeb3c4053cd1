# amaranth: UnusedElaboratable=no
"""Proves that tokens drain one unit's accumulators after the other, and that WRITE clears one."""

import pytest
from amaranth.hdl import Signal

from openese.hdl.drain import Drain
from openese.hdl.layouts import Kind
from openese.model.config import DRAIN_LATENCY

from .helpers import play, recurrent, write_message

CONFIG = recurrent(acc_depth=40)


class Run:
    """Messages and tokens at given cycles; other messages come in all others.

    Attributes
    ----------
    drains
        (cycle, row).
    valid, passed, busy
        Cycles in which a value was announced, a token passed on, and `busy` high.
    """

    def __init__(self, messages, cycles, *, tokens=(), reset_at=None):
        junk = {"i.valid": 1, "i.payload": {"kind": Kind.LOAD_BIAS}}
        script = [{**({"i.valid": 1, "i.payload": messages[cycle]} if cycle in messages else junk),
                   "i_token": int(cycle in tokens), "reset": int(cycle == reset_at)}
                  for cycle in range(cycles)]
        trace = list(enumerate(play(Drain(CONFIG), script,
                                    ["drain", "row", "valid", "o_token", "busy"], reset=Signal())))
        self.drains = [(cycle, step["row"]) for cycle, step in trace if step["drain"]]
        self.valid, self.passed, self.busy = (
            [cycle for cycle, step in trace if step[name]] for name in ("valid", "o_token", "busy"))


@pytest.mark.parametrize(("gates", "period"), [(4, 4), (4, 5), (4, 12), (1, 1), (1, 4), (1, 9),
                                               (2, 4)])
def test_a_token_drains_the_accumulators_of_one_unit(gates, period):
    """At every distance of tokens that the accumulators of a unit leave time for."""
    units, first = 5, 6
    tokens = [first + period * k for k in range(units)]
    run = Run({2: write_message(Kind.CELL, acc=11, gates=gates - 1)},
              first + period * units + 20, tokens=tokens)
    drained = [token + 1 + k for token in tokens for k in range(gates)]
    assert run.drains == list(zip(drained, range(11, 11 + units * gates), strict=True))
    assert run.valid == [cycle + DRAIN_LATENCY for cycle in drained]
    assert run.passed == [token + 1 for token in tokens]
    assert run.busy == sorted({cycle + k for cycle in drained for k in range(DRAIN_LATENCY + 1)})
    assert Drain.LATENCY == DRAIN_LATENCY


def test_a_write_clears_and_announces_nothing():
    messages = {2 + row: write_message(acc=3 + row) for row in range(12)}
    run = Run(messages, 30)
    assert run.drains == [(cycle + 1, 3 + row) for row, cycle in enumerate(messages)]
    assert run.valid == run.passed == []
    assert run.busy == list(range(3, 15))


def test_cells_and_writes_take_turns():
    """A CELL begins anew, and tokens go on where the one before has stopped."""
    messages = {
        0: write_message(acc=20),
        20: write_message(Kind.CELL, acc=2, gates=3),
        50: write_message(acc=10), 51: write_message(acc=30),
        70: write_message(Kind.CELL, acc=25, gates=0),
        90: write_message(Kind.CELL, acc=0, gates=0),
    }
    run = Run(messages, 120, tokens=[25, 33, 75, 95, 100])
    assert [row for _, row in run.drains] == [20, *range(2, 10), 10, 30, 25, 0, 1]
    assert len(run.valid) == 4 + 4 + 1 + 2


def test_reset_ends_the_drain_of_a_unit():
    messages = {0: write_message(Kind.CELL, acc=2, gates=3),
                8: write_message(Kind.CELL, acc=5, gates=1)}
    run = Run(messages, 30, reset_at=6, tokens=[4, 10])
    assert run.drains == [(5, 2), (6, 3), (11, 5), (12, 6)]
    assert run.valid == [cycle + DRAIN_LATENCY for cycle in (11, 12)]


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 5$"):
        Drain(5)
