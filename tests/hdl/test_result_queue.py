# amaranth: UnusedElaboratable=no
"""Proves the queue of results: order, latency, full rate, and every place of it of use."""

from collections import deque

import numpy as np
import pytest
from amaranth.back import rtlil

from openese.hdl.result_queue import ResultQueue

from .helpers import SMALL, recurrent, simulate

CONFIGS = [recurrent(), recurrent(n_pes=5), recurrent(n_pes=2, channels=3)]


@pytest.mark.parametrize("config", CONFIGS, ids=["three", "five", "channels"])
@pytest.mark.parametrize(("put_rate", "take_rate"), [(0.5, 0.5), (0.9, 0.3), (0.3, 0.9), (1, 1)])
def test_order_and_latency(config, put_rate, take_rate):
    dut = ResultQueue(config)
    rng = np.random.default_rng(config.n_pes)
    bits = len(dut.i.payload.as_value())
    # Results with the cycle from which they may be offered.
    waiting, taken = deque(), 0

    async def testbench(ctx):
        nonlocal taken
        for cycle in range(1500):
            valid = bool(waiting) and waiting[0][0] <= cycle
            assert ctx.get(dut.o.valid) == valid
            if valid:
                assert ctx.get(dut.o.payload.as_value()) == waiting[0][1]
            # The last hundred cycles empty it.
            ready = rng.random() < take_rate or cycle >= 1400
            put = len(waiting) < config.results_depth and rng.random() < put_rate and cycle < 1400
            word = int.from_bytes(rng.bytes(bits // 8 + 1), "little") % (1 << bits)
            ctx.set(dut.o.ready, ready)
            ctx.set(dut.i.valid, put)
            ctx.set(dut.i.payload.as_value(), word)
            if valid and ready:
                waiting.popleft()
                taken += 1
                if waiting:
                    # The next one is in the register by then, unless it came too late for that.
                    waiting[0] = (max(waiting[0][0], cycle + 1), waiting[0][1])
            if put:
                waiting.append((cycle + ResultQueue.LATENCY, word))
            await ctx.tick()

    simulate(dut, testbench)
    assert taken > 300


@pytest.mark.parametrize("config", CONFIGS, ids=["three", "five", "channels"])
def test_all_places_are_of_use_and_no_more(config):
    """As many as its depth, before one is taken; the one in the register does not count."""
    depth = config.results_depth

    def fill(count):
        dut = ResultQueue(config)
        values = [(7 * k + 1) % 251 for k in range(count)]
        found = []

        async def testbench(ctx):
            ctx.set(dut.i.valid, 1)
            for value in values:
                ctx.set(dut.i.payload.as_value(), value)
                await ctx.tick()
            ctx.set(dut.i.valid, 0)
            ctx.set(dut.o.ready, 1)
            for _ in range(count):
                assert ctx.get(dut.o.valid)
                found.append(ctx.get(dut.o.payload.as_value()))
                await ctx.tick()
            assert not ctx.get(dut.o.valid)

        simulate(dut, testbench)
        assert found == values

    fill(depth)
    fill(depth + 1)
    with pytest.raises(AssertionError, match="a result had no room"):
        fill(depth + 2)


def test_memory_is_lut_ram_for_one_channel():
    def in_lut_ram(config):
        dut = ResultQueue(config)
        ports = [dut.i.valid, dut.i.payload.as_value(), dut.o.ready, dut.o.payload.as_value()]
        return 'ram_style "distributed"' in rtlil.convert(dut, ports=ports)

    assert in_lut_ram(recurrent())
    assert not in_lut_ram(recurrent(channels=2))


def test_configuration_is_checked():
    with pytest.raises(TypeError, match="EngineConfig"):
        ResultQueue(SMALL.n_pes)
