"""Numbers of the serial protocol that board and host share; ``docs/host-protocol.md`` is its
specification."""

import struct
import zlib
from dataclasses import dataclass
from enum import IntFlag

from openese.model.compile import Image
from openese.model.config import EngineConfig
from openese.model.host import load_words

__all__ = ["ACTIVATIONS", "BOARD_HEADER", "BUFFER_BYTES", "CRC_BYTES", "ESCAPE", "FLAG",
           "HOST_HEADER", "IDENTIFICATION_BYTES", "LAST", "MAX_PAYLOAD", "MAX_RECORD", "SENT_BYTES",
           "TOGGLE", "VERSION", "Control", "Identification", "Status", "beat_bytes",
           "model_fingerprint"]

#: Version of the protocol.
VERSION = 1

#: Begins and ends a frame; stands nowhere else on the line.
FLAG = 0x7E
#: The byte that follows it has `TOGGLE` inverted.
ESCAPE = 0x7D
TOGGLE = 0x20

CRC_BYTES = 4
#: Bytes before the payload: of a frame from the host, and of one from the board.
HOST_HEADER = 6
BOARD_HEADER = 9
#: Payload bytes of the longest frame.
MAX_PAYLOAD = 256

#: Bytes the board buffers from the host. 20 ms of a line at 1 Mbaud, longer than a usual USB
#: adapter holds an answer back (16 ms); one block RAM of ECP5.
BUFFER_BYTES = 2048
#: Bytes the board keeps until the host has acknowledged them.
SENT_BYTES = 1024

#: Head of a record: set if activations follow and not words.
ACTIVATIONS = 0x80
#: Head of a record from the board: set at the last activations of a vector.
LAST = 0x40
#: Words or beats of the longest record to the board.
MAX_RECORD = 128


class Control(IntFlag):
    """First byte of a frame from the host."""

    OPEN = 1
    """Start afresh in the session of this frame, unless it is open already."""
    REWIND = 2
    """Send again everything behind the acknowledged byte."""
    ANSWER = 4
    """Answer this frame even though it has no payload."""


class Status(IntFlag):
    """Last byte of the header of a frame from the board."""

    OVERWRITTEN = 1
    """Memories of the engine have been loaded since the device was configured."""


def beat_bytes(config: EngineConfig) -> int:
    """Bytes of a beat of input activations on the line."""
    mask = -(-config.channels // 8) if config.channels > 1 else 0
    return 2 * config.input_lanes * config.channels + mask


def model_fingerprint(image: Image) -> int:
    """32-bit fingerprint of a compiled model: the CRC-32 of the words that load it."""
    return zlib.crc32(load_words(image, image.config).astype("<u4").tobytes())


#: Bytes of the identification record, the first ones of every session.
IDENTIFICATION_BYTES = 64
_RECORD = struct.Struct("<4sBBHIIIIHHBB2x16s16s")
_MAGIC = b"OESE"
_HAS_MODEL = 1


@dataclass(frozen=True, kw_only=True)
class Identification:
    """What a board says about itself.

    Parameters
    ----------
    signature
        `EngineConfig.signature` of its engine, 32 bits.
    n_pes, input_lanes, channels
        Of its engine.
    board, preset
        Names, at most 16 characters of ASCII each, or empty.
    clock_hz
        Clock of the engine, or 0 if it is not known.
    build
        32-bit fingerprint of the bitstream, or 0.
    model
        32-bit fingerprint of the model that was built in (`model_fingerprint`), else 0.
    has_model
        Whether a model was built in.
    divisor
        Clock cycles per bit on the line.
    buffer_bytes
        Bytes the board buffers from the host, a power of two.
    version
        Of the protocol.

    Raises
    ------
    ValueError
        A name that is too long or not ASCII, or a number that its field does not hold.
    """

    signature: int
    n_pes: int
    input_lanes: int = 1
    channels: int = 1
    board: str = ""
    preset: str = ""
    clock_hz: int = 0
    build: int = 0
    model: int = 0
    has_model: bool = False
    divisor: int = 0
    buffer_bytes: int = BUFFER_BYTES
    version: int = VERSION

    def __post_init__(self) -> None:
        for name in ("board", "preset"):
            text = getattr(self, name)
            if not text.isascii() or not text.isprintable() or len(text) > 16:
                raise ValueError(f"{name} must be at most 16 characters of ASCII, not {text!r}")
        for name, bits in (("signature", 32), ("n_pes", 16), ("input_lanes", 16),
                           ("channels", 8), ("clock_hz", 32), ("build", 32), ("model", 32),
                           ("divisor", 16)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value < 1 << bits:
                raise ValueError(f"{name} must be an integer from 0 to {(1 << bits) - 1}, "
                                 f"not {value!r}")
        size = self.buffer_bytes
        if not isinstance(size, int) or size.bit_count() != 1 or not 128 <= size <= 8192:
            raise ValueError(f"buffer_bytes must be a power of two from 128 to 8192, not {size!r}")

    @classmethod
    def of(cls, config: EngineConfig, image: Image | None = None, **fields) -> "Identification":
        """That of an engine, maybe with a model built in; `fields` are the others."""
        return cls(signature=config.signature, n_pes=config.n_pes,
                   input_lanes=config.input_lanes, channels=config.channels,
                   has_model=image is not None,
                   model=0 if image is None else model_fingerprint(image), **fields)

    def pack(self) -> bytes:
        """The record of `IDENTIFICATION_BYTES`."""
        return _RECORD.pack(
            _MAGIC, self.version, _HAS_MODEL * self.has_model, self.n_pes, self.signature,
            self.build, self.model, self.clock_hz, self.divisor, self.input_lanes,
            self.channels, self.buffer_bytes.bit_length() - 1, self.board.encode(),
            self.preset.encode())

    @classmethod
    def unpack(cls, record: bytes) -> "Identification":
        """The identification that a record holds.

        Raises
        ------
        ValueError
            It is no identification, or of another version of the protocol.
        """
        magic, version = record[:4], record[4]
        if magic != _MAGIC:
            raise ValueError(f"the board does not identify itself as openese ({magic!r})")
        if version != VERSION:
            raise ValueError(f"the board speaks version {version} of the serial protocol, this "
                             f"program version {VERSION}")
        (_, _, flags, n_pes, signature, build, model, clock_hz, divisor, lanes, channels, size,
         board, preset) = _RECORD.unpack(record)
        return cls(signature=signature, n_pes=n_pes, input_lanes=lanes, channels=channels,
                   board=board.rstrip(b"\0").decode(), preset=preset.rstrip(b"\0").decode(),
                   clock_hz=clock_hz, build=build, model=model,
                   has_model=bool(flags & _HAS_MODEL), divisor=divisor, buffer_bytes=1 << size)
