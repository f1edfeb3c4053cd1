# amaranth: UnusedElaboratable=no
"""Proves programs of recurrent engines: what is passed over, what waits for what, and routines."""

from itertools import pairwise

import numpy as np
import pytest

from openese.hdl.layouts import Kind
from openese.model.program import Cell, Op, encode

from .helpers import recurrent
from .test_sequencer import MEMORY, REGIONS, Machine, every

CONFIG = recurrent(channels=3, program_depth=24)
N = CONFIG.n_pes
#: First idle cycle after reset; first cycle that executes an instruction.
CLEARED = CONFIG.acc_depth + CONFIG.drain_wait
FIRST = CLEARED + 2


def code(op: Op, **fields: int) -> int:
    return encode(CONFIG, op=op, **fields)


# One layer, the last of its network: the state's part of the next pass comes from the feed.
HIDDEN = code(Op.SPMV, first=1, flow=1, sync=1, act=3, rows=2, rem=2, base=30, codebook=1, acc=1,
              acc_odd=6)
INPUT = code(Op.SPMV, from_input=1, flow=1, rows=2, rem=N, acc=1, acc_odd=6)
CELL = code(Op.CELL, flow=1, cell=Cell.LSTM, gates=3, act=3, rows=2, rem=2, base=9, shift=5,
            acc=1, acc_odd=6, state=4, peep=5, to_act=1, to_feed=1, to_out=1)
AHEAD = code(Op.SPMV, from_input=1, prefetch=1, flow=1, rows=2, rem=N, acc=6, acc_odd=1)
BACK = code(Op.SPMV, feed=1, flow=1, rows=2, rem=2, base=30, codebook=1, acc=6, acc_odd=1, last=1)
LAYER = [HIDDEN, INPUT, CELL, AHEAD, BACK]


def run(program, cycles: int, **arguments) -> Machine:
    arguments = {"config": CONFIG, "memory": MEMORY, **arguments}
    return Machine(program, cycles, **arguments)


def events(machine: Machine) -> list[tuple]:
    """Kind of all messages but columns and the clearing after reset, with the place that a scan
    begins at, or the accumulator of the others."""
    return [(kind, fields["act" if kind == Kind.SCAN else "acc"])
            for cycle, kind, fields in machine.messages if cycle and kind != Kind.ACT]


def instructions(machine: Machine, since: int = 1) -> list[tuple]:
    """(cycle, kind, fields) of the messages that begin an instruction."""
    return [message for message in machine.messages
            if message[0] >= since and message[1] not in (Kind.ACT, Kind.MARK)]


def scan_cycles(act: int, rows: int, rem: int) -> int:
    """Items of a scan of `MEMORY`."""
    count = 0
    for row in range(rows):
        lanes = rem if row == rows - 1 else N
        at = (act + row) * N
        count += max(1, sum(value != 0 for value in MEMORY[at:at + lanes]))
    return count


def test_passes_of_a_layer_whose_inputs_are_there():
    """Only the first pass computes the state's part; the next input is taken beside the cell."""
    machine = run(LAYER, 300, arrivals=[0, 1, 2, 3], cell_work=20)
    assert events(machine) == [
        (Kind.SCAN, 3), (Kind.MARK, 1), (Kind.SCAN, REGIONS[0]), (Kind.MARK, 1), (Kind.CELL, 1),
        (Kind.SCAN, REGIONS[1]), (Kind.MARK, 6), (Kind.MARK, 6),
        (Kind.CELL, 6), (Kind.SCAN, REGIONS[0]), (Kind.MARK, 1), (Kind.MARK, 1),
        (Kind.CELL, 1), (Kind.SCAN, REGIONS[1]), (Kind.MARK, 6), (Kind.MARK, 6),
        (Kind.CELL, 6), (Kind.MARK, 1)]
    assert len(machine.finished) == len(machine.released) == 4
    # Channels with a step are those of the pass's own vector, whenever it was read.
    assert [active for _, _, active in machine.cells.starts] == [1, 2, 3, 4]
    cells = [cycle for cycle, kind, _ in machine.messages if kind == Kind.CELL]
    assert [cycle for cycle, *_ in machine.cells.starts] == cells
    command = machine.cells.starts[0][1]
    assert command | {"op": Op.CELL} == command
    assert {name: command[name] for name in ("cell", "gates", "state", "peep", "rows", "rem",
                                             "act", "base", "shift", "to_act", "to_feed",
                                             "to_out")} == {
        "cell": Cell.LSTM, "gates": 3, "state": 4, "peep": 5, "rows": 2, "rem": 2, "act": 3,
        "base": 9, "shift": 5, "to_act": 1, "to_feed": 1, "to_out": 1}
    assert machine.of(Kind.CELL)[0][1] == {
        "acc": 1, "gates": 3}
    # Every vector is let go when its part has been added, or the pass that it is for has begun.
    assert all(release < cell for release, cell in zip(machine.released, cells, strict=True))


def test_cycle_by_cycle():
    machine = run(LAYER, 120, arrivals=[0, 1], cell_work=11)
    starts = [cycle for cycle, *_ in instructions(machine)]
    hidden = FIRST
    vector = hidden + CONFIG.scan_latency + scan_cycles(3, 2, 2)
    cell = vector + CONFIG.scan_latency + scan_cycles(REGIONS[0], 2, N)
    # An instruction that goes on at once takes two cycles.
    ahead = cell + 2
    back = ahead + CONFIG.scan_latency + scan_cycles(REGIONS[1], 2, N)
    assert starts[:4] == [hidden, vector, cell, ahead]
    # Columns from the feed are announced by nothing but their marker.
    assert [cycle for cycle, _ in machine.of(Kind.MARK)][:4] == [
        cycle + 1 for cycle in (hidden, vector, ahead, back)]
    assert machine.released[0] == cell - 1
    # The pass ends with the last result, and two instructions of the next are passed over.
    given = max(back + 2, cell + 12) + N + 2 - 1
    assert machine.finished[0] == given
    assert machine.released[1] == given + 3
    # By then the cell has settled; if not, the next waits.
    assert starts[4] == given + 5
    assert machine.computing[:given + 6 - FIRST] == list(range(FIRST, given + 6))


def test_columns_come_from_the_feed():
    for pointers in (True, False):
        config = recurrent(channels=3, program_depth=24, pointers=pointers)
        where = {"base": 30} if pointers else {"spmat": 44, "height": 3}
        program = [
            encode(config, op=Op.CELL, rows=3, rem=2, to_feed=1, flow=1),
            encode(config, op=Op.SPMV, feed=1, rows=3, rem=2, flow=1, acc=2, acc_odd=2, last=1,
                   code_sel=1, **where)]
        machine = Machine(program, 200, config=config, stalls=0.3, gaps=0.3, cell_work=3,
                          run=lambda cycle: cycle < FIRST + 2)
        results = machine.cells.given
        assert [item["lane"] for item in results] == [0, 1, 2, 0, 1, 2, 0, 1]
        columns = [(30 + 3 * (k // 3) + item["lane"], item["values"])
                   for k, item in enumerate(results) if item["nonzero"]]
        assert 0 < len(columns) < 8
        sent = [fields for _, fields in machine.of(Kind.ACT)]
        if pointers:
            assert [(fields["ptr"], fields["values"]) for fields in sent] == columns
        else:
            assert [fields["values"] for fields in sent] == [item["values"] for item in results]
            assert machine.of(Kind.MARK)[0][1]["spmat"] == 44
            assert machine.of(Kind.MARK)[0][1]["drop"] == -3
        assert machine.of(Kind.MARK)[0][1]["acc"] == (2 if pointers else 2 + 3)
        assert machine.of(Kind.MARK)[0][1]["code_sel"] == 1
        assert machine.of(Kind.SCAN) == []
        assert len(machine.finished) == 1


def test_prefetch_only_of_a_vector_that_is_there():
    # The second vector comes too late for the first pass, the third in time for the second.
    machine = run(LAYER, 400, arrivals=[0, 150, 151, 300], cell_work=5)
    assert events(machine) == [
        (Kind.SCAN, 3), (Kind.MARK, 1), (Kind.SCAN, REGIONS[0]), (Kind.MARK, 1), (Kind.CELL, 1),
        (Kind.MARK, 6),
        (Kind.SCAN, REGIONS[1]), (Kind.MARK, 6), (Kind.CELL, 6), (Kind.SCAN, REGIONS[0]),
        (Kind.MARK, 1), (Kind.MARK, 1),
        (Kind.CELL, 1), (Kind.MARK, 6),
        (Kind.SCAN, REGIONS[1]), (Kind.MARK, 6), (Kind.CELL, 6), (Kind.MARK, 1)]
    assert [active for _, _, active in machine.cells.starts] == [1, 2, 3, 4]
    scans = [cycle for cycle, kind, fields in machine.messages
             if kind == Kind.SCAN and fields["act"] == REGIONS[1]]
    assert scans == [150, 300]
    # Only waiting for input is no computing.
    assert not set(range(machine.finished[0] + 4, 150)) & set(machine.computing)


@pytest.mark.parametrize("cell_work", [0, 7, 40])
@pytest.mark.parametrize("op", [Op.SPMV, Op.OUTPUT])
@pytest.mark.parametrize("sync", [0, 1])
def test_sync_waits_for_the_element_wise_unit(op, sync, cell_work):
    program = [code(Op.CELL, rows=1, rem=1, flow=1), code(op, rows=1, rem=1, sync=sync, last=1)]
    machine = run(program, 120, cell_work=cell_work, run=lambda cycle: cycle < FIRST + 1)
    cell, after = [cycle for cycle, *_ in instructions(machine)][:2]
    # The command arrives a cycle later; from then on the unit is at work.
    ready = cell + 2 + cell_work
    assert after == (max(cell + 2, ready) if sync else cell + 2)


@pytest.mark.parametrize("op", [Op.CELL, Op.STATE])
def test_cells_and_states_wait_for_each_other(op):
    program = [code(Op.CELL, rows=1, rem=1, flow=1),
               code(op, rows=2, rem=2, state=11, flow=1, last=1)]
    machine = run(program, 140, cell_work=15, run=lambda cycle: cycle < FIRST + 1)
    (first, *_), (second, command, _) = machine.cells.starts
    assert second == first + 2 + 15
    assert (command["op"], command["state"], command["rows"], command["rem"]) == (op, 11, 2, 2)
    # STATE is none of the PEs' business.
    kinds = [kind for cycle, kind, _ in machine.messages if cycle]
    assert kinds == [Kind.CELL] * (1 + (op == Op.CELL))
    # The pass ends with the command, but the engine is not idle before the unit is.
    assert machine.finished == [second]
    assert machine.idle[-1] == 139
    idle = next(cycle for cycle in machine.idle if cycle > second)
    assert idle == second + 2 + 15 + 1


def test_flow_does_not_wait_for_the_pes():
    program = [code(Op.SPMV, rows=2, rem=N, flow=flow, last=last)
               for flow, last in ((1, 0), (0, 0), (1, 1))]
    machine = run(program, 200, work=13, run=lambda cycle: cycle < FIRST + 20)
    scans = [cycle for cycle, _ in machine.of(Kind.SCAN)][:3]
    length = CONFIG.scan_latency + scan_cycles(0, 2, N)
    start = FIRST + 13
    # The second waits for the PEs, the others for nothing.
    assert scans[1] == start + length
    last_column = max(cycle for cycle, _ in machine.of(Kind.ACT) if cycle < scans[2])
    assert scans[2] == last_column + CONFIG.drain_wait + 13 + 1


def test_cell_waits_for_room_in_the_queues():
    program = [code(Op.CELL, rows=1, rem=1, flow=1, last=1)]
    machine = run(program, 300, stalls=0.7, seed=3)
    starts = [cycle for cycle, *_ in machine.cells.starts]
    # `Machine` checks that the message never comes in spite of a stall.
    assert len(starts) > 20
    assert max(after - before for before, after in pairwise(starts)) > 6


def test_accumulators_alternate():
    program = [code(Op.SPMV, rows=1, rem=1, acc=2, acc_odd=3, flow=1),
               code(Op.SPMV, rows=1, rem=1, acc=4, acc_odd=5, flow=1),
               code(Op.CELL, rows=1, rem=1, acc=6, acc_odd=7, flow=1, last=1)]
    machine = run(program, 300)
    found = [fields["acc"] for cycle, kind, fields in machine.messages
             if cycle and kind in (Kind.MARK, Kind.CELL)]
    assert found[:12] == [2, 4, 6, 3, 5, 7, 2, 4, 6, 3, 5, 7]


def test_loads_clear_what_passes_have_left():
    """Stopped, loaded and started again: accumulators are cleared, the state's part computed."""
    stop, again = 60, 140
    machine = run(LAYER, 260, arrivals=[0, 1, 100, 101], cell_work=4, restarts={120, 121},
                  run=lambda cycle: cycle < stop or cycle >= again)
    clears = [(cycle, fields) for cycle, kind, fields in machine.messages if kind == Kind.WRITE]
    assert [cycle for cycle, _ in clears] == [0, again + 1]
    assert all(fields["rows"] == CONFIG.acc_depth and not fields["acc"] for _, fields in clears)
    before = [event for event in events(machine) if event[0] != Kind.WRITE]
    passes = sum(cycle < again for cycle in machine.finished)
    assert passes == 2
    later = [(kind, fields.get("act"))
             for _, kind, fields in instructions(machine, again + 2)]
    # The parity of passes goes on; what was computed ahead is computed again.
    assert later[:3] == [(Kind.SCAN, 3), (Kind.SCAN, REGIONS[0]), (Kind.CELL, None)]
    assert len(machine.finished) == 4
    assert before[:2] == [(Kind.SCAN, 3), (Kind.MARK, 1)]


def test_a_load_forgets_what_was_prefetched():
    """A stop after a prefetch finishes the pass; the prefetched vector is read anew after a load,
    and is not read anew without one."""
    for restarts, expected in (({150}, [Kind.SCAN, Kind.SCAN, Kind.CELL]), ((), [Kind.CELL])):
        # Stopped in the middle of the first pass, with the second vector there.
        machine = run(LAYER, 320, arrivals=[0, 1], cell_work=30, restarts=restarts,
                      run=lambda cycle: cycle < 40 or cycle >= 200)
        assert len([cycle for cycle in machine.finished if cycle < 200]) == 1
        ahead = [fields["act"] for cycle, kind, fields in machine.messages
                 if kind == Kind.SCAN and cycle < 200]
        assert ahead == [3, REGIONS[0], REGIONS[1]]
        after = [kind for _, kind, _ in instructions(machine, 200) if kind != Kind.WRITE]
        assert after[:len(expected)] == expected
        # Either way it is released once, and belongs to the second pass.
        assert len(machine.released) == 2
        assert [active for *_, active in machine.cells.starts] == [1, 2]


@pytest.mark.parametrize("arrivals", [[150], [0, 150]])
def test_stop_while_waiting_for_input(arrivals):
    """What `first` instructions have added must not be added twice."""
    stop, again = 100, 120
    machine = run(LAYER, 260, arrivals=arrivals, run=lambda cycle: cycle < stop or cycle >= again)
    assert machine.idle == list(range(stop + 1 + CONFIG.drain_wait, again))
    hidden = [cycle for cycle, kind, fields in machine.messages
              if kind == Kind.SCAN and fields["act"] == 3]
    clears = [cycle for cycle, kind, _ in machine.messages if kind == Kind.WRITE]
    if len(arrivals) == 1:
        # It waited in the first pass: once more from the beginning.
        assert len(hidden) == 2
        assert clears == [0, again + 1]
    else:
        # It waited in the second pass, whose state's part came from the first.
        assert len(hidden) == 1
        assert clears == [0]
    assert len(machine.finished) == len(arrivals)
    assert [cycle for cycle, kind, _ in machine.messages if kind == Kind.SCAN][-1] == 150


ROUTINE = [code(Op.OUTPUT, sync=1, act=1, rows=1, rem=N), code(Op.STATE, rows=2, rem=1, state=3),
           code(Op.STATE, rows=1, rem=2, state=8, last=1)]


def test_routine():
    program = LAYER + ROUTINE
    call = 130
    machine = run(program, 400, arrivals=[0, 1, 2], calls={call: 5}, cell_work=3,
                  run=lambda cycle: cycle < 40 or cycle >= 180)
    passes = [cycle for cycle in machine.finished if cycle < call]
    assert len(passes) in (1, 2)
    assert [cycle for cycle, fields in machine.of(Kind.SCAN)
            if fields["dense"]] == [call + 2]
    first = call + 2 + CONFIG.scan_latency
    assert machine.outputs == [(first + k, every(CONFIG, value), int(k == N - 1))
                               for k, value in enumerate(MEMORY[N:2 * N])]
    states = [(cycle, command["state"]) for cycle, command, _ in machine.cells.starts
              if command["op"] == Op.STATE]
    assert states == [(first + N, 3), (first + N + 2 + 3, 8)]
    # It is no pass, and ends the engine's work when the unit has sent all.
    assert [cycle for cycle in machine.finished if call <= cycle < 180] == []
    idle = [cycle for cycle in machine.idle if cycle > call]
    assert idle[0] == first + N + 2 * (2 + 3) + 1
    # The passes after it go on where those before have stopped: nothing is computed again.
    later = [(kind, fields.get("act")) for _, kind, fields in instructions(machine, 180)]
    assert (Kind.SCAN, 3) not in later
    assert later[0] == (Kind.CELL, None)
    assert [command["op"] for _, command, _ in machine.cells.starts].count(Op.CELL) == 3
    found = [(kind, fields["acc"]) for cycle, kind, fields in machine.messages
             if kind == Kind.CELL]
    assert found == [(Kind.CELL, 1), (Kind.CELL, 6), (Kind.CELL, 1)]


def test_start_during_a_routine_waits_for_its_end():
    program = LAYER + ROUTINE
    call = CLEARED + 5
    machine = run(program, 200, arrivals=[0], calls={call: 5}, cell_work=9,
                  run=lambda cycle: cycle > call)
    states = [cycle for cycle, command, _ in machine.cells.starts if command["op"] == Op.STATE]
    assert len(states) == 2
    hidden = [cycle for cycle, fields in machine.of(Kind.SCAN) if fields["act"] == 3]
    assert len(hidden) == 1
    assert hidden[0] > states[1] + 9
    assert len(machine.finished) == 1


class Random:
    """A random program in the manner of the compiler, and what it must do.

    Every SPMV has a split and a codebook of its own, by which its messages are known.
    """

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.program = []
        self.tags = iter([(a, b) for a in range(3) for b in range(3)])

        def region() -> dict:
            return {"act": int(rng.integers(18)), "rows": int(rng.integers(1, 5)),
                    "rem": int(rng.integers(1, N + 1))}

        def accs() -> dict:
            return {"acc": int(rng.integers(12)), "acc_odd": int(rng.integers(12))}

        def add(op, **fields):
            if op == Op.SPMV:
                code_sel, codebook = next(self.tags)
                fields |= {"code_sel": code_sel, "codebook": codebook,
                           "base": int(rng.integers(20))}
            self.program.append({"op": op, **accs(), **fields})

        for _ in range(rng.integers(3)):
            add(Op.SPMV, first=1, sync=1, flow=1, **region())
        add(Op.SPMV, from_input=1, rows=3, rem=2, flow=int(rng.integers(2)))
        ahead = rng.integers(4)
        for layer in range(rng.integers(1, 4)):
            shape, feed = region(), int(rng.integers(2))
            add(Op.CELL, to_feed=feed, flow=1, gates=int(rng.choice([0, 3])),
                base=int(rng.integers(20)), **shape)
            if layer == ahead:
                add(Op.SPMV, from_input=1, prefetch=1, flow=1, rows=3, rem=2)
            if feed:
                add(Op.SPMV, feed=1, rows=shape["rows"], rem=shape["rem"],
                    flow=int(rng.integers(2)))
            if rng.integers(3) == 0:
                add(Op.OUTPUT, sync=1, **region())
            if rng.integers(3) == 0:
                add(Op.STATE, **region())
            if layer == 0:
                add(Op.SPMV, sync=int(rng.integers(2)), flow=int(rng.integers(2)), **region())
        self.program[-1]["last"] = 1
        self.words = [code(**fields) for fields in self.program]

    def check(self, machine: Machine, memory) -> int:
        """Compare all that a machine did with the program; returns the passes."""
        steps = [(cycle, kind, fields) for cycle, kind, fields in machine.messages if cycle]
        steps += [(cycle, Op.STATE, command) for cycle, command, _ in machine.cells.starts
                  if command["op"] == Op.STATE]
        steps.sort(key=lambda step: step[0])
        results, outputs = iter(machine.cells.given), iter(machine.outputs)
        starts = {cycle: (command, active) for cycle, command, active in machine.cells.starts}
        at = passes = vector = 0
        prefetched, settled = False, 0
        while True:
            for fields in self.program:
                field = {"flow": 0, "sync": 0, "feed": 0, "from_input": 0, "prefetch": 0,
                         "first": 0, "act": 0, "base": 0, "shift": 0, "gates": 0, **fields}
                op, acc = field["op"], field["acc_odd" if passes % 2 else "acc"]
                if field["first"] and passes:
                    continue
                if field["from_input"] and not field["prefetch"]:
                    vector += 1
                    if prefetched:
                        prefetched = False
                        continue
                if at == len(steps):
                    return passes
                cycle, kind, found = steps[at]
                marker = {"acc": acc} | {name: field[name] for name in ("code_sel", "codebook")
                                         if name in field}
                if field["prefetch"]:
                    if kind == Kind.SCAN and at + 1 == len(steps):
                        return passes
                    if kind != Kind.SCAN or steps[at + 1][1:] != (Kind.MARK, marker):
                        continue  # no vector was there; other tests prove when
                    prefetched = True
                assert cycle > settled, (field, cycle)
                if field["sync"] or op in (Op.CELL, Op.STATE):
                    assert cycle in machine.cells_idle, (field, cycle)
                at += 1
                if op == Op.STATE:
                    assert kind == Op.STATE
                    assert {name: found[name] for name in field} == field | {
                        name: found[name] for name in ("gates",)}
                    continue
                if op == Op.CELL:
                    assert kind == Kind.CELL, field
                    assert (found["acc"], found["gates"]) == (acc, field["gates"])
                    if at == len(steps) and cycle not in starts:
                        return passes  # the machine was stopped before the cells began
                    command, active = starts[cycle]
                    assert {name: command[name] for name in (
                        "rows", "rem", "act", "base", "shift")} == {
                        name: field[name] for name in ("rows", "rem", "act", "base", "shift")}
                    assert active == vector % 8
                    continue
                act = REGIONS[(vector - 1 + field["prefetch"]) % 2] if field["from_input"] else (
                    field["act"])
                if not field["feed"]:
                    assert (kind, found) == (Kind.SCAN, {
                        "act": act, "rows": field["rows"], "rem": field["rem"],
                        "dense": int(op == Op.OUTPUT)}), field
                    if op == Op.SPMV:
                        if at == len(steps):
                            return passes
                        _, kind, found = steps[at]
                        at += 1
                if op == Op.SPMV:
                    assert (kind, found) == (Kind.MARK, marker), field
                count = (field["rows"] - 1) * N + field["rem"]
                if field["feed"]:
                    items = [next(results, None) for _ in range(count)]
                    if None in items:
                        return passes
                    values = [item["values"] for item in items]
                else:
                    values = [every(CONFIG, value) for value in
                              memory[act * N:act * N + count]]
                if op == Op.OUTPUT:
                    for k, value in enumerate(values):
                        beat = next(outputs, None)
                        if beat is None:
                            return passes
                        assert beat[1:] == (value, int(k == count - 1))
                    continue
                for k, value in enumerate(values):
                    if any(value):
                        if at == len(steps):
                            return passes
                        cycle, kind, found = steps[at]
                        assert (kind, found["ptr"], found["values"]) == (
                            Kind.ACT, field["base"] + k, value), field
                        at += 1
                        if not field["flow"]:
                            settled = cycle + CONFIG.drain_wait - 1
            passes += 1


@pytest.mark.parametrize("seed", range(24))
def test_random_programs(seed):
    program = Random(seed)
    rng = np.random.default_rng(seed)
    memory = (rng.integers(-9, 9, size=75) * (rng.random(75) < 0.5)).tolist()
    busy = seed % 3 > 0
    arrivals = np.cumsum(rng.integers(1, 400 if seed % 2 else 40, 40)).tolist()
    cycles = 1500
    machine = run(program.words, cycles, memory=memory, arrivals=arrivals, seed=seed,
                  stalls=0.3 * busy, gaps=0.3 * busy, output_stalls=0.3 * busy,
                  work=int(rng.integers(6)), cell_work=int(rng.integers(30)))
    passes = program.check(machine, memory)
    # It came to the end of what the machine did, which is the end of its vectors or of time.
    assert passes >= len(machine.finished) - 1
    assert len(machine.finished) >= 3
