"""The engine's instruction set: one instruction per word of the program memory.

The accelerator builds its layout from the same field table that `encode` packs with.
"""

from enum import IntEnum

from openese.model.config import EngineConfig

__all__ = ["Cell", "Op", "decode", "encode", "instruction_bits", "instruction_fields"]


class Op(IntEnum):
    """What an instruction does."""

    SPMV = 0
    """Broadcast the non-zero activations of a region; every PE adds its part of ``W x``."""
    WRITE = 1
    """Round, add the bias, ReLU, saturate, write the activations and clear the accumulators; in
    engines without element-wise unit."""
    OUTPUT = 2
    """Send the activations of a region out of the engine."""
    CELL = 3
    """Have the element-wise unit turn accumulators into hidden states (recurrent engines)."""
    STATE = 4
    """Send cell states out of the engine (recurrent engines)."""


class Cell(IntEnum):
    """What the element-wise unit computes of the rounded accumulators of a unit."""

    PASS = 0
    """``h = a0``: a linear layer, a projection, or a ReLU cell (clipped at 0 when rounded)."""
    TANH = 1
    """``h = tanh(a0)``."""
    LSTM = 2
    """Gates i, f, g, o in ``a0 .. a3``."""
    GRU = 3
    """Gates r, z in ``a0, a1``; ``a2``, ``a3`` the input's and the state's part of n."""


def instruction_fields(config: EngineConfig) -> dict[str, int]:
    """Names and widths in bits of the fields of an instruction, from bit 0 upwards.

    ``op`` (`Op`), ``last`` (end of the program), ``from_input`` (SPMV reads the oldest full input
    buffer instead of ``act``), ``act`` (first address of the region read or written), ``rows``
    (rows of that region), ``rem`` (PEs with an element in the last row, 1 to ``n_pes``), ``base``
    (first column pointer of SPMV, first bias of WRITE and CELL), ``codebook``, or in its place
    where weights are stored directly ``align`` (zeros below a weight), ``code_sel`` (code width
    minus ``min_code_bits``), ``shift`` (minus ``shift_base + bias_guard``), ``relu``.

    Without pointers: ``spmat`` (SPMV: address of the matrix in every PE), ``height`` (its rows in
    every PE).

    Recurrent engines: ``acc`` and ``acc_odd`` (first accumulator of SPMV and CELL, in passes
    of even and odd number), ``first`` (execute only in the first pass after accumulators were
    cleared), ``prefetch`` (SPMV from_input for the next pass: execute only if its input has
    arrived; the next SPMV from_input without this bit is then skipped), ``flow`` (go on to the
    next instruction without waiting for the PEs), ``sync`` (start only when the element-wise unit
    is idle), ``feed`` (SPMV: columns are what the element-wise unit gives, not a region), and of
    CELL: ``cell`` (`Cell`), ``gates`` (accumulators of a unit minus 1), ``biased`` (there are
    biases, from ``base``), ``hold`` (channels without a step give their former results),
    ``peephole`` (use peephole weights), ``cell_shift``, ``peep_shift`` (see
    `openese.model.elementwise`), ``state``, ``peep`` (first words in the state and peephole
    memories), ``to_act``, ``to_feed``, ``to_out`` (where results go: region ``act``, the SPMV with
    ``feed``, the output stream).
    """
    fields = {
        "op": 3,
        "last": 1,
        "from_input": 1,
        "act": config.act_addr_bits,
        "rows": config.rows_bits,
        "rem": config.pe_bits + 1,
        "base": max(config.ptr_addr_bits, config.bias_addr_bits),
        ("align" if config.direct_weights else "codebook"): max(1, (
            config.weight_bits - config.code_bits if config.direct_weights
            else config.codebooks - 1).bit_length()),
        "code_sel": max(1, (config.code_bits - config.min_code_bits).bit_length()),
        "shift": config.shift_bits,
        "relu": 1,
    }
    if not config.pointers:
        fields |= {"spmat": config.spmat_addr_bits, "height": config.acc_depth.bit_length()}
    if config.recurrent:
        fields |= {
            "acc": config.acc_addr_bits, "acc_odd": config.acc_addr_bits,
            "first": 1, "prefetch": 1, "flow": 1, "sync": 1, "feed": 1,
            "cell": 2, "gates": 2, "biased": 1, "hold": 1, "peephole": 1, "cell_shift": 3,
            "peep_shift": 3,
            "state": config.state_addr_bits, "peep": config.peephole_addr_bits,
            "to_act": 1, "to_feed": 1, "to_out": 1,
        }
    return fields


def instruction_bits(config: EngineConfig) -> int:
    """Width of an instruction."""
    return sum(instruction_fields(config).values())


def encode(config: EngineConfig, *, op: Op, **fields: int) -> int:
    """Pack an instruction; fields not given are 0.

    Raises
    ------
    ValueError
        An unknown field, or a value that its width does not hold.
    """
    widths = instruction_fields(config)
    fields["op"] = op
    for name, value in fields.items():
        if name not in widths:
            raise ValueError(f"an instruction has no field {name!r}, only {', '.join(widths)}")
        if not 0 <= value < 1 << widths[name]:
            raise ValueError(f"instruction field {name} must be 0 to {(1 << widths[name]) - 1}, "
                             f"not {value!r}")
    word, place = 0, 0
    for name, width in widths.items():
        word |= int(fields.get(name, 0)) << place
        place += width
    return word


def decode(config: EngineConfig, word: int) -> dict[str, int]:
    """The fields of an instruction word; the inverse of `encode`."""
    fields = {}
    for name, width in instruction_fields(config).items():
        fields[name] = word & ((1 << width) - 1)
        word >>= width
    return fields
