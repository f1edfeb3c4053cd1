# amaranth: UnusedElaboratable=no
"""Proves one entry per cycle for every order of column lengths, and the latency of the first."""

from itertools import product

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.layouts import Kind
from openese.hdl.spmat_read import SpMatRead
from openese.model.config import SPMAT_READ_LATENCY, EngineConfig

from .helpers import SMALL, load_message, plain, play, sender, simulate, transfers

FLAG = 1 << SMALL.entry_bits


class Matrix:
    """Columns of given lengths with random entries, stored one after the other."""

    def __init__(self, lengths, config: EngineConfig = SMALL, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.entries = [rng.integers(1 << config.entry_bits, size=n).tolist() for n in lengths]
        self.words, self.starts = [], []
        for column in self.entries:
            self.starts.append(len(self.words))
            self.words += column
            if len(column) >= 3:
                self.words[-3] |= 1 << config.entry_bits

    def start(self, column: int, value: int) -> dict:
        """The column as it comes from the queue."""
        return {"ptr": {"start": self.starts[column],
                        "length": min(3, len(self.entries[column]))}, "value": value}

    def outputs(self, column: int, value: int) -> list[dict]:
        return [{"entry": entry, "value": value, "first": int(k == 0)}
                for k, entry in enumerate(self.entries[column])]


def record(dut, testbench, got: list, busy: list | None = None):
    """Run `testbench`, then until nothing is inside; fills `got` with (cycle, entry)."""
    done = []

    async def main(ctx):
        await testbench(ctx)
        done.append(True)

    async def monitor(ctx):
        cycle, quiet = 0, 0
        while quiet < 8:
            _, _, valid, payload, inside = await ctx.tick().sample(
                dut.o.valid, dut.o.payload, dut.busy)
            if valid:
                got.append((cycle, plain(payload)))
            if busy is not None:
                busy.append(inside)
            quiet = quiet + 1 if done and not inside else 0
            cycle += 1

    simulate(dut, main, monitor)


def run(matrix: Matrix, columns, config: EngineConfig = SMALL):
    """Offer all columns at once; returns (cycle, entry) and the expected entries."""
    dut = SpMatRead(config, init=matrix.words)
    items = [(column, 10 * k - 30) for k, column in enumerate(columns)]
    got = []
    record(dut, sender(dut.i, [matrix.start(*item) for item in items]), got)
    expected = [entry for item in items for entry in matrix.outputs(*item)]
    return got, expected


@pytest.mark.parametrize("lengths", [
    [1, 1, 1, 2, 3, 1, 4, 2, 2, 1, 3, 3, 4, 5, 1, 6, 2, 7, 17, 1, 2, 1],
    [1] * 12, [2] * 8, [3] * 8, [4] * 6, [9],
])
def test_entries_follow_without_a_bubble(lengths):
    got, expected = run(Matrix(lengths), range(len(lengths)))
    assert [entry for _, entry in got] == expected
    # The first column is taken in cycle 0.
    assert [cycle for cycle, _ in got] == list(
        range(SPMAT_READ_LATENCY, SPMAT_READ_LATENCY + sum(lengths)))
    assert SpMatRead.LATENCY == SPMAT_READ_LATENCY


def test_every_sequence_of_four_short_columns():
    matrix = Matrix([1, 2, 3, 4, 5])
    # Every sequence of four lengths occurs in this order of columns.
    order = [column for group in product(range(5), repeat=4) for column in group]
    got, expected = run(matrix, order)
    assert [entry for _, entry in got] == expected
    assert [cycle for cycle, _ in got] == list(
        range(SPMAT_READ_LATENCY, SPMAT_READ_LATENCY + len(expected)))


@pytest.mark.parametrize("gaps", [0.3, 0.8])
def test_random_columns_with_gaps(gaps):
    rng = np.random.default_rng(5)
    matrix = Matrix(rng.choice([1, 1, 2, 2, 3, 4, 7], size=40))
    order = rng.integers(40, size=250).tolist()
    values = rng.integers(-(1 << 15), 1 << 15, size=250).tolist()
    dut = SpMatRead(SMALL, init=matrix.words)
    taken, got, busy = [], [], []

    async def testbench(ctx):
        cycle = 0
        for item in zip(order, values, strict=True):
            while rng.random() < gaps:
                await ctx.tick()
                cycle += 1
            ctx.set(dut.i.payload, matrix.start(*item))
            ctx.set(dut.i.valid, 1)
            ready = 0
            while not ready:
                _, _, ready = await ctx.tick().sample(dut.i.ready)
                cycle += 1
            taken.append(cycle - 1)
            ctx.set(dut.i.valid, 0)

    record(dut, testbench, got, busy)
    expected, inside = [], set()
    for cycle, item in zip(taken, zip(order, values, strict=True), strict=True):
        first = cycle + SPMAT_READ_LATENCY
        entries = matrix.outputs(*item)
        expected += [(first + k, entry) for k, entry in enumerate(entries)]
        inside.update(range(cycle + 1, first + len(entries)))
    assert got == expected
    assert [bool(b) for b in busy] == [cycle in inside for cycle in range(len(busy))]
    # A column is refused only while another one still has entries to address.
    for before, after, column in zip(taken, taken[1:], order, strict=False):
        assert after >= before + len(matrix.entries[column])


def test_ready_is_high_when_idle_and_in_the_last_cycle_of_a_column():
    matrix = Matrix([1, 2, 3, 6])
    for column, entries in enumerate(matrix.entries):
        script = [{}, {"i.valid": 1, "i.payload": matrix.start(column, 1)}]
        trace = play(SpMatRead(SMALL, init=matrix.words), script, ["i.ready"], extra=12)
        expected = [1, 1] + [0] * (len(entries) - 1) + [1] * (13 - len(entries))
        assert [step["i.ready"] for step in trace] == expected


def test_last_word_of_the_memory():
    config = SMALL.with_(spmat_depth=64)
    matrix = Matrix([30, 30, 4], config)
    assert len(matrix.words) == config.spmat_depth
    got, expected = run(matrix, [2, 0, 2], config)
    assert [entry for _, entry in got] == expected


def test_load_writes_only_the_own_pe():
    matrix = Matrix([3, 1, 5, 2, 8])
    script = []
    for addr, word in enumerate(matrix.words):
        script += [{"load.valid": 1, "load.payload": load_message(*message)} for message in (
            (Kind.LOAD_SPMAT, 2, addr, word), (Kind.LOAD_SPMAT, 1, addr, word ^ 0xFF),
            (Kind.LOAD_PTR, 2, addr, word ^ 0xFF), (Kind.LOAD_BIAS, 2, addr, word ^ 0xFF),
            (Kind.LOAD_CODEBOOK, 2, addr, word ^ 0xFF))]
    script.append({"load.payload": load_message(Kind.LOAD_SPMAT, 2, 0, FLAG)})  # not valid
    columns = range(5)
    for column in columns:
        script += [{"i.valid": 1, "i.payload": matrix.start(column, column)}]
        script += [{}] * (len(matrix.entries[column]) + 3)
    trace = play(SpMatRead(SMALL), script, ["o.valid", "o.payload"], settings={"id": 2})
    assert [entry for _, entry in transfers(trace, "o")] == [
        entry for column in columns for entry in matrix.outputs(column, column)]


def test_reset_drops_the_column_inside():
    matrix = Matrix([6, 2])
    script = [{"i.valid": 1, "i.payload": matrix.start(0, 1)}, {}, {}, {}, {"reset": 1},
              {"i.valid": 1, "i.payload": matrix.start(1, 2)}]
    trace = play(SpMatRead(SMALL, init=matrix.words), script,
                 ["o.valid", "o.payload", "busy", "i.ready"], extra=8, reset=Signal())
    first = 5 + SPMAT_READ_LATENCY
    entries = matrix.outputs(1, 2)
    assert transfers(trace[5:], "o") == [(first - 5, entries[0]), (first - 4, entries[1])]
    assert trace[5]["i.ready"] == 1
    assert trace[5]["busy"] == 0


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not \{\}$"):
        SpMatRead({})
    with pytest.raises(ValueError, match=r"^spmat has 201 words but the memory of this "
                                         r"configuration holds 200$"):
        SpMatRead(SMALL, init=[0] * 201)
    with pytest.raises(ValueError, match=r"^spmat word 2 must be an integer from 0 to 511 "
                                         r"\(9 bits\), not 512$"):
        SpMatRead(SMALL, init=[0, 511, 512])
    with pytest.raises(ValueError, match=r"^spmat word 0 must be an integer .*, not 1\.5$"):
        SpMatRead(SMALL, init=[1.5])
