# amaranth: UnusedElaboratable=no
"""Proves one entry per cycle for every order of column lengths, and the latency of the first.

With and without pointers; that a hold changes nothing but time; that fences keep their place.
"""

from itertools import product

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.layouts import Kind, route_layout
from openese.hdl.spmat_read import SpMatRead, SpMatStream
from openese.model.config import SPMAT_READ_LATENCY, EngineConfig

from .helpers import (
    SMALL,
    load_message,
    plain,
    play,
    recurrent,
    sender,
    simulate,
    transfers,
)

FLAG = 1 << SMALL.entry_bits


class Matrix:
    """Columns of given lengths with random entries, stored one after the other."""

    def __init__(self, lengths, config: EngineConfig = SMALL, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.config = config
        self.entries = [rng.integers(1 << config.entry_bits, size=n).tolist() for n in lengths]
        self.words, self.starts = [], []
        for column in self.entries:
            self.starts.append(len(self.words))
            self.words += column
            if not config.pointers:
                # A last entry of code 0, however narrow codes are, would be an empty column's.
                self.words[-1] |= 1
                column[-1] |= 1
                self.words[-1] |= 1 << config.entry_bits
            elif len(column) >= 3:
                self.words[-3] |= 1 << config.entry_bits

    def start(self, column: int, value: int) -> dict:
        """The column as it comes from the queue."""
        return {"ptr": {"start": self.starts[column],
                        "length": min(3, len(self.entries[column]))},
                "values": self.values(value), "route": self.route(column, value)}

    def outputs(self, column: int, value: int) -> list[dict]:
        return [{"entry": entry, "values": self.values(value), "route": self.route(column, value),
                 "first": int(k == 0)}
                for k, entry in enumerate(self.entries[column])]

    def values(self, value: int) -> list[int]:
        """Activations of all channels, all different."""
        return [value - 100 * c for c in range(self.config.channels)]

    def route(self, column: int, value: int) -> dict:
        """A route that goes with the activation, so that every column has another."""
        number = 3 * column + value
        route = {"codebook": number % 3, "code_sel": number // 3 % 3, "acc": number % 12}
        return {name: route[name] for name, _ in route_layout(self.config)}


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


class Tape:
    """Columns and fences against a block, with holds and gaps; what comes out, cycle by cycle.

    A number is a column, ``None`` a fence. Without pointers, columns go in runs from the first
    column of the matrix on, and every run begins with a restart.

    Attributes
    ----------
    given
        (cycle, entry or None for a fence).
    taken
        Cycle in which each column or fence left the queue.
    """

    def __init__(self, matrix: Matrix, items, *, hold=lambda cycle: False, wait=lambda k: 0):
        config = matrix.config
        dut = (SpMatRead if config.pointers else SpMatStream)(config, init=matrix.words)
        self.given, self.taken = [], []

        async def testbench(ctx):
            cycle, place, since, quiet = 0, 0, 0, 0
            while quiet < 8:
                offering = place < len(items) and since >= wait(place)
                held = bool(hold(cycle))
                ctx.set(dut.i.valid, int(offering))
                ctx.set(dut.i.payload, self._payload(matrix, items, place) if offering
                        else junk(config, cycle))
                ctx.set(dut.hold, int(held))
                valid, fence = ctx.get(dut.o.valid), ctx.get(dut.fence)
                assert not (valid and fence), cycle
                assert not (held and (valid or fence or ctx.get(dut.i.ready))), cycle
                if valid:
                    self.given.append((cycle, plain(ctx.get(dut.o.payload))))
                if fence:
                    self.given.append((cycle, None))
                since += 1
                if offering and ctx.get(dut.i.ready):
                    self.taken.append(cycle)
                    place, since = place + 1, 0
                done = place == len(items) and not ctx.get(dut.busy)
                quiet = quiet + 1 if done else 0
                await ctx.tick()
                cycle += 1

        simulate(dut, testbench)
        # A fence comes behind all that came before it, and nothing of what came after.
        expected = []
        for place, item in enumerate(items):
            expected += [None] if item is None else matrix.outputs(item, value_of(place))
        assert [entry for _, entry in self.given] == expected

    @staticmethod
    def _payload(matrix: Matrix, items, place: int) -> dict:
        config, item = matrix.config, items[place]
        if item is None:
            return {**junk(config, place), "fence": 1}
        if config.pointers:
            return matrix.start(item, value_of(place))
        columns = [k for k in items[:place] if k is not None]
        restart = not columns or item != columns[-1] + 1
        return {"values": matrix.values(value_of(place)),
                "route": matrix.route(item, value_of(place)),
                # Where a matrix begins is of no use to its other columns.
                "spmat": matrix.starts[item] if restart else place % config.spmat_depth,
                "restart": int(restart)}


def value_of(place: int) -> int:
    """The activation of the column in a place."""
    return 10 * place - 30


def junk(config: EngineConfig, number: int) -> dict:
    """What nothing may depend on."""
    payload = {"values": [number] * config.channels}
    if config.pointers:
        payload |= {"ptr": {"start": number % config.spmat_depth, "length": number % 4}}
    else:
        payload |= {"spmat": number % config.spmat_depth, "restart": number % 2}
    return payload


RECURRENT = recurrent()
STREAM = recurrent(pointers=False)
LENGTHS = [1, 2, 3, 4, 1, 1, 5, 2, 2, 3, 1, 3, 3, 7, 1, 2, 1]


@pytest.mark.parametrize("config", [RECURRENT, STREAM], ids=["pointers", "no pointers"])
def test_a_hold_at_any_time_only_delays(config):
    """One cycle of holding at every position, then every pair of cycles."""
    matrix = Matrix(LENGTHS, config)
    items = [*range(8), None, *range(8, 17), None]
    free = Tape(matrix, items).given
    end = free[-1][0]
    for at in range(end + 2):
        held = Tape(matrix, items, hold=lambda cycle, at=at: cycle == at).given
        # What would have come from then on comes a cycle later; a matrix read ahead may have
        # needed that cycle anyway.
        late = [(cycle + (cycle >= at), entry) for cycle, entry in free]
        assert held == late or (not config.pointers and held == free and at < free[0][0]), at


@pytest.mark.parametrize("config", [RECURRENT, STREAM, recurrent(channels=3)],
                         ids=["pointers", "no pointers", "channels"])
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("gaps", [0.0, 0.5])
def test_random_holds_and_fences(config, rate, gaps):
    rng = np.random.default_rng(int(10 * rate))
    matrix = Matrix(rng.choice([1, 1, 2, 2, 3, 4, 7], size=40), config)
    items = []
    for _ in range(12):
        items += range(int(rng.integers(1, 12)))
        items += [None] * int(rng.integers(3))
    if not config.pointers:
        # A run may begin again with column 0 right behind column 0: another matrix.
        assert items[0] == 0
    else:
        items = rng.permutation(np.array(items, dtype=object)).tolist()
    holds, waits = rng.random(20_000) < rate, rng.geometric(1 - gaps, len(items)) - 1
    Tape(matrix, items, hold=lambda cycle: holds[cycle], wait=lambda place: waits[place])


@pytest.mark.parametrize("config", [RECURRENT, STREAM], ids=["pointers", "no pointers"])
def test_fences_between_short_columns(config):
    """Every two neighbours of up to three entries, with a fence before, between or after them."""
    for lengths in product((1, 2, 3, 4), repeat=2):
        matrix = Matrix(lengths, config)
        for fences in product((0, 1), (0, 1, 2), (0, 1)):
            items = [None] * fences[0] + [0] + [None] * fences[1] + [1] + [None] * fences[2]
            given = Tape(matrix, items).given
            # A fence takes one cycle, and so does an entry: there is no bubble.
            first = given[0][0]
            latency = SPMAT_READ_LATENCY if config.pointers or not fences[0] else 0
            assert first == latency
            expected = list(range(first, first + len(given)))
            if not config.pointers and fences[0]:
                # The matrix is looked up when its first column is at the head of the queue.
                late = SPMAT_READ_LATENCY
                expected = [cycle + late * (cycle >= fences[0]) for cycle in expected]
            assert [cycle for cycle, _ in given] == expected, (lengths, fences)


def test_busy_from_a_column_to_its_fence():
    matrix = Matrix([3, 1], RECURRENT)
    script = [{"i.valid": 1, "i.payload": matrix.start(0, 1)}, {}, {},
              {"i.valid": 1, "i.payload": {"fence": 1}}]
    trace = play(SpMatRead(RECURRENT, init=matrix.words), script, ["busy", "o.valid", "fence"],
                 extra=6)
    fence = 3 + SPMAT_READ_LATENCY
    assert [cycle for cycle, step in enumerate(trace) if step["fence"]] == [fence]
    assert [cycle for cycle, step in enumerate(trace) if step["busy"]] == list(
        range(1, fence + 1))
    # Held, it stays inside.
    script += [{"hold": 1}] * 5
    trace = play(SpMatRead(RECURRENT, init=matrix.words), script, ["busy", "fence"], extra=6)
    assert [cycle for cycle, step in enumerate(trace) if step["fence"]] == [fence + 5]
    assert [cycle for cycle, step in enumerate(trace) if step["busy"]] == list(
        range(1, fence + 6))


def test_columns_without_pointers_follow_without_a_bubble():
    matrix = Matrix(LENGTHS, STREAM)
    tape = Tape(matrix, range(17))
    first = SPMAT_READ_LATENCY
    assert [cycle for cycle, _ in tape.given] == list(range(first, first + sum(LENGTHS)))
    # A column leaves the queue with its last entry.
    assert tape.taken == [first - 1 + total for total in np.cumsum(LENGTHS)]
    # The next matrix is looked up when its first column is at the head of the queue.
    again = Tape(matrix, [0, 1, 2, 0, 1, 9, 10, 0, 0]).given
    lengths, starts = [LENGTHS[k] for k in (0, 1, 2, 0, 1, 9, 10, 0, 0)], {0, 3, 5, 7, 8}
    cycle, expected = 0, []
    for place, length in enumerate(lengths):
        cycle += SPMAT_READ_LATENCY * (place in starts)
        expected += range(cycle, cycle + length)
        cycle += length
    assert [cycle for cycle, _ in again] == expected


@pytest.mark.parametrize("wait", range(1, 8))
def test_entries_read_ahead_wait_for_their_column(wait):
    """However long the queue was empty, the next column's first entry is there at once."""
    tape = Tape(Matrix([1, 2, 3, 1, 4, 1], STREAM), range(6), wait=lambda place: wait)
    firsts = [cycle for cycle, entry in tape.given if entry["first"]]
    lasts = [cycle for cycle, after in zip(tape.taken, firsts[1:], strict=False)
             if after != cycle + 1 + wait]
    assert lasts == []
    assert firsts[0] == wait + SPMAT_READ_LATENCY


def test_loaded_words_are_read_after_a_restart():
    """What was read ahead before a load is not used by the columns after it."""
    old, new = Matrix([2, 1, 3], STREAM, seed=1), Matrix([1, 2, 3], STREAM, seed=2)

    def run(matrix):
        return [step for column in range(3) for step in [
            {"i.valid": 1, "i.payload": {
                "values": [column], "route": matrix.route(column, 0), "spmat": 0,
                "restart": int(column == 0)}},
        ] * ((3 if column == 0 else 0) + len(matrix.entries[column]))]

    load = [{"load.valid": 1, "load.payload": load_message(Kind.LOAD_SPMAT, 0, addr, word)}
            for addr, word in enumerate(new.words)]
    trace = play(SpMatStream(STREAM, init=old.words), [*run(old), *load, *run(new)],
                 ["o.valid", "o.payload", "busy"])
    assert [entry["entry"] for _, entry in transfers(trace, "o")] == [
        word & (FLAG - 1) for word in old.words + new.words]


def test_an_entry_of_code_0_at_the_end_stands_for_empty_columns():
    config = STREAM.with_(code_bits=4, min_code_bits=3)
    flag, codes = 1 << config.entry_bits, {0: 3, 1: 4}
    for sel, hold in product(codes, (False, True)):
        # One entry, three empty columns, two entries, one empty column, one entry.
        words = [flag | 5, flag | 2 << codes[sel], 3, flag | 6, flag, flag | 1]
        expected = [words[:1], words[1:2], [], [], words[2:4], words[4:5], words[5:], []]
        dut, got = SpMatStream(config, init=words), []

        async def testbench(ctx, dut=dut, sel=sel, hold=hold, got=got, expected=expected):
            columns, place, given = len(expected), 0, []
            for cycle in range(60):
                held = hold and cycle % 3 == 1
                fence = place == columns - 1
                ctx.set(dut.hold, int(held))
                ctx.set(dut.i.valid, int(place < columns))
                ctx.set(dut.i.payload, {
                    "values": [place], "restart": int(place == 0), "spmat": 0,
                    "fence": int(fence), "route": {"code_sel": sel}})
                if ctx.get(dut.o.valid):
                    given.append(ctx.get(dut.o.payload.entry))
                if place < columns and ctx.get(dut.i.ready):
                    assert not held
                    got.append(given)
                    place, given = place + 1, []
                await ctx.tick()

        simulate(dut, testbench)
        assert got == [[word & (flag - 1) for word in column] for column in expected]


def test_reset_forgets_what_was_read_ahead():
    matrix = Matrix([2, 2], STREAM)
    column = {"i.valid": 1, "i.payload": {"values": [1], "spmat": 0, "restart": 1}}
    script = [column] * 4 + [{"reset": 1}, *[column] * 5]
    trace = play(SpMatStream(STREAM, init=matrix.words), script, ["o.valid", "o.payload"],
                 reset=Signal())
    assert [(cycle, entry["entry"], entry["first"]) for cycle, entry in transfers(trace, "o")] == [
        (3, matrix.entries[0][0], 1), (8, matrix.entries[0][0], 1), (9, matrix.entries[0][1], 0)]


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
