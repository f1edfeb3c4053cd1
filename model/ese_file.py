"""The ``.ese`` file: a compressed network or model on disk, independent of any engine.

The size of this file *is* the compressed size of the network: codebooks, code tables, biases,
header and all. `docs/ese-format.md` gives every byte. Loading reads numbers and nothing else: no
part of a file is ever executed, and no array is allocated that the file does not account for.
"""

import json
import math
import os
import secrets
import zlib
from dataclasses import dataclass, replace
from math import prod
from operator import index
from pathlib import Path

import numpy as np
from bitarray import bitarray
from numpy.typing import NDArray

from openese.model import gaps, huffman
from openese.model.matrix import CompressedMatrix, FixedMatrix, SharedColumns, SparseColumns
from openese.model.network import (
    CELL_GATES,
    CompressedBidirectional,
    CompressedLayer,
    CompressedLinear,
    CompressedNetwork,
    CompressedRecurrent,
)
from openese.model.state import DTYPES, CompressedModel, CompressedTensor, DenseTensor

__all__ = ["ArrayCoding", "EseFileError", "MatrixCoding", "code_array", "code_bias", "code_matrix",
           "from_bytes", "layer_bytes", "load", "one_way", "repeated", "save", "tensor_bytes",
           "to_bytes"]

MAGIC = b"OESE"
VERSION = 1
# Magic, version, length of the file in 32 bits; at the end the CRC-32 of all before it.
PREFIX, SUFFIX = 9, 4

# Kinds of records. Layers make a network, tensors a model; a file holds one of the two.
LINEAR, SHARED, FIXED, DENSE, SAME, RECURRENT, BIDIRECTIONAL = range(7)
LAYERS = {LINEAR, RECURRENT, BIDIRECTIONAL}

# What a file may ask for, whatever its own size. EIE's 64 PEs hold 2**23 entries.
MAX_ENTRIES = 1 << 24
MAX_FEATURES = 1 << 22
MAX_ELEMENTS = 1 << 31
MAX_BYTES = (1 << 32) - 1

MAX_DIMENSIONS = 32

# Bits of the flags of a matrix; the three above them hold code_bits - 1. The first two are those
# of linear layers.
RELU, BIAS, MINUS_ZERO, BY_COLUMN, LINKED = 1, 2, 4, 8, 16
# In the width of a linear layer's gaps: its bias is coded as an array of any kind is. Without it,
# the planes of `BIAS_PLANES` are coded and the others are not.
ANY_BIAS, BIAS_PLANES = 16, 0b1000
# In the width of any matrix's gaps: the walk leaves out rows and columns without weights.
SQUEEZED = 32
# In the first byte of a recurrent layer: the number of its cell, and what it has.
CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
CELL, HAS_BIAS, HAS_PEEPHOLE, HAS_PROJECTION = 3, 4, 8, 16


class EseFileError(ValueError):
    """An ``.ese`` file cannot be read or written; one line that says why and what to do."""


# -- public functions -----------------------------------------------------------------------------


def save(path: str | os.PathLike, network: CompressedNetwork | CompressedModel) -> int:
    """Write a network or model to a file; returns the bytes written.

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


def load(path: str | os.PathLike) -> CompressedNetwork | CompressedModel:
    """Read a network or model from a file; every array equals the one saved, bit for bit.

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


def to_bytes(network: CompressedNetwork | CompressedModel) -> bytes:
    """The contents of the ``.ese`` file of a network or model.

    Raises ``EseFileError`` for a network the format cannot hold: metadata that is not JSON, sizes
    beyond the limits of the format.
    """
    return b"".join(_parts(network))


def from_bytes(data: bytes, name: str = "the data") -> CompressedNetwork | CompressedModel:
    """The network or model in the contents of an ``.ese`` file; ``name`` is used in error texts.

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
        return _read_file(_Reader(data[PREFIX:-SUFFIX]))
    except _UnknownKindError as error:
        raise EseFileError(f"{name}: {error}; update openese") from None
    except ValueError as error:
        raise EseFileError(f"{name}: is malformed ({error}); make it anew with "
                           "`openese compress`") from error


def tensor_bytes(network: CompressedNetwork | CompressedModel) -> list[dict]:
    """Original and compressed size of every tensor of a network or model.

    Returns one dict per tensor with the keys ``name``, ``original_bytes`` (as float32; dense
    tensors of other types in their own) and ``bytes`` (in the ``.ese`` file). A weight includes
    its codebook and code tables. A tensor that repeats another (tied weights) counts nothing in
    either. The last row, ``"(header)"``, is the rest of the file, so that ``bytes`` add up to the
    file's size.
    """
    if isinstance(network, CompressedModel):
        rows = _model_tensor_bytes(network)
    else:
        rows = _network_tensor_bytes(network)
    rest = len(to_bytes(network)) - sum(row["bytes"] for row in rows)
    return [*rows, {"name": "(header)", "original_bytes": 0, "bytes": rest}]


def _network_tensor_bytes(network: CompressedNetwork) -> list[dict]:
    rows = []
    for layer in one_way(network):
        for name, size in layer_bytes(layer).items():
            if name == "weight":
                original = 4 * layer.rows * layer.cols
            elif name.startswith("weight"):
                original = 4 * layer.matrices[name].rows * layer.matrices[name].cols
            else:
                original = 4 * getattr(layer, name).size
            rows.append({"name": f"{layer.name}.{name}", "original_bytes": original, "bytes": size})
    return rows


def one_way(network: CompressedNetwork) -> list[CompressedLinear | CompressedRecurrent]:
    """The layers of a network, of bidirectional ones the layers of both directions."""
    return [way for layer in network.layers
            for way in ((layer.ahead, layer.back) if isinstance(layer, CompressedBidirectional)
                        else (layer,))]


def layer_bytes(layer: CompressedLinear | CompressedRecurrent) -> dict[str, int]:
    """Bytes of every tensor of a layer: all of its record but names, sizes and choices.

    Keys are ``weight`` and ``bias``; of a recurrent layer ``weight_ih``, ``weight_hh``,
    ``weight_hr``, ``bias`` and ``peephole``. What a layer does not have is left out.
    """
    if isinstance(layer, CompressedLinear):
        matrix = code_matrix(layer)
        parts = [("weight", len(matrix.raw), matrix.bits)]
        if layer.bias is not None:
            bias = code_bias(layer.bias)
            head = 0 if bias.planes == BIAS_PLANES else len(bias.head)
            parts.append(("bias", head + len(bias.raw), len(bias.stream)))
    else:
        parts = [(part.name, len(part.raw), len(part.stream)) for part in _recurrent_parts(layer)]
    sizes, bits = {}, 0
    for name, raw, stream in parts:
        # A byte that two streams share is counted as the first one's.
        sizes[name] = raw + math.ceil((bits + stream) / 8) - math.ceil(bits / 8)
        bits += stream
    return sizes


def _model_tensor_bytes(model: CompressedModel) -> list[dict]:
    rows = []
    for tensor, repeats in zip(model.tensors, repeated(model), strict=True):
        if repeats:
            original = size = 0
        elif isinstance(tensor, DenseTensor):
            original, size = tensor.values.nbytes, code_array(tensor.values).bytes
        else:
            original, size = 4 * prod(tensor.shape), code_matrix(tensor.matrix).bytes
        rows.append({"name": tensor.name, "original_bytes": original, "bytes": size})
    return rows


def repeated(model: CompressedModel) -> list[bool]:
    """Whether a tensor is stored as a repetition of one before it, for every tensor."""
    return [kind == SAME for kind, *_ in _records(model)]


# -- coding of a matrix ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MatrixCoding:
    """How a matrix is coded in the file, every choice made for the smallest size.

    Parameters
    ----------
    by_column
        Whether the matrix is walked column by column (else row by row).
    squeezed
        Whether rows and columns without weights are left out of the walk.
    width
        Gaps of ``2**width`` zeros and more take fillers.
    linked
        Whether a code that follows another without a gap is coded with that one's table.
    low_bits
        Lowest bits of fixed-point weights that are stored as they are; 0 for codes.
    fillers
        Fillers in the stream of gaps.
    gap_stream, code_stream
        The coded bits of gaps, after those of the columns and rows used if the walk is squeezed,
        and of codes or fixed-point weights.
    raw
        Bytes stored as they are: the codebook but for its zero.
    """

    by_column: bool
    squeezed: bool
    width: int
    linked: bool
    low_bits: int
    fillers: int
    gap_stream: bitarray
    code_stream: bitarray
    raw: bytes

    @property
    def bits(self) -> int:
        """Size of gaps and codes with their tables."""
        return len(self.gap_stream) + len(self.code_stream)

    @property
    def bytes(self) -> int:
        """Size of the weights: all of the record but names, sizes and what shares it."""
        return len(self.raw) + math.ceil(self.bits / 8)


def code_matrix(matrix: SparseColumns) -> MatrixCoding:
    """Code a matrix (or a layer's) in the smallest way the format offers."""
    shared = isinstance(matrix, SharedColumns)
    entries = matrix.code if shared else matrix.raw.astype(np.int64) + (1 << (matrix.bits - 1))
    low_bits = 0 if shared else gaps.best_low_bits(entries, matrix.bits)
    order = np.argsort(matrix.row_idx, kind="stable")
    candidates = []
    # Entries are in column order already.
    for by_column, entry in ((False, entries[order]), (True, entries)):
        squeezed, gap, gap_stream = min(
            (_code_gaps(matrix, None if by_column else order, squeezed)
             for squeezed in (False, True)), key=lambda choice: len(choice[2]))
        width = gaps.best_width(gap)
        if shared:
            code_stream, linked = min(
                ((gaps.encode_codes(entry, gap, matrix.code_bits, linked), linked)
                 for linked in (False, True)), key=lambda choice: len(choice[0]))
        else:
            code_stream, linked = gaps.encode_fixed(entry, low_bits), False
        candidates.append((by_column, squeezed, width, linked, low_bits,
                           int((gap >> width).sum()), gap_stream, code_stream))
    best = min(candidates, key=lambda choice: len(choice[6]) + len(choice[7]))
    return MatrixCoding(*best, matrix.codebook[1:].astype("<f4").tobytes() if shared else b"")


def _code_gaps(matrix: SparseColumns, order: NDArray[np.int64] | None, squeezed: bool
               ) -> tuple[bool, NDArray[np.int64], bitarray]:
    """The gaps of a walk and their streams: by column, or by row where entries are put in order."""
    row, column = matrix.row_idx.astype(np.int64), matrix.columns
    rows, cols, stream = matrix.rows, matrix.cols, bitarray()
    if squeezed:
        for_columns, column = gaps.squeeze(column, cols)
        for_rows, row = gaps.squeeze(row, rows)
        rows, cols = len(for_rows), len(for_columns)
        stream += huffman.encode(for_columns) + huffman.encode(for_rows)
    position = column * rows + row if order is None else (row * cols + column)[order]
    gap = np.diff(position, prepend=-1) - 1
    return squeezed, gap, stream + gaps.encode_gaps(gap, gaps.best_width(gap))


# -- coding of an array ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ArrayCoding:
    """How a dense array is coded: as planes of bytes, or as its distinct values.

    Parameters
    ----------
    planes
        Bit ``i`` says that byte ``i`` of all elements (0 is the lowest) is Huffman-coded, byte
        after byte; the others are stored as they are, element after element. ``None``: the
        distinct values are stored and the elements are numbers of them.
    distinct
        How many distinct values; 0 for planes.
    raw
        What is stored as it is.
    stream
        Coded bits.
    """

    planes: int | None
    distinct: int
    raw: bytes
    stream: bitarray

    @property
    def head(self) -> bytes:
        """What a file says of these choices."""
        return (b"\1" + _varint(self.distinct) if self.planes is None
                else bytes((0, self.planes)))

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return len(self.head) + len(self.raw) + math.ceil(len(self.stream) / 8)


def code_array(array: NDArray) -> ArrayCoding:
    """Code an array in the smallest way the format offers."""
    data = _element_bytes(array)
    planes = 0
    for plane, column in enumerate(data.T):
        if huffman.stream_bits(np.bincount(column, minlength=256)) < 8 * len(data):
            planes |= 1 << plane
    coding = _code_planes(data, planes)
    words = data.reshape(-1).view(f"<u{data.shape[1]}")
    values, number, counts = np.unique(words, return_inverse=True, return_counts=True)
    if len(values) <= 1 << huffman.MAX_LENGTH:
        bits = 8 * values.nbytes + huffman.stream_bits(counts)
        if bits < 8 * len(coding.raw) + len(coding.stream):
            coding = ArrayCoding(None, len(values), values.tobytes(), huffman.encode(number))
    return coding


def code_bias(bias: NDArray[np.float32]) -> ArrayCoding:
    """Code the bias of a linear layer in the smallest way the format offers."""
    usual = _usual_bias(bias)
    other = code_array(bias)
    return usual if usual.bytes - len(usual.head) <= other.bytes else other


def _usual_bias(bias: NDArray[np.float32]) -> ArrayCoding:
    """The bytes with sign and exponent coded, which alone are worth it where all biases differ."""
    return _code_planes(_element_bytes(bias), BIAS_PLANES)


def _element_bytes(array: NDArray) -> NDArray[np.uint8]:
    """Bytes of every element, ``(size, itemsize)``, the lowest first."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.astype(flat.dtype.newbyteorder("<")).view(np.uint8).reshape(
        len(flat), flat.dtype.itemsize)


def _code_planes(data: NDArray[np.uint8], planes: int) -> ArrayCoding:
    coded = [i for i in range(data.shape[1]) if planes >> i & 1]
    stored = [i for i in range(data.shape[1]) if not planes >> i & 1]
    stream = bitarray()
    for plane in coded:
        stream += huffman.encode(data[:, plane])
    return ArrayCoding(planes, 0, data[:, stored].tobytes(), stream)


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


def _matrix_flags(matrix: SparseColumns, coding: MatrixCoding) -> int:
    flags = (BY_COLUMN if coding.by_column else 0) | (LINKED if coding.linked else 0)
    if isinstance(matrix, SharedColumns):
        flags |= (matrix.code_bits - 1) << 5
        flags |= MINUS_ZERO if np.signbit(matrix.codebook[0]) else 0
    return flags


def _width_byte(coding: MatrixCoding) -> int:
    return coding.width | (SQUEEZED if coding.squeezed else 0)


def _linear_body(layer: CompressedLinear) -> bytes:
    what = f"layer {layer.name!r}"
    out_frac = _integer(layer.out_frac, -128, 127, f"{what}: out_frac")
    coding = code_matrix(layer)
    flags, width = _matrix_flags(layer, coding), _width_byte(coding)
    streams, bias_bytes = coding.gap_stream + coding.code_stream, b""
    flags |= RELU if layer.relu else 0
    if layer.bias is not None:
        flags |= BIAS
        bias = code_bias(layer.bias)
        bias_bytes, streams = bias.raw, streams + bias.stream
        if bias.planes != BIAS_PLANES:
            width |= ANY_BIAS
            bias_bytes = bias.head + bias_bytes
    return b"".join((
        bytes((flags, width)), _varint(layer.in_features), _varint(layer.out_features),
        _varint(layer.nnz), _signed(out_frac), coding.raw, bias_bytes, streams.tobytes()))


def _matrix_numbers(matrix: SparseColumns, coding: MatrixCoding) -> bytes:
    """What a reader needs before the streams of a matrix, besides its head."""
    if isinstance(matrix, FixedMatrix):
        return bytes((matrix.bits, coding.low_bits)) + _signed(matrix.frac)
    return coding.raw


def _matrix_kind(matrix: SparseColumns) -> int:
    return FIXED if isinstance(matrix, FixedMatrix) else SHARED


@dataclass(frozen=True, eq=False)
class _Part:
    """A tensor of a recurrent layer: what says how it is coded, what is stored, and its streams."""

    name: str
    head: bytes
    raw: bytes
    stream: bitarray


def _recurrent_parts(layer: CompressedRecurrent) -> list[_Part]:
    parts = []
    for name, matrix in layer.matrices.items():
        coding = code_matrix(matrix)
        head = bytes((_matrix_kind(matrix), _matrix_flags(matrix, coding), _width_byte(coding)))
        parts.append(_Part(name, head + _varint(matrix.nnz), _matrix_numbers(matrix, coding),
                           coding.gap_stream + coding.code_stream))
    for name in ("bias", "peephole"):
        if getattr(layer, name) is not None:
            array = code_array(getattr(layer, name))
            parts.append(_Part(name, array.head, array.raw, array.stream))
    return parts


def _recurrent_body(layer: CompressedRecurrent) -> bytes:
    what = f"layer {layer.name!r}"
    cell = CELLS.index(layer.cell)
    cell |= HAS_BIAS if layer.bias is not None else 0
    cell |= HAS_PEEPHOLE if layer.peephole is not None else 0
    cell |= HAS_PROJECTION if layer.w_hr is not None else 0
    sizes = [layer.input_size, layer.hidden_size]
    sizes += [] if layer.w_hr is None else [layer.out_features]
    fracs = [_signed(_integer(getattr(layer, name), -128, 127, f"{what}: {name}"))
             for name in ("out_frac", "cell_frac")]
    parts = _recurrent_parts(layer)
    streams = bitarray()
    for part in parts:
        streams += part.stream
    return b"".join((bytes((cell,)), *map(_varint, sizes), *fracs,
                     *(part.head + part.raw for part in parts), streams.tobytes()))


def _layer_record(layer: CompressedLayer) -> tuple[int, str, bytes]:
    """Kind, name and body of the record of a layer."""
    if isinstance(layer, CompressedLinear):
        return LINEAR, layer.name, _linear_body(layer)
    if isinstance(layer, CompressedRecurrent):
        return RECURRENT, layer.name, _recurrent_body(layer)
    ahead, back = _recurrent_body(layer.ahead), _recurrent_body(layer.back)
    return BIDIRECTIONAL, layer.name, b"".join((
        _text(layer.back.name, "the layer name"), _varint(len(ahead)), ahead, back))


def _tensor_record(tensor: CompressedTensor | DenseTensor) -> tuple[int, bytes]:
    """Kind and body of the record of a tensor."""
    what = f"tensor {tensor.name!r}"
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise EseFileError(f"{what}: has {len(tensor.shape)} dimensions; an .ese file holds at "
                           f"most {MAX_DIMENSIONS}")
    shape = bytes((len(tensor.shape),)) + b"".join(map(_varint, tensor.shape))
    if isinstance(tensor, DenseTensor):
        coding = code_array(tensor.values)
        return DENSE, b"".join((bytes((DTYPES.index(tensor.values.dtype),)), shape, coding.head,
                                coding.raw, coding.stream.tobytes()))
    matrix = tensor.matrix
    coding = code_matrix(matrix)
    head = bytes((_matrix_flags(matrix, coding), _width_byte(coding))) + shape + _varint(matrix.nnz)
    streams = (coding.gap_stream + coding.code_stream).tobytes()
    return _matrix_kind(matrix), head + _matrix_numbers(matrix, coding) + streams


def _records(network: CompressedNetwork | CompressedModel) -> list[tuple[int, str, bytes]]:
    """Kind, name and body of every record."""
    if isinstance(network, CompressedNetwork):
        _check_sizes((matrix.cols, matrix.rows, matrix.nnz) for layer in one_way(network)
                     for matrix in ((layer,) if isinstance(layer, CompressedLinear)
                                    else layer.matrices.values()))
        return [_layer_record(layer) for layer in network.layers]
    _check_sizes(map(_tensor_size, network.tensors))
    records, seen = [], {}
    for number, tensor in enumerate(network.tensors):
        record = _tensor_record(tensor)
        first = seen.setdefault(record, number)
        if first < number and len(record[1]) > len(_varint(first)):
            record = SAME, _varint(first)
        records.append((record[0], tensor.name, record[1]))
    return records


def _tensor_size(tensor: CompressedTensor | DenseTensor) -> tuple[int, int, int]:
    if isinstance(tensor, DenseTensor):
        return 0, 0, prod(tensor.shape)
    return tensor.matrix.cols, tensor.matrix.rows, tensor.matrix.nnz


def _parts(network: CompressedNetwork | CompressedModel) -> list[bytes]:
    chain = isinstance(network, CompressedNetwork)
    records = _records(network)
    parts = [_varint(_integer(network.act_bits, 0, 255, "act_bits") if chain else 0),
             _signed(_integer(network.in_frac, -128, 127, "in_frac") if chain else 0),
             _text(_meta_text(network.meta), "meta"), _varint(len(records))]
    what = "the layer name" if chain else "the tensor name"
    for kind, name, body in records:
        parts += [bytes((kind,)), _text(name, what), _varint(len(body)), body]
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
            raise EseFileError(f"more than {MAX_ENTRIES} stored weights and elements of dense "
                               "tensors are too many for an .ese file; prune more")
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


def _read_file(reader: _Reader) -> CompressedNetwork | CompressedModel:
    act_bits, in_frac, meta_text = reader.varint(255), reader.signed(), reader.text()
    try:
        meta = json.loads(meta_text) if meta_text else {}
    except RecursionError:
        raise ValueError("meta is nested too deeply") from None
    if not isinstance(meta, dict):
        raise ValueError("meta is not an object")
    # JSON in Python reads more than it may write: infinities, halves of surrogate pairs.
    _text(_meta_text(meta), "meta")
    sizes, items, kinds = [], [], set()
    for number in range(1, reader.varint() + 1):
        kind, name = reader.take(1)[0], reader.text()
        if kind not in _READERS:
            raise _UnknownKindError(f"layer {number} ({name!r}) is of kind {kind}, which this "
                                    "openese does not know")
        kinds.add(kind)
        body = _Reader(reader.take(reader.varint()))
        items.append(_READERS[kind](body, name, sizes, items))
    if reader.rest():
        raise ValueError("bytes follow the last layer")
    if kinds <= LAYERS:
        return CompressedNetwork(items, in_frac, act_bits, meta)
    if kinds & LAYERS or act_bits or in_frac:
        raise ValueError("it is neither a network nor a model but a mixture")
    return CompressedModel(items, meta)


@dataclass
class _Head:
    """What comes before the streams of a matrix."""

    what: str
    flags: int
    width_byte: int
    columns: int
    rows: int
    nnz: int

    @property
    def width(self) -> int:
        return self.width_byte & ~SQUEEZED

    def check(self, sizes: list) -> None:
        if self.width > gaps.MAX_WIDTH:
            raise ValueError(f"{self.what}: the gap width {self.width} is above {gaps.MAX_WIDTH}")
        sizes.append((self.columns, self.rows, self.nnz))
        _check_sizes(sizes)

    def codebook(self, reader: _Reader) -> NDArray[np.float32]:
        codebook = np.zeros(1 << self.code_bits, dtype=np.float32)
        codebook[1:] = np.frombuffer(reader.take(4 * (len(codebook) - 1)), dtype="<f4")
        if self.flags & MINUS_ZERO:
            codebook[0] = -0.0
        return codebook

    @property
    def code_bits(self) -> int:
        return (self.flags >> 5) + 1

    def read_gaps(self, bits: bitarray, pos: int) -> tuple["_Walk", int]:
        """The walk of the matrix, and the position behind the streams of its gaps."""
        columns = rows = None
        if self.width_byte & SQUEEZED:
            columns, pos = gaps.decode_used(bits, pos, self.columns)
            rows, pos = gaps.decode_used(bits, pos, self.rows)
        gap, pos = gaps.decode_gaps(bits, pos, self.width, self.nnz)
        return _Walk(self, gap, columns, rows), pos


@dataclass
class _Walk:
    """Where the entries of a matrix are, in the order of the file."""

    head: _Head
    gap: NDArray[np.int64]
    columns: NDArray[np.int64] | None
    rows: NDArray[np.int64] | None

    def by_columns(self, entries: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Column pointers, rows and entries, column by column."""
        head = self.head
        cols = head.columns if self.columns is None else len(self.columns)
        rows = head.rows if self.rows is None else len(self.rows)
        position = np.cumsum(self.gap + 1) - 1
        if head.nnz and position[-1] >= cols * rows:
            raise ValueError(f"{head.what}: an entry lies outside the {rows} x {cols} matrix")
        if head.flags & BY_COLUMN:
            column, row = np.divmod(position, max(1, rows))
        else:
            row, column = np.divmod(position, max(1, cols))
            order = np.argsort(column, kind="stable")
            row, column, entries = row[order], column[order], entries[order]
        if self.columns is not None:
            row, column = self.rows[row], self.columns[column]
        col_ptr = np.zeros(head.columns + 1, dtype=np.int64)
        np.cumsum(np.bincount(column, minlength=head.columns), out=col_ptr[1:])
        return col_ptr, row, entries


def _bits(reader: _Reader) -> bitarray:
    """The streams, which are the rest of a body."""
    bits = bitarray(endian="big")
    bits.frombytes(reader.rest())
    return bits


def _check_end(bits: bitarray, pos: int, what: str) -> None:
    if len(bits) - pos > 7 or bits[pos:].any():
        raise ValueError(f"{what}: something follows its last stream")


class _MatrixReader:
    """Reads a matrix in two steps: what stands before the streams, then the streams."""

    def __init__(self, reader: _Reader, head: _Head, kind: int) -> None:
        self._head, self._kind = head, kind
        if kind == FIXED:
            self._bits, self._low_bits = reader.take(2)
            self._frac = reader.signed()
            if not self._low_bits < self._bits <= 16:
                raise ValueError(f"{head.what}: weights of {self._bits} bits cannot have "
                                 f"{self._low_bits} low ones")
        else:
            self.codebook = head.codebook(reader)

    def read_streams(self, bits: bitarray, pos: int) -> tuple[tuple, int]:
        """Column pointers, rows and entries, and the position behind their streams."""
        head = self._head
        walk, pos = head.read_gaps(bits, pos)
        if self._kind == FIXED:
            entry, pos = gaps.decode_fixed(bits, pos, head.nnz, self._bits, self._low_bits)
            return walk.by_columns(entry - (1 << (self._bits - 1))), pos
        code, pos = gaps.decode_codes(bits, pos, walk.gap, head.code_bits,
                                      bool(head.flags & LINKED))
        return walk.by_columns(code), pos

    def read_matrix(self, bits: bitarray, pos: int) -> tuple[CompressedMatrix | FixedMatrix, int]:
        """The matrix and the position behind its streams."""
        columns, pos = self.read_streams(bits, pos)
        size = self._head.rows, self._head.columns
        if self._kind == FIXED:
            return FixedMatrix(*size, *columns, self._bits, self._frac), pos
        return CompressedMatrix(*size, *columns, self.codebook), pos


# The flags that a matrix may have where it is no layer.
MATRIX_FLAGS = {SHARED: 0xE0 | MINUS_ZERO | BY_COLUMN | LINKED, FIXED: BY_COLUMN}


def _check_flags(what: str, flags: int, kind: int) -> None:
    if flags & ~MATRIX_FLAGS[kind]:
        raise ValueError(f"{what}: has the unknown flags {flags & ~MATRIX_FLAGS[kind]}")


def _read_linear(reader: _Reader, name: str, sizes: list, _: list) -> CompressedLinear:
    what = f"layer {name!r}"
    flags, width = reader.take(2)
    columns, rows = reader.varint(MAX_FEATURES), reader.varint(MAX_FEATURES)
    nnz, out_frac = reader.varint(columns * rows), reader.signed()
    has_bias, any_bias = bool(flags & BIAS), bool(width & ANY_BIAS)
    if any_bias and not has_bias:
        raise ValueError(f"{what}: describes a bias that it does not have")
    head = _Head(what, flags, width & ~ANY_BIAS, columns, rows, nnz)
    head.check(sizes)
    matrix = _MatrixReader(reader, head, SHARED)
    if has_bias:
        array = _ArrayReader(what, reader, rows, 4, None if any_bias else BIAS_PLANES)
    bits = _bits(reader)
    entries, pos = matrix.read_streams(bits, 0)
    bias = None
    if has_bias:
        bias, pos = array.read_floats(bits, pos)
    _check_end(bits, pos, what)
    return CompressedLinear(name, columns, rows, *entries, matrix.codebook, bias,
                            relu=bool(flags & RELU), out_frac=out_frac)


def _read_recurrent(reader: _Reader, name: str, sizes: list, _: list) -> CompressedRecurrent:
    what = f"layer {name!r}"
    cell = reader.take(1)[0]
    if cell >> 5:
        raise ValueError(f"{what}: has the unknown flags {cell >> 5 << 5}")
    columns, units = reader.varint(MAX_FEATURES), reader.varint(MAX_FEATURES)
    outputs = reader.varint(MAX_FEATURES) if cell & HAS_PROJECTION else units
    out_frac, cell_frac = reader.signed(), reader.signed()
    kind = CELLS[cell & CELL]
    gates, slots = CELL_GATES[kind], 4 if kind == "gru" else CELL_GATES[kind]
    shapes = [(gates * units, columns), (gates * units, outputs)]
    shapes += [(outputs, units)] if cell & HAS_PROJECTION else []
    readers = [_read_part_head(reader, what, shape, sizes) for shape in shapes]
    bias = _ArrayReader(what, reader, slots * units, 4, None) if cell & HAS_BIAS else None
    peephole = _ArrayReader(what, reader, 3 * units, 4, None) if cell & HAS_PEEPHOLE else None
    bits, pos, matrices = _bits(reader), 0, []
    for part in readers:
        matrix, pos = part.read_matrix(bits, pos)
        matrices.append(matrix)
    if bias is not None:
        bias, pos = bias.read_floats(bits, pos)
    if peephole is not None:
        peephole, pos = peephole.read_floats(bits, pos)
        peephole = peephole.reshape(3, units)
    _check_end(bits, pos, what)
    w_hr = matrices[2] if cell & HAS_PROJECTION else None
    return CompressedRecurrent(name, kind, columns, units, matrices[0], matrices[1], w_hr, bias,
                               peephole, out_frac, cell_frac)


def _read_part_head(reader: _Reader, what: str, shape: tuple[int, int], sizes: list
                    ) -> _MatrixReader:
    rows, columns = shape
    kind, flags, width = reader.take(3)
    if kind not in MATRIX_FLAGS:
        raise ValueError(f"{what}: has a matrix of the unknown kind {kind}")
    _check_flags(what, flags, kind)
    head = _Head(what, flags, width, columns, rows, reader.varint(rows * columns))
    head.check(sizes)
    return _MatrixReader(reader, head, kind)


def _read_bidirectional(reader: _Reader, name: str, sizes: list, items: list
                        ) -> CompressedBidirectional:
    back = reader.text()
    body = _Reader(reader.take(reader.varint()))
    return CompressedBidirectional(_read_recurrent(body, name, sizes, items),
                                   _read_recurrent(reader, back, sizes, items))


def _read_shape(reader: _Reader, what: str) -> tuple[int, ...]:
    dimensions = reader.take(1)[0]
    if dimensions > MAX_DIMENSIONS:
        raise ValueError(f"{what}: {dimensions} dimensions are more than {MAX_DIMENSIONS}")
    return tuple(reader.varint() for _ in range(dimensions))


def _read_matrix(reader: _Reader, name: str, sizes: list, kind: int) -> CompressedTensor:
    what = f"tensor {name!r}"
    flags, width = reader.take(2)
    _check_flags(what, flags, kind)
    shape = _read_shape(reader, what)
    rows, columns = (shape[0], prod(shape[1:])) if shape else (0, 0)
    if max(rows, columns) > MAX_FEATURES:
        raise ValueError(f"{what}: a matrix of {rows} x {columns} is too large")
    head = _Head(what, flags, width, columns, rows, reader.varint(rows * columns))
    head.check(sizes)
    parts = _MatrixReader(reader, head, kind)
    bits = _bits(reader)
    matrix, pos = parts.read_matrix(bits, 0)
    _check_end(bits, pos, what)
    return CompressedTensor(name, shape, matrix)


def _read_shared(reader: _Reader, name: str, sizes: list, _: list) -> CompressedTensor:
    return _read_matrix(reader, name, sizes, SHARED)


def _read_fixed(reader: _Reader, name: str, sizes: list, _: list) -> CompressedTensor:
    return _read_matrix(reader, name, sizes, FIXED)


def _read_dense(reader: _Reader, name: str, sizes: list, _: list) -> DenseTensor:
    what = f"tensor {name!r}"
    number = reader.take(1)[0]
    if number >= len(DTYPES):
        raise ValueError(f"{what}: has the unknown type {number}")
    dtype, shape = DTYPES[number], _read_shape(reader, what)
    sizes.append((0, 0, prod(shape)))
    _check_sizes(sizes)
    array = _ArrayReader(what, reader, prod(shape), dtype.itemsize, None)
    bits = _bits(reader)
    data, pos = array.read_streams(bits, 0)
    _check_end(bits, pos, what)
    if dtype == np.bool_ and data.size and data.max() > 1:
        raise ValueError(f"{what}: has a truth value that is neither 0 nor 1")
    return DenseTensor(name, data.view(dtype.newbyteorder("<")).reshape(shape))


def _read_same(reader: _Reader, name: str, sizes: list, items: list) -> object:
    number = reader.varint()
    if (reader.rest() or number >= len(items)
            or not isinstance(items[number], CompressedTensor | DenseTensor)):
        raise ValueError(f"tensor {name!r}: repeats a tensor that does not come before it")
    sizes.append(_tensor_size(items[number]))
    _check_sizes(sizes)
    return replace(items[number], name=name)


class _ArrayReader:
    """Reads an array in two steps: what is stored as it is, then what the streams hold."""

    def __init__(self, what: str, reader: _Reader, count: int, itemsize: int,
                 planes: int | None) -> None:
        self._what, self._count, self._itemsize = what, count, itemsize
        self._values = None
        form = 0 if planes is not None else reader.take(1)[0]
        if form == 1:
            distinct = reader.varint(count)
            self._values = np.frombuffer(reader.take(distinct * itemsize), dtype=np.uint8)
            return
        self._planes = reader.take(1)[0] if planes is None else planes
        if form or self._planes >> itemsize:
            raise ValueError(f"{what}: an array is coded in an unknown way")
        stored = itemsize - self._planes.bit_count()
        self._stored = np.frombuffer(reader.take(count * stored), dtype=np.uint8)

    def read_streams(self, bits: bitarray, pos: int) -> tuple[NDArray[np.uint8], int]:
        """Bytes of all elements, one after the other, and the position behind the streams."""
        if self._values is not None:
            values = self._values.reshape(-1, self._itemsize)
            number, pos = self._symbols(bits, pos, len(values) - 1)
            return values[number].reshape(-1), pos
        data = np.empty((self._count, self._itemsize), dtype=np.uint8)
        stored = [i for i in range(self._itemsize) if not self._planes >> i & 1]
        data[:, stored] = self._stored.reshape(self._count, len(stored))
        for plane in range(self._itemsize):
            if self._planes >> plane & 1:
                data[:, plane], pos = self._symbols(bits, pos, 255)
        return data.reshape(-1), pos

    def read_floats(self, bits: bitarray, pos: int) -> tuple[NDArray[np.float32], int]:
        """The array of single precision, and the position behind the streams."""
        data, pos = self.read_streams(bits, pos)
        return data.view("<f4").astype(np.float32), pos

    def _symbols(self, bits: bitarray, pos: int, largest: int) -> tuple[NDArray[np.int64], int]:
        symbols, pos = huffman.decode(bits, pos, max_symbol=largest, max_repeats=self._count)
        if len(symbols) != self._count:
            raise ValueError(f"{self._what}: a stream is not that of {self._count} elements")
        return symbols, pos


_READERS = {LINEAR: _read_linear, SHARED: _read_shared, FIXED: _read_fixed, DENSE: _read_dense,
            SAME: _read_same, RECURRENT: _read_recurrent, BIDIRECTIONAL: _read_bidirectional}
