"""Amaranth's own simulator behind the interface of the compiled ones.

The design's clock is driven by the testbench itself rather than by ``add_clock``: a run then stops
between two cycles and another one goes on from there, which a free-running clock does not allow.
"""

import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import numpy as np
from amaranth.hdl import Cat, ClockDomain, Const, Fragment, MemoryInstance, Shape, Value
from amaranth.lib import wiring
from amaranth.sim import Simulator
from numpy.typing import NDArray

from openese.hdl.export import flat_ports
from openese.sim.driver import UNBOUNDED, Driver, Job, MemoryShape, Outcome, Status
from openese.sim.streams import StreamPort, describe

__all__ = ["AmaranthDriver"]

_HALF_PERIOD = 1e-6
_CHUNK_SECONDS = 0.2


def _numbers(words: NDArray[np.uint32]) -> list[int]:
    """Rows of words as Python integers."""
    data, size = np.ascontiguousarray(words, "<u4").tobytes(), 4 * words.shape[1]
    return [int.from_bytes(data[k:k + size], "little") for k in range(0, len(data), size)]


def _words(numbers: list[int], width: int) -> NDArray[np.uint32]:
    count = -(-width // 32)
    data = b"".join(number.to_bytes(4 * count, "little") for number in numbers)
    return np.frombuffer(data, "<u4").reshape(-1, count).astype(np.uint32)


class _Lane:
    """One stream and its producer or consumer."""

    def __init__(self, port: StreamPort, valid: Value, ready: Value, payload: Value) -> None:
        self.port, self.valid, self.ready, self.payload = port, valid, ready, payload
        self.driven = valid if port.is_input else ready
        self.drivable = port.has_valid if port.is_input else port.has_ready
        self.level = 0          # what `driven` is now
        self.pending = False    # offered, not transferred
        self.offered = 0
        self.seen = (False, False)  # valid and ready in the last cycle

    def begin(self, items: list[int], wanted: int, pattern: NDArray[np.uint8] | None) -> None:
        self.items, self.wanted = items, wanted
        self.pattern = None if pattern is None else pattern.tolist()
        self.times, self.received = [], []

    @property
    def count(self) -> int:
        return len(self.times)

    @property
    def finished(self) -> bool:
        return self.wanted == UNBOUNDED or self.count >= self.wanted


class AmaranthDriver(Driver):
    """A component in Amaranth's simulator.

    Parameters
    ----------
    component
        What to simulate; elaborated with platform None.
    vcd
        Waveform file, or None. Costs most of the speed.
    """

    name = "amaranth"

    def __init__(self, component: wiring.Component, *, vcd: Path | None = None) -> None:
        self.interface = describe(component)
        self._domain = ClockDomain("sync")
        fragment = Fragment.get(component, None)
        fragment.add_domains(self._domain)
        self._simulator = Simulator(fragment)
        # The only public way to a memory is the component that made it, which has no path.
        self._memories = {
            ".".join(info.name[1:]): part._data
            for part, info in self._simulator._design.fragments.items()
            if isinstance(part, MemoryInstance)
        }
        self.memories = {path: MemoryShape(Shape.cast(memory.shape).width, memory.depth)
                         for path, memory in self._memories.items()}
        signals = flat_ports(component)

        def signal(name: str) -> Value:
            return signals[name][0] if name in signals else Const(1)

        self._lanes = [
            _Lane(port, *(signal(f"{port.name}_{part}") for part in ("valid", "ready", "payload")))
            for port in self.interface.streams.values()
        ]
        self._plain = {name: signals[name][0] for name in self.interface.plain}
        # One read of everything per cycle is much cheaper than one per signal.
        self._fields, parts, offset = [], [], 0
        for lane in self._lanes:
            observed = [lane.ready] if lane.port.is_input else [lane.valid, lane.payload]
            self._fields.append((offset, (1 << lane.port.width) - 1))
            parts += observed
            offset += sum(map(len, observed))
        self._observed = Cat(*parts)
        self._vcd = vcd
        self._cycle = 0
        self._job: Callable[..., Coroutine] | None = None
        self._failure: BaseException | None = None
        self._answer: object = None
        self._waveform = self._simulator.write_vcd(str(vcd)) if vcd else None
        if self._waveform:
            self._waveform.__enter__()
        self._simulator.add_testbench(self._bench)

    async def _bench(self, ctx) -> None:
        while True:
            if self._job is not None:
                try:
                    self._answer = await self._job(ctx)
                except Exception as failure:
                    self._failure = failure
                self._job = None
            await ctx.delay(_HALF_PERIOD)

    def _do(self, job: Callable[..., Coroutine]) -> object:
        self._job, self._failure = job, None
        while self._job is not None:
            self._simulator.advance()
        if self._failure is not None:
            raise self._failure
        return self._answer

    async def _edge(self, ctx) -> None:
        # Time passes only where someone looks at it.
        if self._vcd:
            await ctx.delay(_HALF_PERIOD)
        ctx.set(self._domain.clk, 1)
        if self._vcd:
            await ctx.delay(_HALF_PERIOD)
        ctx.set(self._domain.clk, 0)

    def reset(self) -> None:
        async def job(ctx) -> None:
            for lane in self._lanes:
                if lane.drivable:
                    ctx.set(lane.driven, 0)
                lane.level, lane.pending, lane.seen = 0, False, (False, False)
            ctx.set(self._domain.rst, 1)
            await self._edge(ctx)
            ctx.set(self._domain.rst, 0)
            self._cycle = 0

        self._do(job)

    def run(self, job: Job) -> Outcome:
        for lane, items, wanted, pattern in zip(self._lanes, job.items, job.wanted, job.patterns,
                                                strict=True):
            lane.begin(_numbers(items), wanted, pattern)
        self._samples = {name: [] for name in job.watched}
        self._culprit = -1

        async def run(ctx) -> tuple[int, str]:
            for name, words in job.settings.items():
                ctx.set(self._plain[name], _numbers(words[None])[0])
            try:
                return await self._run(ctx, job), ""
            except AssertionError as failure:
                return Status.FAILED, str(failure)

        status, error = self._do(run)
        return Outcome(
            status,
            [np.array(lane.times, np.int64) for lane in self._lanes],
            [_words(lane.received, lane.port.width) for lane in self._lanes],
            [_words(values, self.interface.plain[name].width)
             for name, values in self._samples.items()],
            self._cycle, [lane.seen for lane in self._lanes], self._culprit, error)

    async def _run(self, ctx, job: Job) -> int:
        start, idle, seen = self._cycle, 0, time.monotonic()
        counted = [lane for lane in self._lanes if lane.wanted != UNBOUNDED]
        total = sum(lane.wanted for lane in counted)
        while not all(lane.finished for lane in self._lanes):
            if idle >= job.max_idle:
                return Status.IDLE
            if self._cycle - start >= job.max_cycles:
                return Status.MORE
            status, moved = await self._step(ctx)
            if status != Status.MORE:
                return status
            idle = 0 if moved else idle + 1
            if job.progress is not None and time.monotonic() - seen > _CHUNK_SECONDS:
                job.progress(self._cycle - start, sum(lane.count for lane in counted), total)
                seen = time.monotonic()
        if job.progress is not None:
            job.progress(self._cycle - start, total, total)
        for _ in range(job.extra_cycles):
            status, _ = await self._step(ctx)
            if status != Status.MORE:
                return status
        return Status.DONE

    def _drive(self, ctx, lane: _Lane) -> None:
        pattern = lane.pattern
        now = lane.count < lane.wanted and (
            pattern is None or bool(pattern[self._cycle % len(pattern)]))
        if lane.port.is_input:
            if now and not lane.pending:
                ctx.set(lane.payload, lane.items[lane.count])
                lane.pending = True
            now = lane.pending
        if lane.drivable and now != lane.level:
            ctx.set(lane.driven, int(now))
            lane.level = now

    async def _step(self, ctx) -> tuple[int, bool]:
        for lane in self._lanes:
            self._drive(ctx, lane)
        observed, moved, status = ctx.get(self._observed), False, Status.MORE
        for index, (lane, (offset, mask)) in enumerate(zip(self._lanes, self._fields, strict=True)):
            other = bool(observed >> offset & 1)
            if lane.port.is_input:
                lane.seen = lane.pending, other
                transfer = lane.pending and other
                lane.pending = lane.pending and not other
            else:
                lane.seen = other, bool(lane.level or not lane.drivable)
                payload = observed >> offset + 1 & mask
                if lane.pending and not other:
                    status, self._culprit = Status.DROPPED, index
                elif lane.pending and payload != lane.offered:
                    status, self._culprit = Status.CHANGED, index
                transfer = all(lane.seen)
                lane.pending, lane.offered = other and not transfer, payload
                if transfer:
                    lane.received.append(payload)
            if transfer:
                lane.times.append(self._cycle)
                moved = True
        for name, values in self._samples.items():
            signal = self._plain[name]
            values.append(ctx.get(signal) & ((1 << len(signal)) - 1))
        if status == Status.MORE:
            await self._edge(ctx)
            self._cycle += 1
        return status, moved

    def read_memory(self, path: str) -> NDArray[np.uint32]:
        memory, width = self._memories[path], self.memories[path].width

        async def job(ctx) -> list[int]:
            return [ctx.get(Value.cast(memory[k])) & ((1 << width) - 1)
                    for k in range(memory.depth)]

        return _words(self._do(job), width)

    def write_memory(self, path: str, first: int, rows: NDArray[np.uint32]) -> None:
        memory = self._memories[path]

        async def job(ctx) -> None:
            for k, row in enumerate(_numbers(rows)):
                ctx.set(Value.cast(memory[first + k]), row)

        self._do(job)

    def close(self) -> None:
        if self._waveform:
            self._waveform.__exit__(None, None, None)
            self._waveform = None
