# amaranth: UnusedElaboratable=no
"""Proves that the activation queue keeps order and never overflows at its capacity."""

import numpy as np
import pytest
from amaranth.hdl import Signal
from amaranth_boards.icebreaker import ICEBreakerPlatform

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


def test_markers_and_fences_stand_in_line_with_columns():
    config = recurrent(channels=2)
    where = {"ptr": {"start": 3, "length": 2}}
    tags = [Tag.FENCE, Tag.PART, Tag.MARK, Tag.COLUMN, Tag.COLUMN, Tag.MARK, Tag.FENCE]
    items = [{**where, "values": [k, -k], "tag": tag} for k, tag in enumerate(tags)]
    script = [{"i.valid": 1, "i.payload": item} for item in items]
    trace = play(ActQueue(config), script + [{"o.ready": 1}] * 8,
                 ["o.valid", "o.payload", "almost_full"])
    assert [step["o.payload"] for step in trace[7:14]] == items
    # A part of a marker and a fence take a slot as a column does.
    assert [step["almost_full"] for step in trace[:8]] == [0, 0, 0, 1, 1, 1, 1, 1]


PAIRED = recurrent(pointers=False, channels=2)


def element(number: int, tag: Tag = Tag.COLUMN) -> dict:
    return {"values": [number, -number], "tag": tag}


class OnIce40(ActQueue):
    """As on an iCE40 UltraPlus, whatever it is elaborated for."""

    def elaborate(self, platform):
        return super().elaborate(ICEBreakerPlatform())


def of_slots(slots: list[dict]) -> list[dict]:
    """The elements in slots that were taken."""
    elements = []
    for slot in slots:
        elements.append({name: slot[name] for name in ("values", "tag")})
        if slot["two"]:
            elements.append({"values": slot["second"], "tag": Tag.COLUMN})
    return elements


def test_two_columns_share_a_slot():
    """While others are waiting; `almost_full` counts slots."""
    tags = [Tag.FENCE, Tag.PART, Tag.MARK, *[Tag.COLUMN] * 5, Tag.MARK]
    items = [element(k, tag) for k, tag in enumerate(tags)]
    trace = play(ActQueue(PAIRED), [{"i.valid": 1, "i.payload": one} for one in items]
                 + [{}] * 3 + [{"o.ready": 1}] * 9, ["o.valid", "o.payload", "almost_full",
                                                     "waiting"])
    slots = [step["o.payload"] for step in trace[12:] if step["o.valid"]]
    assert of_slots(slots) == items
    assert [slot["two"] for slot in slots] == [0, 0, 0, 1, 1, 0, 0]
    # The slot at the head does not count.
    assert [step["almost_full"] for step in trace[:8]] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [step["almost_full"] for step in trace[12:]] == [1] * 4 + [0] * 5
    assert [step["waiting"] for step in trace] == [0] + [1] * 18 + [0] * 2


def test_a_column_alone_goes_on_when_none_waits():
    script = [{"i.valid": 1, "i.payload": element(1)}, {}, {},
              {"i.valid": 1, "i.payload": element(2)}, {},
              # One is waiting behind that at the head: this one waits for the next.
              {"i.valid": 1, "i.payload": element(3)}, {}, {}, {"o.ready": 1}, {}, {},
              {"o.ready": 1}, {"o.ready": 1}]
    trace = play(ActQueue(PAIRED), script, ["o.valid", "o.payload"], extra=1)
    # Three cycles from column to queue.
    assert [step["o.valid"] for step in trace[:4]] == [0, 0, 0, 1]
    slots = [step["o.payload"] for step, given in zip(trace, script, strict=False)
             if step["o.valid"] and given.get("o.ready")]
    assert of_slots(slots) == [element(1), element(2), element(3)]
    assert [slot["two"] for slot in slots] == [0, 0, 0]
    assert [step["o.valid"] for step in trace[-2:]] == [1, 0]


@pytest.mark.parametrize("depth", [2, 3, 8])
def test_random_pairs_under_backpressure(depth):
    """No element is lost, and none has to wait for one behind it."""
    config = PAIRED.with_(n_pes=9, queue_depth=depth)
    dut = ActQueue(config)
    rng = np.random.default_rng(depth)
    slots, pushed = [], []

    async def testbench(ctx):
        seen, sent = [], []
        for cycle in range(1500):
            rate, traffic = (0.1, 0.5, 1.0)[cycle // 100 % 3], (0.2, 0.9)[cycle // 300 % 2]
            stall = cycle >= config.status_latency and seen[cycle - config.status_latency]
            sent.append(not stall and rng.random() < traffic)
            source = cycle + 1 - config.arrival_latency
            valid = int(source >= 0 and sent[source])
            one = element(len(pushed), Tag(rng.choice(4, p=[0.8, 0.05, 0.1, 0.05])))
            ctx.set(dut.i.valid, valid)
            ctx.set(dut.i.payload, one)
            ctx.set(dut.o.ready, int(rng.random() < rate))
            seen.append(ctx.get(dut.almost_full))
            if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
                slots.append(plain(ctx.get(dut.o.payload)))
            if valid:
                pushed.append(one)
            await ctx.tick()
        ctx.set(dut.i.valid, 0)
        ctx.set(dut.o.ready, 1)
        for _ in range(2 * config.queue_capacity):
            if ctx.get(dut.o.valid):
                slots.append(plain(ctx.get(dut.o.payload)))
            await ctx.tick()
        assert not ctx.get(dut.waiting)

    simulate(dut, testbench)
    assert of_slots(slots) == pushed
    twos = sum(slot["two"] for slot in slots)
    assert len(pushed) > 300
    assert 20 < twos < len(slots)


def test_on_ice40_two_columns_share_a_slot():
    """Words that shift show the same in every cycle."""
    rng = np.random.default_rng(1)
    script = [{"o.ready": int(rng.random() < (0.1, 0.9)[cycle // 20 % 2])}
              | ({"i.valid": 1, "i.payload": element(cycle, Tag(int(rng.random() < 0.1)))}
                 if rng.random() < 0.35 else {}) for cycle in range(120)]
    watch = ["o.valid", "o.payload", "almost_full", "waiting"]
    traces = [play(dut, script, watch) for dut in (ActQueue(PAIRED), OnIce40(PAIRED))]
    for here, there in zip(*traces, strict=True):
        assert here["o.valid"] == there["o.valid"]
        assert not here["o.valid"] or here["o.payload"] == there["o.payload"]
        assert [here[name] for name in watch[2:]] == [there[name] for name in watch[2:]]


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
