# amaranth: UnusedElaboratable=no
"""Proves a whole PE against plain arithmetic: matrix, write-back, latencies, and its status.

Of every kind of engine: several channels, weights stored directly, no pointers; and that the
accumulators of a cell are drained beside another matrix without a product going astray.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.layouts import Kind
from openese.hdl.pe import ProcessingElement
from openese.model.config import (
    ACC_LATENCY,
    ACT_READ_LATENCY,
    DECODE_LATENCY,
    MULTIPLY_LATENCY,
    PTR_READ_LATENCY,
    SPMAT_READ_LATENCY,
    WRITE_BACK_LATENCY,
)

from .helpers import (
    SMALL,
    act_message,
    column_words,
    load_message,
    mark_messages,
    plain,
    recurrent,
    scan_message,
    sequential_words,
    signed,
    simulate,
    unsigned,
    write_message,
    write_messages,
)

#: From a broadcast arriving at a PE to the first product being in its accumulator. The row is
#: registered beside the multiplier, so the product meets it.
TO_ACCUMULATOR = (1 + PTR_READ_LATENCY + 1 + SPMAT_READ_LATENCY + DECODE_LATENCY
                  + MULTIPLY_LATENCY + ACC_LATENCY)


class Layer:
    """A random matrix as one PE holds it: its own rows only."""

    def __init__(self, config, *, columns: int, rows: int, density: float, code_bits: int,
                 book: int, seed: int):
        rng = np.random.default_rng(seed)
        self.rows, self.book, self.code_bits = rows, book, code_bits
        self.codes = rng.integers(1, 1 << code_bits, (rows, columns))
        self.codes *= rng.random((rows, columns)) < density
        # Small weights, so that no accumulator wraps whatever the activations are.
        self.values = rng.integers(-300, 300, 1 << code_bits)
        self.values[0] = 0
        if config.direct_weights:
            self.values = np.array([signed(code, code_bits) for code in range(1 << code_bits)])
        self.bias = rng.integers(-5000, 5000, rows)
        index_bits = config.entry_bits - code_bits
        self.columns = [
            column_words(*(part.tolist() for part in (found, self.codes[found, j])), code_bits,
                         index_bits)
            for j in range(columns) for found in [np.flatnonzero(self.codes[:, j])]]
        # Without pointers no column begins anywhere.
        self.words, _ = sequential_words(
            [[(row, code) for row, code in enumerate(codes) if code]
             for codes in self.codes.T.tolist()], rows, code_bits, index_bits)

    def sums(self, x) -> list[int]:
        """Accumulators by exact arithmetic."""
        return [sum(int(self.values[code]) * int(value)
                    for code, value in zip(codes, x, strict=True)) for codes in self.codes]

    def outputs(self, config, x, *, s: int, relu: int) -> list[int]:
        """Raw activations by exact arithmetic."""
        found = []
        for row, acc in enumerate(self.sums(x)):
            exact = (Fraction(acc, 1 << config.shift_base + config.bias_guard + s)
                     + Fraction(int(self.bias[row]), 1 << config.bias_guard))
            y = math.floor(exact + Fraction(1, 2))
            y = max(y, 0) if relu else y
            found.append(min(max(y, -(1 << config.act_bits - 1)), (1 << config.act_bits - 1) - 1))
        return found


def contents(config, layers) -> dict[str, list[int]]:
    """Memory contents of a PE for layers one after the other."""
    spmat, ptr, bias, codebook = [], [], [], [0] * config.codebook_depth
    for layer in layers:
        layer.start = len(spmat)
        layer.first_ptr = len(ptr)
        if not config.pointers:
            spmat += layer.words
        for words in layer.columns if config.pointers else ():
            start = len(spmat) if words else 0
            ptr.append(start | min(3, len(words)) << config.spmat_addr_bits)
            spmat += words
        bias += [unsigned(int(value), config.bias_bits) for value in layer.bias]
        if config.direct_weights:
            continue
        base = layer.book << config.code_bits
        codebook[base:base + (1 << layer.code_bits)] = [
            unsigned(int(value), config.weight_bits) for value in layer.values]
    return {"spmat": spmat, "ptr": ptr, "bias": bias, "codebook": codebook}


def opening(config, layer, acc: int = 0) -> list[dict]:
    """The messages before the columns of a layer: its marker."""
    route = {"code_sel": layer.code_bits - config.min_code_bits}
    if not config.direct_weights:
        route |= {"codebook": layer.book}
    if not config.pointers:
        route |= {"spmat": layer.start, "drop": -layer.rows,
                  "acc": (acc + layer.rows) % (1 << config.acc_addr_bits)}
    elif config.recurrent:
        route |= {"acc": acc}
    return mark_messages(config, **route)


def column(config, layer, number: int, values) -> dict:
    """The message of a column of a layer."""
    values = [int(value) for value in values]
    if config.pointers:
        return act_message(layer.first_ptr + number, *values)
    return {"kind": Kind.ACT, "args": {"act": {"values": values}}}


class Driver:
    """Plays sequencer and trees of a PE inside a testbench, keeping their latencies."""

    def __init__(self, ctx, dut, config, seed: int = 0):
        self.ctx, self.dut, self.config = ctx, dut, config
        self.rng = np.random.default_rng(seed)
        self.full, self.cycle, self.items = [], 0, []
        self.saturations = 0

    async def tick(self, message=None, *, take=False):
        """One cycle, with a message or without."""
        ctx, dut = self.ctx, self.dut
        ctx.set(dut.i.valid, int(message is not None))
        if message is not None:
            ctx.set(dut.i.payload, message)
        if not self.config.central_acts:
            ctx.set(dut.o.ready, int(take))
            if take and ctx.get(dut.o.valid):
                self.items.append(plain(ctx.get(dut.o.payload)))
        self.full.append(ctx.get(dut.almost_full))
        self.saturations += ctx.get(dut.saturated)
        await ctx.tick()
        self.cycle += 1

    def stalled(self) -> bool:
        """What the sequencer would see now."""
        # Decided `fan_levels` ago, when what was seen was `fan_levels` old.
        late = 2 * self.config.fan_levels
        return bool(self.full[-late]) if len(self.full) >= late else False

    async def write(self, rows: int, *, gaps: float = 0.0, **fields):
        """Write the accumulators of a layer back, waiting before each row with this probability."""
        for message in write_messages(rows, **fields):
            while self.rng.random() < gaps:
                await self.tick()
            await self.tick(message)

    async def drain(self):
        """Wait until the PE is idle, as soon as `busy` can be believed."""
        await self.tick()
        await self.tick()
        while self.ctx.get(self.dut.busy):
            await self.tick()

    async def scan(self, rem: int, **fields) -> list[dict]:
        """Scan a region under random backpressure."""
        self.items = []
        await self.tick(scan_message(rem=rem, **fields))
        while len(self.items) < fields["rows"]:
            await self.tick(take=self.rng.random() < 0.6)
        return self.items


@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize(("queue_depth", "gaps"), [(1, 0.0), (3, 0.0), (8, 0.0), (3, 0.7)])
def test_layers_equal_plain_arithmetic(queue_depth, gaps, load):
    """Two layers with different splits and codebooks, several vectors, nothing cleared between."""
    config = SMALL.with_(queue_depth=queue_depth, spmat_depth=400, act_depth=60)
    layers = [Layer(config, columns=25, rows=12, density=0.35, code_bits=4, book=1, seed=1),
              Layer(config, columns=30, rows=9, density=0.1, code_bits=2, book=0, seed=2)]
    memory = contents(config, layers)
    dut = ProcessingElement(config, **({} if load else memory))
    rng = np.random.default_rng(5)
    pe, saturations = 1, 0

    async def testbench(ctx):
        nonlocal saturations
        ctx.set(dut.id, pe)
        driver = Driver(ctx, dut, config)
        if load:
            for kind, name in ((Kind.LOAD_SPMAT, "spmat"), (Kind.LOAD_PTR, "ptr"),
                               (Kind.LOAD_BIAS, "bias"), (Kind.LOAD_CODEBOOK, "codebook")):
                for addr, word in enumerate(memory[name]):
                    await driver.tick(load_message(kind, pe, addr, word))
        for vector in range(3):
            base_ptr = base_bias = 0
            for number, layer in enumerate(layers):
                columns = len(layer.columns)
                x = rng.integers(-32768, 32768, columns) * (rng.random(columns) < 0.7)
                s, relu = int(rng.integers(8)), (vector + number) % 2
                # The marker tells split and codebook.
                await driver.scan(1, rows=1, act=0)
                for message in opening(config, layer):
                    await driver.tick(message)
                for j in np.flatnonzero(x).tolist():
                    while driver.stalled() or rng.random() < gaps:
                        await driver.tick()
                    await driver.tick(act_message(base_ptr + j, int(x[j])))
                await driver.drain()
                act = 20 * number + 7
                await driver.write(layer.rows, act=act, bias=base_bias, shift=s, relu=relu)
                await driver.drain()
                items = await driver.scan(1, rows=layer.rows, act=act, dense=1)
                expected = layer.outputs(config, x, s=s, relu=relu)
                assert [item["values"] for item in items] == [[value] for value in expected]
                # PE 1 is absent in a last row of one activation.
                assert [item["nonzero"] for item in items] == [1] * (layer.rows - 1) + [0]
                base_ptr, base_bias = base_ptr + columns, base_bias + layer.rows
        saturations = driver.saturations

    simulate(dut, testbench)
    assert saturations == 0


def tiny(lengths) -> dict[str, list[int]]:
    """Contents with columns of given lengths: column j has code 1 in rows 0, 1, 2, ..."""
    layer = [column_words(range(n), [1] * n, 4, 4) for n in lengths]
    spmat, ptr = [], []
    for words in layer:
        ptr.append((len(spmat) if words else 0) | min(3, len(words)) << SMALL.spmat_addr_bits)
        spmat += words
    return {"spmat": spmat, "ptr": ptr, "codebook": [0, 3]}


[SPLIT] = mark_messages(SMALL, code_sel=4 - SMALL.min_code_bits)


def trace(dut, messages: dict, cycles: int, watch, reset_at=None) -> list:
    """What `watch(ctx)` returns in every cycle, after a marker that selects the 4-bit split."""
    seen = []
    reset = Signal()

    async def testbench(ctx):
        ctx.set(dut.o.ready, 1)
        for cycle in range(-8, cycles):
            message = SPLIT if cycle == -8 else messages.get(cycle)
            ctx.set(dut.i.valid, int(message is not None))
            ctx.set(dut.i.payload, message or act_message(0, 99))
            ctx.set(reset, int(cycle == reset_at))
            if cycle >= 0:
                seen.append(watch(ctx))
            await ctx.tick()

    simulate(dut, testbench, reset=reset)
    return seen


def test_latency_from_broadcast_to_accumulator():
    dut = ProcessingElement(SMALL, **tiny([1]))
    seen = trace(dut, {2: act_message(0, -7)}, 22, lambda ctx: (
        signed(plain(ctx.get(dut.accumulates[0].words[0])), SMALL.acc_bits), ctx.get(dut.busy)))
    written = 2 + TO_ACCUMULATOR
    assert TO_ACCUMULATOR == 12
    # The relay takes a cycle, and so does the register of `busy`.
    assert seen == [(-21 * (cycle >= written), int(4 <= cycle <= written)) for cycle in range(22)]


def test_an_empty_column_keeps_the_pe_busy_only_briefly():
    dut = ProcessingElement(SMALL, **tiny([0, 1]))
    seen = trace(dut, {2: act_message(0, 5)}, 14, lambda ctx: ctx.get(dut.busy))
    assert [cycle for cycle, busy in enumerate(seen) if busy] == [4, 5, 6]


@pytest.mark.parametrize("lengths", [[1] * 12, [1, 1, 1, 2, 3, 1, 4], [0, 2, 0, 0, 3, 0, 5],
                                     [12, 1, 12, 1]])
def test_one_entry_per_cycle(lengths):
    config = SMALL.with_(queue_depth=16)
    dut = ProcessingElement(config, **tiny(lengths))
    messages = {k: act_message(k, 2) for k in range(len(lengths))}
    seen = trace(dut, messages, 60, lambda ctx: (ctx.get(dut.spmat_read.o.valid),
                                                 ctx.get(dut.busy)))
    working = trace(dut, messages, 61, lambda ctx: ctx.get(dut.working))
    assert working == [0] + [valid for valid, _ in seen]
    # Work is only missing where empty columns let the queue run dry.
    free, reads = 0, []
    for arrival, length in enumerate(lengths):
        if length:
            free = max(free, arrival + 1 + PTR_READ_LATENCY + 1)
            reads += range(free + SPMAT_READ_LATENCY, free + SPMAT_READ_LATENCY + length)
            free += length
    assert [cycle for cycle, (valid, _) in enumerate(seen) if valid] == reads
    last = reads[-1] - SPMAT_READ_LATENCY + TO_ACCUMULATOR - 1 - PTR_READ_LATENCY - 1
    assert [cycle for cycle, (_, busy) in enumerate(seen) if busy] == list(range(2, last + 1))
    total = [6 * sum(length > row for length in lengths) for row in range(12)]
    assert [plain(word) for word in final_accumulators(dut, messages)] == total


def final_accumulators(dut, messages) -> list:
    found = []

    async def testbench(ctx):
        for cycle in range(-8, 70):
            message = SPLIT if cycle == -8 else messages.get(cycle)
            ctx.set(dut.i.valid, int(message is not None))
            ctx.set(dut.i.payload, message or act_message(0, 99))
            await ctx.tick()
        found.extend(ctx.get(dut.accumulates[0].words[row]) for row in range(SMALL.acc_depth))

    simulate(dut, testbench)
    return found


def test_write_back_latency_and_busy():
    dut = ProcessingElement(SMALL, bias=[4 * 33])
    seen = trace(dut, {3: write_message(act=6)}, 20, lambda ctx: (
        ctx.get(dut.act_memory.words[6])[0]["value"], ctx.get(dut.busy)))
    # Relay, then the result; the register of `busy` on one side, on the other that in front of the
    # activation memory, whose word is seen a cycle after it is written.
    last_busy = 3 + 1 + WRITE_BACK_LATENCY + 1
    written = 3 + 1 + WRITE_BACK_LATENCY + 1 + 1
    assert seen == [(33 * (cycle >= written), int(5 <= cycle <= last_busy)) for cycle in range(20)]


def test_scan_latency():
    dut = ProcessingElement(SMALL)
    seen = trace(dut, {1: scan_message(rows=2, rem=3, dense=1)}, 12,
                 lambda ctx: ctx.get(dut.o.valid))
    first = 1 + 1 + ACT_READ_LATENCY
    assert [cycle for cycle, valid in enumerate(seen) if valid] == [first, first + 1]


def test_saturations_and_almost_full_are_reported():
    dut = ProcessingElement(SMALL, bias=[(1 << 17) - 1, 0, (1 << 17) - 1])
    seen = trace(dut, dict(enumerate(write_messages(3))), 15, lambda ctx: ctx.get(dut.saturated))
    first = 1 + WRITE_BACK_LATENCY
    assert [cycle for cycle, hit in enumerate(seen) if hit] == [first, first + 2]

    # Column 0 keeps SpMatRead busy; three more wait.
    dut = ProcessingElement(SMALL, **tiny([12, 1, 1, 1]))
    seen = trace(dut, {k: act_message(k, 1) for k in range(4)}, 40,
                 lambda ctx: ctx.get(dut.almost_full))
    # Arrival 3 is counted after its relay, pointer and queue; one register follows.
    counted = 3 + 1 + PTR_READ_LATENCY + 1
    taken = 0 + 1 + PTR_READ_LATENCY + 1 + 12
    assert [cycle for cycle, full in enumerate(seen) if full] == list(
        range(counted + 1, taken + 2))


def test_reset_drops_columns_but_memories_keep_their_words():
    dut = ProcessingElement(SMALL, **tiny([3, 1]))
    seen = trace(dut, {0: act_message(0, 1), 1: act_message(1, 1), 20: act_message(1, 5)}, 36,
                 lambda ctx: (ctx.get(dut.busy), plain(ctx.get(dut.accumulates[0].words[0]))),
                 reset_at=7)
    assert [cycle for cycle, (busy, _) in enumerate(seen) if busy] == [
        *range(2, 8), *range(22, 20 + TO_ACCUMULATOR + 1)]


@pytest.mark.parametrize("reset_at", range(1, 24))
def test_clearing_after_a_reset_leaves_nothing_of_the_columns_before(reset_at):
    """Wherever the entries are at the reset; rows are cleared from the next cycle on."""
    dut = ProcessingElement(SMALL, **tiny([12, 3, 0, 2]))
    messages = {k: act_message(k, 100) for k in range(4)}
    messages = {cycle: message for cycle, message in messages.items() if cycle < reset_at}
    clear = reset_at + 1
    messages |= {clear + k: message for k, message in enumerate(
        write_messages(SMALL.acc_depth, discard=1))}
    after = clear + SMALL.acc_depth + WRITE_BACK_LATENCY
    messages |= {after: act_message(1, 5)}
    seen = trace(dut, messages, after + TO_ACCUMULATOR + 3, lambda ctx: [
        plain(ctx.get(dut.accumulates[0].words[row])) for row in range(SMALL.acc_depth)],
        reset_at=reset_at)
    assert seen[after] == [0] * SMALL.acc_depth
    assert seen[-1] == [15] * 3 + [0] * (SMALL.acc_depth - 3)
    # Late resets find sums in the memory; in one cycle a sum may be written or not.
    if reset_at != TO_ACCUMULATOR - 1:
        assert any(any(words) for words in seen[:after]) == (reset_at >= TO_ACCUMULATOR)


KINDS = {
    "two channels": SMALL.with_(channels=2),
    "five channels": SMALL.with_(channels=5),
    "direct weights": SMALL.with_(entry_bits=12, code_bits=9, min_code_bits=8, weight_bits=12,
                                  direct_weights=True),
    "no pointers": SMALL.with_(pointers=False),
    # Indices of one to three bits, and no accumulator behind the last row.
    "fillers": SMALL.with_(pointers=False, entry_bits=5),
    "all accumulators": SMALL.with_(pointers=False, acc_depth=16, bias_depth=25),
    "all": SMALL.with_(entry_bits=16, code_bits=12, min_code_bits=12, weight_bits=12, channels=3,
                       direct_weights=True, pointers=False),
}


@pytest.mark.parametrize("gaps", [0.0, 0.5])
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_engines_of_every_kind(config, gaps):
    """Two matrices after each other, by all channels at once; nothing cleared between."""
    config = config.with_(spmat_depth=600, act_depth=60)
    layers = [Layer(config, columns=18, rows=config.acc_depth, density=0.3,
                    code_bits=config.code_bits, book=1, seed=3),
              Layer(config, columns=25, rows=9, density=0.1, code_bits=config.min_code_bits,
                    book=0, seed=4)]
    dut = ProcessingElement(config, **contents(config, layers))
    rng = np.random.default_rng(6)

    async def testbench(ctx):
        driver = Driver(ctx, dut, config)
        base_bias = 0
        for vector in range(2):
            base_bias = 0
            for number, layer in enumerate(layers):
                x = rng.integers(-32768, 32768, (len(layer.columns), config.channels))
                x *= rng.random(x.shape) < 0.5
                acc = 3 * vector if config.recurrent and layer.rows <= 9 else 0
                await driver.tick(scan_message(rows=1, rem=config.n_pes, act=0))
                for message in opening(config, layer, acc):
                    await driver.tick(message)
                while not ctx.get(dut.o.valid):
                    await driver.tick()
                await driver.tick(take=True)
                for j, values in enumerate(x):
                    if config.pointers and not values.any():
                        continue
                    while driver.stalled() or rng.random() < gaps:
                        await driver.tick()
                    await driver.tick(column(config, layer, j, values))
                await driver.drain()
                s, relu = int(rng.integers(2, 8)), (vector + number) % 2
                await driver.write(layer.rows, gaps=gaps, acc=acc, act=20, bias=base_bias, shift=s,
                                   relu=relu)
                await driver.drain()
                items = await driver.scan(config.n_pes, rows=layer.rows, act=20)
                expected = np.transpose([layer.outputs(config, x[:, c], s=s, relu=relu)
                                         for c in range(config.channels)])
                assert [item["values"] for item in items] == expected.tolist()
                assert [item["nonzero"] for item in items] == expected.any(axis=1).tolist()
                base_bias += layer.rows

    simulate(dut, testbench)


class Cells:
    """Matrices of two recurrent layers on one PE; each with accumulators of its own."""

    def __init__(self, config, gates: int, seed: int):
        self.config, self.gates = config, gates
        rows = 3 * gates
        self.layers = [
            Layer(config, columns=15, rows=rows, density=0.3, code_bits=config.code_bits, book=k,
                  seed=seed + k) for k in range(2)]
        self.memory = contents(config, self.layers)
        self.acc = [2, 20]

    def columns(self, rng, number: int) -> tuple[list[dict], np.ndarray]:
        """Messages of a whole matrix, and its activations."""
        config, layer = self.config, self.layers[number]
        most = min(3000, (1 << config.act_bits - 1) - 1)
        x = rng.integers(-most, most, (len(layer.columns), config.channels))
        x[rng.random(len(x)) < 0.3] = 0
        messages = opening(config, layer, self.acc[number])
        messages += [column(config, layer, j, values) for j, values in enumerate(x)
                     if values.any() or not config.pointers]
        return messages, x


RECURRENT = {name: config.with_(spmat_depth=400, acc_depth=40, bias_depth=40, n_pes=5)
             for name, config in {
    "pointers": recurrent(),
    "channels": recurrent(channels=2),
    "no pointers": recurrent(pointers=False, channels=2),
    "all": recurrent(pointers=False, channels=3, direct_weights=True, entry_bits=12, code_bits=8,
                     min_code_bits=8),
    # Markers of two parts and of three.
    "two parts": recurrent(pointers=False),
    "three parts": recurrent(pointers=False, act_bits=10),
}.items()}

of_recurrent = pytest.mark.parametrize("config", RECURRENT.values(), ids=RECURRENT)


def test_parts_of_markers():
    assert [config.marker_parts for config in RECURRENT.values()] == [1, 1, 1, 1, 2, 3]


@of_recurrent
@pytest.mark.parametrize("gaps", [0.0, 0.5])
def test_matrices_follow_each_other_without_a_pause(config, gaps):
    """Of different routes, while columns of the one before still wait; no fence between."""
    config = config.with_(queue_depth=8)
    cells = Cells(config, 4, 7)
    dut = ProcessingElement(config, **cells.memory)
    rng = np.random.default_rng(3)
    total = np.zeros((2, 12, config.channels), dtype=int)
    waiting = []

    async def testbench(ctx):
        driver = Driver(ctx, dut, config)
        for number in (0, 1, 0, 0, 1, 0, 1, 1):
            messages, x = cells.columns(rng, number)
            for c in range(config.channels):
                total[number, :, c] += cells.layers[number].sums(x[:, c])
            for k, message in enumerate(messages):
                while driver.stalled() or rng.random() < gaps:
                    await driver.tick()
                if k == 0:
                    waiting.append(ctx.get(dut.act_queue.o.valid))
                await driver.tick(message)
        await driver.drain()
        for c, accumulate in enumerate(dut.accumulates):
            words = [signed(plain(ctx.get(accumulate.words[row])), config.acc_bits)
                     for row in range(config.acc_depth)]
            expected = [0] * config.acc_depth
            for at, sums in zip(cells.acc, total[:, :, c].tolist(), strict=True):
                expected[at:at + 12] = sums
            assert words == expected

    simulate(dut, testbench)
    assert waiting[0] == 0
    assert gaps or all(waiting[1:])


@pytest.mark.parametrize("gates", [4, 1])
@of_recurrent
@pytest.mark.parametrize("seed", range(3))
def test_draining_beside_another_matrix(config, gates, seed):
    """Tokens at random times; entries of the other matrix fill the cycles between."""
    cells = Cells(config, gates, seed)
    dut = ProcessingElement(config, **cells.memory)
    rng = np.random.default_rng(seed)
    units, rounds = 3, 6
    found, expected = [], []

    async def testbench(ctx):
        driver = Driver(ctx, dut, config)
        ctx.set(dut.id, 3)

        async def tick(message=None, token=False):
            ctx.set(dut.i_token, int(token))
            if ctx.get(dut.gate.valid):
                found.append([signed(value, config.acc_bits)
                              for value in plain(ctx.get(dut.gate.values))])
            await driver.tick(message, take=True)

        messages, x = cells.columns(rng, 0)
        for message in messages:
            while driver.stalled():
                await tick()
            await tick(message)
        for number in range(1, rounds):
            layer = cells.layers[(number - 1) % 2]
            while driver.stalled():
                await tick()
            await tick(write_message(Kind.CELL, acc=cells.acc[(number - 1) % 2], gates=gates - 1))
            expected.extend(np.transpose([layer.sums(x[:, c])
                                          for c in range(config.channels)]).tolist())
            # The next matrix starts behind the fence, and goes on while this one is drained.
            waiting, x = cells.columns(rng, number % 2)
            tokens, since, asked = units, 99, 0
            while waiting or tokens or since < 20:
                message = None
                if waiting and not driver.stalled() and rng.random() < 0.8:
                    message = waiting.pop(0)
                fenced = asked < 3 or ctx.get(dut.fence)
                token = tokens > 0 and not fenced and since >= 4 and rng.random() < 0.4
                await tick(message, token)
                tokens, since, asked = tokens - token, 1 if token else since + 1, asked + 1
        # The last matrix stays in its accumulators, and those drained are zero.
        await driver.drain()
        for c, accumulate in enumerate(dut.accumulates):
            words = [signed(plain(ctx.get(accumulate.words[row])), config.acc_bits)
                     for row in range(config.acc_depth)]
            at, layer = cells.acc[(rounds - 1) % 2], cells.layers[(rounds - 1) % 2]
            left = [0] * config.acc_depth
            left[at:at + layer.rows] = layer.sums(x[:, c])
            assert words == left

    simulate(dut, testbench)
    assert found == expected


@pytest.mark.parametrize("pointers", [True, False])
@pytest.mark.parametrize("lengths", [[1], [2], [3], [7, 1], [1, 1, 1], [12], []])
def test_fence_falls_when_all_before_it_is_accumulated(lengths, pointers):
    config = recurrent(pointers=pointers)
    memory = tiny(lengths)
    mark = mark_messages(config, code_sel=2)
    if not pointers:
        words, _ = sequential_words([[(row, 1) for row in range(n)] for n in lengths], 12, 4, 4)
        memory = {"spmat": words, "codebook": [0, 3]}
        mark = mark_messages(config, code_sel=2, acc=12, drop=-12)
    dut = ProcessingElement(config, **memory)
    columns = [act_message(k, 2) if pointers else
               {"kind": Kind.ACT, "args": {"act": {"values": [2]}}} for k in range(len(lengths))]
    messages = dict(enumerate([*mark, *columns, write_message(Kind.CELL)]))
    total = [6 * sum(length > row for length in lengths) for row in range(12)]
    fence, complete = [], []

    async def testbench(ctx):
        for cycle in range(60):
            ctx.set(dut.i.valid, int(cycle in messages))
            ctx.set(dut.i.payload, messages.get(cycle, act_message(0, 99) if pointers else {}))
            if ctx.get(dut.fence):
                fence.append(cycle)
            if [plain(ctx.get(dut.accumulates[0].words[row])) for row in range(12)] == total:
                complete.append(cycle)
            await ctx.tick()

    simulate(dut, testbench)
    # From the register behind the relay on, without a gap.
    begin = len(mark) + len(lengths) + 2
    assert fence == list(range(begin, fence[-1] + 1))
    # It falls in the cycle after the last sum is there, no earlier and no later.
    if lengths:
        assert complete[0] == fence[-1]


def test_tokens_go_on_to_the_next_pe():
    config = recurrent()
    dut = ProcessingElement(config)
    passed = []

    async def testbench(ctx):
        for cycle in range(20):
            ctx.set(dut.i_token, int(cycle in (3, 7, 8)))
            if ctx.get(dut.o_token):
                passed.append(cycle)
            await ctx.tick()

    simulate(dut, testbench)
    assert passed == [4, 8, 9]


def test_no_activation_memory_where_activations_are_central():
    ports = {"group", "i_input", "o"}
    for config in (SMALL, SMALL.with_(pointers=False), recurrent()):
        dut = ProcessingElement(config)
        assert dut.act_memory is not None
        assert ports <= dut.signature.members.keys()
    dut = ProcessingElement(recurrent(pointers=False))
    assert dut.act_memory is None
    assert not ports & dut.signature.members.keys()


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 1$"):
        ProcessingElement(1)
    for name, depth in (("spmat", 200), ("ptr", 60), ("bias", 24), ("codebook", 48)):
        with pytest.raises(ValueError, match=rf"^{name} has {depth + 1} words but the memory of "
                                             rf"this configuration holds {depth}$"):
            ProcessingElement(SMALL, **{name: [0] * (depth + 1)})
