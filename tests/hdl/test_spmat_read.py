# amaranth: UnusedElaboratable=no
"""Proves one entry per cycle for every order of column lengths, and the latency of the first.

With and without pointers; that a hold changes nothing but time; that markers and fences keep their
place, and that a marker is in force from the entry behind it on. Without pointers, that skips which
go on over column ends find their column, and that columns without entries take a cycle.
"""

import functools
from dataclasses import dataclass
from itertools import product, takewhile

import numpy as np
import pytest
from amaranth.hdl import Signal
from amaranth.lib import data

from openese.hdl.layouts import Kind, Tag, route_layout, slot_layout
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
    sequential_words,
    signed,
    simulate,
    transfers,
    unsigned,
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
            if len(column) >= 3:
                self.words[-3] |= 1 << config.entry_bits

    def start(self, column: int, value: int) -> dict:
        """The column as it comes from the queue."""
        return {"values": self.values(value),
                "ptr": {"start": self.starts[column],
                        "length": min(3, len(self.entries[column]))}}

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
        route = {"codebook": number % 3, "align": number % 5, "code_sel": number % 3,
                 "acc": number % 12}
        return {name: route[name] for name, _ in route_layout(self.config)}


class Sequential(Matrix):
    """Columns of given lengths with random rows and codes, stored for each matrix they are in."""

    def __init__(self, lengths, config: EngineConfig, seed: int = 0, height: int = 9):
        rng = np.random.default_rng(seed)
        self.config, self.height, self.words = config, height, []
        self.columns = []
        for n in lengths:
            rows = sorted(rng.choice(height, size=n, replace=False).tolist())
            codes = rng.integers(1 << config.code_bits, size=n).tolist()
            self.columns.append(list(zip(rows, codes, strict=True)))

    def start(self, column: int, value: int) -> dict:
        return {"values": self.values(value)}

    def run(self, columns, number: int, at: int = 0) -> tuple[dict, list[int], list[list[dict]]]:
        """Of a matrix of these columns stored here: its marker, its words, and what each column
        gives, but for the activations."""
        config, route = self.config, self.route(number)
        bits = config.min_code_bits + route["code_sel"]
        # However narrow codes are, none is 0 but those of fillers.
        coded = [[(row, code % (1 << bits) or 1) for row, code in self.columns[column]]
                 for column in columns]
        words, given = sequential_words(coded, self.height, bits, config.entry_bits - bits)
        marker = {**route, "spmat": at, "drop": -self.height}
        return marker, words, [
            [{"code": self.decoded(code, bits), "route": route,
              "row": unsigned(row - self.height, config.acc_addr_bits)} for row, code in column]
            for column in given]

    def decoded(self, code: int, bits: int) -> int:
        """A code of this width as it is given."""
        if self.config.direct_weights:
            return unsigned(signed(code, bits), self.config.code_bits)
        return code


def matrix_of(lengths, config: EngineConfig, seed: int = 0, height: int = 9) -> Matrix:
    """Columns of these lengths as an engine like this has them."""
    if config.pointers:
        return Matrix(lengths, config, seed)
    return Sequential(lengths, config, seed, height)


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
    """A marker in a `Tape`: the route of the columns up to the next."""

    number: int


def elements(matrix: Matrix, items) -> tuple[list[tuple[Tag, dict, list]], list[int]]:
    """What stands in the queue for a tape: tag, payload, and what comes out; and the memory."""
    config, number = matrix.config, 0
    queue, words, run = [], list(matrix.words), iter(())
    for place, item in enumerate(items):
        if item is None:
            # A fence comes behind all that came before it, and nothing of what came after.
            queue.append((Tag.FENCE, junk(config, place), [None]))
        elif isinstance(item, Mark):
            number = item.number
            marker = matrix.route(number)
            if not config.pointers:
                columns = takewhile(lambda other: not isinstance(other, Mark), items[place + 1:])
                marker, stored, given = matrix.run(
                    [column for column in columns if column is not None], number, len(words))
                words, run = words + stored, iter(given)
            parts = marker_parts(config, **marker)
            for left, part in zip(range(len(parts), 0, -1), parts, strict=True):
                queue.append(((Tag.PART if left > 1 else Tag.MARK), {
                    **junk(config, place), "values": part_values(config, part)}, []))
        else:
            value = 10 * place - 30
            given = matrix.outputs(item, value, number) if config.pointers else [
                {**entry, "values": matrix.values(value)} for entry in next(run)]
            queue.append((Tag.COLUMN, matrix.start(item, value), given))
    return queue, words


def in_slots(config: EngineConfig, queue: list, pair) -> list[tuple[Tag, dict, list]]:
    """Elements as the queue gives them, two columns in a slot or one."""
    slots, place = [], 0
    while place < len(queue):
        tag, payload, entries = queue[place]
        following = queue[place + 1:place + 2]
        if config.paired:
            payload = payload | {"second": [place % 100 - 50] * config.channels}
        if following and {tag, following[0][0]} == {Tag.COLUMN} and pair(place):
            _, other, more = following[0]
            payload = payload | {"second": other["values"], "two": 1}
            entries = entries + more
            place += 1
        slots.append((tag, payload, entries))
        place += 1
    return slots


class Tape:
    """Columns, markers and fences against a block, with holds and gaps; what comes out, cycle by
    cycle.

    A number is a column, ``None`` a fence. Without pointers, the columns from a marker to the next
    are a matrix. A column and the next one share a slot if `pair` says so of its place.

    Attributes
    ----------
    queue
        Tag, payload, and what comes out, of every column, fence or part of a marker.
    given
        (cycle, entry or None for a fence).
    taken
        Cycle in which each column, fence or part of a marker left the queue.
    free
        The cycles of `given` if nothing is held and the queue never runs dry.
    """

    def __init__(self, matrix: Matrix, items, *, hold=lambda cycle: False, wait=lambda k: 0,
                 pair=lambda k: False):
        config = matrix.config
        queue, words = elements(matrix, items)
        queue = in_slots(config, queue, pair)
        dut = (SpMatRead if config.pointers else SpMatStream)(config, init=words)
        self.queue, self.given, self.taken = queue, [], []

        # Made once: layouts take most of the time otherwise.
        made = slot_layout(config).const
        offers = [made({**payload, "tag": tag}) for tag, payload, _ in queue]

        async def testbench(ctx):
            cycle, place, since, quiet = 0, 0, 0, 0
            while quiet < 8:
                offering = place < len(queue) and since >= wait(place)
                held = bool(hold(cycle))
                ctx.set(dut.i.valid, int(offering))
                ctx.set(dut.i.payload, offers[place] if offering else nothing(config, cycle % 100))
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
                ready = cycle + config.marker_latency
            late = SPMAT_READ_LATENCY if config.pointers else 0
            expected += [cycle + late + k for k in range(len(entries))]
            cycle += max(1, len(entries))
        return expected

    def columns(self) -> list[tuple[int, list]]:
        """Cycle in which each column left the queue, and what came out."""
        return [(cycle, entries) for cycle, (tag, _, entries) in zip(
            self.taken, self.queue, strict=True) if tag == Tag.COLUMN]


def junk(config: EngineConfig, number: int) -> dict:
    """What nothing may depend on."""
    payload = {"values": [number % 100] * config.channels}
    if config.pointers:
        payload |= {"ptr": {"start": number % config.spmat_depth, "length": number % 4}}
    return payload


@functools.cache
def nothing(config: EngineConfig, number: int) -> data.Const:
    """The same, of engines with markers, as a constant."""
    return slot_layout(config).const({**junk(config, number), "tag": Tag(number % 4)})


RECURRENT = recurrent()
STREAM = recurrent(pointers=False, channels=2, spmat_depth=1024)
#: Cycles from the last part of its markers to the first entry.
JUMP = STREAM.marker_latency
#: Markers of two parts and of three.
TWO = recurrent(pointers=False, spmat_depth=1024)
THREE = recurrent(pointers=False, act_bits=8, spmat_depth=1024)
DIRECT = STREAM.with_(direct_weights=True)
#: Indices of one to three bits: many fillers.
NARROW = STREAM.with_(entry_bits=5)
LENGTHS = [1, 2, 3, 4, 1, 1, 5, 2, 2, 3, 1, 3, 3, 7, 1, 2, 1]
#: As many columns, some without entries, as they come to PEs without pointers only.
SPARSE = [0, 2, 0, 0, 0, 4, 1, 0, 5, 2, 0, 0, 3, 7, 0, 1, 0]

KINDS = {"pointers": RECURRENT, "no pointers": STREAM, "two parts": TWO, "three parts": THREE,
         "direct": DIRECT, "narrow": NARROW}
of_kinds = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)


def test_parts_of_markers():
    assert [config.marker_parts for config in (RECURRENT, STREAM, TWO, THREE)] == [1, 1, 2, 3]


@of_kinds
def test_a_hold_at_any_time_only_delays(config):
    """One cycle of holding at every position."""
    matrix = matrix_of(LENGTHS if config.pointers else SPARSE, config)
    items = [Mark(1), *range(8), None, *range(8, 17), Mark(2), 3, 4, None, Mark(0), 0, 1]
    tape = Tape(matrix, items)
    assert [cycle for cycle, _ in tape.given] == tape.free
    # A matrix read ahead at its marker does not stop, so that it hides a hold.
    hidden = set()
    if not config.pointers:
        marks = [cycle for cycle, (tag, *_) in zip(tape.taken, tape.queue, strict=True)
                 if tag == Tag.MARK]
        hidden = {cycle + k for cycle in marks for k in range(1, config.marker_latency)}
    for at in range(tape.given[-1][0] + 2):
        # What would have come from then on comes a cycle later.
        late = [(cycle + (cycle >= at and at not in hidden), entry)
                for cycle, entry in tape.given]
        assert Tape(matrix, items, hold=lambda cycle, at=at: cycle == at).given == late, at


@pytest.mark.parametrize("config", [*KINDS.values(), recurrent(channels=3)],
                         ids=[*KINDS, "channels"])
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("gaps", [0.0, 0.5])
def test_random_holds_markers_and_fences(config, rate, gaps):
    rng = np.random.default_rng(int(10 * rate))
    lengths = [1, 1, 2, 2, 3, 4, 7] if config.pointers else [0, 0, 0, 0, 1, 1, 2, 3, 4, 7]
    matrix = matrix_of(rng.choice(lengths, size=40), config)
    items = []
    for number in range(12):
        # A matrix may have no column before the next marker, which may come behind a fence.
        begin = int(rng.integers(20))
        items += [Mark(number)]
        items += range(begin, begin + int(rng.integers(12)))
        items += [None] * int(rng.integers(3))
    if config.pointers:
        items = rng.permutation(np.array(items, dtype=object)).tolist()
    holds, waits = rng.random(20_000) < rate, rng.geometric(1 - gaps, 3 * len(items)) - 1
    Tape(matrix, items, hold=lambda cycle: holds[cycle], wait=lambda place: waits[place])


@of_kinds
def test_markers_and_fences_between_short_columns(config):
    """Every two neighbours of up to four entries, with markers and fences around them."""
    for lengths in product((1, 2, 3, 4) if config.pointers else (0, 1, 2, 4), repeat=2):
        matrix = matrix_of(lengths, config)
        between = [[], [None], [None, None], [Mark(2)], [Mark(2), None], [None, Mark(2)],
                   [Mark(1), Mark(2)]]
        items = []
        for before, middle, after in product(([], [None]), between, ([], [None], [Mark(0)])):
            items += [*before, Mark(len(items)), 0, *middle, 1, *after]
        tape = Tape(matrix, items)
        assert [cycle for cycle, _ in tape.given] == tape.free, lengths


PAIRED = {name: config for name, config in KINDS.items() if config.paired}


def test_pairs_are_of_engines_whose_queues_have_room_for_them():
    assert list(PAIRED) == ["no pointers", "two parts", "three parts", "direct", "narrow"]
    assert not STREAM.with_(queue_depth=1).paired
    assert not SMALL.with_(pointers=False).paired


@pytest.mark.parametrize("config", PAIRED.values(), ids=PAIRED)
def test_every_short_pair_takes_a_cycle_for_each_entry(config):
    """Beside each other, beside columns alone, and between markers and fences."""
    for lengths in product((0, 1, 2, 3), repeat=2):
        matrix = matrix_of([*lengths, 1], config)
        items = [Mark(1), 0, 1, 0, 1, 1, 0, 2, 0, 1, 1, 0, None, 0, 1, Mark(2), 1, 0, 1, 0, 2]
        for alone in (set(), {5}, {1, 3}, {7, 8, 9}):
            tape = Tape(matrix, items, pair=lambda place, alone=alone: place not in alone)
            assert [cycle for cycle, _ in tape.given] == tape.free, lengths
    # Two columns without entries take one cycle.
    tape = Tape(Sequential([0, 0, 1], STREAM), [Mark(0), 0, 1, 0, 1, 0, 2],
                pair=lambda place: place > 0)
    assert tape.taken == [0, JUMP, JUMP + 1, JUMP + 2]


@pytest.mark.parametrize("config", PAIRED.values(), ids=PAIRED)
@pytest.mark.parametrize("height", [1, 2, 9, 16])
def test_pairs_of_every_height_with_holds_and_gaps(config, height):
    config = config.with_(acc_depth=16)
    rng = np.random.default_rng(height)
    lengths = rng.integers(min(height, 3) + 1, size=30) * (rng.random(30) < 0.4)
    matrix = Sequential(lengths, config, height=height)
    matrix.columns += Sequential([height] * 2, config, seed=1, height=height).columns
    items = [Mark(1), *range(12), None, 30, 31, 30, Mark(2), *range(12, 30), 31, None]
    pairs, holds, waits = rng.random(99) < 0.7, rng.random(9999) < 0.3, rng.geometric(0.7, 99) - 1
    tape = Tape(matrix, items, pair=lambda place: pairs[place])
    assert [cycle for cycle, _ in tape.given] == tape.free
    Tape(matrix, items, pair=lambda place: pairs[place], hold=lambda cycle: holds[cycle],
         wait=lambda place: waits[place])


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
    """Over the end of every column, and in the cycle in which the next matrix is there."""
    matrix = Sequential(LENGTHS, STREAM)
    tape = Tape(matrix, [Mark(1), *range(17)])
    assert [cycle for cycle, _ in tape.given] == list(range(JUMP, JUMP + sum(LENGTHS)))
    # A column leaves the queue with its last entry.
    assert tape.taken == [0, *(JUMP - 1 + total for total in np.cumsum(LENGTHS))]
    # The next matrix is looked up when its marker is at the head of the queue.
    runs = [range(3), range(2), range(9, 11), range(1), range(1)]
    again = Tape(matrix, [item for run in runs for item in (Mark(1), *run)]).given
    cycle, expected = 0, []
    for run in runs:
        length = sum(LENGTHS[k] for k in run)
        expected += range(cycle + JUMP, cycle + JUMP + length)
        cycle += JUMP + length
    assert [cycle for cycle, _ in again] == expected


def test_a_column_without_entries_takes_a_cycle():
    """At the beginning of a matrix, several in a row, and at its end."""
    lengths = [0, 0, 3, 0, 1, 0, 0, 0, 2, 1, 0, 0]
    # With indices of 6 bits there is no filler.
    tape = Tape(Sequential(lengths, STREAM), [Mark(0), *range(12), None, Mark(0), 2, 3])
    cycles, cycle = [], JUMP
    for length in lengths:
        cycle += max(1, length)
        cycles.append(cycle - 1)
    assert tape.taken[:13] == [0, *cycles]
    # The fence and the next marker are right behind them.
    assert tape.taken[13:] == [cycle, cycle + 1, cycle + 1 + JUMP + 2, cycle + 1 + JUMP + 3]
    assert [cycle - JUMP for cycle, _ in tape.given[:7]] == [2, 3, 4, 6, 10, 11, 12]


@pytest.mark.parametrize("config", [STREAM, NARROW, DIRECT], ids=["wide", "narrow", "direct"])
@pytest.mark.parametrize("height", [1, 2, 9, 12, 16])
def test_matrices_of_every_height(config, height):
    """Up to as many rows as addresses of accumulators tell apart; of every code width."""
    config = config.with_(acc_depth=16)
    rng = np.random.default_rng(height)
    lengths = rng.integers(min(height, 4) + 1, size=24) * (rng.random(24) < 0.5)
    matrix = Sequential(lengths, config, height=height)
    # All rows of a column, next to each other and beside columns without any.
    matrix.columns += Sequential([height] * 2, config, seed=1, height=height).columns
    for number in range(3):
        tape = Tape(matrix, [Mark(number), *range(12), 24, 25, 0, 24, *range(12, 24), 25, None])
        assert [cycle for cycle, _ in tape.given] == tape.free


@pytest.mark.parametrize("number", [0, 1, 2])
def test_fillers_over_column_ends(number):
    """They are entries of the column that they end up in, however long the gap."""
    bits = NARROW.min_code_bits + number
    longest = (1 << NARROW.entry_bits - bits) - 1
    for gap in range(2, 12):
        lengths = [1, *[0] * gap, 2, *[0] * gap]
        tape = Tape(Sequential(lengths, NARROW), [Mark(number), *range(len(lengths)), None])
        assert [cycle for cycle, _ in tape.given] == tape.free
        fillers = [len(entries) for _, entries in tape.columns()[1:gap + 1]]
        # A gap of 9 rows for each column and perhaps some of its neighbours'.
        assert 9 * gap // (longest + 1) - 1 <= sum(fillers) <= 9 * (gap + 2) // (longest + 1)
        # Whether there is one or none, a column takes a cycle for each entry, and at least one.
        cycles = [cycle for cycle, _ in tape.columns()]
        assert np.diff(cycles).tolist() == [
            max(1, len(entries)) for _, entries in tape.columns()[1:]]


@pytest.mark.parametrize("config", [STREAM, TWO, NARROW], ids=["one part", "two", "narrow"])
def test_matrices_that_end_with_empty_columns(config):
    """None of them may be left behind, or take what the next marker is for."""
    matrix = Sequential([0, 1, 3], config)
    for begin, empty in product(([], [1], [2], [0, 2]), range(6)):
        items = [Mark(1), *begin, *[0] * empty, Mark(2), 2, *[0] * empty, None, *[0] * empty,
                 Mark(0), *[0] * empty, 1, None]
        tape = Tape(matrix, items)
        assert [cycle for cycle, _ in tape.given] == tape.free, (begin, empty)


@pytest.mark.parametrize("wait", range(1, 8))
def test_entries_read_ahead_wait_for_their_column(wait):
    """However long the queue was empty, the next column's first entry is there at once."""
    tape = Tape(Sequential([1, 2, 3, 1, 4, 0, 0, 1], STREAM), [Mark(0), *range(8)],
                wait=lambda place: wait)
    cycle, expected, given = wait, [], []
    for number, (left, entries) in enumerate(tape.columns()):
        cycle += 1 + wait if number else max(JUMP, 1 + wait)
        given += range(cycle, cycle + len(entries))
        # It leaves the queue with its last entry, or if it has none at once.
        cycle += max(1, len(entries)) - 1
        expected.append(cycle)
        assert left == cycle
    assert [cycle for cycle, _ in tape.given] == given
    assert tape.taken == [wait, *expected]


def test_the_last_word_of_the_memory_is_the_one_behind_the_matrix():
    config = STREAM.with_(spmat_depth=64)
    matrix = Sequential([1, 2, 3, 0, 0], config)
    _, words, _ = matrix.run(range(5), 1)
    matrix.words = [0xFF] * (64 - len(words))
    tape = Tape(matrix, [Mark(1), *range(5), None])
    assert [cycle for cycle, _ in tape.given] == tape.free


def marker_script(config: EngineConfig, marker: dict) -> list[dict]:
    """Steps of `play` that offer a marker."""
    parts = marker_parts(config, **marker)
    return [{"i.valid": 1, "i.payload": {
        "tag": Tag.PART if left else Tag.MARK, "values": part_values(config, part)}}
        for left, part in zip(range(len(parts) - 1, -1, -1), parts, strict=True)]


@pytest.mark.parametrize("config", [STREAM, TWO], ids=["one part", "two parts"])
def test_loaded_words_are_read_after_a_marker(config):
    """What was read ahead before a load is not used by the columns after it."""
    old = Sequential([2, 1, 0, 3], config, seed=1).run(range(4), 1)
    new = Sequential([1, 2, 0, 3], config, seed=2).run(range(4), 2)

    def run(marker, words, given):
        column = {"i.valid": 1, "i.payload": {"values": [7] * config.channels}}
        entries = sum(max(1, len(column)) for column in given)
        return [*marker_script(config, marker), *[column] * (config.marker_latency - 1 + entries)]

    loads = [{"load.valid": 1, "load.payload": load_message(Kind.LOAD_SPMAT, 0, addr, word)}
             for addr, word in enumerate(new[1])]
    # Those for other PEs and other memories are none.
    loads += [{"load.valid": 1, "load.payload": load_message(kind, pe, 0, 0xFF)}
              for kind, pe in ((Kind.LOAD_SPMAT, 1), (Kind.LOAD_BIAS, 0))]
    trace = play(SpMatStream(config, init=old[1]), [*run(*old), *loads, *run(*new)],
                 ["o.valid", "o.payload", "busy", "i.ready"])
    entries = [entry for _, _, given in (old, new) for column in given for entry in column]
    values = {"values": [7] * config.channels}
    assert [entry for _, entry in transfers(trace, "o")] == [
        {**entry, **values} for entry in entries]
    # All columns have left, the last with the last cycle.
    assert trace[-1]["i.ready"]


def test_reset_forgets_what_was_read_ahead():
    """In every cycle, with a column half done among them."""
    matrix = Sequential([2, 0, 2], STREAM)
    marker, words, given = matrix.run(range(3), 1)
    column = {"i.valid": 1, "i.payload": {"values": [1, 2]}}
    whole = [*marker_script(STREAM, marker), *[column] * (JUMP - 1 + 2 + 1 + 2)]
    entries = [{**entry, "values": [1, 2]} for column in given for entry in column]
    cycles = [JUMP, JUMP + 1, JUMP + 3, JUMP + 4]
    for at in range(len(whole)):
        script = [*whole[:at], {"reset": 1}, *whole]
        trace = play(SpMatStream(STREAM, init=words), script,
                     ["o.valid", "o.payload", "i.ready"], reset=Signal())
        found = transfers(trace, "o")
        expected = list(zip(cycles, entries, strict=True))
        assert found == [
            *(item for item in expected if item[0] < at),
            *((at + 1 + cycle, entry) for cycle, entry in expected)], at
        ready = [step["i.ready"] for step in trace[at + 1:]]
        # Of the marker, then of the columns, each with its last cycle.
        assert [cycle for cycle, step in enumerate(ready) if step] == [
            0, JUMP + 1, JUMP + 2, JUMP + 4], at


#: Engines that drain between matrices, by the parts of their markers.
FEED_FORWARD = {
    "pointers": SMALL,
    "two parts, pointers": SMALL.with_(act_bits=4, codebooks=5),
    "no pointers": SMALL.with_(pointers=False, channels=2),
    "two parts": SMALL.with_(pointers=False),
    "three parts": SMALL.with_(pointers=False, act_bits=8),
    "32 channels": SMALL.with_(pointers=False, channels=32),
    "narrow": SMALL.with_(pointers=False, channels=2, entry_bits=5),
}


def test_parts_of_markers_of_feed_forward_engines():
    assert [config.marker_parts for config in FEED_FORWARD.values()] == [1, 2, 1, 2, 3, 1, 1]


@pytest.mark.parametrize("gaps", [0, 2])
@pytest.mark.parametrize("config", FEED_FORWARD.values(), ids=FEED_FORWARD)
def test_feed_forward_engines_take_markers_from_the_broadcast(config, gaps):
    """Where nothing is left of the matrix before; other messages come between the parts."""
    rng = np.random.default_rng(gaps)
    if not config.pointers:
        config = config.with_(spmat_depth=400)
    lengths = [1, 1, 2, 3, 4, 7] if config.pointers else [0, 0, 1, 1, 2, 3, 4, 7]
    matrix = matrix_of(rng.choice(lengths, size=30), config)
    begins = rng.integers(20, size=8).tolist()
    runs = [range(begin, begin + int(rng.integers(1, 10))) for begin in begins]
    if config.pointers:
        markers, words = [matrix.route(number) for number in range(1, 9)], matrix.words
    else:
        markers, words, given = [], [], []
        for number, columns in enumerate(runs, 1):
            marker, stored, entries = matrix.run(columns, number, len(words))
            markers.append(marker)
            given.append(entries)
            words += stored
    dut = (SpMatRead if config.pointers else SpMatStream)(config, init=words)
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

        for number, columns in enumerate(runs, 1):
            for message in mark_messages(config, **markers[number - 1]):
                for _ in range(rng.integers(gaps + 1)):
                    await send(others[rng.integers(len(others))])
                    await send(mark_messages(config, code_sel=2)[-1], valid=0)
                await send(message)
            since = 1
            for _ in range(rng.integers(gaps + 1)):
                await send(others[rng.integers(len(others))])
                since += 1
            offered, found, times = since, [], []
            for value, column in enumerate(columns):
                entries = matrix.outputs(column, value, number) if config.pointers else [
                    {**entry, "values": matrix.values(value)}
                    for entry in given[number - 1][value]]
                expected.extend(entries)
                # A column without entries, which comes to engines without pointers, takes a cycle.
                times += [1] * len(entries) or [0]
                ctx.set(dut.i.payload, matrix.start(column, value))
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
                     else max(config.marker_latency, offered))
            assert found == [first + k for k, entry in enumerate(times) if entry]

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
