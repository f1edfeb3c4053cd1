"""The cycle model: predicts every cycle of the engine without simulating its RTL.

Exact, not an estimate: tests compare it with the RTL cycle by cycle over random models and
configurations. It assumes what a benchmark wants to know: input always offered, output always
taken, a model held in the memories since power-up. Cycle 0 is the first one after reset.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openese.model.compile import Image, LayerTable
from openese.model.config import (
    ACC_LATENCY,
    DECODE_LATENCY,
    MULTIPLY_LATENCY,
    PTR_READ_LATENCY,
    SPMAT_READ_LATENCY,
    WRITE_BACK_LATENCY,
    EngineConfig,
)
from openese.model.reference import Reference

__all__ = ["CyclePrediction", "LayerCycles", "predict_cycles"]

#: From a PE taking a column to its first entry being added into the accumulator memory.
_ENTRY_TO_WRITTEN = (
    SPMAT_READ_LATENCY + DECODE_LATENCY + MULTIPLY_LATENCY + ACC_LATENCY - 1)


@dataclass(frozen=True)
class LayerCycles:
    """Where the cycles of one layer of one vector went.

    Parameters
    ----------
    name
        The layer.
    cycles
        From its first to its last cycle: matrix work, draining and write-back.
    matrix_cycles
        Of these, until all PEs had finished the matrix.
    columns
        Non-zero activations broadcast.
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
    """Cycles of a run of vectors.

    Parameters
    ----------
    starts
        int64 ``(n,)``: cycle in which the program pass of each vector began.
    outputs
        int64 ``(n, out_features)``: cycle in which each output activation is transferred.
    layers
        Per vector, its layers.
    """

    starts: NDArray[np.int64]
    outputs: NDArray[np.int64]
    layers: list[list[LayerCycles]]

    @property
    def cycles(self) -> NDArray[np.int64]:
        """int64 ``(n,)``: cycles from the output of the vector before, or from the start of the
        first pass, to this vector's last output."""
        return np.diff(self.outputs[:, -1], prepend=self.starts[0] - 1)


def predict_cycles(image: Image, reference: Reference) -> CyclePrediction:
    """Cycles of an engine with `image` in its memories for the vectors of `reference`.

    Time: some 10 microseconds per non-zero activation.
    """
    config = image.config
    instructions = image.instructions
    tables = image.layers
    n = len(reference.outputs)
    loader = _InputLoader(config, image.in_rows)
    status = config.status_latency

    # After reset the accumulators are cleared, then IDLE and FETCH take a cycle each.
    cleared = _write_back_end(config, 0, config.acc_depth)
    loader.hold(0, cleared)
    execute = cleared + 3

    starts = np.zeros(n, dtype=np.int64)
    outputs = np.zeros((n, image.out_features), dtype=np.int64)
    layers = []
    for vector in range(n):
        execute = max(execute, loader.full(vector))
        starts[vector] = execute
        done = []
        for number, table in enumerate(tables):
            spmv, write = instructions[2 * number], instructions[2 * number + 1]
            activations = reference.activations[number][vector]
            matrix = _matrix_cycles(config, table, activations, execute)
            if spmv["from_input"]:
                loader.release(matrix.scanned)
            end = max(matrix.scanned + config.drain_wait, matrix.finished + status + 1)
            written = _write_back_end(config, end + 1, write["rows"])
            loader.hold(end + 1, written)
            active = np.flatnonzero(activations)
            done.append(LayerCycles(
                table.name, written + 1 - execute, end + 1 - execute, len(active),
                int(table.lengths[:, active].sum()), int(table.fillers[:, active].sum()),
                matrix.stalls))
            execute = written + 1
        first = execute + config.scan_latency
        outputs[vector] = first + np.arange(image.out_features)
        execute = first + image.out_features
        layers.append(done)
    return CyclePrediction(starts, outputs, layers)


@dataclass(frozen=True)
class _Matrix:
    scanned: int  # cycle in which the last row of activations was taken from the LNZD tree
    finished: int  # last cycle in which any PE worked
    stalls: int


def _matrix_cycles(config: EngineConfig, table: LayerTable, activations: NDArray,
                   execute: int) -> _Matrix:
    """One SPMV whose scan is broadcast in cycle `execute`."""
    padded = np.zeros(config.rows(table.in_features) * config.n_pes, dtype=np.int32)
    padded[:table.in_features] = activations
    rows = padded.reshape(-1, config.n_pes)

    # The LNZD tree gives a row's non-zeros, or one item for a row of zeros (-1 here).
    items: list[int] = []
    for row, lanes in enumerate(rows != 0):
        columns = np.flatnonzero(lanes)
        items += (row * config.n_pes + columns).tolist() if len(columns) else [-1]

    lengths = np.ascontiguousarray(table.lengths.T, dtype=np.int64)
    arrival, status = config.arrival_latency, config.status_latency
    pes = np.arange(config.n_pes)
    free = np.zeros(config.n_pes, dtype=np.int64)  # first cycle in which a PE can take a column
    finished = -1
    pushed = np.zeros(config.n_pes, dtype=np.int64)
    taken = np.zeros((len(items) + 1, config.n_pes), dtype=np.int64)  # when the k-th was taken
    sent: list[int] = []
    until: list[int] = [0]  # until when the queues stall, once so many columns are counted
    counted = 0
    cycle = execute + config.scan_latency - 1
    stalls = 0
    for column in items:
        candidate = cycle = cycle + 1
        while True:
            # Columns that the queues had counted when the status now seen was formed.
            while counted < len(sent) and sent[counted] <= cycle - status - arrival:
                counted += 1
            if until[counted] < cycle:
                break
            cycle = until[counted] + 1
        stalls += cycle - candidate
        if column < 0:
            continue
        length = lengths[column]
        busy = length > 0
        take = np.maximum(free, cycle + arrival)
        free = np.where(busy, take + length, free)
        taken[pushed[busy], pes[busy]] = take[busy]
        pushed = pushed + busy
        sent.append(cycle)
        finished = cycle + config.broadcast_latency + PTR_READ_LATENCY
        full = pushed >= config.queue_depth
        oldest = taken[(pushed - config.queue_depth)[full], pes[full]]
        until.append(int(oldest.max()) + status if full.any() else 0)
    worked = pushed > 0
    if worked.any():
        # `free` is the cycle in which a PE's last entry is addressed.
        finished = max(finished, int(free[worked].max()) + _ENTRY_TO_WRITTEN - 1)
    return _Matrix(cycle, finished, stalls)


def _write_back_end(config: EngineConfig, execute: int, rows: int) -> int:
    """Last cycle of a WRITE executed in cycle `execute`."""
    last = execute + config.broadcast_latency + WRITE_BACK_LATENCY + rows - 1
    return max(execute + config.drain_wait, last + config.status_latency + 1)


class _InputLoader:
    """When input vectors have arrived, given that the stream always offers a beat."""

    def __init__(self, config: EngineConfig, in_rows: int):
        self._beats = in_rows * config.n_pes // config.input_lanes
        self._holds: list[tuple[int, int]] = []
        self._releases: list[int] = []
        self._next_beat = 0

    def hold(self, first: int, last: int) -> None:
        """Write-back owns the memories from cycle `first` to `last`; calls in order of time."""
        self._holds.append((first, last))

    def release(self, cycle: int) -> None:
        """The oldest vector has been scanned in this cycle."""
        self._releases.append(cycle)

    def full(self, vector: int) -> int:
        """First cycle in which the sequencer sees this vector; calls in order of vectors."""
        cycle, beats = self._next_beat, self._beats
        if vector >= 2:
            cycle = max(cycle, self._releases[vector - 2] + 1)
        for first, last in self._holds:
            if last < cycle:
                continue
            if first - cycle >= beats:
                break
            beats -= max(0, first - cycle)
            cycle = max(cycle, last + 1)
        self._next_beat = cycle + beats
        return self._next_beat
