"""The host's end of the serial link, without the serial port and without a clock: bytes in, bytes
out, time passed in. ``docs/host-protocol.md`` is the specification.
"""

import zlib
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .protocol import (
    ACTIVATIONS,
    BOARD_HEADER,
    CRC_BYTES,
    ESCAPE,
    FLAG,
    IDENTIFICATION_BYTES,
    LAST,
    MAX_PAYLOAD,
    MAX_RECORD,
    TOGGLE,
    Control,
    Identification,
    Status,
)

__all__ = ["DeviceError", "HostEnd", "LinkCounters", "LinkError", "make_frame", "pack_beats",
           "split_frames"]


class DeviceError(RuntimeError):
    """Something is wrong with a board, its port or what it was asked; one line."""


class LinkError(DeviceError):
    """The board does not answer, or says what the protocol does not know."""


@dataclass
class LinkCounters:
    """What a session took, so far.

    Parameters
    ----------
    bytes_out, bytes_in
        Bytes on the line, to the board and from it.
    frames_out, frames_in
        Frames sent, and intact frames of this session received.
    bad_out
        Frames that the board refused: broken on the way, or after one that was.
    bad_in
        Frames from the board that were broken.
    retries
        Times that data were sent again, opening a session included.
    rewinds
        Times that the board was asked to send again.
    """

    bytes_out: int = 0
    bytes_in: int = 0
    frames_out: int = 0
    frames_in: int = 0
    bad_out: int = 0
    bad_in: int = 0
    retries: int = 0
    rewinds: int = 0


def make_frame(content: bytes) -> bytes:
    """A frame as it goes over the line: checksum, stuffing and flags added to its content."""
    content += zlib.crc32(content).to_bytes(CRC_BYTES, "little")
    for byte in (ESCAPE, FLAG):
        content = content.replace(bytes([byte]), bytes([ESCAPE, byte ^ TOGGLE]))
    return bytes([FLAG]) + content + bytes([FLAG])


def split_frames(line: bytes) -> tuple[list[bytes | None], bytes]:
    """The contents of the frames in bytes of the line, and the bytes after the last flag.

    ``None`` stands for a frame whose checksum is wrong.
    """
    *parts, rest = line.split(bytes([FLAG]))
    frames = []
    for part in parts:
        if not part:
            continue
        for byte in (FLAG, ESCAPE):
            part = part.replace(bytes([ESCAPE, byte ^ TOGGLE]), bytes([byte]))
        content, crc = part[:-CRC_BYTES], part[-CRC_BYTES:]
        intact = zlib.crc32(content) == int.from_bytes(crc, "little") and len(crc) == CRC_BYTES
        frames.append(content if intact else None)
    return frames, rest


class HostEnd:
    """Opens a session, sends words and activations, and receives the answers, in order and exactly
    once, whatever happens to bytes on the way.

    Times are in seconds, of any clock that does not go backwards. The user calls `incoming` with
    what comes, sends what `outgoing` gives, and calls `outgoing` again after the next `incoming`,
    and at the latest at `deadline`.

    Parameters
    ----------
    session
        Number of the session, 0 to 255; another one than the last.
    now
        The time.
    retry
        Seconds without any progress before something is tried again, the first time; twice as
        long after that. Longer than the line and the board take to answer.
    timeout
        Seconds without an answer before `LinkError`; several times `retry`.

    Attributes
    ----------
    identification : Identification or None
        Of the board, when it has answered.
    words : deque of int
        Words from the engine, unsigned, oldest first.
    activations : list of tuple of int
        Output activations, a tuple with one of each channel, oldest first.
    last : list of bool
        For each of them, whether it is the last of its vector.
    overwritten : bool
        Whether memories of the engine have been loaded since the device was configured.
    counters : LinkCounters
    """

    def __init__(self, session: int, now: float, *, retry: float = 0.25, timeout: float = 2.0):
        self.identification: Identification | None = None
        self.words: deque[int] = deque()
        self.activations: list[tuple[int, ...]] = []
        self.last: list[bool] = []
        self.counters = LinkCounters()
        self.overwritten = False
        self._session = session & 0xFF
        self._retry, self._timeout = retry, timeout
        # To the board: what the session has sent from byte `_acked` on. Positions only grow here;
        # on the line they are modulo 65536.
        self._queue = bytearray()
        self._acked = self._next = self._highest = self._taken = 0
        self._refused = 0
        # Sent again, and no byte has been acknowledged since.
        self._recovering = False
        # From the board.
        self._line = b""
        self._expected = 0
        self._stream = bytearray()
        self._rewinding = False
        # What the next frame has to do beside carrying data.
        self._must_open = True
        self._must_ack = self._must_ask = self._must_rewind = False
        self._retry_at = now
        # Whether a frame was sent since the last one came that the board has to answer.
        self._answer_due = False
        self._unanswered_since: float | None = None
        self._progress_at = now

    # -- what the user sends ----------------------------------------------------------------------

    def send_words(self, words: ArrayLike) -> None:
        """Queue 32-bit words for the engine."""
        raw = np.asarray(words, dtype=np.int64).astype("<u4").tobytes()
        self._send_records(0, raw, 4)

    def send_beats(self, beats: bytes, size: int) -> None:
        """Queue beats of activations of `size` bytes each, as `pack_beats` makes them."""
        self._send_records(ACTIVATIONS, beats, size)

    def _send_records(self, kind: int, raw: bytes, size: int) -> None:
        for start in range(0, len(raw), MAX_RECORD * size):
            part = raw[start:start + MAX_RECORD * size]
            self._queue.append(kind | len(part) // size - 1)
            self._queue += part

    @property
    def session(self) -> int:
        """Number of the session."""
        return self._session

    @property
    def received(self) -> int:
        """Bytes of the board's stream that have come so far."""
        return self._expected

    @property
    def pending(self) -> int:
        """Bytes that the board has not acknowledged, sent or not."""
        return len(self._queue)

    @property
    def untaken(self) -> int:
        """Bytes that have not gone on into the engine as far as the board has told; a quarter of
        its buffer may have without being told."""
        return self._acked + len(self._queue) - self._taken

    def resume(self, now: float) -> None:
        """Go on after a time in which nobody called: it does not count as silence."""
        self._answer_due, self._unanswered_since = False, None
        self._progress_at = now
        self._retry_at = now + self._retry

    # -- what goes out ----------------------------------------------------------------------------

    def deadline(self) -> float:
        """When `outgoing` has something to do even if nothing comes."""
        return self._retry_at

    def outgoing(self, now: float, waiting: bool = True) -> bytes:
        """Frames to be sent now; they count as sent.

        Parameters
        ----------
        now
            The time.
        waiting
            Whether something is expected of the board, so that silence means a loss. Data that
            are on their way are expected to be acknowledged in any case.

        Raises
        ------
        LinkError
            The board has not answered for too long.
        """
        self._check(now)
        if now >= self._retry_at and (waiting or self.identification is None or self._queue):
            self._try_again()
            self._retry_at = now + 2 * self._retry
        frames = []
        if self.identification is None:
            if self._must_open:
                frames.append(self._frame(Control.OPEN | Control.ANSWER))
        else:
            while payload := self._payload():
                frames.append(self._frame(Control(0), payload))
        if not frames and (self._must_ack or self._must_ask or self._must_rewind):
            frames.append(self._frame(Control.ANSWER if self._must_ask else Control(0)))
        self.counters.frames_out += len(frames)
        if self._answer_due and self._unanswered_since is None:
            self._unanswered_since = now
        line = b"".join(frames)
        self.counters.bytes_out += len(line)
        return line

    def _check(self, now: float) -> None:
        since = self._unanswered_since
        if since is not None and now - since > self._timeout:
            raise LinkError("the board does not answer" if self.identification is None else
                            "the board has fallen silent")
        if not self._queue:
            self._progress_at = now
        elif self._highest > self._acked and now - self._progress_at > 5 * self._timeout:
            raise LinkError("the line spoils every frame")

    def _try_again(self) -> None:
        """Nothing has come for a while: open, send or ask again."""
        if self.identification is None:
            if not self._must_open:
                self.counters.retries += 1
            self._must_open = True
            # What has come of the identification may go on after a frame that was lost.
            self._must_rewind = self._expected > 0
        elif self._next > self._acked:
            self._rewind()
        self._must_ask = True
        self._rewinding = False

    def _rewind(self) -> None:
        self.counters.retries += 1
        self._next = self._acked
        self._recovering = True

    def _payload(self) -> bytes:
        """The next bytes that the board has room for, if they are worth a frame."""
        # The checksum is written into the buffer as well.
        window = self.identification.buffer_bytes - CRC_BYTES
        start = self._next - self._acked
        wanted = min(len(self._queue) - start, MAX_PAYLOAD, window // 2)
        if self._taken + window - self._next < wanted:
            return b""
        return bytes(self._queue[start:start + wanted])

    def _frame(self, control: Control, payload: bytes = b"") -> bytes:
        if self._must_rewind:
            control |= Control.REWIND | Control.ANSWER
        self._must_ack = self._must_ask = self._must_rewind = self._must_open = False
        self._answer_due |= bool(payload) or Control.ANSWER in control
        content = b"".join((bytes([control, self._session]),
                            (self._next & 0xFFFF).to_bytes(2, "little"),
                            (self._expected & 0xFFFF).to_bytes(2, "little"), payload))
        self._next += len(payload)
        self._highest = max(self._highest, self._next)
        return make_frame(content)

    # -- what comes in ----------------------------------------------------------------------------

    def incoming(self, received: bytes, now: float) -> None:
        """Take bytes from the line, in pieces of any size.

        Raises
        ------
        LinkError
            The board says what the protocol does not know.
        """
        self.counters.bytes_in += len(received)
        frames, self._line = split_frames(self._line + received)
        # Longer than any frame: noise.
        self._line = self._line[-4 * MAX_PAYLOAD:]
        for content in frames:
            if content is None or len(content) < BOARD_HEADER:
                self.counters.bad_in += 1
                # It may have been the last one for a while; its successor would tell.
                self._must_ask = True
            elif content[0] == self._session:
                self._take(content, now)

    def _take(self, content: bytes, now: float) -> None:
        seq, acked, taken = (int.from_bytes(content[k:k + 2], "little") for k in (1, 3, 5))
        self.counters.frames_in += 1
        self._answer_due, self._unanswered_since = False, None
        if self.identification is None and acked:
            # Someone else's session of this number goes on.
            self._session = (self._session + 1) & 0xFF
            self._must_open = True
            return
        moved = self._take_ack(acked)
        moved |= self._take_window(taken)
        moved |= self._take_data(seq, content[BOARD_HEADER:])
        self._take_refused(content[7])
        self.overwritten = bool(content[8] & Status.OVERWRITTEN)
        if moved:
            self._progress_at = now
            self._retry_at = now + self._retry

    def _take_ack(self, acked: int) -> bool:
        new = (acked - self._acked) & 0xFFFF
        # Anything else is of a frame that was overtaken.
        if not new or self._acked + new > self._highest:
            return False
        del self._queue[:new]
        self._acked += new
        self._next = max(self._next, self._acked)
        self._recovering = False
        return True

    def _take_window(self, taken: int) -> bool:
        new = (taken - self._taken) & 0xFFFF
        if not new or self._taken + new > self._acked:
            return False
        self._taken += new
        return True

    def _take_refused(self, refused: int) -> None:
        new = (refused - self._refused) & 0xFF
        if not 0 < new < 128:
            return
        self._refused = refused
        self.counters.bad_out += new
        if self._next > self._acked and not self._recovering:
            self._rewind()

    def _take_data(self, seq: int, payload: bytes) -> bool:
        ahead = (seq - self._expected) & 0xFFFF
        if ahead == 0:
            if not payload:
                return False
            self._expected += len(payload)
            self._must_ack = True
            self._rewinding = False
            self._stream += payload
            self._parse()
            return True
        if ahead < 0x8000:
            # Something before it was lost. Asked for once: what is on its way comes first.
            if not self._rewinding:
                self.counters.rewinds += 1
                self._must_rewind = self._rewinding = True
        elif payload:
            # Once more, since the acknowledgement was lost.
            self._must_ack = True
        return False

    def _parse(self) -> None:
        stream = self._stream
        if self.identification is None:
            if len(stream) < IDENTIFICATION_BYTES:
                return
            try:
                self.identification = Identification.unpack(bytes(stream[:IDENTIFICATION_BYTES]))
            except ValueError as error:
                raise LinkError(str(error)) from None
            del stream[:IDENTIFICATION_BYTES]
            self._must_open = False
        act_bytes = 2 * self.identification.channels
        place = 0
        while place < len(stream):
            head = stream[place]
            size = act_bytes if head & ACTIVATIONS else 4
            item = stream[place + 1:place + 1 + size]
            if len(item) < size:
                break
            place += 1 + size
            if head & ACTIVATIONS:
                self.activations.append(tuple(
                    int.from_bytes(item[k:k + 2], "little", signed=True)
                    for k in range(0, size, 2)))
                self.last.append(bool(head & LAST))
            else:
                self.words.append(int.from_bytes(item, "little"))
        del stream[:place]


def pack_beats(beats: NDArray | dict[str, NDArray]) -> bytes:
    """Beats of input activations, as `openese.model.host.pack_inputs` gives them, as bytes of the
    line."""
    values = beats["values"] if isinstance(beats, dict) else beats
    raw = np.ascontiguousarray(values.astype("<i2")).reshape(len(values), -1).view(np.uint8)
    if isinstance(beats, dict):
        masks = beats["active"].astype("<u4").reshape(-1, 1).view(np.uint8)
        raw = np.concatenate([raw, masks[:, :-(-values.shape[2] // 8)]], axis=1)
    return raw.tobytes()
