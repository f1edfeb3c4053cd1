"""The host's end of the serial link, without the serial port: bytes in, bytes out.

A program with a port, such as one of pyserial, writes what `HostEnd.outgoing` gives and hands what
it reads to `HostEnd.incoming`.
"""

from collections import deque
from collections.abc import Iterable

from .link import BUFFER_BYTES, CREDIT_BYTES, MAX_PAYLOAD, Channel

__all__ = ["HostEnd", "LinkError"]


class LinkError(RuntimeError):
    """The board sent what the protocol does not know; a break on the line starts afresh."""


class HostEnd:
    """Packs words and activations into frames as far as credits allow, and unpacks the answers.

    Attributes
    ----------
    words : deque of int
        Words from the engine, unsigned, oldest first.
    activations : deque of (int, bool)
        Output activations, and whether each is the last of its vector.
    """

    def __init__(self):
        self.words: deque[int] = deque()
        self.activations: deque[tuple[int, bool]] = deque()
        self._queue = {Channel.HOST: bytearray(), Channel.ACT: bytearray()}
        self._room = dict.fromkeys(self._queue, BUFFER_BYTES)
        self._received = bytearray()

    def send_words(self, words: Iterable[int]) -> None:
        """Queue 32-bit words for the engine."""
        for word in words:
            self._queue[Channel.HOST] += int(word).to_bytes(4, "little")

    def send_activations(self, values: Iterable[int]) -> None:
        """Queue activations, padded to whole beats as the engine's input stream wants them."""
        for value in values:
            self._queue[Channel.ACT] += int(value).to_bytes(2, "little", signed=True)

    @property
    def pending(self) -> int:
        """Bytes that wait, with or without credit."""
        return sum(map(len, self._queue.values()))

    def outgoing(self) -> bytes:
        """Frames that the board has room for by now; they count as sent."""
        frames = bytearray()
        for channel, queue in self._queue.items():
            while count := min(len(queue), self._room[channel], MAX_PAYLOAD):
                frames.append(channel << 6 | count - 1)
                frames += queue[:count]
                del queue[:count]
                self._room[channel] -= count
        return bytes(frames)

    def incoming(self, received: bytes) -> None:
        """Take bytes from the board, in pieces of any size.

        Raises
        ------
        LinkError
            A frame that the board does not send, or a credit for what was not sent.
        """
        self._received += received
        while self._received:
            channel, size = self._received[0] >> 6, (self._received[0] & 63) + 1
            if channel == Channel.CREDIT:
                self._credit(size - 1)
                del self._received[0]
                continue
            if size != (4 if channel == Channel.HOST else 2):
                raise LinkError(f"frame of {size} bytes on channel {channel}")
            if len(self._received) <= size:
                return
            payload = self._received[1:1 + size]
            if channel == Channel.HOST:
                self.words.append(int.from_bytes(payload, "little"))
            else:
                self.activations.append((int.from_bytes(payload, "little", signed=True),
                                         channel == Channel.ACT_LAST))
            del self._received[:1 + size]

    def _credit(self, channel: int) -> None:
        if channel not in self._room or self._room[channel] + CREDIT_BYTES > BUFFER_BYTES:
            raise LinkError(f"credit for channel {channel}, which owes none")
        self._room[channel] += CREDIT_BYTES
