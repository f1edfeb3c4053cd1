# amaranth: UnusedElaboratable=no
"""Proves that nothing a serial line does to bytes makes a wrong result or a hang: more than 1,000
faults on frames, both ways, against the compiled link and engine; sessions that end at any byte;
and breaks at any time."""

from collections import Counter

import numpy as np
import pytest

from openese.boards.host import LinkError
from openese.boards.protocol import FLAG

from .bench import Model

KINDS = ("flip", "drop", "truncate", "insert", "duplicate", "reorder", "garbage")
DIRECTIONS = ("to_board", "to_host")


class Faults:
    """Hurts frames at random. `counts` has them by kind and direction."""

    def __init__(self, seed, rate):
        self._rng = np.random.default_rng(seed)
        self._rate = rate
        self._kept = dict.fromkeys(DIRECTIONS, b"")
        self._late = dict.fromkeys(DIRECTIONS, b"")
        self.counts = Counter()

    def __call__(self, data, direction):
        # Frames may come in pieces; what passes is whole ones.
        flag = bytes([FLAG])
        *parts, self._kept[direction] = (self._kept[direction] + data).split(flag)
        line = b""
        for frame in (flag + part + flag for part in parts if part):
            late, self._late[direction] = self._late[direction], b""
            if self._rng.random() < self._rate:
                kind = str(self._rng.choice(KINDS))
                self.counts[kind, direction] += 1
                frame = self._hurt(frame, kind, direction)
            line += frame + late
        return line

    def _hurt(self, frame, kind, direction):
        rng = self._rng
        place = int(rng.integers(len(frame)))
        if kind == "flip":
            hurt = bytearray(frame)
            for _ in range(rng.integers(1, 5)):
                hurt[rng.integers(len(frame))] ^= 1 << rng.integers(8)
            return bytes(hurt)
        if kind == "drop":
            return frame[:place] + frame[place + 1:]
        if kind == "truncate":
            return frame[:place]
        if kind == "insert":
            return frame[:place] + rng.bytes(rng.integers(1, 3)) + frame[place:]
        if kind == "duplicate":
            return 2 * frame
        if kind == "reorder":
            # Passes after the next one.
            self._late[direction] = frame
            return b""
        return rng.bytes(rng.integers(1, 40)) + frame


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture
def line(model):
    line = model.line(host={"retry": 4e-3, "timeout": 0.4})
    with line.simulation:
        yield line


def test_a_thousand_faults(line, model):
    line.fault = faults = Faults(1, 0.3)
    total = Counter()
    session = 0
    while faults.counts.total() < 1000:
        session += 1
        line.open(session)
        model.send(line.end, session)
        model.check(line, session)
        total.update(vars(line.end.counters))
    assert min(faults.counts[kind, direction] for kind in KINDS for direction in DIRECTIONS) > 20
    # Noticed, and put right by sending again.
    assert total["bad_out"] > 100
    assert total["bad_in"] > 100
    assert total["retries"] > 30
    assert total["rewinds"] > 30


def test_sessions_that_end_anywhere(line, model):
    """A host goes away in the middle of a byte stream; the next one finds a board like new."""
    rng = np.random.default_rng(2)
    for session in range(1, 30, 2):
        line.fault = lambda data, direction: data
        line.open(session)
        model.send(line.end, session)
        left = int(rng.integers(1, 2300))

        def cut(data, direction):
            nonlocal left
            if direction == "to_host":
                return data
            data = data[:left]
            left -= len(data)
            return data

        line.fault = cut
        while left:
            line.step()
        line.fault = lambda data, direction: data
        line.open(session + 1)
        model.send(line.end, session)
        model.check(line, session)


def test_breaks_at_any_time(line, model):
    """A break ends the session: the board is silent until the next one is opened."""
    rng = np.random.default_rng(3)
    for session in range(1, 20, 2):
        line.open(session)
        model.send(line.end, session)
        for _ in range(rng.integers(1, 8)):
            line.step()
        line.exchange(b"", int(rng.integers(1, 60)), line_break=1)
        line.exchange(b"", 3000, line_break=0)
        line.end.resume(line.now)
        assert line.exchange(line.end.outgoing(line.now + 0.1), 5000) == b""
        with pytest.raises(LinkError, match=r"^the board has fallen silent$"):
            line.end.outgoing(line.now + 1)
        line.open(session + 1)
        model.send(line.end, session)
        model.check(line, session)
