# amaranth: UnusedElaboratable=no
"""Proves that every broadcast column gives its pointer two cycles later, unless it is empty."""

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


def column(start: int, length: int, value: int) -> dict:
    return {"ptr": {"start": start, "length": length}, "value": value}


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
    others = [scan_message(act=3, rows=5), write_message(rows=3)] + [
        load_message(kind, 1, 0, 9)
        for kind in (Kind.LOAD_SPMAT, Kind.LOAD_PTR, Kind.LOAD_BIAS, Kind.LOAD_CODEBOOK)]
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
    assert [payload["value"] for _, payload in transfers(trace, "o")] == [0, 3]


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
