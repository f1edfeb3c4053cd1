# amaranth: UnusedElaboratable=no
"""Proves that accumulation is exact for every distance between products of the same row."""

from itertools import product

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.accumulate import Accumulate
from openese.model.config import ACC_LATENCY

from .helpers import SMALL, plain, play, signed, simulate

LOW = -(1 << SMALL.act_bits + SMALL.weight_bits - 1)
HIGH = -LOW - 1


def run(steps, config=SMALL):
    """Feed (row, product), (row, None) to clear, or None for an idle cycle.

    Returns the final accumulators, what was drained, and a list of busy bits.
    """
    dut = Accumulate(config)
    drained, busy, final = [], [], []

    async def testbench(ctx):
        product_next, clear_next = 0, False
        for step in [*steps, *[None] * 4]:
            row, value = step if step is not None else (0, 0)
            ctx.set(dut.valid, int(step is not None))
            ctx.set(dut.row, row)
            ctx.set(dut.clear, int(step is not None and value is None))
            ctx.set(dut.product, product_next)
            if clear_next:
                drained.append(ctx.get(dut.drained))
            busy.append(ctx.get(dut.busy))
            product_next, clear_next = value or 0, step is not None and value is None
            await ctx.tick()
        final.extend(signed(plain(ctx.get(dut.words[row])), config.acc_bits)
                     for row in range(config.acc_depth))

    simulate(dut, testbench)
    return final, drained, busy


def expect(steps, config=SMALL):
    accumulators, drained = [0] * config.acc_depth, []
    for step in steps:
        if step is None:
            continue
        row, value = step
        if value is None:
            drained.append(accumulators[row])
            accumulators[row] = 0
        else:
            accumulators[row] += value
    return accumulators, drained


def test_every_pattern_of_two_rows_and_gaps():
    """All sequences of six cycles of row 3, row 4 or nothing: every distance, every mix."""
    rng = np.random.default_rng(0)
    steps = []
    for rows in product((3, 4, None), repeat=6):
        steps += [None if row is None else (row, int(rng.integers(-9999, 9999))) for row in rows]
        # Draining after every pattern shows in which one a sum went wrong.
        steps += [None, None, (3, None), (4, None)]
    final, drained, _ = run(steps)
    assert (final, drained) == expect(steps)


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
def test_same_row_at_every_distance(distance):
    rng = np.random.default_rng(distance)
    steps = [(5 + k % distance, int(value))
             for k, value in enumerate(rng.integers(LOW // 64, HIGH // 64, size=60))]
    final, drained, _ = run(steps)
    assert (final, drained) == expect(steps)


@pytest.mark.parametrize("gaps", [0.0, 0.5])
def test_random_rows(gaps):
    rng = np.random.default_rng(7)
    steps = [None if rng.random() < gaps else
             (int(rng.integers(SMALL.acc_depth)), int(rng.integers(-1000, 1000)))
             for _ in range(600)]
    final, drained, _ = run(steps)
    assert (final, drained) == expect(steps)


@pytest.mark.parametrize("acc_bits", [36, 48])
def test_extreme_products_and_both_ends_of_the_accumulator(acc_bits):
    config = SMALL.with_(acc_bits=acc_bits)
    top = (1 << acc_bits - 1) - 1
    steps = [(0, LOW)] * 4 + [(1, HIGH)] * 4 + [(2, LOW), (2, HIGH), (2, 1)]
    if acc_bits == 36:
        steps += [(3, HIGH)] * (top // HIGH) + [(3, top % HIGH)]
    final, drained, _ = run(steps, config)
    assert (final, drained) == expect(steps, config)
    if acc_bits == 36:
        assert final[3] == top


def test_clear_drains_row_after_row_and_leaves_zero():
    rows = range(SMALL.acc_depth)
    steps = [(row, 100 * row - 550) for row in rows] + [None, (11, 1), None]
    steps += [(row, None) for row in rows] + [(row, None) for row in rows]
    # New products in the cycles right after a clear start from zero.
    steps += [(3, 7), (3, -9), None, None, (3, None), (3, 5), (4, None), (3, 6)]
    final, drained, _ = run(steps)
    assert (final, drained) == expect(steps)
    assert final[3] == 11


def test_latency_from_product_to_memory():
    dut = Accumulate(SMALL)
    seen = []

    async def testbench(ctx):
        for cycle in range(8):
            ctx.set(dut.valid, int(cycle == 2))
            ctx.set(dut.row, 9)
            ctx.set(dut.product, 55 if cycle == 3 else -1)
            seen.append((plain(ctx.get(dut.words[9])), ctx.get(dut.busy)))
            await ctx.tick()

    simulate(dut, testbench)
    written = 3 + ACC_LATENCY
    assert dut.LATENCY == ACC_LATENCY
    assert seen == [(55 * (cycle >= written), int(2 <= cycle < written)) for cycle in range(8)]


def test_busy_covers_everything_under_way():
    steps = [None, (1, 2), None, None, None, (1, 3), (1, 4), None, (2, 5)]
    _, _, busy = run(steps)
    active = [k for k, step in enumerate(steps) if step is not None]
    assert busy == [int(any(k <= cycle <= k + ACC_LATENCY for k in active))
                    for cycle in range(len(busy))]


@pytest.mark.parametrize("wait", range(4))
def test_reset_leaves_nothing_under_way(wait):
    """The sum of its own cycle may be written; the entry of that cycle is dropped.

    As after every reset, a drain of all rows then leaves zero.
    """
    rows = range(SMALL.acc_depth)
    script = [{"valid": 1, "row": 1}, {"product": 9, "valid": 1, "row": 2, "reset": 1},
              {"product": 77}, *[{"product": 50}] * wait]
    drains = [{"valid": 1, "row": row, "clear": 1} for row in rows]
    again = [{"valid": 1, "row": 1}, {"valid": 1, "row": 2, "product": 4}, {"product": 6}]
    trace = play(Accumulate(SMALL), [*script, *drains, *again, *drains, {}],
                 ["busy", "drained"], reset=Signal())
    assert [step["busy"] for step in trace] == [
        1, 1, *[0] * (1 + wait), *[1] * (len(trace) - 3 - wait)]
    first = len(script) + 1
    drained = [step["drained"] for step in trace[first:first + len(rows)]]
    assert drained[1] in (0, 9)
    assert drained[:1] + drained[2:] == [0] * (len(rows) - 1)
    assert [step["drained"] for step in trace[-len(rows):]] == [0, 4, 6] + [0] * (len(rows) - 3)


def test_a_product_for_a_drain_is_caught():
    script = [{"valid": 1, "row": 1, "clear": 1}, {"product": 1}, {}]
    with pytest.raises(AssertionError, match="a product for a drain"):
        play(Accumulate(SMALL), script, ["busy"])


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not None$"):
        Accumulate(None)
