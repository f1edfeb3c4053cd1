# amaranth: UnusedElaboratable=no
"""Proves that the activation queue keeps order and never overflows at its capacity."""

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.act_queue import ActQueue
from openese.hdl.layouts import Tag
from openese.model.config import EngineConfig

from .helpers import SMALL, plain, play, receiver, recurrent, simulate, transfers

DEPTHS = [1, 2, 3, 8]


def item(number: int) -> dict:
    """Distinct columns, negative activations included."""
    return {"ptr": {"start": number * 7 % 200, "length": 1 + number % 3}, "values": [number - 40]}


@pytest.mark.parametrize("depth", DEPTHS)
def test_latency_and_full_throughput(depth):
    script = [{"i.valid": 1, "i.payload": item(k), "o.ready": 1} for k in range(50)]
    script += [{"o.ready": 1}] * 3
    trace = play(ActQueue(SMALL.with_(queue_depth=depth)), script,
                 ["o.valid", "o.payload", "almost_full"])
    assert transfers(trace, "o") == [(k + 1, item(k)) for k in range(50)]
    # One column waits at a time.
    assert [step["almost_full"] for step in trace] == [
        int(depth == 1 and 1 <= cycle <= 50) for cycle in range(53)]


@pytest.mark.parametrize("depth", DEPTHS)
def test_almost_full_from_depth_on(depth):
    capacity = SMALL.with_(queue_depth=depth).queue_capacity
    fill = [{"i.valid": 1, "i.payload": item(k)} for k in range(capacity)]
    drain = [{"o.ready": 1}] * (capacity + 1)
    trace = play(ActQueue(SMALL.with_(queue_depth=depth)), fill + drain,
                 ["o.valid", "o.payload", "almost_full"])
    waiting = [*range(capacity), *range(capacity, -1, -1)]
    assert [step["almost_full"] for step in trace] == [int(n >= depth) for n in waiting]
    assert [step["o.valid"] for step in trace] == [int(n > 0) for n in waiting]
    assert [step["o.payload"] for step in trace[capacity:-1]] == [
        item(k) for k in range(capacity)]


@pytest.mark.parametrize("n_pes", [1, 8, 9, 64, 65])
@pytest.mark.parametrize("depth", DEPTHS)
def test_capacity_is_exactly_the_worst_case(depth, n_pes):
    """A broadcast that stops as late as the latencies of the config allow fills every slot."""
    config = EngineConfig(n_pes=n_pes, queue_depth=depth)
    dut = ActQueue(config)
    got = []
    counts = {}

    async def broadcast(ctx):
        seen, sent = [], []
        for cycle in range(200):
            # What the sequencer sees is `status_latency` old, what it decides is counted
            # `arrival_latency` later.
            stall = cycle >= config.status_latency and seen[cycle - config.status_latency]
            sent.append(not stall)
            source = cycle + 1 - config.arrival_latency
            valid = int(source >= 0 and sent[source])
            ctx.set(dut.i.valid, valid)
            if valid:
                ctx.set(dut.i.payload, item(sum(sent[:source])))
            seen.append(ctx.get(dut.almost_full))
            await ctx.tick()
        ctx.set(dut.i.valid, 0)
        counts["sent"] = sum(sent)
        await receiver(dut.o, config.queue_capacity, got)(ctx)

    simulate(dut, broadcast)
    assert counts["sent"] == config.queue_capacity
    assert [payload for _, payload in got] == [item(k) for k in range(config.queue_capacity)]


@pytest.mark.parametrize("depth", DEPTHS)
def test_random_traffic_under_backpressure(depth):
    """The same broadcast against a PE that takes columns at random rates."""
    config = EngineConfig(n_pes=9, queue_depth=depth)
    dut = ActQueue(config)
    rng = np.random.default_rng(depth)
    got, pushed = [], []

    async def testbench(ctx):
        seen, sent = [], []
        for cycle in range(1500):
            rate = (0.1, 0.5, 1.0)[cycle // 100 % 3]
            stall = cycle >= config.status_latency and seen[cycle - config.status_latency]
            sent.append(not stall and rng.random() < 0.8)
            source = cycle + 1 - config.arrival_latency
            valid = int(source >= 0 and sent[source])
            ctx.set(dut.i.valid, valid)
            ctx.set(dut.i.payload, item(len(pushed)))
            ctx.set(dut.o.ready, int(rng.random() < rate))
            seen.append(ctx.get(dut.almost_full))
            assert seen[-1] == (len(pushed) - len(got) >= depth)
            if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
                got.append(plain(ctx.get(dut.o.payload)))
            if valid:
                pushed.append(item(len(pushed)))
            await ctx.tick()

    simulate(dut, testbench)
    assert len(got) > 300
    assert got == pushed[:len(got)]
    assert len(pushed) - len(got) <= config.queue_capacity


@pytest.mark.parametrize("pointers", [True, False])
def test_markers_and_fences_stand_in_line_with_columns(pointers):
    config = recurrent(pointers=pointers, channels=2)
    where = {"ptr": {"start": 3, "length": 2}} if pointers else {}
    tags = [Tag.FENCE, Tag.PART, Tag.MARK, Tag.COLUMN, Tag.COLUMN, Tag.MARK, Tag.FENCE]
    items = [{**where, "values": [k, -k], "tag": tag} for k, tag in enumerate(tags)]
    script = [{"i.valid": 1, "i.payload": item} for item in items]
    trace = play(ActQueue(config), script + [{"o.ready": 1}] * 8,
                 ["o.valid", "o.payload", "almost_full"])
    assert [step["o.payload"] for step in trace[7:14]] == items
    # A part of a marker and a fence take a slot as a column does.
    assert [step["almost_full"] for step in trace[:8]] == [0, 0, 0, 1, 1, 1, 1, 1]


def test_overflow_is_an_assertion():
    script = [{"i.valid": 1, "i.payload": item(k)} for k in range(SMALL.queue_capacity + 1)]
    with pytest.raises(AssertionError, match="activation queue overflow"):
        play(ActQueue(SMALL), script, [], extra=1)


def test_reset_empties_the_queue():
    script = [{"i.valid": 1, "i.payload": item(k), "reset": int(k == 2)} for k in range(4)]
    trace = play(ActQueue(SMALL), [*script, {"o.ready": 1}, {"o.ready": 1}],
                 ["o.valid", "o.payload"], reset=Signal())
    assert transfers(trace[4:], "o") == [(0, item(3))]


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 8$"):
        ActQueue(8)


def test_without_pointers_only_activations_are_queued():
    """What the columns of a matrix have in common goes past the queue."""
    config = SMALL.with_(pointers=False)
    waiting = [{"i.valid": 1, "i.payload": {"values": [k - 2]}} for k in range(4)]
    trace = play(ActQueue(config), waiting + [{"o.ready": 1}] * 5, ["o.valid", "o.payload"])
    assert transfers(trace[4:], "o") == [(k, {"values": [k - 2]}) for k in range(4)]
