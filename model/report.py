"""The papers' compression table of a network or model, from the bytes its file really takes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from openese.model import gaps
from openese.model.ese_file import (
    code_array,
    code_matrix,
    layer_bytes,
    one_way,
    repeated,
    to_bytes,
)
from openese.model.matrix import SharedColumns, SparseColumns
from openese.model.network import CompressedLinear, CompressedNetwork
from openese.model.state import CompressedModel, DenseTensor

__all__ = ["format_report", "network_report"]


@dataclass
class _Sums:
    """Quantities of one layer that add up over layers; the table's columns follow from them."""

    weights: int = 0
    nnz: int = 0
    dense: int = 0
    fillers: int = 0
    # Bits of the codes and of the indices of kept weights: at fixed widths, and Huffman-coded.
    code_fixed: int = 0
    index_fixed: int = 0
    code_huffman: int = 0
    index_huffman: int = 0
    original_bytes: int = 0
    pq_bits: int = 0
    bytes: int = 0
    sharing_bits: int = 0

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(*(getattr(self, name) + getattr(other, name) for name in vars(self)))

    def columns(self) -> dict:
        def per_entry(bits: int) -> float:
            return bits / self.nnz if self.nnz else 0.0

        return {
            "weights": self.weights, "nnz": self.nnz, "dense": self.dense,
            "density": self.nnz / self.weights if self.weights else 1.0,
            "code_bits": per_entry(self.code_fixed), "index_bits": per_entry(self.index_fixed),
            "huffman_code_bits": per_entry(self.code_huffman),
            "huffman_index_bits": per_entry(self.index_huffman), "fillers": self.fillers,
            "original_bytes": self.original_bytes, "bytes": self.bytes,
            "rate_pq": 8 * self.original_bytes / self.pq_bits if self.pq_bits else 1.0,
            "rate": self.original_bytes / self.bytes if self.bytes else 1.0,
            "sharing_ratio": 32 * self.nnz / self.sharing_bits if self.sharing_bits else 1.0,
        }


def network_report(network: CompressedNetwork | CompressedModel) -> dict:
    """Sizes of every layer or tensor and of the whole, as in Deep Compression's tables.

    Returns a dict with the following keys for the whole, and the same for each linear layer of a
    network, tensor of its recurrent layers (``NAME.weight_ih`` and so on, ``NAME.bias``,
    ``NAME.peephole``) or tensor of a model in the list ``rows``, there with ``name``, ``shape`` (of
    a layer outputs, inputs) and ``stored`` (``"shared"``, ``"fixed"``, ``"dense"`` or
    ``"repeated"``) as well.

    ============================================  ==================================================
    ``weights``, ``nnz``, ``density``             all weights, those kept, and their ratio; a
                                                  tensor stored dense has none, and density 1
    ``dense``                                     numbers stored as they are: biases, dense tensors
    ``code_bits``, ``index_bits``                 bits per kept weight at fixed widths, pruned and
                                                  shared (P+Q): codes as wide as the codebook
                                                  needs, relative indices of the width for which
                                                  the layer gets smallest
    ``fillers``                                   entries without a weight that gaps too large for
                                                  such an index need
    ``huffman_code_bits``,                        bits per kept weight as in the file (P+Q+H),
    ``huffman_index_bits``                        Huffman tables included
    ``original_bytes``                            weights and biases in float32, other dense
                                                  tensors in their type; a tensor that repeats
                                                  another (tied weights) counts once
    ``bytes``                                     bytes in the file: of a layer its weights,
                                                  codebook, tables and biases; of the whole the
                                                  file
    ``rate_pq``                                   ``original_bytes`` over the size at fixed widths
                                                  with fillers, float32 codebook and biases
    ``rate``                                      ``original_bytes / bytes``, the true rate
    ``sharing_ratio``                             Deep Compression's r = nb / (n log2 k + k b) for
                                                  the n kept weights of b = 32 bits and k = 2**code
                                                  bits: what sharing alone would give; without the
                                                  codebook k b for fixed-point weights
    ============================================  ==================================================
    """
    rows, total = [], _Sums()
    for stored, name, shape, sums in (_measure_model(network)
                                      if isinstance(network, CompressedModel)
                                      else _measure_network(network)):
        rows.append({"name": name, "shape": list(shape), "stored": stored, **sums.columns()})
        total += sums
    # Only the whole pays for header, names and checksum.
    total.bytes = len(to_bytes(network))
    return {**total.columns(), "rows": rows}


def _measure_network(network: CompressedNetwork) -> Iterator[tuple]:
    for layer in one_way(network):
        sizes = layer_bytes(layer)
        if isinstance(layer, CompressedLinear):
            sums = _measure_matrix(layer)
            if layer.bias is not None:
                sums += _measure_floats(layer.bias, sizes["bias"])
            yield "shared", layer.name, (layer.rows, layer.cols), sums
            continue
        for name, size in sizes.items():
            matrix = layer.matrices.get(name)
            if matrix is None:
                values = getattr(layer, name)
                stored, shape, sums = "dense", values.shape, _measure_floats(values, size)
            else:
                stored, shape = _stored(matrix), (matrix.rows, matrix.cols)
                sums = replace(_measure_matrix(matrix), bytes=size)
            yield stored, f"{layer.name}.{name}", shape, sums


def _stored(matrix: SparseColumns) -> str:
    return "shared" if isinstance(matrix, SharedColumns) else "fixed"


def _measure_floats(values: np.ndarray, size: int) -> _Sums:
    return _Sums(dense=values.size, original_bytes=values.nbytes, pq_bits=8 * values.nbytes,
                 bytes=size)


def _measure_model(model: CompressedModel) -> Iterator[tuple]:
    for tensor, repeats in zip(model.tensors, repeated(model), strict=True):
        if repeats:
            yield "repeated", tensor.name, tensor.shape, _Sums()
        elif isinstance(tensor, DenseTensor):
            yield "dense", tensor.name, tensor.shape, _measure_floats(
                tensor.values, code_array(tensor.values).bytes)
        else:
            matrix = tensor.matrix
            yield _stored(matrix), tensor.name, tensor.shape, _measure_matrix(matrix)


def _measure_matrix(matrix: SparseColumns) -> _Sums:
    coding = code_matrix(matrix)
    code_bits, nnz = matrix.code_bits, matrix.nnz
    width, fillers = _best_index(matrix)
    codebook_bits = 32 << code_bits if isinstance(matrix, SharedColumns) else 0
    weights = matrix.rows * matrix.cols
    return _Sums(
        weights=weights, nnz=nnz, fillers=fillers, code_fixed=code_bits * nnz,
        index_fixed=width * nnz, code_huffman=len(coding.code_stream),
        index_huffman=len(coding.gap_stream), original_bytes=4 * weights,
        pq_bits=(nnz + fillers) * (code_bits + width) + codebook_bits,
        bytes=coding.bytes, sharing_bits=code_bits * nnz + codebook_bits)


def _best_index(matrix: SparseColumns) -> tuple[int, int]:
    """Width of relative indices that takes fewest bits, walking by rows or by columns; fillers."""
    rows, columns = matrix.row_idx.astype(np.int64), matrix.columns
    choices = []
    for position in (np.sort(rows * matrix.cols + columns), columns * matrix.rows + rows):
        gap = np.diff(position, prepend=-1) - 1
        for width in range(1, gaps.MAX_WIDTH + 1):
            fillers = int((gap >> width).sum())
            choices.append(((matrix.nnz + fillers) * (matrix.code_bits + width), width, fillers))
    return min(choices)[1:]


def format_report(report: dict) -> str:
    """The report of `network_report` as a plain text table."""
    head = ["layer", "shape", "weights", "kept", "density", "code bits", "with H", "index bits",
            "with H", "bytes", "rate P+Q", "rate P+Q+H"]
    table = [head]
    for row in [*report["rows"], {**report, "name": "total", "shape": []}]:
        counts = [f"{row['weights']:,}", f"{row['nnz']:,}", f"{row['density']:.1%}",
                  f"{row['code_bits']:.1f}", f"{row['huffman_code_bits']:.2f}",
                  f"{row['index_bits']:.1f}", f"{row['huffman_index_bits']:.2f}"]
        rates = [f"{1 / row[key]:.2%} ({row[key]:.1f}x)" for key in ("rate_pq", "rate")]
        if row.get("stored") in ("dense", "repeated"):
            # No kept weights to tell of.
            counts = [f"{row['dense']:,}", row["stored"], *[""] * 5]
            rates = rates if row["stored"] == "dense" else ["", ""]
        table.append([row["name"], " x ".join(map(str, row["shape"])), *counts,
                      f"{row['bytes']:,}", *rates])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(cells, widths, strict=True))).rstrip()
             for cells in table]
    lines.insert(1, "-" * max(map(len, lines)))
    lines.insert(-1, lines[1])
    return "\n".join([
        *lines, "",
        f"file: {report['bytes']:,} bytes of {report['original_bytes']:,}, true rate "
        f"{report['rate']:.1f}x; r = nb / (n log2 k + k b) = {report['sharing_ratio']:.1f}x "
        "(weight sharing alone)",
        "P pruned, Q shared, H Huffman-coded; bits per kept weight; rates include fillers, "
        "codebooks, tables and biases"])
