# amaranth: UnusedElaboratable=no
"""Proves the central activation memory: input, loads of one channel, scans under backpressure.

With beats of all widths, a power of two or not, and in the order of the activations' numbers.
"""

from itertools import product

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.act_store import ActStore
from openese.hdl.layouts import Kind
from openese.model.config import ACT_READ_LATENCY, EngineConfig

from .helpers import (
    SMALL,
    load_message,
    mark_messages,
    play,
    receiver,
    recurrent,
    scan_in_turn,
    scan_message,
    simulate,
    transfers,
    unsigned,
    write_message,
)

#: Numbers of PEs and lanes: one group for each PE, several, and only one.
SHAPES = [(6, 1), (6, 2), (6, 3), (6, 6), (4, 4), (8, 4), (9, 3), (3, 1), (1, 1)]
WATCH = ["o.valid", "o.payload"]

of_all_shapes = pytest.mark.parametrize(("n_pes", "lanes"), SHAPES)


def shaped(n_pes: int = 6, lanes: int = 2, **changes) -> EngineConfig:
    return recurrent(SMALL, pointers=False, n_pes=n_pes, input_lanes=lanes, **changes)


CONFIG = shaped()


def vector(config: EngineConfig, rows: int, seed: int = 0) -> list[list[int]]:
    """Random activations of every channel, zeros and rails among them, in order."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-32768, 32768, (rows * config.n_pes, config.channels))
    values[rng.random(len(values)) < 0.2] = 0
    values[rng.random(len(values)) < 0.1] = -32768
    values[rng.random(len(values)) < 0.1] = 32767
    return values.tolist()


def beats(config: EngineConfig, act: int, values) -> list[dict]:
    """Beats that write whole rows of activations from row `act` on."""
    lanes, groups = config.input_lanes, config.n_pes // config.input_lanes
    return [{"i_input.valid": 1, "i_input.payload": {
        "group": k % groups, "act": act + k // groups,
        "values": values[k * lanes:(k + 1) * lanes]}} for k in range(len(values) // lanes)]


def scan(config: EngineConfig = CONFIG, **fields: int) -> dict:
    return {"i.valid": 1, "i.payload": scan_message(**{"rem": config.n_pes, "dense": 1, **fields})}


def load(pe: int, act: int, value: int, channel: int = 0) -> dict:
    return {"i.valid": 1, "i.payload": load_message(
        Kind.LOAD_ACT, pe, act, unsigned(value, CONFIG.act_bits), channel=channel)}


def items(config: EngineConfig, values, act: int, rows: int, rem: int) -> list[dict]:
    """What a scan gives of a memory that holds `values` from row 0 on."""
    found = []
    for row in range(act, act + rows):
        count = rem if row == act + rows - 1 else config.n_pes
        found += [{"values": values[row * config.n_pes + k], "nonzero": 1,
                   "last": int(k == count - 1)} for k in range(count)]
    return found


TAKE = {"o.ready": 1}


@of_all_shapes
def test_scan_gives_one_activation_per_cycle_in_order(n_pes, lanes):
    """Zero or not; of a full last row and of every short one; from any row on."""
    config = shaped(n_pes, lanes)
    values = vector(config, 5)
    script, expected = beats(config, 0, values), []
    for (act, rows), rem in product(((0, 1), (0, 5), (2, 3), (4, 1)), range(1, n_pes + 1)):
        found = items(config, values, act, rows, rem)
        first = len(script) + ACT_READ_LATENCY
        expected += [(first + k, item) for k, item in enumerate(found)]
        script += [scan(config, act=act, rows=rows, rem=rem) | TAKE, *[TAKE] * (len(found) + 8)]
    assert transfers(play(ActStore(config), script, WATCH), "o") == expected
    assert ActStore.LATENCY == ACT_READ_LATENCY == config.scan_latency - 1


@of_all_shapes
def test_the_whole_memory(n_pes, lanes):
    config = shaped(n_pes, lanes)
    values = vector(config, config.act_depth)
    script = [*beats(config, 0, values), scan(config, act=0, rows=config.act_depth)]
    trace = play(ActStore(config), [*script, *[TAKE] * (len(values) + 8)], WATCH)
    assert [item for _, item in transfers(trace, "o")] == items(
        config, values, 0, config.act_depth, n_pes)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stalls", [0.0, 0.2, 0.7])
@of_all_shapes
def test_back_to_back_scans_under_backpressure(n_pes, lanes, stalls, channels):
    config = shaped(n_pes, lanes, channels=channels)
    dut = ActStore(config)
    rng = np.random.default_rng(3)
    values = vector(config, config.act_depth)
    regions = [(0, 3, n_pes), (5, 1, 1), (7, 4, -(-n_pes // 2)), (0, 2, n_pes), (29, 1, n_pes)]
    regions += [(int(rng.integers(20)), int(rng.integers(1, 5)), int(rng.integers(1, n_pes + 1)))
                for _ in range(8)]
    got, expected = [], []
    for region in regions:
        expected += items(config, values, *region)

    async def commands(ctx):
        ctx.set(dut.i_input.valid, 1)
        for beat in beats(config, 0, values):
            ctx.set(dut.i_input.payload, beat["i_input.payload"])
            await ctx.tick()
        ctx.set(dut.i_input.valid, 0)
        sizes = [(rows - 1) * n_pes + rem for _, rows, rem in regions]
        await scan_in_turn(ctx, dut, regions, sizes, got)

    simulate(dut, commands, receiver(dut.o, len(expected), got, stalls=stalls, seed=1))
    assert [item for _, item in got] == expected


def test_nothing_is_scanned_without_a_scan():
    act = {"kind": Kind.ACT, "args": {"act": {"values": [2]}}}
    messages = [act, *mark_messages(CONFIG, code_sel=1, spmat=3), write_message(acc=3),
                write_message(Kind.CELL, acc=3)]
    messages += [load_message(kind, 0, 1, 2) for kind in Kind if kind.name.startswith("LOAD")]
    script = [{"i.valid": 1, "i.payload": message} for message in messages]
    script += [{"i.payload": scan_message(rows=4, rem=6)}]  # not valid
    trace = play(ActStore(CONFIG), script, WATCH, extra=8)
    assert transfers(trace, "o") == []


@pytest.mark.parametrize("wait", range(4))
def test_a_write_is_there_for_a_scan_in_the_next_cycle(wait):
    """Of a beat and of a load, in the first activation that is read."""
    old, new = vector(CONFIG, 1, seed=1), vector(CONFIG, 1, seed=2)
    new[0], new[1] = [77], [-78]
    for write, count in ((beats(CONFIG, 0, new)[0], 2), (load(0, 0, 77), 1)):
        script = [*beats(CONFIG, 0, old), write, *[{}] * wait, scan(act=0, rows=1),
                  *[TAKE] * 12]
        trace = play(ActStore(CONFIG), script, WATCH)
        assert [item for _, item in transfers(trace, "o")] == items(
            CONFIG, new[:count] + old[count:], 0, 1, 6)


def test_one_region_is_written_while_another_is_scanned():
    first, second = vector(CONFIG, 5, seed=1), vector(CONFIG, 5, seed=2)
    writes = [beat | TAKE for beat in beats(CONFIG, 5, second)]
    script = [*beats(CONFIG, 0, first), scan(act=0, rows=5), *writes, *[TAKE] * 25,
              scan(act=5, rows=5), *[TAKE] * 40]
    trace = play(ActStore(CONFIG), script, WATCH)
    assert [item for _, item in transfers(trace, "o")] == items(CONFIG, first + second, 0, 5, 6) + (
        items(CONFIG, first + second, 5, 5, 6))


@pytest.mark.parametrize("channels", [1, 2, 5])
@of_all_shapes
def test_load_of_one_channel_leaves_the_others(n_pes, lanes, channels):
    """And every other activation, of whichever lane."""
    config = shaped(n_pes, lanes, channels=channels)
    rng = np.random.default_rng(channels)
    values = vector(config, 4)
    loads = []
    for _ in range(80):
        pe, act, channel = (int(rng.integers(n)) for n in (n_pes, 4, channels))
        value = int(rng.choice([0, 0, 32767, -32768, 5]))
        loads.append(load(pe, act, value, channel))
        values[act * n_pes + pe][channel] = value
    others = [{"i.valid": 1, "i.payload": load_message(kind, 0, 3, 77, channel=0)}
              for kind in Kind if kind.name.startswith("LOAD") and kind != Kind.LOAD_ACT]
    others += [{"i.payload": load_message(Kind.LOAD_ACT, 0, 3, 77, channel=0)}]  # not valid
    fill = beats(config, 0, vector(config, 4))
    script = [*fill, *others, *loads, *others, scan(config, act=0, rows=4),
              *[TAKE] * (4 * n_pes + 8)]
    trace = play(ActStore(config), script, WATCH)
    assert [item for _, item in transfers(trace, "o")] == items(config, values, 0, 4, n_pes)


def test_a_load_must_not_meet_a_beat():
    [beat, *_] = beats(CONFIG, 0, vector(CONFIG, 1))
    with pytest.raises(AssertionError, match="a load met another write"):
        play(ActStore(CONFIG), [load(0, 1, 2) | beat], [], extra=1)
    # A scan may.
    play(ActStore(CONFIG), [scan(act=0, rows=1) | beat], [], extra=1)


@pytest.mark.parametrize("at", range(12))
def test_reset_ends_a_scan_but_the_memory_keeps_its_words(at):
    values = vector(CONFIG, 2)
    script = [*beats(CONFIG, 0, values), scan(act=0, rows=2), *[TAKE] * at,
              TAKE | {"reset": 1}]
    begin = len(script)
    script += [*[TAKE] * 8, scan(act=0, rows=2), *[TAKE] * 20]
    trace = play(ActStore(CONFIG), script, WATCH, reset=Signal())
    first = 8 + ACT_READ_LATENCY
    assert transfers(trace[begin:], "o") == [
        (first + k, item) for k, item in enumerate(items(CONFIG, values, 0, 2, 6))]


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 4$"):
        ActStore(4)
