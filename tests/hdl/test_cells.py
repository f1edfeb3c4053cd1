# amaranth: UnusedElaboratable=no
"""Proves CELL and STATE with PEs played by the testbench: tokens, units, states, destinations.

Results are those of the integers of `openese.model.elementwise`, in order, whatever the
destinations' readiness; nothing is lost, and `idle` means that all have arrived.
"""

from itertools import product

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring

from openese.hdl.cells import Cells
from openese.hdl.cells_serial import SerialCells
from openese.hdl.elementwise import ElementWise
from openese.hdl.elementwise_serial import serial_cycles, token_latency
from openese.hdl.gather import GatherTree
from openese.hdl.layouts import Kind
from openese.hdl.result_queue import ResultQueue
from openese.model import elementwise
from openese.model.config import DRAIN_LATENCY, WRITE_BACK_LATENCY
from openese.model.program import Cell, Op, decode, encode

from .helpers import SMALL, load_message, plain, recurrent, simulate

CONFIG = recurrent(n_pes=4, act_depth=60, acc_depth=60, state_depth=60, peephole_depth=60)

both_kinds = pytest.mark.parametrize("serial", [False, True], ids=["parallel", "serial"])


class Bench(wiring.Component):
    """`Cells` or `SerialCells` behind the gather tree."""

    def __init__(self, config, *memories):
        kind = SerialCells if config.serial_cells else Cells
        self.cells, self.gather = kind(config, *memories), GatherTree(config)
        super().__init__({})

    def elaborate(self, platform):
        m = Module()
        m.submodules.cells, m.submodules.gather = self.cells, self.gather
        m.d.comb += [port.eq(out) for port, out in zip(self.cells.i, self.gather.o, strict=True)]
        return m


def gate_bits(port):
    """What makes the bits of `port` from whether it is valid and its values."""
    layout = port.shape()
    valid, values = layout["valid"].offset, layout["values"]
    width = values.shape.elem_shape.width

    def bits(is_valid, numbers):
        return int(is_valid) << valid | sum(
            (number & (1 << width) - 1) << values.offset + k * width
            for k, number in enumerate(numbers))
    return bits


class Task:
    """An instruction with what it works on: ``(units of all PEs, gates, channels)``
    pre-activations.

    Units that do not exist have values as well: PEs give theirs, whatever they are.
    """

    def __init__(self, config, *, op=Op.CELL, seed=0, active=None, fence=0, scale=1.0, **fields):
        self.config, self.op, self.fence = config, op, fence
        self.active = (1 << config.channels) - 1 if active is None else active
        self.fields = {"rows": 1, "rem": config.n_pes, "gates": 0, "hold": 1, **fields}
        self.word = encode(config, op=op, **self.fields)
        rng = np.random.default_rng(seed)
        high = int(scale * (1 << config.act_bits - 1))
        self.gates = rng.integers(-high, high, (
            self.fields["rows"] * config.n_pes, self.fields["gates"] + 1, config.channels))

    @property
    def units(self) -> int:
        return (self.fields["rows"] - 1) * self.config.n_pes + self.fields["rem"]


class Run:
    """Tasks one after the other, PEs as `Drain` makes them, destinations with stalls.

    Attributes
    ----------
    tokens, starts, ends
        Cycles: of every token, of every start, and of the first idle cycle after it.
    feed, out
        (cycle, payload) of all that was taken.
    memory
        (PE, address) -> values, as beats leave it.
    beats, saturated
        (cycle, payload) of the beats; (cycle, count).
    """

    def __init__(self, config, tasks, *, loads=(), feed_stalls=0.0, out_stalls=0.0, seed=0,
                 peepholes=(), biases=(), fed=None):
        dut = Bench(config, peepholes, biases)
        cells, rng = dut.cells, np.random.default_rng(seed)
        self.config, self.tokens, self.starts, self.ends = config, [], [], []
        self.feed, self.out, self.memory, self.beats = [], [], {}, []
        self.saturated = []
        values = {}  # (cycle, PE) -> sums of all channels
        point = config.shift_base + config.bias_guard
        counts = [0] * config.n_pes

        def drain(task: Task, first: int, pes: range) -> None:
            """A token: one PE after the other gives the values of its next unit."""
            for cycle, pe in enumerate(pes, first):
                unit = counts[pe] * config.n_pes + pe
                for k in range(task.fields["gates"] + 1):
                    at = cycle + 1 + DRAIN_LATENCY + k
                    assert (at, pe) not in values, "tokens too close to each other"
                    values[at, pe] = (task.gates[unit, k] << point).tolist()
                counts[pe] += 1

        # What is set in every cycle, as numbers: layouts take most of the time otherwise.
        idle = cells.command.shape().const(
            {"op": Op.CELL, "rows": 5, "rem": 1, "gates": 0, "to_out": 1})
        gates = [(port.as_value(), gate_bits(port)) for port in dut.gather.i]

        async def testbench(ctx):
            cycle, fence, offered = 0, 0, {}

            async def tick(start=None):
                nonlocal cycle
                ctx.set(cells.start, int(start is not None))
                # The command is steady only while it is given.
                ctx.set(cells.command, decode(config, start.word) if start else idle)
                ctx.set(cells.active, start.active if start else int(rng.integers(2)))
                ctx.set(cells.fence, int(cycle < fence))
                for pe, (port, bits) in enumerate(gates):
                    known = values.pop((cycle, pe), None)
                    junk = rng.integers(-9, 9, config.channels).tolist()
                    ctx.set(port, bits(known is not None, known or junk))
                ready = {"o_feed": rng.random() >= feed_stalls and (fed is None or fed(cycle)),
                         "o_act": rng.random() >= out_stalls}
                for name, into in (("o_feed", self.feed), ("o_act", self.out)):
                    port = getattr(cells, name)
                    ctx.set(port.ready, int(ready[name]))
                    payload = plain(ctx.get(port.payload)) if ctx.get(port.valid) else None
                    if name == "o_act":
                        assert offered.get(name) in (None, payload), "withdrawn or changed"
                    offered[name] = None if ready[name] else payload
                    if payload is not None and ready[name]:
                        into.append((cycle, payload))
                if ctx.get(cells.o_beat.valid):
                    beat = plain(ctx.get(cells.o_beat.payload))
                    self.beats.append((cycle, beat))
                    for lane, found in enumerate(beat["values"]):
                        pe = beat["group"] * config.input_lanes + lane
                        self.memory[pe, beat["act"]] = found
                if ctx.get(cells.saturations):
                    self.saturated.append((cycle, ctx.get(cells.saturations)))
                if ctx.get(cells.o_token):
                    assert cycle >= fence, "a token before the fence has fallen"
                    self.tokens.append(cycle)
                    pe = ctx.get(cells.o_pe) if config.serial_cells else None
                    drain(self.task, cycle, range(config.n_pes) if pe is None else [pe])
                if ctx.get(cells.idle):
                    assert not ctx.get(cells.o_act.valid), "idle with a result under way"
                    assert not ctx.get(cells.o_feed.valid), "idle with a result under way"
                    assert not ctx.get(cells.o_beat.valid), "idle with a result under way"
                await ctx.tick()
                cycle += 1

            ctx.set(cells.i_load.valid, 1)
            for load in loads:
                ctx.set(cells.i_load.payload, load)
                await tick()
            ctx.set(cells.i_load.valid, 0)
            for task in tasks:
                while not ctx.get(cells.idle):
                    await tick()
                self.task, counts[:] = task, [0] * config.n_pes
                fence = cycle + config.drain_wait - 1 + task.fence
                self.starts.append(cycle)
                await tick(task)
                while not ctx.get(cells.idle):
                    await tick()
                self.ends.append(cycle)
            for _ in range(config.drain_wait + 40):
                await tick()
            assert values == {}, "gates that nobody asked for"

        simulate(dut, testbench)


def model(tasks, config, *, cells=None, peepholes=None) -> list[np.ndarray]:
    """Results of all units, ``(units, channels)`` of every task; updates `cells` in place."""
    kept = {}  # (state address) -> results of idle channels
    found = []
    bits = config.act_bits
    for task in tasks:
        fields = task.fields
        cell, units = fields.get("cell", Cell.PASS), task.units
        gates = task.gates[:units].transpose(1, 0, 2)
        at = slice(fields.get("state", 0), fields.get("state", 0) + units)
        if cell == Cell.PASS:
            results = gates[0].copy()
        elif cell == Cell.TANH:
            results = elementwise.tanh(gates[0], bits)
        elif cell == Cell.GRU:
            results = elementwise.gru_cell(gates, cells[at], act_bits=bits)
        else:
            weights = None
            if fields.get("peephole"):
                place = fields.get("peep", 0)
                weights = peepholes[:, place:place + units, None]
            results, new, _ = elementwise.lstm_cell(
                gates, cells[at], act_bits=bits, cell_shift=fields.get("cell_shift", 0),
                peephole=weights, peep_shift=fields.get("peep_shift", 0))
        for channel in range(config.channels):
            if not fields["hold"]:
                continue
            if not task.active >> channel & 1 and config.channels > 1:
                for unit in range(units):
                    results[unit, channel] = kept.get((at.start + unit, channel), 0)
            elif cell == Cell.LSTM:
                cells[at, channel] = new[:, channel]
            elif cell == Cell.GRU:
                cells[at, channel] = results[:, channel]
        for unit, channel in np.ndindex(results.shape if fields["hold"] else (0, 0)):
            kept[at.start + unit, channel] = int(results[unit, channel])
        found.append(results)
    return found


def check(run: Run, tasks, results) -> None:
    """All destinations against the results of the tasks."""
    config = run.config
    feed, out, memory = [], [], {}
    for task, values in zip(tasks, results, strict=True):
        fields = task.fields
        for unit, value in enumerate(values.tolist()):
            row, pe = divmod(unit, config.n_pes)
            last = unit == task.units - 1
            if fields.get("to_feed"):
                feed.append({"lane": pe, "values": value, "nonzero": int(any(value)),
                             "last": int(last or pe == config.n_pes - 1)})
            if fields.get("to_out"):
                out.append({"data": value, "last": int(last)})
            if fields.get("to_act"):
                memory[pe, fields.get("act", 0) + row] = value
    assert [payload for _, payload in run.feed] == feed
    assert [payload for _, payload in run.out] == out
    # Places behind the last unit hold anything.
    assert {place: run.memory.get(place) for place in memory} == memory
    rows = {act for _, act in memory}
    assert {act for _, act in run.memory} <= rows


WHERE = [{"to_feed": 1}, {"to_out": 1}, {"to_act": 1}, {"to_act": 1, "to_feed": 1, "to_out": 1}]


@pytest.mark.parametrize("n_pes", [1, 3, 4, 5, 8, 9])
@both_kinds
def test_results_go_where_the_instruction_says(n_pes, serial):
    config = CONFIG.with_(n_pes=n_pes, serial_cells=serial)
    shapes = [(2, n_pes, 0), (1, 1, 3), (3, max(1, n_pes - 1), 3), (2, 1, 0)]
    # Every destination gets every shape, and follows every other one.
    tasks = [Task(config, seed=k, rows=rows, rem=rem, gates=gates, act=3 * k, state=k, **where)
             for k, ((rows, rem, gates), where) in enumerate(product(shapes, WHERE))]
    check(Run(config, tasks), tasks, model(tasks, config))
    check(Run(config, tasks, feed_stalls=0.6, out_stalls=0.4), tasks, model(tasks, config))


@pytest.mark.parametrize(("n_pes", "lanes"), [(4, 1), (4, 2), (4, 4), (6, 3), (8, 4), (8, 8)])
@both_kinds
def test_beats_of_several_lanes(n_pes, lanes, serial):
    """A beat goes when its last lane is full, or with the last result of a row."""
    config = CONFIG.with_(n_pes=n_pes, input_lanes=lanes, serial_cells=serial)
    tasks, beats = [], 0
    for rem in range(1, n_pes + 1):
        tasks += [Task(config, seed=rem, rows=3, rem=rem, act=4 * rem, to_act=1),
                  Task(config, seed=rem + 50, rows=1, rem=rem, act=4 * rem + 3, to_act=1, gates=3)]
        beats += 2 * (n_pes // lanes) + 2 * -(-rem // lanes)
    run = Run(config, tasks)
    check(run, tasks, model(tasks, config))
    assert len(run.beats) == beats


@pytest.mark.parametrize("gates", [0, 3])
@pytest.mark.parametrize(("n_pes", "channels"), [
    (1, 1), (3, 1), (4, 1), (5, 1), (8, 1), (8, 2), (9, 1), (64, 1)])
def test_one_unit_per_cycle(n_pes, channels, gates):
    config = CONFIG.with_(n_pes=n_pes, channels=channels)
    assert config.token_period == -(-n_pes // 4) * 4
    rows = 3
    run = Run(config, [Task(config, rows=rows, rem=n_pes, gates=gates, to_feed=1)])
    start, period = run.starts[0], config.token_period
    assert run.tokens == [start + config.drain_wait + period * k for k in range(rows)]
    # From token to column: rounding, gather tree, collector, the unit's own latency, the queue,
    # and the two registers behind it.
    first = run.feed[0][0]
    assert first == (run.tokens[0] + WRITE_BACK_LATENCY + gates + config.fan_levels + 1
                     + ElementWise.LATENCY + ResultQueue.LATENCY + 2)
    assert [cycle for cycle, _ in run.feed] == [
        first + period * row + pe for row in range(rows) for pe in range(n_pes)]


@pytest.mark.parametrize("cell", list(Cell), ids=lambda cell: cell.name)
@pytest.mark.parametrize("n_pes", [1, 3, 9])
def test_serial_units_one_after_the_other(n_pes, cell):
    """A token per unit, to one PE, so that gates are there when the unit before is done."""
    config = CONFIG.with_(n_pes=n_pes, serial_cells=True)
    gates = 3 if cell in (Cell.LSTM, Cell.GRU) else 0
    shift = 2 if cell == Cell.LSTM else 0
    run = Run(config, [Task(config, cell=cell, cell_shift=shift, rows=3, rem=n_pes, gates=gates,
                            to_feed=1)])
    start, length = run.starts[0], serial_cycles(config, cell, cell_shift=shift)
    until_token = serial_cycles(config, cell, cell_shift=shift, until_token=True)
    # Steps begin two cycles after the last gate, or the cycle after the result before is taken.
    token, begin, tokens, results = start + config.drain_wait, 0, [], []
    for _ in range(3 * n_pes):
        tokens.append(token)
        begin = max(token - 1 + token_latency(config) + gates + 2,
                    results[-1] + 1 if results else 0)
        results.append(begin + length)
        token = begin + until_token + 1
    assert run.tokens == tokens
    assert [cycle for cycle, _ in run.feed] == results


@pytest.mark.parametrize("fence", [0, 1, 2, 30])
@both_kinds
def test_tokens_wait_for_the_fence(fence, serial):
    config = CONFIG.with_(n_pes=9, serial_cells=serial)
    run = Run(config, [Task(config, rows=2, rem=3, to_out=1, fence=fence)])
    assert run.tokens[0] == run.starts[0] + config.drain_wait + fence


@pytest.mark.parametrize("n_pes", [1, 4, 9])
def test_tokens_stop_while_results_wait(n_pes):
    """The queue never overflows, which is an assertion of the block; all arrives in the end."""
    config = CONFIG.with_(n_pes=n_pes, act_depth=1024, state_depth=4096)
    rows = -(-3 * config.results_depth // n_pes)
    tasks = [Task(config, rows=rows, rem=n_pes, gates=3, to_feed=1, to_out=1)]
    release = 12 * rows + 900
    run = Run(config, tasks, fed=lambda cycle: cycle >= release)
    check(run, tasks, model(tasks, config))
    before = [cycle for cycle in run.tokens if cycle < release]
    # Two wait in front of the sequencer.
    assert len(before) * n_pes - 2 <= config.results_depth
    assert (len(before) + 1) * n_pes - 2 > config.results_depth - n_pes
    # And slow destinations, with the queue full most of the time.
    run = Run(config, tasks, feed_stalls=0.6, out_stalls=0.6)
    check(run, tasks, model(tasks, config))


@pytest.mark.parametrize(("channels", "serial"), [(1, False), (2, False), (3, False), (1, True)])
@pytest.mark.parametrize("cell", list(Cell), ids=lambda cell: cell.name)
def test_cells_over_several_steps(cell, channels, serial):
    """Two layers with states of their own take turns; channels are idle now and then."""
    config = CONFIG.with_(n_pes=5, channels=channels, serial_cells=serial)
    gates = 3 if cell in (Cell.LSTM, Cell.GRU) else 0
    rng = np.random.default_rng(cell)
    tasks = []
    for step in range(8):
        layer = step % 2
        peepholes = {"peephole": 1, "peep_shift": 2} if cell == Cell.LSTM and layer else {}
        tasks.append(Task(
            config, seed=step, cell=cell, gates=gates, rows=2 + layer, rem=2 + layer, act=9 * layer,
            state=13 * layer, peep=21, cell_shift=3 if cell == Cell.LSTM else 0,
            active=int(rng.integers(1 << channels)) if step > 1 and channels > 1 else None,
            to_act=1, to_feed=1, to_out=step % 2, scale=0.6, **peepholes))
    weights = rng.integers(-8000, 8000, (3, 60))
    words = [sum((int(weight) & 0xFFFF) << 16 * k for k, weight in enumerate(weights[:, unit]))
             for unit in range(60)]
    cells = rng.integers(-32768, 32768, (60, channels))
    loads = [load_message(Kind.LOAD_CELL, 0, unit, int(cells[unit, c]) & 0xFFFF, channel=c)
             for unit in range(60) for c in range(channels)]
    # Peephole words from power-up, states from the host; what is for others is no load.
    loads += [load_message(kind, 0, 3, 99, channel=0) for kind in (
        Kind.LOAD_ACT, Kind.LOAD_SPMAT, Kind.LOAD_BIAS)]
    before = cells.copy()
    dump = Task(config, op=Op.STATE, rows=12, rem=5)
    run = Run(config, [*tasks, dump], loads=loads, peepholes=words, feed_stalls=0.2,
              out_stalls=0.2, seed=channels)
    results = model(tasks, config, cells=cells, peepholes=weights)
    sent = [payload for _, payload in run.out[-60:]]
    del run.out[-60:]
    check(run, tasks, results)
    assert sent == [{"data": cells[unit].tolist(), "last": int(unit == 59)} for unit in range(60)]
    assert (cells != before).any() == (cell in (Cell.LSTM, Cell.GRU))


@both_kinds
def test_linear_layers_between_cells(serial):
    """They have biases and no state: idle channels get results, and nobody's are lost."""
    config = CONFIG.with_(n_pes=5, channels=1 if serial else 3, serial_cells=serial, bias_depth=20)
    rng = np.random.default_rng(0)
    lanes = config.bias_lanes
    biases = rng.integers(-2000, 2000, (lanes, config.bias_depth))
    words = [[int(bias) * 4 & (1 << config.bias_bits) - 1 for bias in row] for row in biases]
    tasks = []
    for step in range(6):
        active = int(rng.integers(1 << config.channels)) if step > 1 else None
        tasks += [
            Task(config, seed=step, cell=Cell.TANH, rows=2, rem=4, state=5, active=active, to_act=1,
                 scale=0.5),
            Task(config, seed=step + 50, rows=2, rem=3, base=4, biased=1, hold=0, active=active,
                 to_out=1, scale=0.5)]
    run = Run(config, tasks, biases=words)
    for task in tasks[1::2]:
        for unit in range(task.units):
            row, pe = divmod(unit, 5)
            lane, at = pe % lanes, pe // lanes
            task.gates[unit] += biases[lane, 4 + row * len(range(lane, 5, lanes)) + at]
    check(run, tasks, model(tasks, config))


@both_kinds
def test_saturated_pre_activations_are_counted(serial):
    config = CONFIG.with_(serial_cells=serial)
    task = Task(config, rows=2, rem=4, gates=3, to_out=1)
    task.gates[:] = 0
    task.gates[3, 2] = 1 << 15
    task.gates[5, :, 0] = -40_000
    run = Run(config, [task])
    assert sum(count for _, count in run.saturated) == 5


@pytest.mark.parametrize(("channels", "serial"), [(2, False), (1, True)])
def test_saturated_cell_states_are_counted(channels, serial):
    config = CONFIG.with_(channels=channels, serial_cells=serial)
    # Forget and input gates open, a candidate of the state's sign: it grows beyond its rail.
    task = Task(config, cell=Cell.LSTM, gates=3, rows=1, rem=3, to_out=1, active=0b01)
    task.gates[:] = 32767
    loads = [load_message(Kind.LOAD_CELL, 0, unit, 32000, channel=c)
             for unit in range(4) for c in range(channels)]
    run = Run(config, [task], loads=loads)
    # Three units of the channel that has a step; the unit that does not exist is not counted.
    assert sum(count for _, count in run.saturated) == 3
    again = Run(config, [Task(config, cell=Cell.LSTM, gates=3, rows=1, rem=3, to_out=1)])
    assert again.saturated == []


@pytest.mark.parametrize("out_stalls", [0.0, 0.7])
@pytest.mark.parametrize(("rows", "rem"), [(1, 1), (1, 4), (3, 2), (15, 4)])
@pytest.mark.parametrize(("channels", "serial"), [(2, False), (1, True)])
def test_states_in_order(rows, rem, out_stalls, channels, serial):
    config = CONFIG.with_(channels=channels, serial_cells=serial)
    rng = np.random.default_rng(rows)
    states = rng.integers(-32768, 32768, (60, channels))
    loads = [load_message(Kind.LOAD_CELL, 0, unit, int(states[unit, c]) & 0xFFFF, channel=c)
             for unit in range(60) for c in range(channels)]
    begin = 0 if rows == 15 else 5
    task = Task(config, op=Op.STATE, rows=rows, rem=rem, state=begin)
    run = Run(config, [task, task], loads=loads, out_stalls=out_stalls)
    once = [{"data": states[begin + k].tolist(), "last": int(k == task.units - 1)}
            for k in range(task.units)]
    assert [payload for _, payload in run.out] == once * 2
    assert run.feed == run.beats == run.tokens == []


@both_kinds
def test_idle_is_low_from_start_to_the_last_destination(serial):
    config = CONFIG.with_(n_pes=5, serial_cells=serial)
    tasks = [Task(config, rows=2, rem=2, gates=3, to_act=1, to_out=1),
             Task(config, op=Op.STATE, rows=1, rem=3), Task(config, rows=1, rem=1, to_feed=1)]
    run = Run(config, tasks, out_stalls=0.8, feed_stalls=0.8, seed=4)
    assert run.ends == sorted(run.ends)
    assert run.ends[0] > max(cycle for cycle, _ in run.beats)
    # `Run` checks in every idle cycle that nothing is offered; so all was taken before.
    taken = [cycle for cycle, payload in run.out if payload["last"]]
    assert taken[0] < run.ends[0]
    assert taken[1] < run.ends[1]
    assert run.feed[0][0] < run.ends[2]


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 4$"):
        Cells(4)
    with pytest.raises(ValueError, match=r"^peephole has 61 words but the memory of this "
                                         r"configuration holds 60$"):
        Cells(CONFIG, [0] * 61)
    with pytest.raises(ValueError, match=r"^peephole word 0 must be an integer from 0 to "
                                         r"281474976710655 \(48 bits\), not -1$"):
        Cells(CONFIG, [-1])
    for config in (SMALL.with_(serial_cells=True), CONFIG):
        with pytest.raises(ValueError, match=r"^config must have a serial element-wise unit: "
                                             r"serial_cells, and state_depth of 1 or more$"):
            SerialCells(config)
    assert not SMALL.recurrent
