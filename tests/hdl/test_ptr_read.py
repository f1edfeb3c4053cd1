# amaranth: UnusedElaboratable=no
"""Proves that every broadcast column gives its pointer two cycles later, unless it is empty.

Also what goes along with it: activations, and in recurrent engines markers and fences.
"""

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.layouts import Kind, Tag
from openese.hdl.ptr_read import PtrRead
from openese.model.config import PTR_READ_LATENCY

from .helpers import (
    SMALL,
    act_message,
    load_message,
    mark_messages,
    part_values,
    play,
    recurrent,
    scan_message,
    transfers,
    write_message,
)

WATCH = ["o.valid", "o.payload", "busy"]
START_BITS = SMALL.spmat_addr_bits


class Clocked(PtrRead):
    """Without pointers there is no register, but a simulation needs a clock."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.sync += Signal().eq(1)
        return m


def pointers(seed: int) -> list[tuple[int, int]]:
    """Random (start, length class), a quarter of them empty columns."""
    rng = np.random.default_rng(seed)
    return [(int(rng.integers(SMALL.spmat_depth)), int(rng.integers(4)))
            for _ in range(SMALL.ptr_depth)]


def word(start: int, length: int) -> int:
    return start | length << START_BITS


def column(start: int, length: int, value: int) -> dict:
    return {"ptr": {"start": start, "length": length}, "values": [value]}


def columns(seed: int, count: int, gaps: float) -> list[tuple[int, int] | None]:
    """Random (column, activation) with gaps; both rails among the activations."""
    rng = np.random.default_rng(seed)
    rails = [-(1 << SMALL.act_bits - 1), (1 << SMALL.act_bits - 1) - 1, -1, 1]
    return [None if rng.random() < gaps else
            (int(rng.integers(SMALL.ptr_depth)),
             int(rng.choice(rails) if rng.random() < 0.3 else rng.integers(-2000, 2000)))
            for _ in range(count)]


@pytest.mark.parametrize("gaps", [0.0, 0.5])
def test_columns_in_pointers_out(gaps):
    table = pointers(1)
    asked = columns(2, 200, gaps)
    script = [{"i.valid": 1, "i.payload": act_message(*item)} if item else {} for item in asked]
    dut = PtrRead(SMALL, init=[word(*entry) for entry in table])
    trace = play(dut, script, WATCH, extra=4)

    expected = [(cycle + PTR_READ_LATENCY, column(*table[item[0]], item[1]))
                for cycle, item in enumerate(asked) if item and table[item[0]][1]]
    assert transfers(trace, "o") == expected
    assert dut.LATENCY == PTR_READ_LATENCY
    # A column is inside in the two cycles after it came, empty or not.
    inside = [any(item is not None for item in asked[max(0, cycle - 2):cycle])
              for cycle in range(len(trace))]
    assert [bool(step["busy"]) for step in trace] == inside


def test_other_messages_and_invalid_ones_are_no_columns():
    dut = PtrRead(SMALL, init=[word(7, 3)] * SMALL.ptr_depth)
    others = [scan_message(act=3, rows=5), write_message(acc=3),
              # An engine that drains between matrices has nothing else in its queues.
              *mark_messages(SMALL, codebook=2), write_message(Kind.CELL, acc=3)] + [
        load_message(kind, 1, 0, 9)
        for kind in (Kind.LOAD_SPMAT, Kind.LOAD_PTR, Kind.LOAD_BIAS, Kind.LOAD_CODEBOOK,
                     Kind.LOAD_ACT, Kind.LOAD_CELL, Kind.LOAD_RESULT, Kind.LOAD_PEEPHOLE)]
    script = [{"i.valid": 1, "i.payload": message} for message in others]
    script += [{"i.valid": 0, "i.payload": act_message(3, 5)}]
    trace = play(dut, script, WATCH, settings={"id": 0}, extra=4)
    assert not any(step["o.valid"] or step["busy"] for step in trace)


def test_load_writes_only_the_own_pe():
    table = pointers(3)
    messages = []
    for addr, entry in enumerate(table):
        messages.append(load_message(Kind.LOAD_PTR, 1, addr, word(*entry)))
        messages.append(load_message(Kind.LOAD_PTR, 2, addr, word(150, 2)))
        messages.append(load_message(Kind.LOAD_SPMAT, 1, addr, word(151, 2)))
        messages.append(load_message(Kind.LOAD_BIAS, 1, addr, word(152, 2)))
    messages += [act_message(addr, addr - 5) for addr in range(len(table))]
    script = [{"i.valid": 1, "i.payload": message} for message in messages]
    trace = play(PtrRead(SMALL), script, WATCH, settings={"id": 1}, extra=4)
    assert [payload for _, payload in transfers(trace, "o")] == [
        column(*entry, addr - 5) for addr, entry in enumerate(table) if entry[1]]


def test_reset_drops_columns_inside():
    reset = Signal()
    dut = PtrRead(SMALL, init=[word(7, 3)] * SMALL.ptr_depth)
    send = [{"i.valid": 1, "i.payload": act_message(k, k)} for k in range(4)]
    send[2]["reset"] = 1
    trace = play(dut, send, WATCH, extra=5, reset=reset)
    # Column 0 came out in the cycle of the reset; 1 and 2 were inside or arriving.
    assert [payload["values"] for _, payload in transfers(trace, "o")] == [[0], [3]]


#: Engines whose markers take one part, two and three.
ONE = recurrent(channels=2)
TWO = recurrent(pointers=False)
THREE = recurrent(pointers=False, act_bits=8)


@pytest.mark.parametrize("config", [ONE, TWO, THREE], ids=["one", "two", "three"])
def test_markers_and_fences_keep_their_place_among_columns(config):
    """Messages of all orders right behind each other, as the sequencer never sends them."""
    assert config.marker_parts == 1 + [ONE, TWO, THREE].index(config)
    rng = np.random.default_rng(8)
    script, expected = [], []
    table = [(k, k % 3) for k in range(config.ptr_depth)]  # a third of the columns are empty

    def send(message: dict, item: dict | None) -> None:
        if item is not None:
            expected.append((len(script) + config.ptr_read_latency, item))
        script.append({"i.valid": 1, "i.payload": message})

    while len(script) < 300:
        choice, values = int(rng.integers(8)), rng.integers(-128, 128, config.channels).tolist()
        if choice < 4 and config.pointers:
            ptr = int(rng.integers(config.ptr_depth))
            start, length = table[ptr]
            item = {"ptr": {"start": start, "length": length}, "values": values,
                    "tag": Tag.COLUMN}
            send(act_message(ptr, *values), item if length else None)
        elif choice < 4:
            send({"kind": Kind.ACT, "args": {"act": {"values": values}}},
                 {"values": values, "tag": Tag.COLUMN})
        elif choice < 6:
            where = {} if config.pointers else {"spmat": int(rng.integers(config.spmat_depth)),
                                                "drop": -int(rng.integers(config.acc_depth))}
            for message in mark_messages(
                    config, codebook=int(rng.integers(3)), code_sel=int(rng.integers(3)),
                    acc=int(rng.integers(config.acc_depth)), **where):
                mark = message["args"]["mark"]
                send(message, {"values": part_values(config, mark["part"]),
                               "tag": Tag.MARK if mark["last"] else Tag.PART})
        elif choice == 6:
            send(write_message(Kind.CELL, acc=2), {"tag": Tag.FENCE})
        else:
            # None of what a queue takes, or not valid.
            script.append({"i.valid": 1, "i.payload": scan_message(rows=2)})
            script += [{"i.payload": message} for message in mark_messages(config, acc=7)]
    dut = Clocked(config, init=[word(*entry) for entry in table] if config.pointers else ())
    trace = play(dut, script, WATCH, extra=4)
    given = transfers(trace, "o")
    if config.pointers:
        for _, item in given:
            if item["tag"] != Tag.COLUMN:
                del item["ptr"]  # whatever was read last
    for _, item in given:
        if item["tag"] == Tag.FENCE:
            del item["values"]
    assert given == expected
    assert len({item["tag"] for _, item in given}) == 3 + (config.marker_parts > 1)
    # A marker or a fence is inside as long as a column would be.
    kinds = [step["i.payload"]["kind"] if step.get("i.valid") else None for step in script]
    inside = [any(kind in (Kind.ACT, Kind.MARK, Kind.CELL)
                  for kind in kinds[max(0, cycle - config.ptr_read_latency):cycle])
              for cycle in range(len(trace))]
    assert [bool(step["busy"]) for step in trace] == inside


def test_without_pointers_every_column_is_passed_on_at_once():
    """Of an engine that drains between matrices nothing else is."""
    config = SMALL.with_(pointers=False)
    columns = [{"kind": Kind.ACT, "args": {"act": {"values": [value]}}}
               for value in (0, 3, -32768, 0)]
    messages = [*mark_messages(config, spmat=17, code_sel=1, drop=-5), *columns[:2],
                scan_message(rows=4), *mark_messages(config, spmat=18, code_sel=2),
                *columns[2:]]
    trace = play(Clocked(config), [{"i.valid": 1, "i.payload": m} for m in messages], WATCH,
                 extra=3)
    assert config.ptr_read_latency == 0
    assert transfers(trace, "o") == [
        (cycle, {"values": message["args"]["act"]["values"]})
        for cycle, message in enumerate(messages) if message["kind"] == Kind.ACT]
    assert not any(step["busy"] for step in trace)


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 'demo'$"):
        PtrRead("demo")
    with pytest.raises(ValueError, match=r"^ptr has 61 words but the memory of this "
                                         r"configuration holds 60$"):
        PtrRead(SMALL, init=[0] * 61)
    with pytest.raises(ValueError, match=r"^ptr word 1 must be an integer from 0 to 1023 "
                                         r"\(10 bits\), not 1024$"):
        PtrRead(SMALL, init=[0, 1024])
    with pytest.raises(ValueError, match=r"^ptr word 0 must be .* not -1$"):
        PtrRead(SMALL, init=[-1])
