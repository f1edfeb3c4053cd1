# amaranth: UnusedElaboratable=no
"""Proves that the queue of shifting words keeps order and count at every depth, at full rate."""

import re
from collections import deque

import numpy as np
import pytest
from amaranth.sim import Simulator

from openese.hdl.shift_queue import ShiftQueue


@pytest.mark.parametrize("depth", [1, 2, 5, 8])
@pytest.mark.parametrize(("put_rate", "take_rate"), [(0.5, 0.5), (0.9, 0.4), (0.4, 0.9), (1, 1)])
def test_order_and_count(depth, put_rate, take_rate):
    dut = ShiftQueue(16, depth)
    rng = np.random.default_rng(depth)
    waiting, taken = deque(), []

    async def testbench(ctx):
        for number in range(1, 400):
            assert ctx.get(dut.filled) == (1 << len(waiting)) - 1
            assert ctx.get(dut.o.valid) == bool(waiting)
            if waiting:
                assert ctx.get(dut.o.payload) == waiting[0]
            ready = rng.random() < take_rate
            # Full, it may take a word only if it gives one.
            valid = rng.random() < put_rate and (len(waiting) < depth or ready)
            ctx.set(dut.o.ready, ready)
            ctx.set(dut.i.valid, valid)
            ctx.set(dut.i.payload, number if valid else 0xffff)
            if waiting and ready:
                taken.append(waiting.popleft())
            if valid:
                waiting.append(number)
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()
    assert taken == sorted(taken)
    assert len(taken) > 100


@pytest.mark.parametrize(("width", "depth", "message"), [
    (0, 4, "width must be an integer of 1 or more, not 0"),
    (8, 0, "depth must be an integer of 1 or more, not 0"),
    (8, "2", "depth must be an integer of 1 or more, not '2'"),
])
def test_sizes_are_checked(width, depth, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ShiftQueue(width, depth)
