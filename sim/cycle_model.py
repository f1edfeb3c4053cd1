"""The cycle model: predicts every cycle of the engine without simulating its RTL.

Exact, not an estimate: tests compare it with the RTL cycle by cycle over random models and
configurations, feed-forward and recurrent, with and without pointers, of one channel and of
several. It knows no numbers, only when they move: columns, entries, tokens and results.

It assumes what a benchmark wants to know: input always offered until the last vector, output
always taken, a model held in the memories since power-up. Cycle 0 is the first one after reset.
The first step of a sequence fills the pipeline, and in the last one there is no next input to
begin with: steady state is between them.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from openese.hdl.elementwise import ElementWise
from openese.hdl.elementwise_serial import serial_cycles
from openese.hdl.result_queue import ResultQueue
from openese.model.compile import Image, LayerTable
from openese.model.config import (
    ACC_LATENCY,
    DECODE_LATENCY,
    DRAIN_LATENCY,
    MULTIPLY_LATENCY,
    SPMAT_READ_LATENCY,
    WRITE_BACK_LATENCY,
    EngineConfig,
)
from openese.model.program import Cell, Op
from openese.model.reference import Reference

__all__ = ["CyclePrediction", "LayerCycles", "predict_cycles"]

#: From a PE giving an entry to the decoder to it being added into the accumulator memory.
_ENTRY_TO_WRITTEN = DECODE_LATENCY + MULTIPLY_LATENCY + ACC_LATENCY - 1
#: From a PE taking a fence from its queue to its signal falling.
_FENCE = MULTIPLY_LATENCY + 2
#: From the element-wise unit giving a result to the registers behind the queue offering it.
_RESULT_QUEUE = ResultQueue.LATENCY + 1
# What else than a column's entries is in a queue; a column without entries comes to PEs that look
# nothing up.
_FENCE_HERE, _NO_ENTRY, _PART, _MARK, _NOTHING = 0, -1, -2, -3, -4

@dataclass(frozen=True)
class LayerCycles:
    """Where the cycles of one matrix for one vector went.

    Columns, entries and stalls belong to the step that needs the matrix's result, though a
    recurrent layer's state (and the next input) are multiplied before that step's pass begins.

    Parameters
    ----------
    name
        The matrix, as in the image's tables.
    cycles
        From the matrix's first cycle to the last of its layer: matrix work, draining and
        write-back. Of engines with element-wise unit, which do these at once, `matrix_cycles`.
    matrix_cycles
        Until all PEs had finished the matrix. Of engines with element-wise unit, to the cycle of
        the last column's broadcast; the PEs may finish later, beside the next matrix.
    columns
        Columns broadcast: those with a non-zero activation, or all in an engine without pointers.
    entries, fillers
        Matrix entries read by all PEs, and the fillers among them.
    stalls
        Cycles in which a column waited for a full activation queue.
    """

    name: str
    cycles: int
    matrix_cycles: int
    columns: int
    entries: int
    fillers: int
    stalls: int

    @property
    def useful(self) -> int:
        """Multiplications by stored weights."""
        return self.entries - self.fillers


@dataclass(frozen=True)
class CyclePrediction:
    """Cycles of a run of vectors, or of the steps of a sequence.

    Parameters
    ----------
    starts
        int64 ``(n,)``: cycle in which the program pass of each vector began to work on it, or
        found that this had been done already.
    outputs
        int64 ``(n, out_features)``: cycle in which each output activation is transferred.
    layers
        Per vector, its matrices in the order of the image's tables.
    exposed
        int64 ``(n,)``: of `cycles`, those in which the element-wise unit worked and no PE did.
    """

    starts: NDArray[np.int64]
    outputs: NDArray[np.int64]
    layers: list[list[LayerCycles]]
    exposed: NDArray[np.int64]

    @property
    def cycles(self) -> NDArray[np.int64]:
        """int64 ``(n,)``: cycles from the output of the vector before, or from the start of the
        first pass, to this vector's last output."""
        return np.diff(self.outputs[:, -1], prepend=self.starts[0] - 1)


def predict_cycles(image: Image, reference: Reference) -> CyclePrediction:
    """Cycles of an engine with `image` in its memories for the vectors of `reference`.

    Time: some 50 microseconds per cycle.
    """
    return _Engine(image, reference).run()


@dataclass(eq=False)
class _Matrix:
    """A matrix, and what it is multiplied by in each step."""

    table: LayerTable
    lengths: NDArray[np.int64]  # (columns, n_pes)
    activations: NDArray[np.bool_]  # (steps, columns): not zero in all channels


@dataclass(eq=False)
class _Spent:
    """Where the cycles of a matrix in a step went, see `LayerCycles`."""

    begin: int = 0
    cycles: int = 0
    matrix_cycles: int = 0
    stalls: int = 0

    def end(self, cycle: int) -> None:
        """The matrix is done with this cycle, as far as is known."""
        self.cycles = self.matrix_cycles = cycle + 1 - self.begin


@dataclass(eq=False)
class _Scan:
    """An SPMV under way."""

    items: list[int]  # columns in the order they come; -1 only takes a cycle
    lengths: NDArray[np.int64]
    first: int  # cycle in which the first one can come, if they are not fed
    fed: bool
    spent: _Spent
    place: int = 0
    parts: int = 0  # of the marker that are still to be sent


def _instructions_of_pass(image: Image) -> list[dict[str, int]]:
    instructions = image.instructions
    last = [instruction["last"] for instruction in instructions].index(1)
    return instructions[:last + 1]


def _matrix_numbers(image: Image, instructions: list[dict[str, int]]) -> list[int]:
    """Matrices that instructions multiply, by where they lie; -1 where there is none."""
    pointers = image.config.pointers
    # Without pointers, one more entry ends a matrix.
    sizes = [table.in_features if pointers else int(table.lengths.sum(axis=1).max()) + 1
             for table in image.layers]
    places = np.cumsum([0, *sizes[:-1]]).tolist()
    field = "base" if pointers else "spmat"
    return [places.index(instruction[field]) if instruction["op"] == Op.SPMV else -1
            for instruction in instructions]


class _Pes:
    """All PEs, from the queues to the accumulators.

    A cycle is `advance`. Then `full`, `busy` and `working` tell what the PEs see in it.
    """

    def __init__(self, config: EngineConfig):
        n, depth = config.n_pes, config.queue_capacity
        self._config = config
        self._arriving: deque[tuple[int, NDArray[np.int64] | int]] = deque()
        self._pes = np.arange(n)
        self._lengths = np.zeros((depth, n), dtype=np.int64)  # of waiting columns
        self._head = np.zeros(n, dtype=np.int64)
        self._count = np.zeros(n, dtype=np.int64)
        self._tokens: deque[tuple[int, int, int | None]] = deque()
        self._busy_until = -1
        self._fences = 0  # not taken yet
        self._fence_end = 0
        # With pointers: entries of the column taken last that are still to be addressed, and
        # whether the stages behind hold one. Without: entries of the column at the head that are
        # still to come, and when the next can.
        self._left = np.zeros(n, dtype=np.int64)
        self._stages = [np.zeros(n, dtype=bool) for _ in range(SPMAT_READ_LATENCY)]
        self._open = np.zeros(n, dtype=bool)
        self._ready = np.zeros(n, dtype=np.int64)
        # Of paired columns: what waits for a second one, and whether it need not.
        self._held = np.full(n, _NOTHING, dtype=np.int64)
        self._empty = np.ones(n, dtype=bool)
        self._quiet = True
        # Per cycle.
        self.full: list[bool] = []
        self.busy: list[bool] = []
        self.working: list[bool] = []

    def column(self, cycle: int, lengths: NDArray[np.int64] | int) -> None:
        """A column is broadcast in this cycle, or what else goes into every queue."""
        self._seem_busy(cycle + self._config.broadcast_latency + self._config.ptr_read_latency)
        self._arriving.append((cycle + self._config.arrival_latency, lengths))

    def fence(self, cycle: int) -> None:
        """CELL is broadcast in this cycle."""
        self.column(cycle, _FENCE_HERE)
        self._fences = self._config.n_pes

    def mark(self, cycle: int, last: bool) -> None:
        """A part of a marker is broadcast in this cycle."""
        if self._config.recurrent:
            self.column(cycle, _MARK if last else _PART)
        elif last:
            self._ready[:] = cycle + self._config.broadcast_latency + self._config.marker_latency

    def write(self, cycle: int, rows: int) -> None:
        """WRITE is broadcast in this cycle."""
        latency = DRAIN_LATENCY + 1 if self._config.recurrent else WRITE_BACK_LATENCY
        self._seem_busy(cycle + self._config.broadcast_latency + latency + rows - 1)

    def token(self, cycle: int, gates: int, pe: int | None = None) -> None:
        """A token comes in this cycle to a PE; to PE 0 and from there to the others if ``None``."""
        last = self._config.n_pes - 1 if pe is None else 0
        self._tokens.append((cycle - (pe or 0), gates, pe))
        self._seem_busy(cycle + last + gates + DRAIN_LATENCY)

    def fenced(self, cycle: int) -> bool:
        """Whether some PE gives its fence signal."""
        return self._fences > 0 or cycle < self._fence_end

    def advance(self, cycle: int) -> None:
        """One more cycle."""
        arrives = self._arriving and self._arriving[0][0] == cycle
        element = self._arriving.popleft()[1] if arrives else None
        if self._config.paired and not (self._quiet and element is None):
            self._pair(element)
        elif element is not None:
            self._push(element)
        if self._quiet:
            self.full.append(False)
            self.working.append(False)
            self.busy.append(cycle <= self._busy_until)
            return
        held = self._held != _NOTHING
        self._empty = self._count == 0
        self.full.append(int((self._count + held).max()) >= self._config.queue_depth)
        waiting = bool(self._count.any() or held.any() or self._open.any())
        go = self._going(cycle)
        inside, gives = (self._read if self._config.pointers else self._stream)(cycle, go)
        if gives:
            self._seem_busy(cycle + _ENTRY_TO_WRITTEN)
        self.working.append(gives)
        self.busy.append(waiting or inside or cycle <= self._busy_until)
        self._quiet = not (waiting or inside)

    def _seem_busy(self, until: int) -> None:
        self._busy_until = max(self._busy_until, until)

    def _push(self, lengths: NDArray[np.int64] | int) -> None:
        column = isinstance(lengths, np.ndarray)
        pes = np.flatnonzero(lengths) if column and self._config.pointers else self._pes
        place = (self._head[pes] + self._count[pes]) % len(self._lengths)
        self._lengths[place, pes] = (
            np.where(lengths[pes] == 0, _NO_ENTRY, lengths[pes]) if column else lengths)
        self._count[pes] += 1
        self._quiet = False

    def _pair(self, element: NDArray[np.int64] | int | None) -> None:
        """As `_push`, but of two columns that follow each other: see `PairColumns`."""
        arriving = np.full(len(self._pes), _NOTHING, dtype=np.int64)
        if element is not None:
            arriving[:] = element
            if isinstance(element, np.ndarray):
                arriving[element == 0] = _NO_ENTRY
        is_column = [(some > 0) | (some == _NO_ENTRY) for some in (self._held, arriving)]
        pairs = is_column[0] & is_column[1]
        leaves = (self._held != _NOTHING) & (
            (arriving != _NOTHING) | self._empty | ~is_column[0])
        both = np.maximum(self._held, 0) + np.maximum(arriving, 0)
        slots = np.where(pairs, np.where(both == 0, _NO_ENTRY, both), self._held)
        pes = np.flatnonzero(leaves)
        place = (self._head[pes] + self._count[pes]) % len(self._lengths)
        self._lengths[place, pes] = slots[pes]
        self._count[pes] += 1
        self._held = np.where(pairs, _NOTHING, np.where(
            (arriving != _NOTHING) | leaves, arriving, self._held))
        self._quiet = False

    def _pop(self, pes: NDArray[np.int64]) -> None:
        self._head[pes] = (self._head[pes] + 1) % len(self._lengths)
        self._count[pes] -= 1

    def _pop_fences(self, cycle: int, count: int, latency: int) -> None:
        self._fences -= count
        self._fence_end = max(self._fence_end, cycle + latency)

    def _going(self, cycle: int) -> NDArray[np.bool_] | None:
        """PEs whose matrix read does not stand still for a drain; ``None``: all."""
        n = self._config.n_pes
        while self._tokens and cycle - sum(self._tokens[0][:2]) >= n:
            self._tokens.popleft()
        if not self._tokens:
            return None
        go = np.ones(n, dtype=bool)
        for sent, gates, pe in self._tokens:
            stands = slice(max(0, cycle - sent - gates), max(0, cycle - sent))
            if pe is None:
                go[stands] = False
            elif pe in range(n)[stands]:
                go[pe] = False
        return go

    def _read(self, cycle: int, go: NDArray[np.bool_] | None) -> tuple[bool, bool]:
        """Whether the matrix read holds an entry, and whether it gives one."""
        free = (self._left == 0) & (self._count > 0)
        if go is not None:
            free &= go
        taking = np.flatnonzero(free)
        if len(taking):
            lengths = self._lengths[self._head[taking], taking]
            self._pop(taking)
            self._left[taking] = np.maximum(lengths, 0)
            if self._fences:
                fences = int(np.count_nonzero(lengths == _FENCE_HERE))
                if fences:
                    self._pop_fences(cycle, fences, SPMAT_READ_LATENCY + _FENCE)
        entering, (first, second, third) = self._left > 0, self._stages
        if go is None:
            self._left -= entering
            self._stages = [entering, first, second]
            gives = bool(third.any())
        else:
            self._left -= entering & go
            self._stages = [np.where(go, after, before) for before, after in zip(
                self._stages, (entering, first, second), strict=True)]
            gives = bool((third & go).any())
        return bool((entering | first | second | third).any()), gives

    def _stream(self, cycle: int, go: NDArray[np.bool_] | None) -> tuple[bool, bool]:
        """As `_read`, without pointers."""
        paired = self._config.paired
        if not paired:
            self._open_heads()
        is_column = (self._left > 0) | (self._left == _NO_ENTRY)
        steps = self._open & (~is_column | (self._ready <= cycle))
        if go is not None:
            steps &= go
        fence = steps & (self._left == _FENCE_HERE)
        self._ready[steps & (self._left == _MARK)] = cycle + self._config.marker_latency
        gives = steps & (self._left > 0)
        self._left -= gives
        done = np.flatnonzero(steps & (self._left <= 0))
        if len(done):
            self._open[done] = False
            if not paired:
                self._pop(done)
            if self._fences:
                fences = int(np.count_nonzero(fence))
                if fences:
                    self._pop_fences(cycle, fences, _FENCE)
        if paired:
            # The slot that a PE works on is in a register, and no longer in the queue.
            self._pop(self._open_heads())
        return False, bool(gives.any())

    def _open_heads(self) -> NDArray[np.int64]:
        """The next slot is at the head, where there is one."""
        opening = np.flatnonzero((self._count > 0) & ~self._open)
        self._left[opening] = self._lengths[self._head[opening], opening]
        self._open[opening] = True
        return opening


class _Inputs:
    """The input buffer: when vectors have arrived, given that the stream always offers a beat."""

    def __init__(self, config: EngineConfig, in_rows: int, vectors: int):
        self._beats = in_rows * config.n_pes // config.input_lanes
        self._vectors = vectors  # not complete yet
        self._left = self._beats
        self._full = 0

    @property
    def full(self) -> bool:
        """Whether a vector waits."""
        return self._full > 0

    def advance(self, hold: bool, release: bool) -> None:
        """One more cycle."""
        takes = self._full < 2 and self._vectors > 0 and not hold
        if release:
            self._full -= 1
        if takes:
            self._left -= 1
            if self._left == 0:
                self._left = self._beats
                self._full += 1
                self._vectors -= 1


class _CellsState(Enum):
    IDLE = auto()
    FENCE = auto()
    RUN = auto()
    SETTLE = auto()


class _Cells:
    """`openese.hdl.cells.Cells`: tokens out, results back, one CELL at a time."""

    def __init__(self, config: EngineConfig, pes: _Pes):
        self._config, self._pes = config, pes
        self._period = config.token_period
        self._room = config.results_depth - config.n_pes
        self._state = _CellsState.IDLE
        self._results: deque[int] = deque()  # cycles in which they come to the queue's end
        self._columns = 0
        self._wait_until = self._tokens = self._reserved = 0
        self._arriving_until = self._sent_until = -1
        self._place = self._total = 0
        self._cell: dict[str, int] = {}
        self._beat = False

    @property
    def idle(self) -> bool:
        """Whether a CELL may start."""
        return self._state is _CellsState.IDLE

    def offers(self, cycle: int) -> bool:
        """Whether a column waits for an SPMV."""
        return self._columns > 0

    def beats(self, cycle: int) -> bool:
        """Whether a beat goes to the activation memories, and no input does."""
        return self._beat

    def start(self, cycle: int, cell: dict[str, int]) -> None:
        """Begin a CELL in this cycle, at the end of it."""
        self._cell = cell
        self._state = _CellsState.FENCE
        self._wait_until = cycle + self._config.drain_wait - 1
        self._tokens, self._reserved, self._place = cell["rows"], 0, 0
        self._total = (cell["rows"] - 1) * self._config.n_pes + cell["rem"]

    def advance(self, cycle: int, fed: bool) -> int | None:
        """One more cycle, in which an SPMV takes a column or not; when a result comes out."""
        self._beat = False
        settled = not self._columns
        # There is a Skid between the results and the SPMV.
        taken = (bool(self._results) and self._results[0] <= cycle
                 and (not self._cell["to_feed"] or self._columns < 2))
        self._columns += (taken and bool(self._cell["to_feed"])) - fed
        if taken:
            self._results.popleft()
            self._beat = self._fills_beat()
            self._place += 1
            if self._cell["to_out"]:
                self._sent_until = cycle + 1
        if self._state is _CellsState.FENCE:
            fenced = self._pes.fenced(cycle - self._config.fan_levels)
            if cycle >= self._wait_until and not fenced:
                self._state, self._wait_until = _CellsState.RUN, 0
        elif self._state is _CellsState.RUN:
            if self._tokens and cycle >= self._wait_until and self._reserved <= self._room:
                self._send_token(cycle)
            self._reserved -= taken
            if taken and self._place == self._total:
                self._state = _CellsState.SETTLE
        elif self._state is _CellsState.SETTLE and settled and cycle > max(
                self._arriving_until, self._sent_until):
            self._state = _CellsState.IDLE
        return cycle + 1 if taken and self._cell["to_out"] else None

    def _fills_beat(self) -> bool:
        """Whether the next result to be taken is the last of a beat."""
        pe = self._place % self._config.n_pes + 1
        ends = pe % self._config.input_lanes == 0 or pe == self._config.n_pes
        return bool(self._cell["to_act"]) and (ends or self._place == self._total - 1)

    def _send_token(self, cycle: int) -> None:
        n, gates = self._config.n_pes, self._cell["gates"] + 1
        self._pes.token(cycle, gates)
        self._wait_until = cycle + self._period
        self._reserved += n
        self._tokens -= 1
        # A register in each of the PEs on the way, the gather tree, and one that holds the unit.
        unit = cycle + WRITE_BACK_LATENCY + gates + self._config.fan_levels
        result = unit + ElementWise.LATENCY + _RESULT_QUEUE
        exist = n if self._tokens else self._cell["rem"]
        self._results.extend(range(result, result + exist))
        self._arriving_until = unit + n - 1


class _SerialCells(_Cells):
    """`openese.hdl.cells_serial.SerialCells`: unit by unit."""

    def __init__(self, config: EngineConfig, pes: _Pes):
        super().__init__(config, pes)
        self._unit = self._until_token = self._sent = 0
        # Cycles: of the next token, of the last gate that it asks for, of the result.
        self._token_at: int | None = None
        self._complete: int | None = None
        self._result: int | None = None

    def start(self, cycle: int, cell: dict[str, int]) -> None:
        super().start(cycle, cell)
        options = (self._config, Cell(cell["cell"]), bool(cell["peephole"]), cell["cell_shift"],
                   cell["peep_shift"])
        self._unit, self._until_token = (
            serial_cycles(*options, until_token=until) for until in (False, True))
        self._sent = 0

    def offers(self, cycle: int) -> bool:
        return (bool(self._cell.get("to_feed")) and self._result is not None
                and self._result <= cycle)

    def beats(self, cycle: int) -> bool:
        return self._result == cycle and self._fills_beat()

    def advance(self, cycle: int, fed: bool) -> int | None:
        taken = fed or (not self._cell["to_feed"] and self._result is not None
                        and self._result <= cycle)
        out = cycle if self._result == cycle and self._cell["to_out"] else None
        if self._state is _CellsState.FENCE:
            fenced = self._pes.fenced(cycle - self._config.fan_levels)
            if cycle >= self._wait_until and not fenced:
                self._state, self._token_at = _CellsState.RUN, cycle + 1
            return out
        if self._token_at == cycle:
            gates = self._cell["gates"] + 1
            self._pes.token(cycle, gates, self._sent % self._config.n_pes)
            self._complete = cycle + WRITE_BACK_LATENCY + self._config.fan_levels + gates - 1
            self._sent += 1
        if taken:
            self._result = None
            self._place += 1
            if self._place == self._total:
                self._state = _CellsState.IDLE
        if self._result is None and self._complete is not None and self._complete < cycle:
            self._result, self._complete = cycle + 1 + self._unit, None
            if self._sent < self._total:
                # One for the first step, one for the token's register.
                self._token_at = cycle + 2 + self._until_token
        return out


class _Sequencing(Enum):
    WAIT = auto()  # IDLE and FETCH, or NEXT
    EXECUTE = auto()
    MARK = auto()
    SPMV = auto()
    DRAIN = auto()
    OUTPUT = auto()


class _Engine:
    """The sequencer, and around it what it commands."""

    def __init__(self, image: Image, reference: Reference):
        config = self._config = image.config
        self._n, self._out_features = len(reference.outputs), image.out_features
        self._program = _instructions_of_pass(image)
        self._numbers = _matrix_numbers(image, self._program)
        # Those that multiply the state of a recurrent layer.
        self._recurrent = [number for number, instruction in zip(
            self._numbers, self._program, strict=True) if instruction.get("first")]
        self._matrices = [self._matrix(image, reference, number)
                          for number in range(len(image.layers))]
        self._pes = _Pes(config)
        self._cells = (_SerialCells if config.serial_cells else _Cells)(config, self._pes)
        self._inputs = _Inputs(config, image.in_rows, self._n)

        # After reset the accumulators are cleared, as by a WRITE.
        self._pes.write(0, config.acc_depth)
        self._state, self._begin, self._stopping = _Sequencing.DRAIN, 1, True
        self._writing, self._release = True, False
        self._pc = self._pass = 0
        self._first, self._prefetched = True, False
        self._at: dict[str, int] = {}  # instruction under way
        self._scan: _Scan | None = None
        self._out_from = 0

        self._starts = np.zeros(self._n, dtype=np.int64)
        self._outputs: list[int] = []
        self._exposed: list[int] = []
        # Per matrix and step, and for a step that does not come.
        self._times = [[_Spent() for _ in range(self._n + 1)] for _ in image.layers]

    def run(self) -> CyclePrediction:
        """All passes."""
        wanted, cycle = self._n * self._out_features, 0
        starts: dict[str, int] | None = None  # a CELL, a cycle after its message
        while len(self._outputs) < wanted or cycle <= self._outputs[-1]:
            self._pes.advance(cycle)
            beat, idle = self._cells.beats(cycle), self._cells.idle
            if not idle and not self._seen(self._pes.working, cycle):
                self._exposed.append(cycle)
            self._release = False
            writing = self._writing
            fed, cell = self._advance(cycle)
            out = None if idle else self._cells.advance(cycle, fed)
            if out is not None:
                self._outputs.append(out)
            if starts is not None:
                self._cells.start(cycle, starts)
            starts = cell
            hold = writing and not self._config.central_acts
            self._inputs.advance(hold or beat, self._release)
            cycle += 1
        outputs = np.array(self._outputs, dtype=np.int64).reshape(self._n, -1)
        vector = np.searchsorted(outputs[:, -1], self._exposed)
        return CyclePrediction(
            self._starts, outputs,
            [[self._layer_cycles(number, step) for number in range(len(self._matrices))]
             for step in range(self._n)],
            np.bincount(vector, minlength=self._n)[:self._n].astype(np.int64))

    def _matrix(self, image: Image, reference: Reference, number: int) -> _Matrix:
        table = image.layers[number]
        activations = reference.activations[number].any(axis=1)
        if number in self._recurrent:
            # In the last step the state is multiplied for a step that does not come.
            state = reference.state[self._recurrent.index(number)].h.any(axis=0)
            activations = np.concatenate([activations, state[None]])
        if not self._config.pointers:
            activations = np.ones_like(activations)
        return _Matrix(table, np.ascontiguousarray(table.lengths.T, dtype=np.int64), activations)

    def _layer_cycles(self, number: int, step: int) -> LayerCycles:
        matrix, spent = self._matrices[number], self._times[number][step]
        active = matrix.activations[step]
        return LayerCycles(
            matrix.table.name, spent.cycles, spent.matrix_cycles, int(np.count_nonzero(active)),
            int(matrix.table.lengths[:, active].sum()), int(matrix.table.fillers[:, active].sum()),
            spent.stalls)

    def _seen(self, history: list[bool], cycle: int) -> bool:
        """What the status tree shows in this cycle of what the PEs show."""
        before = cycle - self._config.status_latency
        return before >= 0 and history[before]

    def _advance(self, cycle: int) -> tuple[bool, dict[str, int] | None]:
        """One more cycle; whether a result of the cells is taken, and a CELL that starts."""
        if self._state is _Sequencing.WAIT:
            if cycle >= self._begin:
                self._state = _Sequencing.EXECUTE
        elif self._state is _Sequencing.EXECUTE:
            return False, self._execute(cycle)
        elif self._state is _Sequencing.MARK:
            self._mark(cycle)
        elif self._state is _Sequencing.SPMV:
            return self._broadcast(cycle), None
        elif self._state is _Sequencing.OUTPUT:
            if cycle >= self._out_from:
                self._outputs.append(cycle)
                if cycle == self._out_from + self._out_features - 1:
                    self._go_on(cycle, self._at["last"], fetch=False)
        else:
            self._drain(cycle)
        return False, None

    def _go_on(self, cycle: int, last: int, fetch: bool) -> None:
        """To the next instruction."""
        self._state = _Sequencing.WAIT if fetch else _Sequencing.EXECUTE
        self._begin = cycle + 1
        if last:
            self._first = False
            self._pass += 1

    def _execute(self, cycle: int) -> dict[str, int] | None:
        number, at = self._numbers[self._pc], self._program[self._pc]
        prefetch, own_input = at.get("prefetch"), at["from_input"] and not at.get("prefetch")
        skip = ((at.get("first") and not self._first)
                or (prefetch and not self._inputs.full) or (own_input and self._prefetched))
        if own_input and not self._prefetched and not self._inputs.full:
            return None
        is_cell = at["op"] == Op.CELL
        if not skip and (((at.get("sync") or is_cell) and not self._cells.idle)
                         or (is_cell and self._seen(self._pes.full, cycle))):
            return None
        self._pc = 0 if at["last"] else self._pc + 1
        self._at = at
        if own_input and self._pass < self._n:
            self._starts[self._pass] = cycle
        if skip:
            if own_input:
                self._release, self._prefetched = True, False
            self._go_on(cycle, at["last"], fetch=True)
            return None
        if at["op"] == Op.SPMV:
            self._open(cycle, number)
        elif at["op"] == Op.OUTPUT:
            self._state = _Sequencing.OUTPUT
            self._out_from = cycle + self._config.scan_latency
        elif is_cell:
            self._pes.fence(cycle)
            self._go_on(cycle, at["last"], fetch=True)
            return at
        else:
            self._pes.write(cycle, at["rows"])
            self._writing = True
            self._state, self._begin = _Sequencing.DRAIN, cycle + 1
        return None

    def _open(self, cycle: int, number: int) -> None:
        """An SPMV."""
        at, config, matrix = self._at, self._config, self._matrices[number]
        step = self._pass
        if number in self._recurrent:
            step += not at["first"]
        elif at.get("prefetch"):
            self._prefetched = True
            step += 1
        columns, active = len(matrix.lengths), matrix.activations[step]
        if at.get("feed"):
            items = np.where(active, np.arange(columns), -1).tolist()
        else:
            # The LNZD tree gives a row's non-zeros, or one item for a row of zeros.
            items = []
            for first in range(0, columns, config.n_pes):
                found = np.flatnonzero(active[first:first + config.n_pes]) + first
                items += found.tolist() if len(found) else [-1]
        spent = self._times[number][step]
        spent.begin = cycle
        self._scan = _Scan(items, matrix.lengths, cycle + config.scan_latency,
                           bool(at.get("feed")), spent, parts=config.marker_parts)
        self._state = _Sequencing.MARK

    def _mark(self, cycle: int) -> None:
        """A part of an SPMV's marker, if there is room for it."""
        if not self._seen(self._pes.full, cycle):
            self._scan.parts -= 1
            self._pes.mark(cycle, self._scan.parts == 0)
            if self._scan.parts == 0:
                self._state = _Sequencing.SPMV

    def _broadcast(self, cycle: int) -> bool:
        """A cycle of an SPMV; whether it takes a result of the cells."""
        scan = self._scan
        offered = self._cells.offers(cycle) if scan.fed else cycle >= scan.first
        if not offered:
            return False
        if self._seen(self._pes.full, cycle):
            scan.spent.stalls += 1
            return False
        column = scan.items[scan.place]
        scan.place += 1
        if column >= 0:
            self._pes.column(cycle, scan.lengths[column])
        if scan.place == len(scan.items):
            self._release = bool(self._at["from_input"] and not self._at.get("prefetch"))
            scan.spent.end(cycle)
            self._state, self._begin = _Sequencing.DRAIN, cycle + 1
            if self._at.get("flow"):
                self._go_on(cycle, self._at["last"], fetch=False)
        return scan.fed

    def _drain(self, cycle: int) -> None:
        if (cycle < self._begin + self._config.drain_wait - 1
                or self._seen(self._pes.busy, cycle)):
            return
        if self._stopping:
            # IDLE and FETCH follow.
            self._stopping = self._writing = False
            self._state, self._begin = _Sequencing.WAIT, cycle + 2
            return
        if self._at["op"] == Op.SPMV:
            self._scan.spent.end(cycle)
        else:
            self._scan.spent.cycles = cycle + 1 - self._scan.spent.begin
            self._writing = False
        self._go_on(cycle, self._at["last"], fetch=False)
