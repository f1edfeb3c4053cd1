"""The ``.ese`` file: a compressed network on disk, independent of any engine.

The size of this file *is* the compressed size of the network: codebooks, code tables, biases,
header and all. `docs/ese-format.md` gives every byte. Loading reads numbers and nothing else: no
part of a file is ever executed, and no array is allocated that the file does not account for.
"""

import json
import math
import os
import secrets
import zlib
from dataclasses import dataclass
from operator import index
from pathlib import Path

import numpy as np
from bitarray import bitarray
from numpy.typing import NDArray

from openese.model import gaps, huffman
from openese.model.network import CompressedLinear, CompressedNetwork

__all__ = ["EseFileError", "LayerCoding", "code_layer", "from_bytes", "load", "save",
           "tensor_bytes", "to_bytes"]

MAGIC = b"OESE"
VERSION = 1
# Magic, version, length of the file in 32 bits; at the end the CRC-32 of all before it.
PREFIX, SUFFIX = 9, 4

# Kinds of layers. Recurrent layers will get numbers of their own.
LINEAR = 0

# What a file may ask for, whatever its own size. The largest engine, 256 PEs, holds 2**24 entries.
MAX_ENTRIES = 1 << 24
MAX_FEATURES = 1 << 22
MAX_ELEMENTS = 1 << 31
MAX_BYTES = (1 << 32) - 1

# Bits of the flags of a linear layer; the three above them hold code_bits - 1.
RELU, BIAS, MINUS_ZERO, BY_COLUMN, LINKED = 1, 2, 4, 8, 16


class EseFileError(ValueError):
    """An ``.ese`` file cannot be read or written; one line that says why and what to do."""


# -- public functions -----------------------------------------------------------------------------


def save(path: str | os.PathLike, network: CompressedNetwork) -> int:
    """Write a network to a file; returns the bytes written.

    The file appears whole or not at all: a file that was there stays until the new one is
    complete, and after a failure nothing new is left behind.

    Raises
    ------
    EseFileError
        A network the format cannot hold, or a file that cannot be written.
    """
    name = os.fspath(path)
    try:
        data = to_bytes(network)
    except EseFileError as error:
        raise EseFileError(f"{name}: not written: {error}") from None
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{secrets.token_hex(8)}.ese-part")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise EseFileError(f"{name}: cannot be written ({error.strerror}); choose a file in a "
                           "folder that exists, may be written to and has room") from error
    return len(data)


def load(path: str | os.PathLike) -> CompressedNetwork:
    """Read a network from a file; every array is equal, bit for bit, to the one saved.

    Raises
    ------
    EseFileError
        Not an ``.ese`` file, or one that is damaged, truncated, made by a newer version or cannot
        be read. The text names the file.
    """
    name = os.fspath(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EseFileError(f"{name}: cannot be read ({error.strerror}); check the path") from error
    return from_bytes(data, name)


def to_bytes(network: CompressedNetwork) -> bytes:
    """The contents of the ``.ese`` file of a network.

    Raises ``EseFileError`` for a network the format cannot hold: metadata that is not JSON, sizes
    beyond the limits of the format.
    """
    return b"".join(_parts(network))


def from_bytes(data: bytes, name: str = "the data") -> CompressedNetwork:
    """The network in the contents of an ``.ese`` file; ``name`` is used in error texts.

    Raises ``EseFileError`` as `load` does.
    """
    again = "get the file again or make it anew with `openese compress`"
    if data[:4] != MAGIC:
        raise EseFileError(f"{name}: is not an .ese file; make one with `openese compress`")
    if len(data) < PREFIX + SUFFIX:
        raise EseFileError(f"{name}: is truncated after {len(data)} bytes; {again}")
    if data[4] > VERSION:
        raise EseFileError(f"{name}: has format version {data[4]}, newer than version {VERSION} of "
                           "this openese; update openese")
    if data[4] < VERSION:
        raise EseFileError(f"{name}: has the unknown format version {data[4]}; {again}")
    length = int.from_bytes(data[5:PREFIX], "little")
    if length != len(data):
        what = "is truncated" if len(data) < length else "has bytes after its end"
        raise EseFileError(f"{name}: {what} ({len(data)} bytes where its header says {length}); "
                           f"{again}")
    if zlib.crc32(data[:-SUFFIX]) != int.from_bytes(data[-SUFFIX:], "little"):
        raise EseFileError(f"{name}: is damaged (its checksum is wrong); {again}")
    try:
        return _read_network(_Reader(data[PREFIX:-SUFFIX]))
    except _UnknownKindError as error:
        raise EseFileError(f"{name}: {error}; update openese") from None
    except ValueError as error:
        raise EseFileError(f"{name}: is malformed ({error}); make it anew with "
                           "`openese compress`") from error


def tensor_bytes(network: CompressedNetwork) -> list[dict]:
    """Original and compressed size of every tensor of a network.

    Returns one dict per tensor with the keys ``name``, ``original_bytes`` (as float32) and
    ``bytes`` (in the ``.ese`` file). A weight includes its codebook and code tables. The last row,
    ``"(header)"``, is the rest of the file, so that ``bytes`` add up to the file's size.
    """
    rows = []
    for layer in network.layers:
        coding = code_layer(layer)
        weight = 4 * (len(layer.codebook) - 1) + math.ceil(coding.matrix_bits / 8)
        rows.append({"name": f"{layer.name}.weight",
                     "original_bytes": 4 * layer.in_features * layer.out_features,
                     "bytes": weight})
        if layer.bias is not None:
            # The bits of both share a byte, which is counted as the weight's.
            rows.append({"name": f"{layer.name}.bias", "original_bytes": 4 * layer.out_features,
                         "bytes": coding.bytes - weight})
    rest = len(to_bytes(network)) - sum(row["bytes"] for row in rows)
    return [*rows, {"name": "(header)", "original_bytes": 0, "bytes": rest}]


# -- coding of one layer --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LayerCoding:
    """How a linear layer is coded in the file, every choice made for the smallest size.

    Parameters
    ----------
    by_column
        Whether the matrix is walked column by column (else row by row).
    width
        Gaps of ``2**width`` zeros and more take fillers.
    linked
        Whether a code that follows another without a gap is coded with that one's table.
    fillers
        Fillers in the stream of gaps.
    gap_stream, code_stream, bias_stream
        The coded bits of gaps, codes, and the highest byte of each bias.
    raw
        Bytes stored as they are: the codebook but for its zero, then three bytes of each bias.
    """

    by_column: bool
    width: int
    linked: bool
    fillers: int
    gap_stream: bitarray
    code_stream: bitarray
    bias_stream: bitarray
    raw: bytes

    @property
    def matrix_bits(self) -> int:
        """Size of gaps and codes with their tables."""
        return len(self.gap_stream) + len(self.code_stream)

    @property
    def bytes(self) -> int:
        """Size of weights and biases: all of the layer's record but names and sizes."""
        return len(self.raw) + math.ceil((self.matrix_bits + len(self.bias_stream)) / 8)


def code_layer(layer: CompressedLinear) -> LayerCoding:
    """Code a layer in the smallest way the format offers."""
    rows, columns = layer.row_idx.astype(np.int64), layer.columns
    by_row = rows * layer.in_features + columns
    order = np.argsort(by_row, kind="stable")
    # The arrays of a layer are in column order already.
    walks = [(False, by_row[order], layer.code[order]),
             (True, columns * layer.out_features + rows, layer.code)]
    candidates = []
    for by_column, position, code in walks:
        gap = np.diff(position, prepend=-1) - 1
        width = gaps.best_width(gap)
        gap_stream = gaps.encode_gaps(gap, width)
        code_stream, linked = min(
            ((gaps.encode_codes(code, gap, layer.code_bits, linked), linked)
             for linked in (False, True)), key=lambda choice: len(choice[0]))
        candidates.append((by_column, width, linked, int((gap >> width).sum()), gap_stream,
                           code_stream))
    best = min(candidates, key=lambda choice: len(choice[4]) + len(choice[5]))
    raw, bias_stream = layer.codebook[1:].astype("<f4").tobytes(), bitarray()
    if layer.bias is not None:
        low_bytes, high_byte = _split_bias(layer.bias)
        raw, bias_stream = raw + low_bytes, huffman.encode(high_byte)
    return LayerCoding(*best, bias_stream, raw)


def _split_bias(bias: NDArray[np.float32]) -> tuple[bytes, NDArray[np.uint8]]:
    """The three low bytes of each float32, and the high ones, which alone are worth coding."""
    data = bias.astype("<f4").view(np.uint8).reshape(-1, 4)
    return data[:, :3].tobytes(), data[:, 3]


def _join_bias(low_bytes: bytes, high_byte: NDArray[np.int64]) -> NDArray[np.float32]:
    data = np.empty((len(high_byte), 4), dtype=np.uint8)
    data[:, :3] = np.frombuffer(low_bytes, dtype=np.uint8).reshape(-1, 3)
    data[:, 3] = high_byte
    return data.view("<f4").reshape(-1).astype(np.float32)


# -- writing --------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    """Little-endian base 128, the top bit of each byte saying whether another follows."""
    data = bytearray()
    while value > 0x7F:
        data.append(0x80 | value & 0x7F)
        value >>= 7
    data.append(value)
    return bytes(data)


def _signed(value: int) -> bytes:
    """A small signed number: 0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4 ..."""
    return _varint(2 * value if value >= 0 else -2 * value - 1)


def _integer(value: object, low: int, high: int, what: str) -> int:
    try:
        number = index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise EseFileError(f"{what} must be an integer from {low} to {high}, not {value!r}")
    return number


def _text(text: str, what: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise EseFileError(f"{what} {text!r} has no UTF-8 form; rename it") from None
    return _varint(len(data)) + data


def _meta_text(meta: dict) -> str:
    if not meta:
        return ""
    try:
        text = json.dumps(meta, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        same = json.loads(text) == meta
    except (TypeError, ValueError, RecursionError) as error:
        raise EseFileError(f"meta is not JSON ({error}); use strings and finite numbers") from None
    if not same:
        raise EseFileError("meta does not survive JSON; use strings as keys, and strings and "
                           "finite numbers as values")
    return text


def _linear_body(layer: CompressedLinear) -> bytes:
    what = f"layer {layer.name!r}"
    out_frac = _integer(layer.out_frac, -128, 127, f"{what}: out_frac")
    coding = code_layer(layer)
    flags = (layer.code_bits - 1) << 5
    for bit, is_set in ((RELU, layer.relu), (BIAS, layer.bias is not None),
                        (MINUS_ZERO, np.signbit(layer.codebook[0])),
                        (BY_COLUMN, coding.by_column), (LINKED, coding.linked)):
        flags |= bit if is_set else 0
    streams = coding.gap_stream + coding.code_stream + coding.bias_stream
    return b"".join((
        bytes((flags, coding.width)), _varint(layer.in_features), _varint(layer.out_features),
        _varint(layer.nnz), _signed(out_frac), coding.raw, streams.tobytes()))


def _parts(network: CompressedNetwork) -> list[bytes]:
    _check_sizes((layer.in_features, layer.out_features, layer.nnz) for layer in network.layers)
    parts = [_varint(_integer(network.act_bits, 0, 255, "act_bits")),
             _signed(_integer(network.in_frac, -128, 127, "in_frac")),
             _text(_meta_text(network.meta), "meta"), _varint(len(network.layers))]
    for layer in network.layers:
        body = _linear_body(layer)
        parts += [bytes((LINEAR,)), _text(layer.name, "the layer name"), _varint(len(body)), body]
    length = PREFIX + sum(map(len, parts)) + SUFFIX
    if length > MAX_BYTES:
        raise EseFileError(f"the network takes {length} bytes; an .ese file has at most "
                           f"{MAX_BYTES}")
    parts.insert(0, MAGIC + bytes((VERSION,)) + length.to_bytes(4, "little"))
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return [*parts, checksum.to_bytes(SUFFIX, "little")]


def _check_sizes(sizes) -> None:
    """Refuse what would need far more memory than any engine or honest file."""
    entries = features = 0
    for columns, rows, nnz in sizes:
        entries, features = entries + nnz, features + columns + rows
        if columns * rows > MAX_ELEMENTS:
            raise EseFileError(f"a matrix of {rows} x {columns} is too large; an .ese file holds "
                               f"matrices of at most {MAX_ELEMENTS} elements")
        if entries > MAX_ENTRIES:
            raise EseFileError(f"more than {MAX_ENTRIES} stored weights are too many for an .ese "
                               "file; prune more")
        if features > MAX_FEATURES:
            raise EseFileError(f"more than {MAX_FEATURES} inputs and outputs of all layers "
                               "together are too many for an .ese file")


# -- reading --------------------------------------------------------------------------------------


class _UnknownKindError(ValueError):
    pass


class _Reader:
    """Takes bytes from the front, never more than there are."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pos = 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._pos:
            raise ValueError("a part is longer than what it lies in")
        self._pos += count
        return self._data[self._pos - count:self._pos]

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._pos)

    def varint(self, most: int = MAX_BYTES) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 28:
                raise ValueError("a number is too long")
        if value > most:
            raise ValueError(f"the number {value} is above its limit {most}")
        return value

    def signed(self) -> int:
        value = self.varint(255)
        return -(value + 1 >> 1) if value & 1 else value >> 1

    def text(self) -> str:
        return self.take(self.varint()).decode()


def _read_network(reader: _Reader) -> CompressedNetwork:
    act_bits, in_frac, meta_text = reader.varint(255), reader.signed(), reader.text()
    try:
        meta = json.loads(meta_text) if meta_text else {}
    except RecursionError:
        raise ValueError("meta is nested too deeply") from None
    if not isinstance(meta, dict):
        raise ValueError("meta is not an object")
    # JSON in Python reads more than it may write: infinities, halves of surrogate pairs.
    _text(_meta_text(meta), "meta")
    sizes, layers = [], []
    for number in range(1, reader.varint() + 1):
        kind, name = reader.take(1)[0], reader.text()
        if kind != LINEAR:
            raise _UnknownKindError(f"layer {number} ({name!r}) is of kind {kind}, which this "
                                    "openese does not know")
        body = _Reader(reader.take(reader.varint()))
        layers.append(_read_linear(body, name, sizes))
    if reader.rest():
        raise ValueError("bytes follow the last layer")
    return CompressedNetwork(layers, in_frac, act_bits, meta)


def _read_linear(reader: _Reader, name: str, sizes: list) -> CompressedLinear:
    flags, width = reader.take(2)
    code_bits = (flags >> 5) + 1
    columns, rows = reader.varint(MAX_FEATURES), reader.varint(MAX_FEATURES)
    elements = columns * rows
    nnz, out_frac = reader.varint(elements), reader.signed()
    if width > gaps.MAX_WIDTH:
        raise ValueError(f"layer {name!r}: the gap width {width} is above {gaps.MAX_WIDTH}")
    sizes.append((columns, rows, nnz))
    _check_sizes(sizes)
    codebook = np.zeros(1 << code_bits, dtype=np.float32)
    codebook[1:] = np.frombuffer(reader.take(4 * (len(codebook) - 1)), dtype="<f4")
    if flags & MINUS_ZERO:
        codebook[0] = -0.0
    bias_bytes = reader.take(3 * rows) if flags & BIAS else None

    bits = bitarray(endian="big")
    bits.frombytes(reader.rest())
    gap, pos = gaps.decode_gaps(bits, 0, width, nnz)
    code, pos = gaps.decode_codes(bits, pos, gap, code_bits, bool(flags & LINKED))
    bias = None
    if bias_bytes is not None:
        high_byte, pos = huffman.decode(bits, pos, max_symbol=255, max_repeats=rows)
        if len(high_byte) != rows:
            raise ValueError(f"layer {name!r}: the biases are not those of {rows} outputs")
        bias = _join_bias(bias_bytes, high_byte)
    if len(bits) - pos > 7 or bits[pos:].any():
        raise ValueError(f"layer {name!r}: something follows its last stream")

    position = np.cumsum(gap + 1) - 1
    if nnz and position[-1] >= elements:
        raise ValueError(f"layer {name!r}: an entry lies outside the {rows} x {columns} matrix")
    if flags & BY_COLUMN:
        column, row = np.divmod(position, max(1, rows))
    else:
        row, column = np.divmod(position, max(1, columns))
        order = np.argsort(column, kind="stable")
        row, column, code = row[order], column[order], code[order]
    col_ptr = np.zeros(columns + 1, dtype=np.int64)
    np.cumsum(np.bincount(column, minlength=columns), out=col_ptr[1:])
    return CompressedLinear(name, columns, rows, col_ptr, row, code, codebook, bias,
                            relu=bool(flags & RELU), out_frac=out_frac)
