"""Ports, payloads and stall patterns: what every simulator backend has in common.

A payload travels as a raw unsigned number, as the wires carry it: a 1-D uint64 array up to 64
bits, an array (n, ceil(width / 32)) of uint32 words, lowest first, above. `pack` and `unpack`
translate between raw payloads and signed numbers, struct fields and array elements.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from amaranth.hdl import Shape, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Interface",
    "PlainPort",
    "Result",
    "SimulationTimeout",
    "StreamError",
    "StreamPort",
    "describe",
    "pack",
    "random_stalls",
    "unpack",
]


class SimulationTimeout(RuntimeError):  # noqa: N818
    """Nothing moved for too long, or the cycle limit was reached; the text says who waits."""


class StreamError(RuntimeError):
    """The design withdrew an offered transfer or changed its payload; names port and cycle."""


@dataclass(frozen=True)
class StreamPort:
    """A stream of a component.

    Parameters
    ----------
    name
        As in `openese.hdl.export.flat_ports`: ``i``, or ``o_0`` in an array of ports.
    shape
        Payload shape: a width, a signed shape, a layout.
    is_input
        Whether the component consumes it.
    has_valid, has_ready
        False for the constant side of an always-valid or always-ready stream.
    """

    name: str
    shape: Any
    is_input: bool
    has_valid: bool = True
    has_ready: bool = True

    @property
    def width(self) -> int:
        """Bits of the payload."""
        return Shape.cast(self.shape).width


@dataclass(frozen=True)
class PlainPort:
    """A port that is no stream: a setting (input) or a status signal (output).

    Parameters
    ----------
    name, shape, is_input
        As of a `StreamPort`.
    init
        Value of an input until it is set.
    """

    name: str
    shape: Any
    is_input: bool
    init: int = 0

    @property
    def width(self) -> int:
        """Bits of the signal."""
        return Shape.cast(self.shape).width


@dataclass(frozen=True)
class Interface:
    """The ports of a component, each kind in the order of its signature, by name."""

    streams: Mapping[str, StreamPort]
    plain: Mapping[str, PlainPort] = field(default_factory=dict)


def describe(component: wiring.Component) -> Interface:
    """Sort the ports of a component into streams and plain signals.

    Raises
    ------
    ValueError
        An input stream is ``always_valid``: a simulation cannot promise data for ever.
    """
    streams, plain = {}, {}

    def visit(path: tuple, member: wiring.Member, part: Any) -> None:
        name = "_".join(map(str, path))
        if member.dimensions:
            inner = member.signature if member.is_signature else member.shape
            element = Out(inner) if member.is_signature or member.flow is Out else In(inner)
            for index in np.ndindex(*member.dimensions):
                one = part
                for k in index:
                    one = one[k]
                visit((*path, *index), element, one)
            return
        if not member.is_signature:
            init = Value.cast(part).init if member.flow is In else 0
            plain[name] = PlainPort(name, member.shape, member.flow is In, init)
            return
        # An input's signature comes flipped, which hides its class.
        signature = member.signature
        plainly = signature if isinstance(signature, stream.Signature) else signature.flip()
        if not isinstance(plainly, stream.Signature):
            for sub, inner in signature.members.items():
                visit((*path, sub), inner, getattr(part, sub))
            return
        payload = signature.members["payload"]
        if payload.flow is In and plainly.always_valid:
            raise ValueError(f"Stream {name!r} is an always-valid input, which would need data in "
                             f"every cycle: give it a valid signal")
        streams[name] = StreamPort(name, payload.shape, payload.flow is In,
                                   not plainly.always_valid, not plainly.always_ready)

    for name, member in component.signature.members.items():
        visit((name,), member, getattr(component, name))
    return Interface(streams, plain)


def _layout(shape: Any) -> data.Layout | None:
    try:
        return data.Layout.cast(shape)
    except TypeError:
        return None


def _words_of(width: int) -> int:
    return -(-width // 32)


def _insert(words: NDArray[np.uint32], offset: int, width: int, values: NDArray) -> None:
    """Or `values` (uint64, or words if wider) into bits ``offset .. offset + width - 1``."""
    if values.ndim == 2:
        for k in range(values.shape[1]):
            _insert(words, offset + 32 * k, min(32, width - 32 * k), values[:, k].astype(np.uint64))
        return
    while width > 0:
        word, bit = divmod(offset, 32)
        take = min(32 - bit, width)
        part = (values & np.uint64((1 << take) - 1)) << np.uint64(bit)
        words[:, word] |= part.astype(np.uint32)
        values = values >> np.uint64(take)
        offset, width = offset + take, width - take


def _extract(words: NDArray[np.uint32], offset: int, width: int) -> NDArray:
    if width > 64:
        parts = [_extract(words, offset + 32 * k, min(32, width - 32 * k))
                 for k in range(_words_of(width))]
        return np.stack(parts, axis=1).astype(np.uint32)
    values = np.zeros(len(words), np.uint64)
    done = 0
    while done < width:
        word, bit = divmod(offset + done, 32)
        take = min(32 - bit, width - done)
        part = (words[:, word] >> np.uint32(bit)).astype(np.uint64) & np.uint64((1 << take) - 1)
        values |= part << np.uint64(done)
        done += take
    return values


def to_words(raw: ArrayLike, width: int, name: str) -> NDArray[np.uint32]:
    """Raw payloads as an array (n, ceil(width / 32)) of words; checks that each fits `width`.

    Raises
    ------
    ValueError
        Not whole numbers, negative, too wide, or of the wrong shape; names the port.
    """
    count = _words_of(width)
    array = np.asarray(raw)
    if array.size == 0:
        return np.zeros((0, count), np.uint32)
    if array.dtype == object and array.ndim == 1:
        if not all(isinstance(value, int) and 0 <= value < 1 << width for value in array):
            raise ValueError(f"Payloads of {name!r} must be whole numbers of {width} bits")
        joined = b"".join(value.to_bytes(4 * count, "little") for value in array)
        return np.frombuffer(joined, np.dtype("<u4")).reshape(-1, count).astype(np.uint32)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iu":
        raise ValueError(f"Payloads of {name!r} must be whole numbers, not {array.dtype}")
    if (array < 0).any():
        raise ValueError(f"Payloads of {name!r} must be raw, that is unsigned: use pack() for "
                         f"signed numbers")
    if array.ndim == 1:
        array = array.astype(np.uint64)
        if width < 64 and (array >> np.uint64(width)).any():
            raise ValueError(f"Payload {int(array.max())} of {name!r} does not fit {width} bits")
        words = np.zeros((len(array), count), np.uint32)
        words[:, 0] = array & np.uint64(0xFFFFFFFF)
        if count > 1:
            words[:, 1] = array >> np.uint64(32)
        return words
    if array.ndim != 2 or array.shape[1] != count:
        raise ValueError(f"Payloads of {name!r}, {width} bits, must be an array (n,) or "
                         f"(n, {count}), not {array.shape}")
    if array.max() > 0xFFFFFFFF:
        raise ValueError(f"Words of {name!r} must be numbers of 32 bits")
    words = np.ascontiguousarray(array, np.uint32)
    if width % 32 and (words[:, -1] >> np.uint32(width % 32)).any():
        raise ValueError(f"A payload of {name!r} does not fit {width} bits")
    return words


def from_words(words: NDArray[np.uint32], width: int) -> NDArray:
    """The inverse of `to_words`: uint64 (n,) up to 64 bits, else the words themselves."""
    return words if width > 64 else _extract(words, 0, width)


def pack(shape: Any, values: Any) -> NDArray:
    """Raw payloads of numbers.

    Parameters
    ----------
    shape
        Payload shape of the port.
    values
        For a number an integer array (n,). For a struct a mapping of every field to its values.
        For a ``data.ArrayLayout(element, length)`` an array (n, length, ...). Fields above 64 bits
        are raw words (n, words).

    Returns
    -------
    numpy.ndarray
        Raw payloads, see the module.

    Raises
    ------
    ValueError
        A value does not fit its field, a field is missing or unknown, or lengths differ.
    """
    width = Shape.cast(shape).width
    pieces = list(_leaves(shape, values, 0, "payload"))
    lengths = {len(piece) for _, _, piece in pieces}
    if len(lengths) != 1:
        raise ValueError(f"Fields of a payload must have equal lengths, not {sorted(lengths)}")
    words = np.zeros((lengths.pop(), _words_of(width)), np.uint32)
    for offset, bits, piece in pieces:
        _insert(words, offset, bits, piece)
    return from_words(words, width)


def _leaves(shape: Any, values: Any, offset: int, name: str) -> Iterable[tuple[int, int, NDArray]]:
    layout = _layout(shape)
    if layout is None:
        yield offset, *_leaf(Shape.cast(shape), values, name)
        return
    if isinstance(layout, data.ArrayLayout):
        values = np.asarray(values)
        if values.ndim < 2 or values.shape[1] != layout.length:
            raise ValueError(f"{name} needs values of shape (n, {layout.length}), "
                             f"not {values.shape}")
        values = {k: values[:, k] for k in range(layout.length)}
    fields = dict(layout)
    if not isinstance(values, Mapping) or set(values) != set(fields):
        given = list(values) if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(f"{name} needs the fields {list(fields)}, not {given}")
    for key, part in fields.items():
        yield from _leaves(part.shape, values[key], offset + part.offset, f"{name}.{key}")


def _leaf(shape: Shape, values: Any, name: str) -> tuple[int, NDArray]:
    if shape.width > 64:
        return shape.width, to_words(values, shape.width, name)
    array = np.asarray(values)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(f"{name} needs whole numbers of shape (n,), not {array.dtype} "
                         f"{array.shape}")
    low = -(1 << (shape.width - 1)) if shape.signed else 0
    high = (1 << (shape.width - shape.signed)) - 1
    if array.size and not low <= int(array.min()) <= int(array.max()) <= high:
        raise ValueError(f"{name} must be {low} to {high}, but is {int(array.min())} to "
                         f"{int(array.max())}")
    mask = np.uint64((1 << shape.width) - 1)
    return shape.width, array.astype(np.int64 if shape.signed else np.uint64).view(np.uint64) & mask


def unpack(shape: Any, raw: ArrayLike) -> Any:
    """Numbers of raw payloads, the inverse of `pack`.

    Returns int64 for a signed and uint64 for an unsigned number, a dict for a struct, an array
    (n, length, ...) for an array; fields above 64 bits stay raw words.
    """
    words = to_words(raw, Shape.cast(shape).width, "payload")
    return _unpack(shape, words, 0)


def _unpack(shape: Any, words: NDArray[np.uint32], offset: int) -> Any:
    layout = _layout(shape)
    if layout is None:
        kind = Shape.cast(shape)
        values = _extract(words, offset, kind.width)
        if not kind.signed or kind.width > 64:
            return values
        # Move the sign to bit 63 and shift it back down arithmetically.
        return (values << np.uint64(64 - kind.width)).view(np.int64) >> (64 - kind.width)
    fields = {key: _unpack(part.shape, words, offset + part.offset) for key, part in layout}
    if isinstance(layout, data.ArrayLayout):
        return np.stack(list(fields.values()), axis=1)
    return fields


def random_stalls(seed: int, probability: float, length: int = 4093) -> NDArray[np.bool_]:
    """A pattern of `length` cycles that stalls each of them with `probability`; never all.

    Raises
    ------
    ValueError
        Not 0 <= probability < 1.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"probability of a stall must be 0 to below 1, not {probability!r}")
    pattern = np.random.default_rng(seed).random(length) >= probability
    if not pattern.any():
        pattern[0] = True
    return pattern


def stall_pattern(pattern: Any, name: str) -> NDArray[np.uint8] | None:
    """Check a stall pattern: None, a string of 0 and 1, or an array of truth values."""
    if pattern is None:
        return None
    if isinstance(pattern, str):
        if set(pattern) - {"0", "1"}:
            raise ValueError(f"Stall pattern of {name!r} must consist of 0 and 1, not {pattern!r}")
        pattern = [c == "1" for c in pattern]
    array = np.asarray(pattern)
    if array.ndim != 1 or not array.astype(bool).any():
        raise ValueError(f"Stall pattern of {name!r} must hold at least one 1, or nothing ever "
                         f"moves")
    return np.ascontiguousarray(array.astype(bool), np.uint8)


@dataclass(frozen=True)
class Result:
    """What happened in one run.

    Parameters
    ----------
    outputs
        Raw payloads of every output stream, in the order of transfer.
    times
        Per stream, inputs as well, the int64 cycle number of each transfer.
    signals
        Sampled plain signals: one value per cycle, ``signals[name][c]`` in cycle ``start + c``.
    start, cycles
        Number of the first cycle of this run, and how many it took.
    interface
        The ports.
    """

    outputs: Mapping[str, NDArray]
    times: Mapping[str, NDArray[np.int64]]
    signals: Mapping[str, NDArray]
    start: int
    cycles: int
    interface: Interface

    def values(self, port: str) -> Any:
        """Payloads of an output stream, or samples of a plain signal, unpacked to numbers."""
        if port in self.outputs:
            return unpack(self.interface.streams[port].shape, self.outputs[port])
        return unpack(self.interface.plain[port].shape, self.signals[port])
