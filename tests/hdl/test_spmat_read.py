# amaranth: UnusedElaboratable=no
"""Proves one entry per cycle for every order of column lengths, and the latency of the first.

With and without pointers; that a hold changes nothing but time; that markers and fences keep their
place, and that a marker is in force from the entry behind it on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.layouts import Kind, Tag, route_layout
from openese.hdl.spmat_read import SpMatRead, SpMatStream
from openese.model.config import SPMAT_READ_LATENCY, EngineConfig

from .helpers import (
    SMALL,
    act_message,
    load_message,
    mark_messages,
    marker_parts,
    part_values,
    plain,
    play,
    recurrent,
    scan_message,
    sender,
    signed,
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
        where = {"ptr": {"start": self.starts[column],
                         "length": min(3, len(self.entries[column]))}}
        return {"values": self.values(value), **(where if self.config.pointers else {})}

    def outputs(self, column: int, value: int, number: int = 0) -> list[dict]:
        """What the column gives after a marker with the route `number`, or after none."""
        return [{"entry": entry, "values": self.values(value), "route": self.route(number),
                 "first": int(k == 0)}
                for k, entry in enumerate(self.entries[column])]

    def values(self, value: int) -> list[int]:
        """Activations of all channels, all different."""
        return [signed(value - 100 * c, self.config.act_bits)
                for c in range(self.config.channels)]

    def route(self, number: int) -> dict:
        """A route; those of neighbouring numbers differ in everything."""
        route = {"codebook": number % 3, "code_sel": number % 3,
                 "acc": 1001 * number % self.config.acc_depth}
        return {name: route[name] for name, _ in route_layout(self.config)}

    def marker(self, column: int, number: int) -> dict:
        """What the matrix that begins with this column has in common."""
        where = {} if self.config.pointers else {"spmat": self.starts[column]}
        return {**self.route(number), **where}


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


@dataclass(frozen=True)
class Mark:
    """A marker in a `Tape`: the matrix that begins with a column, and its route."""

    column: int
    number: int


def elements(matrix: Matrix, items) -> Iterator[tuple[Tag, dict, list]]:
    """What stands in the queue for a tape: tag, payload, and what comes out."""
    number = 0
    for place, item in enumerate(items):
        if item is None:
            # A fence comes behind all that came before it, and nothing of what came after.
            yield Tag.FENCE, junk(matrix.config, place), [None]
        elif isinstance(item, Mark):
            parts = marker_parts(matrix.config, **matrix.marker(item.column, item.number))
            for left, part in zip(range(len(parts), 0, -1), parts, strict=True):
                yield (Tag.PART if left > 1 else Tag.MARK), {
                    **junk(matrix.config, place), "values": part_values(matrix.config, part)}, []
            number = item.number
        else:
            value = 10 * place - 30
            yield (Tag.COLUMN, matrix.start(item, value), matrix.outputs(item, value, number))


class Tape:
    """Columns, markers and fences against a block, with holds and gaps; what comes out, cycle by
    cycle.

    A number is a column, ``None`` a fence. Without pointers, columns go in runs, and every run
    begins with the marker of its first column.

    Attributes
    ----------
    given
        (cycle, entry or None for a fence).
    taken
        Cycle in which each column, fence or part of a marker left the queue.
    free
        The cycles of `given` if nothing is held and the queue never runs dry.
    """

    def __init__(self, matrix: Matrix, items, *, hold=lambda cycle: False, wait=lambda k: 0):
        config = matrix.config
        dut = (SpMatRead if config.pointers else SpMatStream)(config, init=matrix.words)
        queue = list(elements(matrix, items))
        self.given, self.taken = [], []

        async def testbench(ctx):
            cycle, place, since, quiet = 0, 0, 0, 0
            while quiet < 8:
                offering = place < len(queue) and since >= wait(place)
                held = bool(hold(cycle))
                ctx.set(dut.i.valid, int(offering))
                ctx.set(dut.i.payload, {**queue[place][1], "tag": queue[place][0]} if offering
                        else {**junk(config, cycle), "tag": Tag(cycle % 4)})
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
                done = place == len(queue) and not ctx.get(dut.busy)
                quiet = quiet + 1 if done else 0
                await ctx.tick()
                cycle += 1

        simulate(dut, testbench)
        assert [entry for _, entry in self.given] == [
            entry for *_, entries in queue for entry in entries]
        self.free = self._schedule(config, queue)

    @staticmethod
    def _schedule(config: EngineConfig, queue) -> list[int]:
        """Every element takes a cycle, and a column one for each entry: there is no bubble. Only
        a matrix without pointers is looked up at its marker."""
        cycle = ready = 0
        expected = []
        for tag, _, entries in queue:
            if tag == Tag.COLUMN:
                cycle = max(cycle, ready)
            elif tag == Tag.MARK and not config.pointers:
                ready = cycle + SPMAT_READ_LATENCY
            late = SPMAT_READ_LATENCY if config.pointers else 0
            expected += [cycle + late + k for k in range(len(entries))]
            cycle += max(1, len(entries))
        return expected


def junk(config: EngineConfig, number: int) -> dict:
    """What nothing may depend on."""
    payload = {"values": [number % 100] * config.channels}
    if config.pointers:
        payload |= {"ptr": {"start": number % config.spmat_depth, "length": number % 4}}
    return payload


RECURRENT = recurrent()
STREAM = recurrent(pointers=False)
#: Markers of two parts and of three.
TWO = recurrent(pointers=False, act_bits=8)
THREE = recurrent(pointers=False, act_bits=8, acc_depth=600)
POINTERS_THREE = recurrent(act_bits=8, acc_depth=5000)
LENGTHS = [1, 2, 3, 4, 1, 1, 5, 2, 2, 3, 1, 3, 3, 7, 1, 2, 1]

of_kinds = pytest.mark.parametrize("config", [RECURRENT, STREAM, TWO, THREE, POINTERS_THREE], ids=[
    "pointers", "no pointers", "two parts", "three parts", "pointers, three parts"])


def test_parts_of_markers():
    assert [config.marker_parts for config in (
        RECURRENT, STREAM, TWO, THREE, POINTERS_THREE)] == [1, 1, 2, 3, 3]


@of_kinds
def test_a_hold_at_any_time_only_delays(config):
    """One cycle of holding at every position, then every pair of cycles."""
    matrix = Matrix(LENGTHS, config)
    items = [Mark(0, 1), *range(8), None, *range(8, 17), Mark(3, 2), 3, 4, None, Mark(0, 0), 0]
    tape = Tape(matrix, items)
    assert [cycle for cycle, _ in tape.given] == tape.free
    # A matrix read ahead at its marker does not stop, so that it hides a hold.
    hidden = set()
    if not config.pointers:
        queue = list(elements(matrix, items))
        marks = [cycle for cycle, (tag, *_) in zip(tape.taken, queue, strict=True)
                 if tag == Tag.MARK]
        hidden = {cycle + k for cycle in marks for k in range(1, SPMAT_READ_LATENCY)}
    for at in range(tape.given[-1][0] + 2):
        # What would have come from then on comes a cycle later.
        late = [(cycle + (cycle >= at and at not in hidden), entry)
                for cycle, entry in tape.given]
        assert Tape(matrix, items, hold=lambda cycle, at=at: cycle == at).given == late, at


@pytest.mark.parametrize("config", [
    RECURRENT, STREAM, recurrent(channels=3), TWO, THREE, POINTERS_THREE],
    ids=["pointers", "no pointers", "channels", "two parts", "three parts",
         "pointers, three parts"])
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("gaps", [0.0, 0.5])
def test_random_holds_markers_and_fences(config, rate, gaps):
    rng = np.random.default_rng(int(10 * rate))
    matrix = Matrix(rng.choice([1, 1, 2, 2, 3, 4, 7], size=40), config)
    items = []
    for number in range(12):
        # A matrix may have no column before the next marker, which may come behind a fence.
        begin = int(rng.integers(20))
        items += [Mark(begin, number)]
        items += range(begin, begin + int(rng.integers(12)))
        items += [None] * int(rng.integers(3))
    if config.pointers:
        items = rng.permutation(np.array(items, dtype=object)).tolist()
    holds, waits = rng.random(20_000) < rate, rng.geometric(1 - gaps, 3 * len(items)) - 1
    Tape(matrix, items, hold=lambda cycle: holds[cycle], wait=lambda place: waits[place])


@of_kinds
def test_markers_and_fences_between_short_columns(config):
    """Every two neighbours of up to four entries, with markers and fences around them."""
    for lengths in product((1, 2, 3, 4), repeat=2):
        matrix = Matrix(lengths, config)
        between = [[], [None], [None, None], [Mark(1, 2)], [Mark(1, 2), None], [None, Mark(1, 2)],
                   [Mark(0, 1), Mark(1, 2)]]
        items = []
        for before, middle, after in product(([], [None]), between, ([], [None], [Mark(0, 0)])):
            items += [*before, Mark(0, len(items)), 0, *middle, 1, *after]
        tape = Tape(matrix, items)
        assert [cycle for cycle, _ in tape.given] == tape.free, lengths


def test_busy_from_a_column_to_its_fence():
    matrix = Matrix([3, 1], RECURRENT)
    script = [{"i.valid": 1, "i.payload": matrix.start(0, 1)}, {}, {},
              {"i.valid": 1, "i.payload": {"tag": Tag.FENCE}}]
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


def test_busy_while_a_marker_is_inside():
    script = [{}, {"i.valid": 1, "i.payload": {"tag": Tag.MARK, "values": [0x31]}}]
    trace = play(SpMatRead(RECURRENT), script, ["busy", "fence", "o.valid"], extra=6)
    assert [cycle for cycle, step in enumerate(trace) if step["busy"]] == list(
        range(2, 2 + SPMAT_READ_LATENCY))
    assert not any(step["fence"] or step["o.valid"] for step in trace)


def test_columns_without_pointers_follow_without_a_bubble():
    matrix = Matrix(LENGTHS, STREAM)
    tape = Tape(matrix, [Mark(0, 1), *range(17)])
    first = SPMAT_READ_LATENCY
    assert [cycle for cycle, _ in tape.given] == list(range(first, first + sum(LENGTHS)))
    # A column leaves the queue with its last entry.
    assert tape.taken == [0, *(first - 1 + total for total in np.cumsum(LENGTHS))]
    # The next matrix is looked up when its marker is at the head of the queue.
    runs = [range(3), range(2), range(9, 11), range(1), range(1)]
    again = Tape(matrix, [item for k, run in enumerate(runs)
                          for item in (Mark(run[0], k), *run)]).given
    cycle, expected = 0, []
    for run in runs:
        length = sum(LENGTHS[k] for k in run)
        expected += range(cycle + SPMAT_READ_LATENCY, cycle + SPMAT_READ_LATENCY + length)
        cycle += SPMAT_READ_LATENCY + length
    assert [cycle for cycle, _ in again] == expected


@pytest.mark.parametrize("wait", range(1, 8))
def test_entries_read_ahead_wait_for_their_column(wait):
    """However long the queue was empty, the next column's first entry is there at once."""
    tape = Tape(Matrix([1, 2, 3, 1, 4, 1], STREAM), [Mark(0, 1), *range(6)],
                wait=lambda place: wait)
    firsts = [cycle for cycle, entry in tape.given if entry["first"]]
    lasts = [cycle for cycle, after in zip(tape.taken[1:], firsts[1:], strict=False)
             if after != cycle + 1 + wait]
    assert lasts == []
    assert firsts[0] == wait + max(SPMAT_READ_LATENCY, 1 + wait)


def test_loaded_words_are_read_after_a_marker():
    """What was read ahead before a load is not used by the columns after it."""
    old, new = Matrix([2, 1, 3], STREAM, seed=1), Matrix([1, 2, 3], STREAM, seed=2)

    def run(matrix):
        [part] = marker_parts(STREAM, **matrix.marker(0, 1))
        mark = {"tag": Tag.MARK, "values": part_values(STREAM, part)}
        return [{"i.valid": 1, "i.payload": mark}] + [
            {"i.valid": 1, "i.payload": {"values": [column]}} for column in range(3)
            for _ in range(2 * (column == 0) + len(matrix.entries[column]))]

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
        expected = [words[:1], words[1:2], [], [], words[2:4], words[4:5], words[5:]]
        dut, got = SpMatStream(config, init=words), []
        [part] = marker_parts(config, code_sel=sel, spmat=0)
        queue = [(Tag.MARK, part_values(config, part)),
                 *((Tag.COLUMN, [k]) for k in range(len(expected))), (Tag.FENCE, [9])]

        async def testbench(ctx, dut=dut, hold=hold, got=got, queue=queue):
            place, given = 0, []
            for cycle in range(60):
                held = hold and cycle % 3 == 1
                ctx.set(dut.hold, int(held))
                ctx.set(dut.i.valid, int(place < len(queue)))
                if place < len(queue):
                    tag, values = queue[place]
                    ctx.set(dut.i.payload, {"tag": tag, "values": values})
                if ctx.get(dut.o.valid):
                    given.append(ctx.get(dut.o.payload.entry))
                if place < len(queue) and ctx.get(dut.i.ready):
                    assert not held
                    got.append(given)
                    place, given = place + 1, []
                await ctx.tick()

        simulate(dut, testbench)
        assert got == [[word & (flag - 1) for word in column]
                       for column in ([], *expected, [])]


def test_reset_forgets_what_was_read_ahead():
    matrix = Matrix([2, 2], STREAM)
    [part] = marker_parts(STREAM, **matrix.marker(0, 1))
    mark = {"i.valid": 1, "i.payload": {"tag": Tag.MARK, "values": part_values(STREAM, part)}}
    column = {"i.valid": 1, "i.payload": {"values": [1]}}
    script = [mark, *[column] * 3, {"reset": 1}, mark, *[column] * 4]
    trace = play(SpMatStream(STREAM, init=matrix.words), script, ["o.valid", "o.payload"],
                 reset=Signal())
    assert [(cycle, entry["entry"], entry["first"]) for cycle, entry in transfers(trace, "o")] == [
        (3, matrix.entries[0][0], 1), (8, matrix.entries[0][0], 1), (9, matrix.entries[0][1], 0)]


#: Engines that drain between matrices, by the parts of their markers.
FEED_FORWARD = {
    "pointers": SMALL,
    "two parts, pointers": SMALL.with_(act_bits=4, codebooks=5),
    "no pointers": SMALL.with_(pointers=False),
    "two parts": SMALL.with_(pointers=False, act_bits=8),
    "three parts": SMALL.with_(pointers=False, act_bits=4),
    "32 channels": SMALL.with_(pointers=False, channels=32),
}


def test_parts_of_markers_of_feed_forward_engines():
    assert [config.marker_parts for config in FEED_FORWARD.values()] == [1, 2, 1, 2, 3, 1]


@pytest.mark.parametrize("gaps", [0, 2])
@pytest.mark.parametrize("config", FEED_FORWARD.values(), ids=FEED_FORWARD)
def test_feed_forward_engines_take_markers_from_the_broadcast(config, gaps):
    """Where nothing is left of the matrix before; other messages come between the parts."""
    rng = np.random.default_rng(gaps)
    matrix = Matrix(rng.choice([1, 1, 2, 3, 4, 7], size=30), config)
    dut = (SpMatRead if config.pointers else SpMatStream)(config, init=matrix.words)
    column = (act_message(3, *[1] * config.channels) if config.pointers else
              {"kind": Kind.ACT, "args": {"act": {"values": [1] * config.channels}}})
    others = [column, scan_message(act=3, rows=2), load_message(Kind.LOAD_SPMAT, 2, 0, 7),
              load_message(Kind.LOAD_BIAS, 0, 0, 7)]
    got, expected = [], []

    async def testbench(ctx):
        async def send(message, valid=1):
            ctx.set(dut.load.payload, message)
            ctx.set(dut.load.valid, valid)
            await ctx.tick()
            ctx.set(dut.load.valid, 0)

        for number in range(1, 9):
            begin = int(rng.integers(20))
            columns = range(begin, begin + int(rng.integers(1, 10)))
            for message in mark_messages(config, **matrix.marker(begin, number)):
                for _ in range(rng.integers(gaps + 1)):
                    await send(others[rng.integers(len(others))])
                    await send(mark_messages(config, code_sel=2)[-1], valid=0)
                await send(message)
            since = 1
            for _ in range(rng.integers(gaps + 1)):
                await send(others[rng.integers(len(others))])
                since += 1
            offered, found = since, []
            for column in columns:
                expected.extend(matrix.outputs(column, column - begin, number))
                ctx.set(dut.i.payload, matrix.start(column, column - begin))
                ctx.set(dut.i.valid, 1)
                taken = False
                while not taken:
                    if ctx.get(dut.o.valid):
                        found.append(since)
                        got.append(plain(ctx.get(dut.o.payload)))
                    taken = ctx.get(dut.i.ready)
                    await ctx.tick()
                    since += 1
            ctx.set(dut.i.valid, 0)
            for _ in range(SPMAT_READ_LATENCY + 7):
                if ctx.get(dut.o.valid):
                    found.append(since)
                    got.append(plain(ctx.get(dut.o.payload)))
                await ctx.tick()
                since += 1
            assert len(got) == len(expected)
            # A matrix without pointers is looked up with the last part, cycle 0.
            first = (offered + SPMAT_READ_LATENCY if config.pointers
                     else max(SPMAT_READ_LATENCY, offered))
            assert found == list(range(first, first + len(found)))

    simulate(dut, testbench)
    assert got == expected


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
