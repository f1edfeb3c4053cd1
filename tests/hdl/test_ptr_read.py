# amaranth: UnusedElaboratable=no
"""Proves that every broadcast column gives its pointer two cycles later, unless it is empty.

Also what goes along with it: activations, the route of the message before, fences, and where a
matrix without pointers begins.
"""

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.layouts import Kind
from openese.hdl.ptr_read import PtrRead
from openese.model.config import PTR_READ_LATENCY

from .helpers import (
    SMALL,
    act_message,
    load_message,
    play,
    recurrent,
    scan_message,
    transfers,
    write_message,
)

WATCH = ["o.valid", "o.payload", "busy"]
START_BITS = SMALL.spmat_addr_bits


def pointers(seed: int) -> list[tuple[int, int]]:
    """Random (start, length class), a quarter of them empty columns."""
    rng = np.random.default_rng(seed)
    return [(int(rng.integers(SMALL.spmat_depth)), int(rng.integers(4)))
            for _ in range(SMALL.ptr_depth)]


def word(start: int, length: int) -> int:
    return start | length << START_BITS


def column(start: int, length: int, value: int, code_sel: int = 0, codebook: int = 0) -> dict:
    return {"ptr": {"start": start, "length": length}, "values": [value],
            "route": {"codebook": codebook, "code_sel": code_sel}}


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
    # A message with a route is no column.
    script.insert(0, {"i.valid": 1, "i.payload": scan_message(codebook=2, code_sel=1)})
    asked.insert(0, None)
    trace = play(dut, script, WATCH, extra=4)

    expected = [(cycle + PTR_READ_LATENCY, column(*table[item[0]], item[1], 1, 2))
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
              scan_message(Kind.FEED, rows=5), write_message(Kind.CELL, acc=3)] + [
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


def test_a_route_belongs_to_the_columns_after_its_message():
    """Messages of all orders right behind each other, as the sequencer never sends them."""
    config = recurrent(channels=2)
    rng = np.random.default_rng(8)
    route = {"codebook": 1, "code_sel": 2, "acc": 11}
    script = [{"i.valid": 1, "i.payload": scan_message(**route)}]
    expected, fences = [], []
    for cycle in range(1, 300):
        choice = int(rng.integers(8))
        if choice < 4:
            ptr = int(rng.integers(config.ptr_depth))
            message = act_message(ptr, cycle, -cycle)
            expected.append((cycle + PTR_READ_LATENCY, {
                "ptr": {"start": ptr, "length": 1}, "values": [cycle, -cycle],
                "route": dict(route), "fence": 0}))
        elif choice < 6:
            route = {"codebook": int(rng.integers(3)), "code_sel": int(rng.integers(3)),
                     "acc": int(rng.integers(config.acc_depth))}
            message = scan_message(Kind.SCAN if choice == 4 else Kind.FEED, rows=1, **route)
        elif choice == 6:
            message = write_message(Kind.CELL, acc=2)
            fences.append(cycle + PTR_READ_LATENCY)
        else:
            message = scan_message(codebook=1, acc=7)  # not valid
        script.append({"i.valid": int(choice < 7), "i.payload": message})
    dut = PtrRead(config, init=[word(k, 1) for k in range(config.ptr_depth)])
    trace = play(dut, script, WATCH, extra=4)
    given = transfers(trace, "o")
    assert [item for item in given if not item[1]["fence"]] == expected
    assert [cycle for cycle, payload in given if payload["fence"]] == fences
    # A fence is inside as long as a column would be.
    kinds = [step["i.payload"]["kind"] if step["i.valid"] else None for step in script]
    inside = [any(kind in (Kind.ACT, Kind.CELL) for kind in kinds[max(0, cycle - 2):cycle])
              for cycle in range(len(trace))]
    assert [bool(step["busy"]) for step in trace] == inside


def test_without_pointers_the_first_column_says_where_its_matrix_begins():
    config = recurrent(pointers=False)
    script = []
    expected = []
    for spmat, columns, kind in [(17, 3, Kind.SCAN), (170, 1, Kind.FEED), (3, 2, Kind.SCAN),
                                 (99, 0, Kind.SCAN), (5, 2, Kind.FEED)]:
        script.append({"i.valid": 1, "i.payload": scan_message(kind, spmat=spmat, acc=spmat % 12)})
        # What comes between the message and the first column does not end the restart.
        script += [{"i.valid": 1, "i.payload": write_message(Kind.CELL, acc=1)}] * (columns == 2)
        script += [{}] * (spmat % 2)
        for k in range(columns):
            expected.append((len(script) + config.ptr_read_latency, spmat, int(k == 0), [k - 1]))
            script += [{"i.valid": 1, "i.payload": {
                "kind": Kind.ACT, "args": {"act": {"values": [k - 1]}}}}, *[{}] * (k % 2)]
        # A fence neither begins a matrix nor keeps a column from doing so.
        script += [{"i.valid": 1, "i.payload": write_message(Kind.CELL, acc=1)}]
    trace = play(PtrRead(config), script, WATCH, extra=4)
    given = [(cycle, payload) for cycle, payload in transfers(trace, "o") if not payload["fence"]]
    # Every column is passed on, and only the first of a matrix restarts.
    assert [(cycle, payload["spmat"], payload["restart"], payload["values"])
            for cycle, payload in given] == expected
    assert [payload["route"]["acc"] for _, payload in given] == [
        spmat % 12 for _, spmat, *_ in expected]
    assert sum(payload["fence"] for _, payload in transfers(trace, "o")) == 7


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
