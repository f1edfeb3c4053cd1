"""What a simulator backend is to `openese.sim.simulation`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openese.sim.streams import Interface

__all__ = ["UNBOUNDED", "Driver", "Job", "MemoryShape", "Outcome", "Status"]

#: Transfers wanted of an output stream that takes whatever comes.
UNBOUNDED = (1 << 64) - 1


@dataclass(frozen=True)
class MemoryShape:
    """Bits of a row and number of rows of a memory."""

    width: int
    depth: int


@dataclass(frozen=True)
class Job:
    """One run, all arguments checked. Lists follow the order of the interface's streams.

    Parameters
    ----------
    items
        Payload words (n, words) of an input stream, an empty array for an output.
    wanted
        Transfers after which a stream is finished; `UNBOUNDED` for never and without being awaited.
    patterns
        Stall pattern of one byte per cycle, or None.
    settings
        Plain input to its words.
    watched
        Plain signals to sample.
    max_cycles, max_idle, extra_cycles
        Limits of the run, and cycles to go on for after it is finished.
    progress
        Called now and then with (cycles of this run, transfers, transfers wanted).
    """

    items: Sequence[NDArray[np.uint32]]
    wanted: Sequence[int]
    patterns: Sequence[NDArray[np.uint8] | None]
    settings: Mapping[str, NDArray[np.uint32]]
    watched: Sequence[str]
    max_cycles: int
    max_idle: int
    extra_cycles: int
    progress: Callable[[int, int, int], None] | None


class Status:
    """How a run ended; the numbers are those of harness.h."""

    DONE, MORE, IDLE, DROPPED, CHANGED, FAILED = range(6)


@dataclass(frozen=True)
class Outcome:
    """The result of a run. Lists follow the order of the interface's streams.

    Parameters
    ----------
    status
        A `Status`; MORE means that the cycle limit was reached.
    times, received
        Cycle numbers of transfers; payload words of output streams.
    samples
        Words (cycles, words) of each watched signal.
    cycle
        Number of the next cycle.
    handshakes
        (valid, ready) of each stream in the last cycle.
    culprit
        Index of the stream that broke a rule.
    error
        Text of a failed assertion.
    """

    status: int
    times: Sequence[NDArray[np.int64]]
    received: Sequence[NDArray[np.uint32]]
    samples: Sequence[NDArray[np.uint32]]
    cycle: int
    handshakes: Sequence[tuple[bool, bool]]
    culprit: int = -1
    error: str = ""


class Driver(ABC):
    """A design in a simulator, stopped between two clock cycles.

    In every cycle: producers and consumers drive their side, the design settles, transfers and
    signals are noted, the clock rises. ``reset`` holds ``rst`` for one cycle in which nothing is
    offered or accepted; the cycle after it is cycle 0.
    """

    name: str
    interface: Interface
    memories: Mapping[str, MemoryShape]

    @abstractmethod
    def reset(self) -> None:
        """Hold ``rst`` for one cycle and number the cycles from 0 again."""

    @abstractmethod
    def run(self, job: Job) -> Outcome:
        """Run until everything wanted was transferred, plus the extra cycles."""

    @abstractmethod
    def read_memory(self, path: str) -> NDArray[np.uint32]:
        """All rows of a memory as words (depth, words)."""

    @abstractmethod
    def write_memory(self, path: str, first: int, rows: NDArray[np.uint32]) -> None:
        """Replace rows from `first` on by words (n, words)."""

    @abstractmethod
    def close(self) -> None:
        """Free the simulator and finish the waveform file."""
