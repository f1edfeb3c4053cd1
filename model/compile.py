"""The compiler: a quantised network becomes the memory contents and the program of one engine.

`compile_network` lays out and checks, `size_for` finds the smallest engine a network fits.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from openese.model.config import EngineConfig
from openese.model.matrix import FixedMatrix
from openese.model.network import CompressedBidirectional, CompressedNetwork, CompressedRecurrent
from openese.model.pack import PackedLayer, pack_layer
from openese.model.program import Cell, Op, decode, encode, instruction_fields
from openese.model.quantise import (
    ModelError,
    QuantisedLayer,
    QuantisedMatrix,
    QuantisedNetwork,
    QuantisedRecurrent,
    Widths,
    quantise,
)

__all__ = ["FitError", "Image", "LayerTable", "StateTable", "compile_network", "size_for"]

_CELLS = {"rnn_tanh": Cell.TANH, "rnn_relu": Cell.PASS, "gru": Cell.GRU, "lstm": Cell.LSTM}


class FitError(ModelError):
    """A network that an engine has no room for; says what is needed, what there is, what to do."""


@dataclass(eq=False)
class LayerTable:
    """What a matrix asks of the PEs; the cycle model computes with it.

    Parameters
    ----------
    name
        Path of the module in the user's model; of a matrix of a recurrent layer with PyTorch's
        name for it (``"lstm.l0.weight_ih"``).
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
class StateTable:
    """Where a recurrent layer keeps its state.

    Parameters
    ----------
    name
        Path of the module in the user's model.
    act, out_features
        First row of its hidden state in the activation memories, and length of that.
    state, units
        First word of its units in the element-wise unit's state memory, and how many. Those of
        the outputs of a projection follow.
    has_cell
        Whether these words are cell states (LSTM); of a GRU they are hidden states, and of other
        cells not used.
    is_gru
        Whether the layer is a GRU.
    """

    name: str
    act: int
    out_features: int
    state: int
    units: int
    has_cell: bool
    is_gru: bool

    @property
    def results(self) -> int:
        """First word of its outputs in the results memory."""
        return self.state if self.out_features == self.units else self.state + self.units


@dataclass(eq=False)
class Image:
    """Everything an engine needs to run a network: memory contents, program, input regions.

    Parameters
    ----------
    config
        The engine it was compiled for.
    spmat
        Per PE uint32: matrix words of all matrices. Without gaps, but for engines without
        pointers: there words of 0 let each matrix start at the same address in all PEs.
    ptr
        uint32 ``(n_pes, columns of all matrices)``: start address and length class. No columns
        for engines without pointers.
    bias
        uint32 ``(bias_lanes, words)``: two's complement of ``bias_bits``. Of every PE the local
        rows of all layers; of an engine with element-wise unit, of every lane what comes there, in
        that order.
    codebook
        uint32 ``(codebook_depth,)``: two's complement of ``weight_bits``, the same for all PEs.
        Empty for engines with direct weights.
    program
        Instruction words: a pass, and behind it the routine that sends the state.
    in_features, out_features
        Lengths of an input and of an output vector.
    in_rows, in_base
        Rows of an input vector and the first addresses of the two input buffers.
    layers
        Tables for the cycle model: one for each matrix, in the network's order, of a recurrent
        layer weight_ih, weight_hh, weight_hr.
    peephole
        Words of the peephole memory: weights of i, f, o from bit 0 up, two's complement of
        ``act_bits`` each.
    dump
        Address of the routine that sends hidden states of all recurrent layers, then the cell
        states of all LSTMs. ``None``: there is nothing to send.
    states
        One for each recurrent layer.
    """

    config: EngineConfig
    spmat: list[NDArray[np.uint32]]
    ptr: NDArray[np.uint32]
    bias: NDArray[np.uint32]
    codebook: NDArray[np.uint32]
    program: list[int]
    in_features: int
    out_features: int
    in_rows: int
    in_base: tuple[int, int]
    layers: list[LayerTable]
    peephole: list[int] = field(default_factory=list)
    dump: int | None = None
    states: list[StateTable] = field(default_factory=list)

    @property
    def entries(self) -> int:
        """Matrix entries of all PEs, fillers included."""
        return sum(int(layer.lengths.sum(dtype=np.int64)) for layer in self.layers)

    @property
    def fillers(self) -> int:
        """Fillers among the entries."""
        return sum(int(layer.fillers.sum(dtype=np.int64)) for layer in self.layers)

    @property
    def instructions(self) -> list[dict[str, int]]:
        """The program, decoded."""
        return [decode(self.config, word) for word in self.program]

    def without_contents(self) -> "Image":
        """The same image with nothing for any memory."""
        nothing = np.zeros(0, np.uint32)
        return replace(self, spmat=[nothing] * len(self.spmat), ptr=self.ptr[:, :0],
                       bias=self.bias[:, :0], codebook=nothing, program=[], peephole=[])


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
    layout = _Layout(network, config)
    _check_room(layout.needs, config)
    return Image(
        config=config, spmat=layout.spmat(), ptr=layout.pointers(), bias=layout.biases(),
        codebook=layout.codebooks(), program=layout.program(),
        in_features=network.in_features, out_features=network.out_features,
        in_rows=layout.in_rows, in_base=(0, layout.in_rows),
        layers=[LayerTable(name, matrix.cols, matrix.rows, packed.code_bits, packed.lengths,
                           packed.fillers)
                for name, matrix, packed in zip(layout.names, layout.matrices, layout.packed,
                                                strict=True)],
        peephole=layout.peepholes(), dump=layout.dump, states=layout.states())


def size_for(network: CompressedNetwork | QuantisedNetwork, n_pes: int,
             **overrides: int) -> EngineConfig:
    """The smallest engine of `n_pes` PEs that a network fits.

    Parameters
    ----------
    network
        A quantised network keeps its widths; a compressed one is quantised for the default ones,
        with recurrent layers for ``acc_bits`` 36 and ``shift_bits`` 4. One that has fixed-point
        weights gets an engine with direct weights, of the widest of them.
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
    config = EngineConfig(n_pes=n_pes, **_widths_for(network, overrides) | overrides)
    if isinstance(network, CompressedNetwork):
        network = quantise(network, config)
    _check_numbers(network, config)
    needs = _Layout(network, config).needs
    try:
        return config.with_(**{name: need for name, need in needs.items()
                               if name not in overrides})
    except ValueError as error:
        raise FitError(f"no engine of {n_pes} PEs fits: {error}; use more PEs or a lower "
                       f"density") from None


def _widths_for(network: CompressedNetwork | QuantisedNetwork, overrides: dict) -> dict[str, int]:
    """Fields of an engine that decide how a network is quantised and packed."""
    if isinstance(network, QuantisedNetwork):
        fields = dict(vars(network.widths))
        matrices = [matrix for layer in network.layers for matrix in _matrices(layer).values()]
        direct, stored = network.widths.direct_weights, matrices
        if direct:
            overrides = {"code_bits": network.widths.code_bits} | overrides
    else:
        fields = {"act_bits": network.act_bits}
        matrices = [matrix for layer in network.layers for matrix in _compressed_matrices(layer)]
        fixed = [matrix for matrix in matrices if isinstance(matrix, FixedMatrix)]
        direct = overrides.get("direct_weights", bool(fixed))
        # Shared weights become fixed-point ones as wide as the engine's.
        stored = fixed if direct else matrices
        if network.recurrent:
            fields |= {"acc_bits": 36, "shift_bits": 4}
    if network.recurrent:
        fields["state_depth"] = 1
    widths = [matrix.code_bits for matrix in stored]
    code_bits = overrides.get("code_bits", max(widths, default=12))
    # Wide codes leave at least 4 bits of index, direct weights 5. The bit of a flag is index where
    # there is none.
    entry_bits = (code_bits + 5 if direct else
                  max(8, code_bits + 4) + (not overrides.get("pointers", True)))
    return fields | {"direct_weights": direct, "code_bits": code_bits,
                     "min_code_bits": min([code_bits, *widths]), "entry_bits": entry_bits}


def _compressed_matrices(layer) -> list:
    if isinstance(layer, CompressedBidirectional):
        return [*layer.ahead.matrices.values(), *layer.back.matrices.values()]
    return [*layer.matrices.values()] if isinstance(layer, CompressedRecurrent) else [layer]


def _matrices(layer: QuantisedLayer | QuantisedRecurrent) -> dict[str, QuantisedMatrix]:
    """Matrices of a layer by their names, in the order of programs and tables."""
    if isinstance(layer, QuantisedLayer):
        return {layer.name: layer}
    found = {"weight_ih": layer.w_ih, "weight_hh": layer.w_hh, "weight_hr": layer.w_hr}
    return {f"{layer.name}.{name}": matrix for name, matrix in found.items()
            if matrix is not None}


def _check_numbers(network: QuantisedNetwork, config: EngineConfig) -> None:
    engine = vars(Widths.of(config))
    different = {name: value for name, value in vars(network.widths).items()
                 if value != engine[name]}
    if "direct_weights" in different:
        # Follows from that; of shared weights it says nothing.
        different.pop("code_bits", None)
    if different:
        text = ", ".join(f"{name} {value} (the engine has {engine[name]})"
                         for name, value in different.items())
        raise FitError(f"the network was quantised for {text}: quantise it for this engine")
    for name, matrix in (item for layer in network.layers for item in _matrices(layer).items()):
        if matrix.code_bits > config.code_bits:
            raise FitError(
                f"layer {name!r} has {matrix.code_bits}-bit codes, the engine has code_bits "
                f"{config.code_bits}: share fewer weights or use an engine with larger code_bits")


def _check_room(needs: dict[str, int], config: EngineConfig) -> None:
    advice = {
        "spmat_depth": "use more PEs, a lower density or a larger preset",
        "ptr_depth": "use an engine with a larger ptr_depth (it does not depend on the PEs)",
        "bias_depth": "use more PEs or a larger preset",
        "act_depth": "use more PEs or a larger preset",
        "acc_depth": "use more PEs or a larger preset",
        "codebooks": "use an engine with more codebooks, one per matrix",
        "program_depth": "use an engine with a larger program_depth",
        "state_depth": "use an engine for recurrent layers, with a word per unit and per output "
                       "of a projection (it does not depend on the PEs)",
        "peephole_depth": "use an engine with a larger peephole_depth, a word per unit that has "
                          "peepholes",
    }
    missing = [f"needs {name} {need}, the engine has {getattr(config, name)}: {advice[name]}"
               for name, need in needs.items() if need > getattr(config, name)]
    if missing:
        raise FitError("the network does not fit: " + "; ".join(missing))


@dataclass(eq=False, kw_only=True)
class _Place:
    """Where a layer's parts are: first addresses in the memories, number of its first matrix.

    `acc` has the addresses for passes of even and of odd number. `act` is where outputs go.
    """

    matrix: int
    act: int
    acc: tuple[int, int]
    bias: int
    projection_acc: int = 0
    projection_state: int = 0
    state: int = 0
    peep: int = 0


class _Layout:
    """A network laid out in the memories of an engine, however large they are.

    ``needs`` has the smallest value of every memory field of the configuration that holds it.
    """

    def __init__(self, network: QuantisedNetwork, config: EngineConfig):
        self._network, self._config = network, config
        parts = [item for layer in network.layers for item in _matrices(layer).items()]
        self.names = [name for name, _ in parts]
        self.matrices = [matrix for _, matrix in parts]
        self.packed = [packed for layer in network.layers for packed in self._pack(layer)]
        self.in_rows = config.rows(network.in_features)
        rows = [np.array([len(words) for words in packed.entries]) for packed in self.packed]
        if not config.pointers:
            rows = [np.full_like(row, row.max()) for row in rows]
        # First entry of every matrix in every PE, and behind the last.
        self._begin = np.cumsum([np.zeros(config.n_pes, dtype=np.int64), *rows], axis=0)
        self._ptr_base = np.cumsum([0, *(matrix.cols for matrix in self.matrices)]).tolist()
        self.needs: dict[str, int] = {}
        self._places = self._find_places()
        self._instructions, self.dump = self._write_program()
        self.needs["program_depth"] = len(self._instructions)

    # -- matrices ---------------------------------------------------------------------------------

    def _pack(self, layer: QuantisedLayer | QuantisedRecurrent) -> list[PackedLayer]:
        if isinstance(layer, QuantisedLayer):
            return [self._pack_matrix(layer)]
        packed = [self._pack_matrix(matrix, np.array(layer.slot_of(matrix)), layer.slots)
                  for matrix in (layer.w_ih, layer.w_hh)]
        if layer.w_hr is not None:
            packed.append(self._pack_matrix(layer.w_hr))
        return packed

    def _pack_matrix(self, matrix: QuantisedMatrix, slot: NDArray | None = None,
                     slots: int = 1) -> PackedLayer:
        """Pack a matrix; of gates, with all rows of a unit side by side in one PE."""
        config = self._config
        code_bits = max(matrix.code_bits, config.min_code_bits)
        row_idx, code, rows = matrix.row_idx, matrix.code, matrix.rows
        if matrix.direct:
            raw = matrix.codebook[code] >> matrix.align
            code = (raw & ((1 << code_bits) - 1)).astype(np.uint16)
        if slot is not None:
            units = rows // len(slot)
            gate, unit = np.divmod(row_idx, units)
            local = unit // config.n_pes * slots + slot[gate]
            rows = config.rows(units) * slots * config.n_pes
            row_idx = (local * config.n_pes + unit % config.n_pes).astype(np.int32)
            order = np.argsort(matrix.columns * rows + row_idx)
            row_idx, code = row_idx[order], code[order]
        return pack_layer(matrix.col_ptr, row_idx, code, rows, config.n_pes,
                          config.entry_bits - code_bits, code_bits,
                          sequential=not config.pointers)

    def spmat(self) -> list[NDArray[np.uint32]]:
        """Matrix words per PE."""
        contents = []
        for pe in range(self._config.n_pes):
            parts = [packed.entries[pe] for packed in self.packed]
            words = np.zeros(self._begin[-2, pe] + len(parts[-1]), dtype=np.uint32)
            for begin, part in zip(self._begin[:, pe], parts, strict=False):
                words[begin:begin + len(part)] = part
            contents.append(words)
        return contents

    def pointers(self) -> NDArray[np.uint32]:
        """Column pointers of all PEs."""
        config = self._config
        if not config.pointers:
            return np.zeros((config.n_pes, 0), dtype=np.uint32)
        pointers = []
        for first, packed in zip(self._begin, self.packed, strict=False):
            length = packed.lengths.astype(np.int64)
            begin = first[:, None] + np.cumsum(length, axis=1) - length
            kind = np.minimum(length, 3)
            pointers.append(np.where(length > 0, begin | kind << config.spmat_addr_bits, 0))
        return np.concatenate(pointers, axis=1).astype(np.uint32)

    def codebooks(self) -> NDArray[np.uint32]:
        """Codebooks of all matrices."""
        config = self._config
        if config.direct_weights:
            return np.zeros(0, dtype=np.uint32)
        codebook = np.zeros(config.codebook_depth, dtype=np.int64)
        for number, matrix in enumerate(self.matrices):
            base = number << config.code_bits
            codebook[base:base + len(matrix.codebook)] = matrix.codebook
        return _unsigned(codebook, config.weight_bits)

    # -- the other memories -----------------------------------------------------------------------

    def _find_places(self) -> list[_Place]:
        """Addresses of every layer; fills `needs`."""
        config, layers = self._config, self._network.layers
        linear = [layer for layer in layers if isinstance(layer, QuantisedLayer)]
        out_rows = [config.rows(layer.rows) for layer in linear]
        even, odd = (max(out_rows[first::2], default=0) for first in (0, 1))
        region = 2 * self.in_rows, 2 * self.in_rows + even
        act = region[1] + odd
        # The accumulators of linear layers, which are empty between instructions, come first.
        acc = max(out_rows, default=0)
        # Words that a row of biases takes in its memory: all PEs of a lane have theirs there.
        per_bias = -(-config.n_pes // config.gate_lanes) if config.recurrent else 1
        bias = state = peep = matrix = linears = 0
        places = []
        for layer in layers:
            if isinstance(layer, QuantisedLayer):
                places.append(_Place(matrix=matrix, act=region[linears % 2], acc=(0, 0), bias=bias))
                bias += config.rows(layer.rows) * per_bias
                linears += 1
            else:
                size = layer.slots * config.rows(layer.hidden)
                place = _Place(matrix=matrix, act=act, acc=(acc, acc), bias=bias, state=state,
                               peep=peep)
                places.append(place)
                act += config.rows(layer.rows)
                acc += size
                if _ping_pongs(layer, layers):
                    place.acc = place.acc[0], acc
                    acc += size
                bias += size * per_bias
                state += layer.hidden
                if layer.w_hr is not None:
                    place.projection_acc = acc
                    acc += config.rows(layer.rows)
                    if config.channels > 1:
                        place.projection_state, state = state, state + layer.rows
                if layer.peephole is not None:
                    peep += layer.hidden
            matrix += len(_matrices(layer))
        self.needs |= {
            "spmat_depth": max(1, int(self._begin[-1].max())),
            "ptr_depth": self._ptr_base[-1] if config.pointers else 1,
            "bias_depth": bias, "act_depth": act, "acc_depth": acc,
            "codebooks": 1 if config.direct_weights else len(self.matrices),
            "program_depth": 0, "state_depth": state, "peephole_depth": peep,
        }
        return places

    def biases(self) -> NDArray[np.uint32]:
        """Biases of all PEs or lanes; a projection has none."""
        config = self._config
        parts = [_interleave(layer.bias if isinstance(layer, QuantisedLayer)
                             else layer.bias.reshape(layer.slots, -1).T, config)
                 for layer in self._network.layers]
        if not config.recurrent:
            return _unsigned(np.concatenate(parts, axis=1)[:, :, 0], config.bias_bits)
        lanes = np.zeros((config.bias_lanes, self.needs["bias_depth"]), dtype=np.int64)
        for part, place in zip(parts, self._places, strict=True):
            for k, lane in enumerate(lanes):
                # Row by row, in each all PEs of the lane, of each PE all slots.
                own = part[k::config.gate_lanes].transpose(1, 0, 2).ravel()
                lane[place.bias:place.bias + len(own)] = own
        return _unsigned(lanes, config.bias_bits)

    def peepholes(self) -> list[int]:
        """Words of the peephole memory."""
        bits = self._config.act_bits
        words = []
        for layer in self._network.layers:
            if isinstance(layer, QuantisedRecurrent) and layer.peephole is not None:
                for weights in (layer.peephole & ((1 << bits) - 1)).T.tolist():
                    words.append(sum(weight << k * bits for k, weight in enumerate(weights)))
        return words

    def states(self) -> list[StateTable]:
        """Where recurrent layers keep their states."""
        return [StateTable(layer.name, place.act, layer.rows, place.state, layer.hidden,
                           layer.cell == "lstm", layer.cell == "gru")
                for layer, place in zip(self._network.layers, self._places, strict=True)
                if isinstance(layer, QuantisedRecurrent)]

    # -- the program ------------------------------------------------------------------------------

    def program(self) -> list[int]:
        """Instruction words."""
        known = instruction_fields(self._config)
        # An engine without element-wise unit has no fields for what only that needs.
        return [encode(self._config, **{name: value for name, value in fields.items()
                                        if name in known})
                for fields in self._instructions]

    def _write_program(self) -> tuple[list[dict[str, int]], int | None]:
        writer = _Writer(self._network, self._config, self._places, self.matrices, self.packed,
                         self._ptr_base, self._begin[:, 0].tolist())
        writer.write_pass()
        dump = writer.write_dump()
        return writer.instructions, dump


class _Writer:
    """Writes the instructions of a network: fields by name, in `instructions`."""

    def __init__(self, network: QuantisedNetwork, config: EngineConfig, places: list[_Place],
                 matrices: list[QuantisedMatrix], packed: list[PackedLayer], ptr_base: list[int],
                 spmat_base: list[int]):
        self._layers, self._config = network.layers, config
        self._places, self._matrices, self._packed = places, matrices, packed
        self._ptr_base, self._spmat_base = ptr_base, spmat_base
        self._shift_min = network.widths.shift_min
        self._out_features = network.out_features
        self._cells = 0  # CELL instructions so far
        self.instructions: list[dict[str, int]] = []

    def write_pass(self) -> None:
        """All instructions of a pass."""
        layers, places = self._layers, self._places
        for layer, place in zip(layers, places, strict=True):
            if isinstance(layer, QuantisedRecurrent):
                self._add_spmv(place.matrix + 1, place.acc, act=place.act, first=1, flow=1, sync=1)

        # Layers whose own recurrence is still to be computed, and the CELLs after which it can be.
        waiting: list[tuple[_Place, int]] = []

        def add_recurrences() -> None:
            for place, cells in waiting:
                self._add_spmv(place.matrix + 1, place.acc, act=place.act, flow=1,
                               sync=self._cells == cells)
            waiting.clear()

        first_gates = 0
        source: dict[str, int] = {"from_input": 1}
        for number, (layer, place) in enumerate(zip(layers, places, strict=True)):
            last = number == len(layers) - 1
            if isinstance(layer, QuantisedLayer):
                self._add_linear(layer, place, source, last)
                source = {"act": place.act, "sync": 1}
                if not any(isinstance(after, QuantisedRecurrent) for after in layers[number:]):
                    add_recurrences()
                continue
            self._add_spmv(place.matrix, place.acc, flow=1, **source)
            source = {"feed": 1}
            projects = layer.w_hr is not None
            self._add_gates(layer, place, to_act=not projects, to_out=last and not projects)
            gates = self._cells
            add_recurrences()
            if projects:
                self._add_spmv(place.matrix + 2, (place.projection_acc,) * 2, feed=1, flow=1)
                self._add_projection(layer, place, to_out=last)
            if number == 0:
                first_gates = gates
            waiting.append((place, self._cells))

        if isinstance(layers[0], QuantisedRecurrent):
            place = places[0]
            doubled = place.acc[0] != place.acc[1]
            self._add_spmv(place.matrix, place.acc[::-1], from_input=1, prefetch=1, flow=1,
                           sync=not doubled and self._cells == first_gates)
        if isinstance(layers[-1], QuantisedRecurrent):
            place = places[-1]
            self._add_spmv(place.matrix + 1, place.acc[::-1], feed=1, flow=1)
        elif not self._config.recurrent:
            self._add(op=Op.OUTPUT, act=places[-1].act, **self._span(self._out_features))
        self.instructions[-1]["last"] = 1

    def write_dump(self) -> int | None:
        """The routine that sends the state; returns its address."""
        begin = len(self.instructions)
        kept = [(layer, place) for layer, place in zip(self._layers, self._places, strict=True)
                if isinstance(layer, QuantisedRecurrent)]
        for layer, place in kept:
            self._add(op=Op.OUTPUT, act=place.act, sync=1, **self._span(layer.rows))
        for layer, place in kept:
            if layer.cell == "lstm":
                self._add(op=Op.STATE, state=place.state, **self._span(layer.hidden))
        if not kept:
            return None
        self.instructions[-1]["last"] = 1
        return begin

    def _add(self, **fields: int) -> None:
        self.instructions.append({name: int(value) for name, value in fields.items()})

    def _span(self, n: int) -> dict[str, int]:
        return {"rows": self._config.rows(n), "rem": (n - 1) % self._config.n_pes + 1}

    def _add_spmv(self, matrix: int, acc: tuple[int, int], **fields: int) -> None:
        """`acc`: first accumulator in passes of even and of odd number."""
        config, packed = self._config, self._packed[matrix]
        self._add(
            op=Op.SPMV, **self._span(packed.n_cols),
            base=self._ptr_base[matrix] if config.pointers else 0,
            spmat=self._spmat_base[matrix], height=packed.height, **self._weights(matrix),
            code_sel=packed.code_bits - config.min_code_bits, acc=acc[0], acc_odd=acc[1], **fields)

    def _weights(self, matrix: int) -> dict[str, int]:
        """How the entries of a matrix become weights."""
        if self._config.direct_weights:
            return {"align": self._matrices[matrix].align}
        return {"codebook": matrix}

    def _add_linear(self, layer: QuantisedLayer, place: _Place, source: dict[str, int],
                    last: bool) -> None:
        fields = {"act": place.act, **self._span(layer.rows), "base": place.bias,
                  "shift": layer.shift - self._shift_min, "relu": layer.relu,
                  "acc": place.acc[0], "acc_odd": place.acc[1]}
        if self._config.recurrent:
            # Linear layers share their accumulators; a cell that feeds has waited for that itself.
            self._add_spmv(place.matrix, place.acc, flow=1,
                           **{"sync": "feed" not in source} | source)
            self._add_cell(cell=Cell.PASS, biased=1, to_act=not last, to_out=last, **fields)
        else:
            self._add_spmv(place.matrix, place.acc, **source)
            self._add(op=Op.WRITE, **fields)

    def _add_gates(self, layer: QuantisedRecurrent, place: _Place, **fields: int) -> None:
        peeps = layer.peephole is not None
        self._add_cell(
            **self._span(layer.hidden), act=place.act, base=place.bias,
            shift=layer.shift - self._shift_min, relu=layer.relu, acc=place.acc[0],
            acc_odd=place.acc[1], cell=_CELLS[layer.cell], gates=layer.slots - 1, peephole=peeps,
            cell_shift=layer.cell_shift, peep_shift=layer.peep_shift if peeps else 0,
            state=place.state, peep=place.peep if peeps else 0, biased=1, hold=1, to_feed=1,
            **fields)

    def _add_projection(self, layer: QuantisedRecurrent, place: _Place, **fields: int) -> None:
        self._add_cell(
            **self._span(layer.rows), act=place.act, shift=layer.proj_shift - self._shift_min,
            acc=place.projection_acc, acc_odd=place.projection_acc, cell=Cell.PASS,
            state=place.projection_state, hold=1, to_act=1, to_feed=1, **fields)

    def _add_cell(self, **fields: int) -> None:
        self._add(op=Op.CELL, flow=1, **fields)
        self._cells += 1


def _ping_pongs(layer: QuantisedRecurrent, layers: list) -> bool:
    """Whether a layer's next step begins while its accumulators are still being drained."""
    return layer is layers[-1] and layer.w_hr is None


def _interleave(values: NDArray, config: EngineConfig) -> NDArray:
    """Element ``i`` of ``(n,)`` or ``(n, slots)`` to PE ``i % N``: ``(n_pes, rows, slots)``.

    Padded with 0.
    """
    values = values.reshape(len(values), -1)
    padded = np.zeros((config.rows(len(values)) * config.n_pes, values.shape[1]), dtype=np.int64)
    padded[:len(values)] = values
    return padded.reshape(-1, config.n_pes, values.shape[1]).transpose(1, 0, 2)


def _unsigned(values: NDArray, bits: int) -> NDArray[np.uint32]:
    """Two's complement of signed integers."""
    return (values & ((1 << bits) - 1)).astype(np.uint32)
