"""The compiler: a quantised network becomes the memory contents and the program of one engine.

`compile_network` lays out and checks, `size_for` finds the smallest engine a network fits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openese.model.config import EngineConfig
from openese.model.network import CompressedNetwork
from openese.model.pack import PackedLayer, pack_layer
from openese.model.program import Op, decode, encode
from openese.model.quantise import ModelError, QuantisedLayer, QuantisedNetwork, Widths, quantise

__all__ = ["FitError", "Image", "LayerTable", "compile_network", "size_for"]


class FitError(ModelError):
    """A network that an engine has no room for; says what is needed, what there is, what to do."""


@dataclass(eq=False)
class LayerTable:
    """What a layer asks of the PEs; the cycle model computes with it.

    Parameters
    ----------
    name
        Path of the module in the user's model.
    in_features, out_features
        Columns and rows of the matrix.
    code_bits
        Width of its codes on this engine.
    lengths, fillers
        int32 ``(n_pes, in_features)``: entries of every column, and fillers among them.
    """

    name: str
    in_features: int
    out_features: int
    code_bits: int
    lengths: NDArray[np.int32]
    fillers: NDArray[np.int32]


@dataclass(eq=False)
class Image:
    """Everything an engine needs to run a network: memory contents, program, input regions.

    Parameters
    ----------
    config
        The engine it was compiled for.
    spmat
        Per PE uint32: matrix words of all layers, without gaps.
    ptr
        uint32 ``(n_pes, columns of all layers)``: start address and length class.
    bias
        uint32 ``(n_pes, local rows of all layers)``: two's complement of ``bias_bits``.
    codebook
        uint32 ``(codebook_depth,)``: two's complement of ``weight_bits``, the same for all PEs.
    program
        Instruction words.
    in_rows, in_base
        Rows of an input vector and the first addresses of the two input buffers.
    layers
        Tables for the cycle model.
    """

    config: EngineConfig
    spmat: list[NDArray[np.uint32]]
    ptr: NDArray[np.uint32]
    bias: NDArray[np.uint32]
    codebook: NDArray[np.uint32]
    program: list[int]
    in_rows: int
    in_base: tuple[int, int]
    layers: list[LayerTable]

    @property
    def in_features(self) -> int:
        """Length of an input vector."""
        return self.layers[0].in_features

    @property
    def out_features(self) -> int:
        """Length of an output vector."""
        return self.layers[-1].out_features

    @property
    def entries(self) -> int:
        """Matrix entries of all PEs, fillers included."""
        return sum(len(words) for words in self.spmat)

    @property
    def fillers(self) -> int:
        """Fillers among the entries."""
        return sum(int(layer.fillers.sum()) for layer in self.layers)

    @property
    def instructions(self) -> list[dict[str, int]]:
        """The program, decoded."""
        return [decode(self.config, word) for word in self.program]


def compile_network(network: QuantisedNetwork, config: EngineConfig) -> Image:
    """Lay a network out in the memories of an engine and write its program.

    Parameters
    ----------
    network
        Quantised for the widths of this engine.
    config
        The engine.

    Raises
    ------
    FitError
        Every limit the network exceeds, in one line: what is needed, what the engine has, and
        which field or change helps.
    """
    _check_numbers(network, config)
    packed = [_pack(layer, config) for layer in network.layers]
    _check_room(_needs(network, config, packed), config)

    start = np.zeros(config.n_pes, dtype=np.int64)
    pointers = []
    for layer in packed:
        length = layer.lengths.astype(np.int64)
        begin = start[:, None] + np.cumsum(length, axis=1) - length
        kind = np.minimum(length, 3)
        pointers.append(np.where(length > 0, begin | kind << config.spmat_addr_bits, 0))
        start += length.sum(axis=1)

    codebook = np.zeros(config.codebook_depth, dtype=np.int64)
    for number, layer in enumerate(network.layers):
        base = number << config.code_bits
        codebook[base:base + len(layer.codebook)] = layer.codebook

    in_rows = config.rows(network.in_features)
    return Image(
        config=config,
        spmat=[np.concatenate([layer.entries[pe] for layer in packed])
               for pe in range(config.n_pes)],
        ptr=np.concatenate(pointers, axis=1).astype(np.uint32),
        bias=_unsigned(np.concatenate([_interleave(layer.bias, config)
                                       for layer in network.layers], axis=1), config.bias_bits),
        codebook=_unsigned(codebook, config.weight_bits),
        program=_program(network, config),
        in_rows=in_rows,
        in_base=(0, in_rows),
        layers=[LayerTable(layer.name, layer.cols, layer.rows, pack.code_bits, pack.lengths,
                           pack.fillers)
                for layer, pack in zip(network.layers, packed, strict=True)])


def size_for(network: CompressedNetwork | QuantisedNetwork, n_pes: int,
             **overrides: int) -> EngineConfig:
    """The smallest engine of `n_pes` PEs that a network fits.

    Parameters
    ----------
    network
        A quantised network keeps its widths; a compressed one is quantised for the default ones.
    n_pes
        Processing elements.
    **overrides
        Fields of `EngineConfig` to take as they are.

    Raises
    ------
    FitError
        A memory would be larger than any engine's.
    ModelError, ValueError
        As `quantise` and `EngineConfig`.
    """
    widest = max(layer.code_bits for layer in network.layers)
    code_bits = overrides.get("code_bits", widest)
    fields = {
        "code_bits": code_bits,
        "min_code_bits": min(code_bits, *(layer.code_bits for layer in network.layers)),
        # Wide codes leave at least 4 bits of index.
        "entry_bits": max(8, code_bits + 4),
        **(vars(network.widths) if isinstance(network, QuantisedNetwork)
           else {"act_bits": network.act_bits}),
        **overrides,
    }
    config = EngineConfig(n_pes=n_pes, **fields)
    if isinstance(network, CompressedNetwork):
        network = quantise(network, config)
    _check_numbers(network, config)
    needs = _needs(network, config, [_pack(layer, config) for layer in network.layers])
    try:
        return config.with_(**{name: need for name, need in needs.items()
                               if name not in overrides})
    except ValueError as error:
        raise FitError(f"no engine of {n_pes} PEs fits: {error}; use more PEs or a lower "
                       f"density") from None


def _check_numbers(network: QuantisedNetwork, config: EngineConfig) -> None:
    if network.widths != Widths.of(config):
        different = ", ".join(
            f"{name} {value} (the engine has {getattr(config, name)})"
            for name, value in vars(network.widths).items() if value != getattr(config, name))
        raise FitError(f"the network was quantised for {different}: quantise it for this engine")
    for layer in network.layers:
        if layer.code_bits > config.code_bits:
            raise FitError(
                f"layer {layer.name!r} has {layer.code_bits}-bit codes, the engine has code_bits "
                f"{config.code_bits}: share fewer weights or use an engine with larger code_bits")


def _pack(layer: QuantisedLayer, config: EngineConfig) -> PackedLayer:
    code_bits = max(layer.code_bits, config.min_code_bits)
    return pack_layer(layer.col_ptr, layer.row_idx, layer.code, layer.rows, config.n_pes,
                      config.entry_bits - code_bits, code_bits)


def _needs(network: QuantisedNetwork, config: EngineConfig,
           packed: list[PackedLayer]) -> dict[str, int]:
    """Smallest value of every memory field of the configuration that holds the network."""
    per_pe = sum(layer.lengths.sum(axis=1, dtype=np.int64) for layer in packed)
    out_rows = [config.rows(layer.rows) for layer in network.layers]
    return {
        "spmat_depth": max(1, int(per_pe.max())),
        "ptr_depth": sum(layer.cols for layer in network.layers),
        "bias_depth": sum(out_rows),
        "act_depth": sum(_regions(network, config)),
        "acc_depth": max(out_rows),
        "codebooks": len(network.layers),
        "program_depth": 2 * len(network.layers) + 1,
    }


def _check_room(needs: dict[str, int], config: EngineConfig) -> None:
    advice = {
        "spmat_depth": "use more PEs, a lower density or a larger preset",
        "ptr_depth": "use an engine with a larger ptr_depth (it does not depend on the PEs)",
        "bias_depth": "use more PEs or a larger preset",
        "act_depth": "use more PEs or a larger preset",
        "acc_depth": "use more PEs or a larger preset",
        "codebooks": "use an engine with more codebooks, one per layer",
        "program_depth": "use an engine with a larger program_depth, two per layer and one more",
    }
    missing = [f"needs {name} {need}, the engine has {getattr(config, name)}: {advice[name]}"
               for name, need in needs.items() if need > getattr(config, name)]
    if missing:
        raise FitError("the network does not fit: " + "; ".join(missing))


def _regions(network: QuantisedNetwork, config: EngineConfig) -> tuple[int, int, int]:
    """Rows of the activation memory: both input buffers, even layers' and odd layers' outputs."""
    even, odd = (max((config.rows(layer.rows) for layer in network.layers[first::2]), default=0)
                 for first in (0, 1))
    return 2 * config.rows(network.in_features), even, odd


def _program(network: QuantisedNetwork, config: EngineConfig) -> list[int]:
    inputs, even, _ = _regions(network, config)
    region = inputs, inputs + even

    def span(n: int) -> dict[str, int]:
        return {"rows": config.rows(n), "rem": (n - 1) % config.n_pes + 1}

    words, ptr_base, bias_base = [], 0, 0
    for number, layer in enumerate(network.layers):
        words.append(encode(
            config, op=Op.SPMV, from_input=number == 0,
            act=region[(number - 1) % 2] if number else 0, **span(layer.cols), base=ptr_base,
            codebook=number,
            code_sel=max(layer.code_bits, config.min_code_bits) - config.min_code_bits))
        words.append(encode(
            config, op=Op.WRITE, act=region[number % 2], **span(layer.rows), base=bias_base,
            shift=layer.shift - network.widths.shift_min, relu=layer.relu))
        ptr_base += layer.cols
        bias_base += config.rows(layer.rows)
    words.append(encode(config, op=Op.OUTPUT, last=1, act=region[number % 2],
                        **span(network.out_features)))
    return words


def _interleave(values: NDArray, config: EngineConfig) -> NDArray:
    """Element ``i`` to PE ``i % N``, local row ``i // N``: ``(n_pes, rows)``, padded with 0."""
    padded = np.zeros(config.rows(len(values)) * config.n_pes, dtype=np.int64)
    padded[:len(values)] = values
    return padded.reshape(-1, config.n_pes).T


def _unsigned(values: NDArray, bits: int) -> NDArray[np.uint32]:
    """Two's complement of signed integers."""
    return (values & ((1 << bits) - 1)).astype(np.uint32)
