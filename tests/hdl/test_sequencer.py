# amaranth: UnusedElaboratable=no
"""Proves programs cycle by cycle: messages, columns, stalls, draining, output, start and stop."""

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.layouts import Kind, marker_layout
from openese.hdl.sequencer import Sequencer
from openese.model.config import EngineConfig
from openese.model.program import Op, encode, instruction_bits

from .helpers import SMALL, marker_parts, plain, recurrent, simulate

N = SMALL.n_pes
#: Which of the arguments a message of each kind has.
ARGUMENTS = {Kind.ACT: "act", Kind.SCAN: "scan", Kind.MARK: "mark", Kind.WRITE: "write",
             Kind.CELL: "write"}
#: Where input vectors lie.
REGIONS = 0, 5
#: First idle cycle after reset: the accumulators of all PEs are cleared, a row per cycle.
CLEARED = SMALL.acc_depth + SMALL.drain_wait
#: First cycle that executes an instruction, `run` being high.
FIRST = CLEARED + 2


class Cells:
    """The element-wise unit as the sequencer sees it: busy for `work` cycles and until its results
    are taken.

    Attributes
    ----------
    starts
        (cycle, command, active) of every instruction; it was executed a cycle before it comes.
    given
        (lane, values, nonzero, last) of all results.
    """

    def __init__(self, config, work: int, gaps: float, seed: int):
        self._config, self._work, self._gaps = config, work, gaps
        self._rng = np.random.default_rng(seed)
        self._items, self._begin, self._until, self._offering = [], 0, -1, False
        self.starts, self.given = [], []

    def start(self, cycle: int, command: dict, active: int) -> None:
        assert self.idle(cycle), "started while at work"
        self.starts.append((cycle - 1, command, active))
        self._begin = self._until = cycle + self._work
        if command["op"] == Op.CELL and command["to_feed"]:
            config = self._config
            for row in range(command["rows"]):
                lanes = command["rem"] if row == command["rows"] - 1 else config.n_pes
                for lane in range(lanes):
                    values = self._rng.integers(-9, 9, config.channels)
                    values *= self._rng.random() < 0.7
                    self._items.append({
                        "lane": lane, "values": values.tolist(), "nonzero": int(values.any()),
                        "last": int(lane == lanes - 1)})

    def idle(self, cycle: int) -> bool:
        return not self._items and cycle > self._until

    def offer(self, cycle: int) -> dict | None:
        """The result that waits in this cycle."""
        self._offering = bool(self._items) and cycle >= self._begin and (
            self._offering or self._rng.random() >= self._gaps)
        return self._items[0] if self._offering else None

    def take(self, cycle: int) -> None:
        self.given.append(self._items.pop(0))
        self._offering, self._until = False, cycle + 2


class Machine:
    """A sequencer with PEs, LNZD tree, input buffer and `Cells` played by the testbench.

    The activation memory is `memory`, one number per activation, PE after PE, row after row. A
    scan's items come from ``scan_latency`` cycles after its message on. PEs are busy for `work`
    cycles after each column or write-back can first be seen; before that, `busy` is random.

    Input vectors wait as `full` and `input_act` say, or arrive in the cycles `arrivals` and lie in
    `REGIONS` in turn, vector ``k`` with the active channels ``k + 1``. `calls` maps cycles to the
    routines called in them.

    Attributes
    ----------
    messages
        (cycle, kind, fields) of all broadcasts. Of WRITEs for one row after the other, cycle after
        cycle, the first stands for all, and ``rows`` in its fields counts them. The first part of
        a marker stands for all, with the fields of the marker.
    parts
        (cycle, part, last) of all parts of markers.
    outputs
        (cycle, data, last); of several channels, data is a list.
    released, finished, computing, writing, idle, cells_idle
        Cycles in which these were high.
    """

    def __init__(self, program, cycles: int, *, config: EngineConfig = SMALL, memory=(), work=0,
                 run=lambda cycle: True, full=lambda cycle: True, input_act=lambda cycle: 0,
                 stalls=0.0, gaps=0.0, output_stalls=0.0, seed=0, load=(), reset_at=None,
                 arrivals=None, restarts=(), calls=None, cell_work=0):
        self.messages, self.outputs, self.parts = [], [], []
        self.released, self.finished, self.computing = [], [], []
        self.writing, self.idle, self.cells_idle = [], [], []
        self.cells = cells = Cells(config, cell_work, gaps, seed)
        calls = calls or {}
        if arrivals is not None:
            full = self._waiting(arrivals)
            input_act = self._region
        dut = Sequencer(config, program)
        rng = np.random.default_rng(seed)
        reset = Signal()

        async def testbench(ctx):
            items, begin, settled, offering = [], 0, -1, False
            unsure = set()
            offered_out = next_row = None
            for cycle in range(cycles):
                ctx.set(reset, int(cycle == reset_at))
                ctx.set(dut.run, int(run(cycle)))
                ctx.set(dut.input_full, int(full(cycle)))
                ctx.set(dut.input_act, input_act(cycle))
                ctx.set(dut.input_active, len(self.released) + 1)
                ctx.set(dut.restart, int(cycle in restarts))
                ctx.set(dut.call, int(cycle in calls))
                ctx.set(dut.call_addr, calls.get(cycle, 1))
                ctx.set(dut.cells_idle, int(cells.idle(cycle)))
                result = cells.offer(cycle)
                ctx.set(dut.i_feed.valid, int(result is not None))
                if result is not None:
                    ctx.set(dut.i_feed.payload, result)
                ctx.set(dut.i_load.valid, int(cycle < len(load)))
                if cycle < len(load):
                    ctx.set(dut.i_load.payload, {"addr": load[cycle][0], "data": load[cycle][1]})
                busy = rng.random() < 0.5 if cycle in unsure else cycle <= settled
                stall = rng.random() < stalls
                ctx.set(dut.busy, int(busy))
                ctx.set(dut.stall, int(stall))
                ctx.set(dut.o_act.ready, int(rng.random() >= output_stalls))
                offering = bool(items) and cycle >= begin and (offering or rng.random() >= gaps)
                ctx.set(dut.i_scan.valid, int(offering))
                if offering:
                    ctx.set(dut.i_scan.payload, items[0])

                if ctx.get(dut.o.valid):
                    message = plain(ctx.get(dut.o.payload))
                    kind = message["kind"]
                    fields = message["args"][ARGUMENTS[kind]]
                    if kind == Kind.MARK:
                        self._add_part(config, cycle, fields)
                    elif (cycle, kind, fields) == next_row:
                        self.messages[-1][2]["rows"] += 1
                    else:
                        counted = {"rows": 1} if kind == Kind.WRITE else {}
                        self.messages.append((cycle, kind, fields | counted))
                    if kind == Kind.WRITE:
                        next_row = cycle + 1, kind, self._next_row(config, fields)
                    if kind == Kind.SCAN:
                        assert items == [], "scan during a scan"
                        items = self._items(config, memory, fields)
                        begin = cycle + config.scan_latency
                    elif kind != Kind.MARK or config.recurrent:
                        # What is seen from `drain_wait` on is the truth.
                        unsure |= set(range(cycle + 1, cycle + config.drain_wait))
                        settled = max(settled, cycle + config.drain_wait + work - 1)
                    assert not (kind in (Kind.ACT, Kind.MARK, Kind.CELL) and stall), (
                        "column or marker in spite of a stall")
                if offering and ctx.get(dut.i_scan.ready):
                    items.pop(0)
                    offering = False
                if result is not None and ctx.get(dut.i_feed.ready):
                    cells.take(cycle)
                if ctx.get(dut.cells_start):
                    cells.start(cycle, plain(ctx.get(dut.cells_command)),
                                ctx.get(dut.cells_active))
                beat = plain(ctx.get(dut.o_act.payload)) if ctx.get(dut.o_act.valid) else None
                assert offered_out is None or beat == offered_out, "output withdrawn or changed"
                offered_out = None if ctx.get(dut.o_act.ready) else beat
                if beat is not None and ctx.get(dut.o_act.ready):
                    data = beat["data"] if config.channels > 1 else beat["data"][0]
                    self.outputs.append((cycle, data, beat["last"]))
                for name, port in (("released", dut.input_release), ("finished", dut.finished),
                                   ("computing", dut.computing), ("writing", dut.writing),
                                   ("idle", dut.idle), ("cells_idle", dut.cells_idle)):
                    if ctx.get(port):
                        getattr(self, name).append(cycle)
                assert cycle not in calls or cycle in self.idle, "called while at work"
                if cycle == reset_at:
                    items, offering, offered_out = [], False, None
                await ctx.tick()

        simulate(dut, testbench, reset=reset)

    def _add_part(self, config, cycle: int, part: dict) -> None:
        """Put the parts of a marker together."""
        if not self.parts or self.parts[-1][2]:
            self.messages.append((cycle, Kind.MARK, {}))
        else:
            assert self.messages[-1][1] == Kind.MARK, "a message between the parts of a marker"
        self.parts.append((cycle, part["part"], part["last"]))
        if part["last"]:
            parts = [part for _, part, _ in self.parts[-config.marker_parts:]]
            layout, width = marker_layout(config), config.channels * config.act_bits
            bits = sum(part << width * k for k, part in enumerate(parts))
            fields = plain(layout.from_bits(bits))
            self.messages[-1][2].update(fields.pop("route") | fields)

    def _waiting(self, arrivals):
        """Whether a vector waits in a cycle."""
        return lambda cycle: sum(at <= cycle for at in arrivals) > len(self.released)

    def _region(self, cycle: int) -> int:
        return REGIONS[len(self.released) % 2]

    @staticmethod
    def _next_row(config, fields: dict) -> dict:
        """The fields of the WRITE message that goes on after one."""
        bits = {"act": config.act_addr_bits, "acc": config.acc_addr_bits,
                "bias": config.bias_addr_bits}
        return fields | {name: (fields[name] + 1) % (1 << bits[name])
                         for name in bits.keys() & fields.keys()}

    @staticmethod
    def _items(config, memory, scan) -> list[dict]:
        """What the LNZD tree gives for a scan."""
        items = []
        for row in range(scan["rows"]):
            lanes = range(scan["rem"] if row == scan["rows"] - 1 else config.n_pes)
            at = (scan["act"] + row) * config.n_pes
            found = [lane for lane in lanes if scan["dense"] or memory[at + lane]]
            items += [{"values": every(config, memory[at + lane]), "nonzero": 1,
                       "last": int(lane == found[-1]), "lane": lane} for lane in found]
            items += [] if found else [
                {"values": every(config, 0), "nonzero": 0, "last": 1, "lane": 0}]
        return items

    def of(self, kind: Kind) -> list:
        """(cycle, fields) of the messages of a kind, but for the clearing after reset."""
        return [(cycle, fields) for cycle, k, fields in self.messages if k == kind and cycle]


def every(config, value: int) -> list[int]:
    """An activation of every channel, no two alike."""
    return [value ^ c if value else 0 for c in range(config.channels)]


MEMORY = [0, 5, -6, 0, 0, 0, 7, 0, 0, -32768, 1, 32767, 0, 0, -1] + [0] * 60  # 5 rows and zeros


def columns(start: int, rows: int, rem: int, base: int, memory=MEMORY) -> list[tuple[int, int]]:
    """(pointer, activation) of every non-zero activation of a region, in order."""
    count = (rows - 1) * N + rem
    return [(base + i, value) for i, value in enumerate(memory[start * N:start * N + count])
            if value]


def spmv(**fields) -> int:
    return encode(SMALL, op=Op.SPMV, **fields)


def write(**fields) -> int:
    return encode(SMALL, op=Op.WRITE, **fields)


def output(**fields) -> int:
    return encode(SMALL, op=Op.OUTPUT, **fields)


LAYER = [spmv(from_input=1, rows=5, rem=N, base=7, codebook=2, code_sel=1, act=9),
         write(act=11, rows=4, base=3, shift=5, relu=1),
         output(act=1, rows=2, rem=2, last=1)]


def test_accumulators_are_cleared_after_reset():
    machine = Machine(LAYER, 30, run=lambda cycle: False)
    assert machine.messages == [(0, Kind.WRITE, {
        "act": 0, "acc": 0, "rows": SMALL.acc_depth, "bias": 0, "shift": 0, "relu": 0,
        "discard": 1})]
    assert machine.idle == list(range(CLEARED, 30))
    assert machine.writing == list(range(CLEARED))
    assert machine.computing == machine.finished == []
    # Longer when the PEs take longer, which they do.
    machine = Machine(LAYER, 40, run=lambda cycle: False, work=9)
    assert machine.idle == list(range(CLEARED + 9, 40))
    assert machine.writing == list(range(CLEARED + 9))


@pytest.mark.parametrize("rows", [1, 2, 3, 30])
def test_every_accumulator_is_cleared(rows):
    config = SMALL.with_(acc_depth=rows)
    machine = Machine([], 60, config=config, run=lambda cycle: False)
    [(cycle, kind, fields)] = machine.messages
    assert (cycle, kind, fields["acc"], fields["discard"], fields["rows"]) == (
        0, Kind.WRITE, 0, 1, rows)
    assert machine.idle == list(range(rows + config.drain_wait, 60))
    assert machine.writing == list(range(rows + config.drain_wait))


def test_a_reset_while_clearing_begins_anew():
    machine = Machine(LAYER, 40, run=lambda cycle: False, reset_at=5)
    assert [(cycle, fields["acc"], fields["rows"]) for cycle, _, fields in machine.messages] == [
        (0, 0, 6), (6, 0, SMALL.acc_depth)]
    assert machine.idle == list(range(6 + CLEARED, 40))


def test_a_load_while_clearing_clears_again_before_the_next_pass():
    machine = Machine(LAYER, 60, memory=MEMORY, run=lambda cycle: cycle >= 40, restarts={5})
    assert [(cycle, fields["acc"], fields["rows"], fields["discard"])
            for cycle, kind, fields in machine.messages if kind == Kind.WRITE] == [
        (0, 0, SMALL.acc_depth, 1), (41, 0, SMALL.acc_depth, 1)]


@pytest.mark.parametrize("work", [0, 1, 6])
def test_a_pass_cycle_by_cycle(work):
    machine = Machine(LAYER, 90, memory=MEMORY, work=work, run=lambda cycle: cycle < 60,
                      full=lambda cycle: cycle < 40, input_act=lambda cycle: 0)
    start = FIRST + work  # the clearing keeps the PEs busy as well
    assert machine.of(Kind.SCAN)[0] == (start, {
        "act": 0, "rows": 5, "rem": N, "dense": 0})
    assert machine.of(Kind.MARK)[0] == (start + 1, {"codebook": 2, "code_sel": 1})
    # Row 1 is all zero and takes one item.
    expected, cycle = [], start + SMALL.scan_latency
    for row in range(5):
        found = [lane for lane in range(N) if MEMORY[row * N + lane]]
        for lane in found:
            expected.append((cycle, {"ptr": 7 + row * N + lane,
                                     "values": [MEMORY[row * N + lane]]}))
            cycle += 1
        cycle += not found
    assert machine.of(Kind.ACT)[:len(expected)] == expected
    scanned = cycle - 1
    # Exactly the smallest wait when the PEs are idle by then.
    written = max(scanned + SMALL.drain_wait, expected[-1][0] + SMALL.drain_wait + work) + 1
    assert machine.of(Kind.WRITE)[0] == (written, {
        "act": 11, "acc": 0, "rows": 4, "bias": 3, "shift": 5, "relu": 1, "discard": 0})
    given = written + 4 - 1 + SMALL.drain_wait + work + 1
    assert machine.of(Kind.SCAN)[1] == (given, {
        "act": 1, "rows": 2, "rem": 2, "dense": 1})
    # What is given out needs no marker.
    assert all(cycle < written or cycle > given + SMALL.scan_latency
               for cycle, _ in machine.of(Kind.MARK))
    assert machine.writing == [*range(FIRST - 2 + work), *range(written + 1, given)]
    first = given + SMALL.scan_latency
    values = MEMORY[N:N + N + 2]
    assert machine.outputs[:5] == [(first + k, value, int(k == 4))
                                   for k, value in enumerate(values)]
    assert machine.released[0] == scanned
    assert machine.finished[0] == first + 4
    assert machine.computing[:first + 5 - start] == list(range(start, first + 5))


def test_passes_follow_each_other_without_a_gap():
    single = [output(act=0, rows=1, rem=N, last=1)]
    machine = Machine(single, 80, memory=MEMORY, run=lambda cycle: cycle < 60)
    period = SMALL.scan_latency + N
    scans = [cycle for cycle, _ in machine.of(Kind.SCAN)]
    assert scans == list(range(FIRST, 60, period))
    assert machine.finished == [cycle + period - 1 for cycle in scans]
    assert len(machine.outputs) == N * len(scans)
    assert machine.idle[-1] == 79


@pytest.mark.parametrize("instruction", [
    spmv(rows=1, rem=1, act=3, last=1), write(rows=1, last=1), write(rows=2, last=1),
    write(rows=5, last=1), output(rows=1, rem=1, last=1)])
def test_program_of_one_instruction(instruction):
    machine = Machine([instruction], 60, memory=MEMORY)
    assert len(machine.finished) > 2
    assert machine.finished == sorted(machine.finished)
    starts = [cycle for cycle, kind, _ in machine.messages
              if cycle and kind not in (Kind.ACT, Kind.MARK)]
    # The next pass starts in the cycle after the end of the one before.
    assert starts[1:] == [cycle + 1 for cycle in machine.finished[:len(starts) - 1]]
    assert machine.computing == list(range(FIRST, 60))


@pytest.mark.parametrize("rows", [1, 2, 3, 12])
def test_smallest_drain_without_any_column(rows):
    program = [spmv(rows=2, rem=N, act=5), write(rows=rows, last=1)]  # rows 5 and 6 are zero
    machine = Machine(program, 80, memory=MEMORY)
    assert machine.of(Kind.ACT) == []
    scan, written = machine.of(Kind.SCAN)[0][0], machine.of(Kind.WRITE)[0][0]
    assert scan == FIRST
    # Two zero items, then the wait.
    assert written == scan + SMALL.scan_latency + 1 + SMALL.drain_wait + 1
    assert machine.of(Kind.WRITE)[0][1]["rows"] == rows
    assert machine.finished[0] == written + rows - 1 + SMALL.drain_wait


@pytest.mark.parametrize(("stalls", "gaps", "output_stalls"),
                         [(0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.6), (0.4, 0.4, 0.4)])
@pytest.mark.parametrize("rem", range(1, N + 1))
def test_random_stalls_change_nothing_but_time(rem, stalls, gaps, output_stalls):
    rng = np.random.default_rng(rem)
    memory = (rng.integers(-9, 9, size=75) * (rng.random(75) < 0.4)).tolist()
    program = [spmv(from_input=1, rows=12, rem=rem, base=3), write(act=2, rows=5, base=4),
               spmv(rows=6, rem=N, act=13, base=40), write(act=9, rows=2),
               output(act=4, rows=7, rem=rem, last=1)]
    machine = Machine(program, 700, memory=memory, stalls=stalls, gaps=gaps, work=3,
                      output_stalls=output_stalls, seed=rem, input_act=lambda cycle: 5)
    passes = len(machine.finished)
    assert passes >= 2
    expected = columns(5, 12, rem, 3, memory) + columns(13, 6, N, 40, memory)
    sent = [(fields["ptr"], *fields["values"]) for _, fields in machine.of(Kind.ACT)]
    assert sent[:passes * len(expected)] == expected * passes
    vector = memory[4 * N:4 * N + 6 * N + rem]
    assert [(value, last) for _, value, last in machine.outputs][:passes * len(vector)] == [
        (value, int(k == len(vector) - 1)) for k, value in enumerate(vector)] * passes
    kinds = [kind for cycle, kind, _ in machine.messages if cycle and kind != Kind.ACT]
    order = [Kind.SCAN, Kind.MARK, Kind.WRITE, Kind.SCAN, Kind.MARK, Kind.WRITE, Kind.SCAN]
    assert kinds[:7 * passes] == order * passes
    # Not even a WRITE is interrupted: the rows of a stalled one would count as two.
    writes = [(fields["act"], fields["rows"], fields["bias"])
              for _, fields in machine.of(Kind.WRITE)]
    assert writes[:2 * passes] == [(2, 5, 4), (9, 2, 0)] * passes
    assert len(machine.released) in (passes, passes + 1)


@pytest.mark.parametrize("channels", [2, 5])
def test_channels_travel_together(channels):
    config = SMALL.with_(channels=channels)
    program = [encode(config, op=Op.SPMV, rows=5, rem=N, base=2),
               encode(config, op=Op.OUTPUT, rows=5, rem=N, last=1)]
    machine = Machine(program, 120, config=config, memory=MEMORY, stalls=0.2, output_stalls=0.2)
    sent = [(fields["ptr"], fields["values"]) for _, fields in machine.of(Kind.ACT)]
    found = [(2 + i, every(config, value)) for i, value in enumerate(MEMORY[:5 * N]) if value]
    assert sent[:len(found)] == found
    assert [data for _, data, _ in machine.outputs][:5 * N] == [
        every(config, value) for value in MEMORY[:5 * N]]


def test_without_pointers_every_activation_is_broadcast():
    config = SMALL.with_(pointers=False)
    program = [encode(config, op=Op.SPMV, rows=5, rem=2, spmat=77, code_sel=2, height=9),
               encode(config, op=Op.OUTPUT, rows=1, rem=1, last=1)]
    machine = Machine(program, 80, config=config, memory=MEMORY, stalls=0.2,
                      run=lambda cycle: cycle < FIRST + 2)
    assert machine.of(Kind.SCAN)[0][1] == {"act": 0, "rows": 5, "rem": 2, "dense": 1}
    assert [fields for _, fields in machine.of(Kind.MARK)] == [
        {"codebook": 0, "code_sel": 2, "acc": 9, "spmat": 77, "drop": -9}]
    assert [fields for _, fields in machine.of(Kind.ACT)] == [
        {"values": [value]} for value in MEMORY[:4 * N + 2]]
    assert [(data, last) for _, data, last in machine.outputs] == [(MEMORY[0], 1)]


def test_direct_weights_have_no_codebook():
    config = SMALL.with_(direct_weights=True)
    program = [encode(config, op=Op.SPMV, rows=1, rem=2, code_sel=1, align=3, last=1)]
    machine = Machine(program, 60, config=config, memory=MEMORY)
    assert machine.of(Kind.SCAN)[0][1] == {"act": 0, "rows": 1, "rem": 2, "dense": 0}
    assert machine.of(Kind.MARK)[0][1] == {"code_sel": 1, "align": 3}


#: Engines by the parts of their markers.
PARTS = [
    (SMALL, 1), (SMALL.with_(pointers=False), 2), (SMALL.with_(pointers=False, act_bits=8), 3),
    (SMALL.with_(pointers=False, channels=2), 1), (SMALL.with_(pointers=False, act_bits=5), 5),
    # As many rows as an address of an accumulator can tell.
    (SMALL.with_(pointers=False, acc_depth=16), 2), (recurrent(), 1),
    (recurrent(pointers=False), 2), (recurrent(pointers=False, act_bits=8), 3),
    (recurrent(pointers=False, act_bits=8, spmat_depth=5000), 4),
    (recurrent(pointers=False, channels=32), 1),
    (recurrent(pointers=False, channels=32, spmat_depth=1 << 18, codebooks=64), 1)]


@pytest.mark.parametrize("stalls", [0.0, 0.7])
@pytest.mark.parametrize(("config", "count"), PARTS)
def test_parts_of_markers(config, count, stalls):
    """Lowest first, none of them during a stall, and the columns behind the last."""
    where = [{}, {}] if config.pointers else [
        {"spmat": config.spmat_depth - 3, "height": config.acc_depth}, {"height": 7}]
    accs = {"acc": 11, "acc_odd": 5} if config.recurrent else {}
    program = [encode(config, op=Op.SPMV, rows=2, rem=1, code_sel=2, codebook=1, **where[0],
                      **accs),
               encode(config, op=Op.SPMV, rows=1, rem=2, act=3, code_sel=1, codebook=2, **where[1],
                      **accs, last=1)]
    machine = Machine(program, 400, config=config, memory=MEMORY, stalls=stalls, seed=count)
    assert config.marker_parts == count
    found = machine.parts[:6 * count]
    assert [last for _, _, last in found] == [*[0] * (count - 1), 1] * 6
    # The order of the fields is that of the layout, whose proof is elsewhere.
    routes = []
    for acc in (11, 5, 11) if config.recurrent else (0, 0, 0):
        for matrix, place in zip(({"code_sel": 2, "codebook": 1}, {"code_sel": 1, "codebook": 2}),
                                 where, strict=True):
            if config.pointers:
                routes.append(matrix | ({"acc": acc} if config.recurrent else {}))
            else:
                height = place["height"]
                # The accumulator behind the last row, of which there need not be one.
                routes.append(matrix | {"acc": (acc + height) % (1 << config.acc_addr_bits),
                                        "spmat": place.get("spmat", 0), "drop": -height})
    assert [part for _, part, _ in found] == [
        part for route in routes for part in marker_parts(config, **route)]
    kinds = [(cycle, kind) for cycle, kind, _ in machine.messages if cycle]
    scans = [cycle for cycle, kind in kinds if kind == Kind.SCAN]
    for k, scan in enumerate(scans[:6]):
        cycles = [cycle for cycle, *_ in found[k * count:(k + 1) * count]]
        if stalls:
            assert cycles[0] > scan
        else:
            assert cycles == list(range(scan + 1, scan + 1 + count))
        begin = next(cycle for cycle, kind in kinds if kind == Kind.ACT and cycle > scan)
        assert begin > cycles[-1]
        if not stalls:
            assert begin == max(scan + config.scan_latency, cycles[-1] + 1)


def test_waiting_for_input():
    machine = Machine(LAYER, 120, memory=MEMORY, full=lambda cycle: cycle >= 50,
                      input_act=lambda cycle: 3)
    assert machine.of(Kind.SCAN)[0][0] == 50
    assert machine.of(Kind.SCAN)[0][1]["act"] == 3
    assert machine.computing[0] == 50
    assert machine.idle == []
    # Only an instruction that reads the input waits for it.
    machine = Machine([output(rows=1, rem=1, last=1)], 40, memory=MEMORY, full=lambda cycle: False)
    assert machine.of(Kind.SCAN)[0][0] == FIRST


def test_stop_while_waiting_for_input_returns_to_idle():
    machine = Machine(LAYER, 140, memory=MEMORY, full=lambda cycle: cycle >= 90,
                      run=lambda cycle: cycle < 40 or cycle >= 60)
    # The state changes with the edge after cycle 40, in which waiting ended; then the PEs are
    # looked at, which may still be at work for the instructions before.
    assert machine.idle == list(range(41 + SMALL.drain_wait, 60))
    assert machine.of(Kind.SCAN)[0][0] == 90
    assert machine.computing[0] == 90
    assert machine.writing[:2 * CLEARED - 1] == [*range(CLEARED), *range(62, 61 + CLEARED)]


def test_stop_finishes_the_pass():
    program = [spmv(from_input=1, rows=5, rem=N), write(rows=4), output(rows=1, rem=1, last=1)]
    machine = Machine(program, 100, memory=MEMORY, run=lambda cycle: cycle < FIRST + 2)
    assert len(machine.finished) == len(machine.outputs) == len(machine.released) == 1
    assert machine.idle == list(range(machine.finished[0] + SMALL.drain_wait + 1, 100))
    # Started again, it begins with the first instruction.
    again = machine.finished[0] + 20
    machine = Machine(program, 130, memory=MEMORY,
                      run=lambda cycle: cycle < FIRST + 2 or cycle >= again)
    starts = [cycle for cycle, fields in machine.of(Kind.SCAN) if not fields["dense"]]
    assert starts[:2] == [FIRST, again + 2]


def test_program_loads_while_idle():
    program = [output(act=row, rows=1, rem=1, last=int(row == 4)) for row in range(5)]
    load = [*enumerate(program)]
    machine = Machine([write(rows=1, last=1)], 150, memory=MEMORY, load=load,
                      run=lambda cycle: cycle >= 30)
    assert [fields["act"] for _, fields in machine.of(Kind.SCAN)][:7] == [0, 1, 2, 3, 4, 0, 1]
    assert machine.of(Kind.WRITE) == []


def test_reset_breaks_a_pass_off():
    machine = Machine(LAYER, 90, memory=MEMORY, reset_at=FIRST + SMALL.scan_latency + 2)
    begin = FIRST + SMALL.scan_latency + 3
    clears = [cycle for cycle, kind, fields in machine.messages
              if kind == Kind.WRITE and fields["discard"]]
    assert clears == [0, begin]


@pytest.mark.parametrize("n_pes", [1, 9, 65])
def test_waits_follow_the_config(n_pes):
    config = SMALL.with_(n_pes=n_pes)
    program = [encode(config, op=Op.SPMV, rows=1, rem=1), encode(config, op=Op.WRITE, rows=1,
                                                                 last=1)]
    machine = Machine(program, 90, config=config, memory=[4] + [0] * 64)
    first = config.acc_depth + config.drain_wait + 2
    assert machine.of(Kind.SCAN)[0][0] == first
    column = first + config.scan_latency
    assert machine.of(Kind.ACT)[0][0] == column
    assert machine.of(Kind.WRITE)[0][0] == column + config.drain_wait + 1


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 7$"):
        Sequencer(7)
    with pytest.raises(ValueError, match=r"^program has 7 words but the memory of this "
                                         r"configuration holds 6$"):
        Sequencer(SMALL, [0] * 7)
    bits = instruction_bits(SMALL)
    with pytest.raises(ValueError, match=rf"^program word 1 must be an integer from 0 to "
                                         rf"{(1 << bits) - 1} \({bits} bits\), not {1 << bits}$"):
        Sequencer(SMALL, [0, 1 << bits])
