"""Run any component of streams on any simulator, with the same results in the same cycles.

Cycles are numbered from 0, the first one after the one in which ``rst`` is held. In a cycle,
producers and consumers drive their sides, the design settles, transfers happen where ``valid`` and
``ready`` are both high, and the clock rises. A producer with data offers it in a cycle whose bit in
the stall pattern is 1 and holds it until it is taken; a consumer that wants more is ready in the
cycles whose bit is 1. Bit ``cycle % length`` of a pattern counts, and the cycle goes on counting
from run to run until `Simulation.reset`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.lib import wiring
from numpy.typing import ArrayLike, NDArray

from openese.sim.driver import UNBOUNDED, Driver, Job, Outcome, Status
from openese.sim.streams import (
    Result,
    SimulationTimeout,
    StreamError,
    from_words,
    stall_pattern,
    to_words,
)

__all__ = ["BACKENDS", "Simulation", "run"]

BACKENDS = ("amaranth", "cxxrtl", "verilator")


def _driver(component: wiring.Component, backend: str, vcd: Path | None,
            options: Mapping[str, Any]) -> Driver:
    # Imported where needed: two of them look for programs that need not be installed.
    if backend == "amaranth":
        from openese.sim.pysim import AmaranthDriver as Chosen
    elif backend == "cxxrtl":
        from openese.sim.cxxrtl import CxxrtlDriver as Chosen
    elif backend == "verilator":
        from openese.sim.verilator import VerilatorDriver as Chosen
    else:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    return Chosen(component, vcd=vcd, **options)


class Simulation:
    """A component in a simulator, reset once; every `run` goes on where the last one stopped.

    Parameters
    ----------
    component
        A component whose ports are streams and plain signals, with the ``sync`` domain only.
    backend
        "amaranth", "cxxrtl" or "verilator"; or a `Driver` that is made already.
    vcd
        File to write waveforms to ("amaranth" and "cxxrtl").
    **options
        Of the backend: `openese.sim.cxxrtl.CxxrtlDriver` has ``flatten`` and ``optimise``.

    Raises
    ------
    ValueError
        Unknown backend, or ports that cannot be simulated.
    """

    def __init__(self, component: wiring.Component | None, backend: str | Driver = "amaranth", *,
                 vcd: str | Path | None = None, **options: Any) -> None:
        if isinstance(backend, Driver):
            self._driver = backend
        else:
            self._driver = _driver(component, backend, None if vcd is None else Path(vcd), options)
        self._usable = False
        self.reset()

    @property
    def interface(self):
        """The ports, see `openese.sim.streams.Interface`."""
        return self._driver.interface

    @property
    def memories(self) -> list[str]:
        """Paths for `read_memory` and `write_memory`: instance names and the memory's, dotted."""
        return list(self._driver.memories)

    def reset(self) -> None:
        """Hold ``rst`` for one cycle and start numbering cycles from 0. Memories keep their rows.
        """
        self._cycle = 0
        self._driver.reset()
        self._usable = True

    def close(self) -> None:
        """Free the simulator; also done at the end of a ``with`` statement."""
        self._usable = False
        self._driver.close()

    def __enter__(self) -> "Simulation":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self, inputs: Mapping[str, ArrayLike] | None = None,
            outputs: Mapping[str, int | None] | None = None, *,
            stalls: Mapping[str, Any] | None = None,
            settings: Mapping[str, int] | None = None,
            signals: Sequence[str] = (),
            max_cycles: int = 10_000_000, max_idle: int = 20_000, extra_cycles: int = 0,
            progress: Callable[[int, int, int], None] | None = None) -> Result:
        """Send all `inputs` and wait for all `outputs`.

        Parameters
        ----------
        inputs
            Input stream to raw payloads (see `openese.sim.streams.pack`). Streams left out offer
            nothing.
        outputs
            Output stream to the number of payloads to take, or None to take what comes without
            waiting for it. Nothing more is accepted once the number is reached, and nothing at all
            from streams left out.
        stalls
            Stream to its pattern: "1101", an array of truth values, or None to never stall;
            `openese.sim.streams.random_stalls` makes them.
        settings
            Plain input to the value it takes now and keeps.
        signals
            Plain signals to sample in every cycle.
        max_cycles
            Limit for the run.
        max_idle
            Cycles in which nothing may move before the run is given up.
        extra_cycles
            Cycles to go on for in the end.
        progress
            Called now and then with (cycles of this run, transfers, transfers wanted).

        Returns
        -------
        Result

        Raises
        ------
        SimulationTimeout
            A limit was reached.
        StreamError
            The design dropped ``valid`` or changed the payload of a stalled transfer.
        AssertionError
            An ``Assert`` of the design failed.
        ValueError
            Unknown ports, payloads that do not fit, or a stall pattern that is no pattern.
        RuntimeError
            An earlier run failed: `reset` first.
        """
        if not self._usable:
            raise RuntimeError("This simulation was closed, or stopped with an error: call "
                               "reset() or make another one")
        inputs, outputs, stalls = dict(inputs or {}), dict(outputs or {}), dict(stalls or {})
        job = Job(*self._lanes(inputs, outputs, stalls),
                  self._settings(dict(settings or {})), self._watched(signals),
                  _limit("max_cycles", max_cycles), _limit("max_idle", max_idle),
                  _limit("extra_cycles", extra_cycles, 0), progress)
        self._usable = False
        outcome = self._driver.run(job)
        self._check(job, outcome)
        self._usable = True
        return self._result(job, outcome)

    def _lanes(self, inputs: dict, outputs: dict, stalls: dict) -> tuple[list, list, list]:
        streams = self.interface.streams
        for names, kind, wrong in ((inputs, "input", False), (outputs, "output", True)):
            known = [name for name, port in streams.items() if port.is_input != wrong]
            _known(names, known, f"{kind} stream")
        _known(stalls, streams, "stream")
        items, wanted, patterns = [], [], []
        for name, port in streams.items():
            items.append(to_words(inputs.get(name, ()), port.width, name))
            count = len(items[-1]) if port.is_input else outputs.get(name, 0)
            if count is not None and (not isinstance(count, int | np.integer) or count < 0):
                raise ValueError(f"Number of payloads wanted of {name!r} must be 0 or more, or "
                                 f"None, not {count!r}")
            wanted.append(UNBOUNDED if count is None else int(count))
            patterns.append(stall_pattern(stalls.get(name), name))
            if patterns[-1] is not None and not port.is_input and not port.has_ready:
                raise ValueError(f"Stream {name!r} cannot be stalled: it is always ready")
        return items, wanted, patterns

    def _settings(self, settings: dict) -> dict[str, NDArray[np.uint32]]:
        plain = self.interface.plain
        _known(settings, [name for name, port in plain.items() if port.is_input], "plain input")
        return {name: to_words(np.array([value], object), plain[name].width, name)[0]
                for name, value in settings.items()}

    def _watched(self, signals: Sequence[str]) -> list[str]:
        _known(signals, self.interface.plain, "plain signal")
        return list(signals)

    def _check(self, job: Job, outcome: Outcome) -> None:
        if outcome.status == Status.DONE:
            return
        backend = self._driver.name
        if outcome.status == Status.FAILED:
            raise AssertionError(f"{backend}: in cycle {outcome.cycle}: {outcome.error}")
        names = list(self.interface.streams)
        if outcome.status in (Status.DROPPED, Status.CHANGED):
            name = names[outcome.culprit]
            what = (f"{name}.valid fell" if outcome.status == Status.DROPPED
                    else f"{name}.payload changed")
            raise StreamError(f"{backend}: {what} in cycle {outcome.cycle}, before the transfer "
                              f"that was offered took place")
        if outcome.status == Status.IDLE:
            what = f"no transfer for {job.max_idle} cycles"
        else:
            what = f"not finished after {job.max_cycles} cycles"
        lines = []
        for name, port, wanted, times, (valid, ready) in zip(
                names, self.interface.streams.values(), job.wanted, outcome.times,
                outcome.handshakes, strict=True):
            if wanted == 0 and not (valid and not port.is_input):
                continue
            total = "any number" if wanted == UNBOUNDED else wanted
            state = (f"valid={int(valid)} ready={int(ready)}")
            verb = "sent" if port.is_input else "received"
            waits = "" if len(times) >= wanted or wanted == UNBOUNDED else ", waiting"
            lines.append(f"  {name}: {verb} {len(times)} of {total}{waits} ({state})")
        raise SimulationTimeout("\n".join((f"{backend}: {what}, in cycle {outcome.cycle}",
                                           *lines)))

    def _result(self, job: Job, outcome: Outcome) -> Result:
        streams, plain = self.interface.streams, self.interface.plain
        start, self._cycle = self._cycle, outcome.cycle
        return Result(
            {name: from_words(words, port.width)
             for (name, port), words in zip(streams.items(), outcome.received, strict=True)
             if not port.is_input},
            dict(zip(streams, outcome.times, strict=True)),
            {name: from_words(words, plain[name].width)
             for name, words in zip(job.watched, outcome.samples, strict=True)},
            start, outcome.cycle - start, self.interface)

    def read_memory(self, path: str) -> NDArray:
        """All rows of a memory, raw (uint64, or words if wider than 64 bits).

        Raises
        ------
        ValueError
            No memory of that path; the text lists those that exist.
        """
        shape = self._memory(path)
        return from_words(self._driver.read_memory(path), shape.width)

    def write_memory(self, path: str, values: ArrayLike, first: int = 0) -> None:
        """Replace rows of a memory from `first` on by raw values, between two cycles.

        Raises
        ------
        ValueError
            No memory of that path, values that do not fit a row, or more rows than there are.
        """
        shape = self._memory(path)
        rows = to_words(values, shape.width, path)
        if not 0 <= first <= first + len(rows) <= shape.depth:
            raise ValueError(f"Rows {first} to {first + len(rows) - 1} are not in {path!r}, which "
                             f"has {shape.depth}")
        self._driver.write_memory(path, first, rows)

    def _memory(self, path: str):
        memories = self._driver.memories
        if not memories:
            raise ValueError(f"The backend {self._driver.name!r} has no access to memories")
        _known([path], memories, "memory")
        return memories[path]


def _limit(name: str, value: int, low: int = 1) -> int:
    if not isinstance(value, int | np.integer) or value < low:
        raise ValueError(f"{name} must be {low} or more, not {value!r}")
    return int(value)


def _known(names: Any, known: Any, kind: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"No {kind} is called {name!r}; there are: "
                             f"{', '.join(list(known)[:20]) or 'none'}")


def run(component: wiring.Component, inputs: Mapping[str, ArrayLike] | None = None,
        outputs: Mapping[str, int | None] | None = None, *, backend: str = "amaranth",
        vcd: str | Path | None = None, options: Mapping[str, Any] | None = None,
        **arguments: Any) -> Result:
    """Reset a component, send all `inputs` and wait for all `outputs`, once.

    Parameters
    ----------
    component, backend, vcd, options
        As of `Simulation`.
    inputs, outputs, **arguments
        As of `Simulation.run`.

    Returns
    -------
    Result
    """
    with Simulation(component, backend, vcd=vcd, **(options or {})) as simulation:
        return simulation.run(inputs, outputs, **arguments)
