# amaranth: UnusedElaboratable=no
"""Proves activation memory: input, results, scans under backpressure, and absent lanes.

Of several channels: loads of one, and that an activation is zero only when it is in all of them.
"""

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.act_memory import ActMemory
from openese.hdl.layouts import Kind
from openese.model.config import ACT_READ_LATENCY

from .helpers import (
    SMALL,
    act_message,
    load_message,
    mark_messages,
    plain,
    play,
    receiver,
    recurrent,
    scan_in_turn,
    scan_message,
    simulate,
    transfers,
    write_message,
)

CONFIG = SMALL.with_(n_pes=4, input_lanes=2)  # two groups of two PEs
WATCH = ["o.valid", "o.payload"]


def result(act: int, *values: int) -> dict:
    return {"i_result.valid": 1, "i_result.payload": {"act": act, "values": list(values)}}


def beat(group: int, act: int, *values: int) -> dict:
    return {"i_input.valid": 1,
            "i_input.payload": {"group": group, "act": act, "values": list(values)}}


def scan(**fields: int) -> dict:
    return {"i.valid": 1, "i.payload": scan_message(**{"rem": CONFIG.n_pes, **fields})}


def items(values, *, dense=False, absent=False) -> list[dict]:
    """What a scan of `values` gives; the value of an absent lane is whatever memory holds."""
    found = [{"values": [value], "nonzero": int(dense or value != 0), "last": 1}
             for value in values]
    if absent:
        found[-1]["nonzero"] = 0
    return found


VALUES = [0, 5, -5, 0, 0, 32767, -32768, -1, 1, 0, 256, -256, 0]
FILL = [result(4 + k, value) for k, value in enumerate(VALUES)]


@pytest.mark.parametrize("dense", [0, 1])
def test_scan_gives_one_row_per_cycle_in_order(dense):
    script = [*FILL, scan(act=4, rows=len(VALUES), dense=dense)]
    trace = play(ActMemory(CONFIG), [*script, *[{"o.ready": 1}] * 20], WATCH)
    first = len(FILL) + ACT_READ_LATENCY
    assert transfers(trace, "o") == [
        (first + k, item) for k, item in enumerate(items(VALUES, dense=dense))]
    assert ActMemory.LATENCY == ACT_READ_LATENCY


@pytest.mark.parametrize("dense", [0, 1])
@pytest.mark.parametrize("rem", [1, 2, 3, 4])
def test_lanes_beyond_rem_have_no_activation_in_the_last_row(rem, dense):
    values = [7, -7, 9]  # not zero, so that only `rem` can hide the last one
    fill = [result(k, value) for k, value in enumerate(values)]
    script = [*fill, scan(act=0, rows=3, rem=rem, dense=dense), *[{"o.ready": 1}] * 9]
    for pe in range(CONFIG.n_pes):
        trace = play(ActMemory(CONFIG), script, WATCH, settings={"id": pe})
        expected = items(values, dense=dense, absent=pe >= rem)
        assert [item for _, item in transfers(trace, "o")] == expected, pe


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_number_of_rows(rows):
    values = [k - 9 for k in range(CONFIG.act_depth)]
    fill = [result(k, value) for k, value in enumerate(values)]
    script = [*fill, scan(act=30 - rows, rows=rows), *[{"o.ready": 1}] * (rows + 8)]
    trace = play(ActMemory(CONFIG), script, WATCH)
    assert [item for _, item in transfers(trace, "o")] == items(values[30 - rows:])


@pytest.mark.parametrize("stalls", [0.2, 0.7])
def test_back_to_back_scans_under_backpressure(stalls):
    dut = ActMemory(CONFIG)
    rng = np.random.default_rng(3)
    values = rng.integers(-3, 4, size=CONFIG.act_depth).tolist()
    regions = [(0, 30, 4), (5, 1, 1), (7, 11, 2), (0, 2, 4), (29, 1, 4), (3, 20, 3)]
    got, expected = [], []
    for act, rows, rem in regions:
        expected += items(values[act:act + rows], absent=rem <= 2)

    async def commands(ctx):
        ctx.set(dut.id, 2)
        ctx.set(dut.i_result.valid, 1)
        for act, value in enumerate(values):
            ctx.set(dut.i_result.payload, {"act": act, "values": [value]})
            await ctx.tick()
        ctx.set(dut.i_result.valid, 0)
        await scan_in_turn(ctx, dut, regions, [rows for _, rows, _ in regions], got)

    simulate(dut, commands, receiver(dut.o, len(expected), got, stalls=stalls, seed=1))
    assert [item for _, item in got] == expected


def test_nothing_is_scanned_without_a_scan():
    messages = [act_message(1, 2), write_message(acc=3), load_message(Kind.LOAD_PTR, 0, 1, 2),
                *mark_messages(CONFIG, code_sel=1), write_message(Kind.CELL, acc=3),
                load_message(Kind.LOAD_ACT, 0, 1, 2)]
    script = [{"i.valid": 1, "i.payload": message} for message in messages]
    script += [{"i.payload": scan_message(rows=4)}]
    trace = play(ActMemory(CONFIG), script, WATCH, extra=6)
    assert transfers(trace, "o") == []


@pytest.mark.parametrize("group", [0, 1])
def test_input_beats_of_the_own_group_only(group):
    script = []
    for act in range(CONFIG.act_depth):
        script += [beat(0, act, 100 + act), beat(1, act, -100 - act)]
    script += [scan(act=0, rows=30), *[{"o.ready": 1}] * 40]
    trace = play(ActMemory(CONFIG), script, WATCH, settings={"group": group})
    sign = -1 if group else 1
    assert [item["values"] for _, item in transfers(trace, "o")] == [
        [sign * (100 + act)] for act in range(CONFIG.act_depth)]


def test_one_region_is_written_while_another_is_scanned():
    fill = [result(k, k + 1) for k in range(10)]
    script = [*fill, scan(act=0, rows=10)]
    script += [{**beat(0, 10 + k, -k - 1), "o.ready": 1} for k in range(10)]
    script += [{"o.ready": 1}] * 5 + [scan(act=10, rows=10)] + [{"o.ready": 1}] * 15
    trace = play(ActMemory(CONFIG), script, WATCH)
    assert [item["values"] for _, item in transfers(trace, "o")] == [
        *([value] for value in range(1, 11)), *([value] for value in range(-1, -11, -1))]


def test_input_and_write_back_must_not_meet():
    with pytest.raises(AssertionError, match="input and write-back met"):
        play(ActMemory(CONFIG), [{**result(1, 2), **beat(0, 3, 4)}], [], extra=1)
    load = {"i.valid": 1, "i.payload": load_message(Kind.LOAD_ACT, 0, 1, 2)}
    with pytest.raises(AssertionError, match="a load met another write"):
        play(ActMemory(recurrent(CONFIG)), [{**load, **beat(0, 3, 4)}], [], extra=1)
    # Input for another group is no meeting.
    play(ActMemory(CONFIG), [{**result(1, 2), **beat(1, 3, 4)}], [], extra=1)


@pytest.mark.parametrize("channels", [2, 5])
def test_an_activation_of_several_channels(channels):
    """Written by results and by input; zero only when it is in every channel."""
    config = CONFIG.with_(channels=channels)
    rng = np.random.default_rng(channels)
    rows = rng.integers(-32768, 32768, (30, channels)) * (rng.random((30, channels)) < 0.3)
    rows[0], rows[1] = 0, 0
    rows[1, -1] = -1
    rows = rows.tolist()
    fill = [result(k, *values) if k % 2 else beat(1, k, *values) for k, values in enumerate(rows)]
    for dense in (0, 1):
        script = [*fill, scan(act=0, rows=30, dense=dense), *[{"o.ready": 1}] * 40]
        trace = play(ActMemory(config), script, WATCH, settings={"group": 1})
        assert [item for _, item in transfers(trace, "o")] == [
            {"values": values, "nonzero": int(dense or any(values)), "last": 1}
            for values in rows]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_load_of_one_channel_leaves_the_others(channels):
    config = recurrent(CONFIG, channels=channels)
    rng = np.random.default_rng(channels)
    memory = rng.integers(-9, 9, (30, channels))
    fill = [beat(1, k, *values) for k, values in enumerate(memory.tolist())]
    loads = []
    for _ in range(80):
        act, channel, pe = (int(rng.integers(n)) for n in (30, channels, 4))
        value = int(rng.choice([0, 0, 32767, -32768, 5]))
        loads.append({"i.valid": 1, "i.payload": load_message(
            Kind.LOAD_ACT, pe, act, value & 0xFFFF, channel=channel)})
        if pe == 2:
            memory[act, channel] = value
    others = [{"i.valid": 1, "i.payload": load_message(kind, 2, 3, 77, channel=0)}
              for kind in Kind if kind.name.startswith("LOAD") and kind != Kind.LOAD_ACT]
    others += [{"i.payload": load_message(Kind.LOAD_ACT, 2, 3, 77, channel=0)}]  # not valid
    # The last load and the scan may follow each other at once.
    script = [*fill, *others, *loads, scan(act=0, rows=30), *[{"o.ready": 1}] * 40]
    trace = play(ActMemory(config), script, WATCH, settings={"id": 2, "group": 1})
    assert [item for _, item in transfers(trace, "o")] == [
        {"values": values, "nonzero": int(any(values)), "last": 1} for values in memory.tolist()]


def test_reset_ends_a_scan():
    script = [*FILL, scan(act=4, rows=13), *[{"o.ready": 1}] * 5, {"reset": 1},
              *[{"o.ready": 1}] * 10]
    trace = play(ActMemory(CONFIG), script, WATCH, reset=Signal())
    assert [step["o.valid"] for step in trace[len(FILL) + 1:]] == [0, 0, 1, 1, 1, 1] + [0] * 10


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 4$"):
        ActMemory(4)


def test_contents_are_signed():
    dut = ActMemory(CONFIG)

    async def testbench(ctx):
        ctx.set(dut.i_result.valid, 1)
        ctx.set(dut.i_result.payload, {"act": 3, "values": [-2]})
        await ctx.tick().repeat(2)  # a register, then the memory
        assert plain(ctx.get(dut.words[3])) == [{"value": -2, "nonzero": 1}]

    simulate(dut, testbench)
