"""The engine configuration: sizes chosen by the user, and every width and latency derived.

The same object drives the compiler, the cycle model, the accelerator and the tests.
"""

import zlib
from dataclasses import asdict, dataclass, replace
from math import ceil

__all__ = [
    "ACC_LATENCY", "ACT_READ_LATENCY", "DECODE_LATENCY", "DRAIN_LATENCY", "GATE_LANES",
    "LUT_RAM_WORDS", "MULTIPLY_LATENCY", "PRESETS", "PTR_READ_LATENCY",
    "SPMAT_READ_LATENCY", "WRITE_BACK_LATENCY", "EngineConfig",
]

# Pipeline depths of the blocks of a PE, in cycles; each block asserts its own.
PTR_READ_LATENCY = 2  # column in, start pointer out
SPMAT_READ_LATENCY = 3  # column taken from the queue, first entry out
DECODE_LATENCY = 1  # entry in, row and multiplier's operands out
MULTIPLY_LATENCY = 3  # operands in, product out
ACC_LATENCY = 1  # product in, accumulator memory written
DRAIN_LATENCY = DECODE_LATENCY + MULTIPLY_LATENCY  # accumulator asked for, its value there
ACT_READ_LATENCY = 3  # scan command in, first activation out
WRITE_BACK_LATENCY = 8  # command in, first activation written; or of a recurrent engine: token in,
# first pre-activation out, without the gather tree


#: Gates under way side by side to the element-wise unit: the accumulators of the largest cell.
GATE_LANES = 4
#: Biases and accumulators up to this number of words are kept in LUT RAM: a block of block RAM for
#: so little would be taken from the matrix.
LUT_RAM_WORDS = 128


def _bits_for(largest: int) -> int:
    """Bits that hold 0..largest; at least 1, since a signal of width 0 is no Verilog."""
    return max(1, int(max(0, largest)).bit_length())


def _levels(leaves: int, arity: int) -> int:
    """Levels of a tree of `arity`-input nodes over `leaves`, at least 1."""
    levels, reach = 1, arity
    while reach < leaves:
        levels, reach = levels + 1, reach * arity
    return levels


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes of one engine. One bitstream runs every compressed model that fits them.

    Parameters
    ----------
    n_pes
        Processing elements, 1 to 256. Row ``i`` of a matrix and activation ``i`` belong to
        PE ``i mod n_pes`` (EIE, section III-B).
    queue_depth
        Columns a PE may have waiting before the broadcast stalls (EIE chose 8).
    entry_bits
        Width of a matrix entry: relative row index and code together. A flag comes on top with
        pointers.
    code_bits, min_code_bits
        Widest and narrowest code; a layer with ``k``-bit codes has ``entry_bits - k`` index bits.
    spmat_depth, ptr_depth
        Entries and column pointers per PE.
    bias_depth
        Biases per PE; of an engine with element-wise unit, where the PEs have none, per lane of
        that.
    act_depth, acc_depth
        Activations and accumulators per PE.
    codebooks
        Codebooks resident at once, one per matrix.
    program_depth
        Instructions.
    act_bits, weight_bits, acc_bits, bias_bits
        Widths of activations, codebook values, accumulators and biases.
    shift_base, shift_bits
        Write-back divides by ``2**(shift_base + bias_guard + s)``, ``s`` of ``shift_bits`` bits.
    bias_guard
        Fraction bits of a bias below those of the output activation it is added to.
    input_lanes
        Activations per beat of the input stream and channel; divides ``n_pes``.
    channels
        Independent streams that share every weight read (ESE's voice streams), 1 to 32. Each has
        its own activations, accumulators and state.
    direct_weights
        Entries hold signed fixed-point weights of ``code_bits`` (ESE), not codes of a codebook.
    pointers
        ``False``: columns have no pointers; the entries of a matrix are read in order, each with
        the rows skipped since the one before, and every activation is broadcast, zero or not.
    state_depth
        Words of the element-wise unit's state memory: one for each unit of the recurrent layers
        and, with several channels, each output of their projections. 0: the engine has no
        element-wise unit and runs feed-forward networks only.
    peephole_depth
        Units that have peephole weights. 0: no peephole multipliers.
    serial_cells
        Units run one after the other through an element-wise unit of one multiplier, some 50
        cycles each. For small devices; one channel only.

    Raises
    ------
    ValueError
        A size out of range; the text names the field and the limit.
    """

    n_pes: int
    queue_depth: int = 8
    entry_bits: int = 8
    code_bits: int = 4
    min_code_bits: int = 4
    spmat_depth: int = 2048
    ptr_depth: int = 2048
    bias_depth: int = 64
    act_depth: int = 256
    acc_depth: int = 64
    codebooks: int = 4
    program_depth: int = 16
    act_bits: int = 16
    weight_bits: int = 16
    acc_bits: int = 32
    bias_bits: int = 18
    shift_base: int = 8
    shift_bits: int = 3
    bias_guard: int = 2
    input_lanes: int = 1
    channels: int = 1
    direct_weights: bool = False
    pointers: bool = True
    state_depth: int = 0
    peephole_depth: int = 0
    serial_cells: bool = False

    def __post_init__(self) -> None:
        limits = {
            "n_pes": (1, 256), "queue_depth": (1, 1024), "entry_bits": (2, 24),
            "code_bits": (1, 16 if self.direct_weights else 8),
            "min_code_bits": (1, self.code_bits),
            "spmat_depth": (1, 1 << 18), "ptr_depth": (1, 1 << 16), "bias_depth": (1, 1 << 16),
            "act_depth": (2, 1 << 16), "acc_depth": (1, 1 << 16), "codebooks": (1, 64),
            "program_depth": (2, 1024), "act_bits": (4, 18), "weight_bits": (4, 18),
            "acc_bits": (16, 48), "bias_bits": (4, 32), "shift_base": (0, 24),
            "shift_bits": (1, 5), "bias_guard": (1, 8), "input_lanes": (1, self.n_pes),
            "channels": (1, 32), "state_depth": (0, 1 << 16), "peephole_depth": (0, 1 << 16),
        }
        for name in ("direct_weights", "pointers", "serial_cells"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name} must be an integer from {low} to {high}, not {value!r}")
        if self.entry_bits <= self.code_bits:
            raise ValueError(
                f"entry_bits must be larger than code_bits ({self.code_bits}) to leave an index, "
                f"not {self.entry_bits!r}")
        if self.shift_base >= self.acc_bits:
            raise ValueError(f"shift_base must be less than acc_bits ({self.acc_bits}) to leave "
                             f"something of an accumulator, not {self.shift_base!r}")
        if self.direct_weights and self.weight_bits < self.code_bits:
            raise ValueError(f"weight_bits must be at least code_bits ({self.code_bits}) where "
                             f"weights are stored directly, not {self.weight_bits!r}")
        if self.state_depth and not 8 <= self.act_bits <= 17:
            raise ValueError(f"act_bits must be 8 to 17 for recurrent layers, "
                             f"not {self.act_bits!r}")
        if self.peephole_depth > self.state_depth:
            raise ValueError(f"peephole_depth must be at most state_depth ({self.state_depth}), "
                             f"not {self.peephole_depth!r}")
        if self.serial_cells and self.channels > 1:
            raise ValueError(f"channels must be 1 with serial_cells, not {self.channels!r}")
        if self.serial_cells and not 13 <= self.act_bits <= 17:
            raise ValueError(f"act_bits must be 13 to 17 with serial_cells, "
                             f"not {self.act_bits!r}")
        if self.n_pes % self.input_lanes:
            raise ValueError(
                f"input_lanes must divide n_pes ({self.n_pes}), not {self.input_lanes!r}")

    # -- widths -----------------------------------------------------------------------------------

    @property
    def spmat_word_bits(self) -> int:
        """An entry, with pointers also its flag; 9 bits fill the block RAM of ECP5 and Gowin."""
        return self.entry_bits + self.pointers

    @property
    def ptr_word_bits(self) -> int:
        """A start address and the 2-bit length class."""
        return self.spmat_addr_bits + 2

    @property
    def codebook_depth(self) -> int:
        """Words of the codebook memory of a PE."""
        return self.codebooks << self.code_bits

    @property
    def spmat_addr_bits(self) -> int:
        return _bits_for(self.spmat_depth - 1)

    @property
    def ptr_addr_bits(self) -> int:
        return _bits_for(self.ptr_depth - 1)

    @property
    def bias_addr_bits(self) -> int:
        return _bits_for(self.bias_depth - 1)

    @property
    def act_addr_bits(self) -> int:
        return _bits_for(self.act_depth - 1)

    @property
    def acc_addr_bits(self) -> int:
        return _bits_for(self.acc_depth - 1)

    @property
    def codebook_addr_bits(self) -> int:
        return _bits_for(self.codebook_depth - 1)

    @property
    def recurrent(self) -> bool:
        """Whether the engine has an element-wise unit."""
        return self.state_depth > 0

    @property
    def state_addr_bits(self) -> int:
        return _bits_for(self.state_depth - 1)

    @property
    def peephole_addr_bits(self) -> int:
        return _bits_for(self.peephole_depth - 1)

    @property
    def central_acts(self) -> bool:
        """Whether one memory holds all activations, and not each PE its own: every activation is
        broadcast, and all that are computed come from the element-wise unit one by one."""
        return self.recurrent and not self.pointers

    @property
    def paired(self) -> bool:
        """Whether two columns share a slot of the activation queues, so that a PE passes two of
        which it has no entry in a cycle."""
        return self.central_acts and self.queue_depth > 1

    @property
    def marker_bits(self) -> int:
        """Width of what the columns of a matrix have in common: code width, codebook or alignment,
        accumulators and, without pointers, rows and the address of the entries."""
        code_sel = max(1, (self.code_bits - self.min_code_bits).bit_length())
        weights = (self.weight_bits - self.code_bits if self.direct_weights
                   else self.codebooks - 1)
        bits = code_sel + max(1, weights.bit_length())
        if self.recurrent or not self.pointers:
            bits += self.acc_addr_bits
        return bits if self.pointers else bits + self.acc_addr_bits + 1 + self.spmat_addr_bits

    @property
    def marker_parts(self) -> int:
        """Messages that a marker takes: each has the width of a column's activations."""
        return ceil(self.marker_bits / (self.channels * self.act_bits))

    @property
    def program_addr_bits(self) -> int:
        return _bits_for(self.program_depth - 1)

    @property
    def pe_bits(self) -> int:
        """Width of a PE number."""
        return _bits_for(self.n_pes - 1)

    @property
    def rows_bits(self) -> int:
        """Width of a count of activation or accumulator rows."""
        return _bits_for(max(self.act_depth, self.acc_depth))

    # -- latencies, in cycles ---------------------------------------------------------------------
    #
    # The accelerator builds its pipelines from these names, the cycle model predicts with them,
    # and tests compare the two.

    @property
    def fan_levels(self) -> int:
        """Registered levels of the 8-way broadcast and status trees."""
        return _levels(self.n_pes, 8)

    @property
    def lnzd_levels(self) -> int:
        """Levels of the 4-input leading-non-zero nodes."""
        return _levels(self.n_pes, 4)

    @property
    def lnzd_latency(self) -> int:
        """From an activation of a PE to its item at the root: a cycle for each node and one for
        the way to it."""
        return 2 * self.lnzd_levels

    @property
    def broadcast_latency(self) -> int:
        """From the sequencer's decision to every PE, behind the register at its input; engines with
        ``serial_cells``, which are for devices short of cells, have none."""
        return self.fan_levels + (not self.serial_cells)

    @property
    def status_latency(self) -> int:
        """From a condition inside a PE to the sequencer seeing it."""
        return self.fan_levels + 1

    @property
    def ptr_read_latency(self) -> int:
        """From a column at a PE's pointer memory to its pointer; nothing is read without one."""
        return PTR_READ_LATENCY if self.pointers else 0

    @property
    def marker_latency(self) -> int:
        """Without pointers, from the last part of a marker at a PE to its first entry: address,
        memory, word, entry; in paired engines one more behind the word."""
        return 4 + self.paired

    @property
    def arrival_latency(self) -> int:
        """From the sequencer's decision to the column being counted in the activation queue."""
        return self.broadcast_latency + self.ptr_read_latency + 1

    @property
    def queue_capacity(self) -> int:
        """Slots of an activation queue: the depth asked for, and one for every column that can
        still arrive between a queue reaching that depth and the broadcast having stopped."""
        return self.queue_depth + self.arrival_latency + self.status_latency - 1

    @property
    def scan_latency(self) -> int:
        """From the sequencer's decision to scan to the first item: from the central memory, or at
        the root of the LNZD tree."""
        if self.central_acts:
            return ACT_READ_LATENCY + (not self.serial_cells)
        return self.broadcast_latency + ACT_READ_LATENCY + self.lnzd_latency

    @property
    def drain_wait(self) -> int:
        """From a broadcast to the first cycle in which `busy` can be believed."""
        return self.broadcast_latency + self.status_latency

    # -- the element-wise unit --------------------------------------------------------------------

    @property
    def gate_lanes(self) -> int:
        """Gates that may come to the element-wise unit side by side."""
        return 1 if self.serial_cells else GATE_LANES

    @property
    def bias_lanes(self) -> int:
        """Bias memories: lanes of the gather tree that have a PE, or one of every PE."""
        return min(self.gate_lanes, self.n_pes) if self.recurrent else self.n_pes

    @property
    def token_period(self) -> int:
        """Cycles between tokens: a unit per cycle, and four for every PE of one of 4 lanes."""
        return ceil(self.n_pes / GATE_LANES) * GATE_LANES

    @property
    def results_depth(self) -> int:
        """Results that may wait: all that can be under way when they come at full rate."""
        return 1 << (2 * self.token_period + 63).bit_length()

    @property
    def results_in_block_ram(self) -> bool:
        """Where results wait: those of one channel do not need block RAM."""
        return self.channels > 1

    @property
    def signature(self) -> int:
        """32-bit fingerprint; the host compares it with the engine's before loading a model."""
        text = ",".join(f"{k}={v}" for k, v in sorted(asdict(self).items()))
        return zlib.crc32(text.encode())

    # -- rows -------------------------------------------------------------------------------------

    def rows(self, n: int) -> int:
        """Rows of `n` interleaved elements: ``ceil(n / n_pes)``."""
        return ceil(n / self.n_pes)

    def rows_of(self, pe: int, n: int) -> int:
        """Elements of `n` that PE `pe` owns."""
        return (n - pe + self.n_pes - 1) // self.n_pes if n > pe else 0

    def with_(self, **changes) -> "EngineConfig":
        """A copy with fields changed."""
        return replace(self, **changes)


PRESETS: dict[str, EngineConfig] = {
    # The demonstration engine: small enough for every simulator.
    "demo": EngineConfig(n_pes=8, spmat_depth=4096, ptr_depth=1280, bias_depth=64, act_depth=512,
                         acc_depth=64, input_lanes=4),
    # ULX3S with LFE5U-85F: a 4-bit code, a 4-bit index and the flag fill 9-bit block RAM.
    "ulx3s-85f": EngineConfig(n_pes=16, spmat_depth=2048, ptr_depth=2048, bias_depth=64,
                              act_depth=256, acc_depth=32, input_lanes=4),
    # As many PEs as EIE has, on the same device: 131,072 entries, 16 bits, codebooks of 12. All but
    # 16 of the block RAMs are PEs', three each.
    "eie-85f": EngineConfig(n_pes=64, spmat_depth=2048, ptr_depth=1024, bias_depth=16,
                            act_depth=128, acc_depth=16, codebooks=2, weight_bits=12, acc_bits=28,
                            shift_bits=2, input_lanes=4),
    # ESE's LSTM layer in the block RAM of the same device, all of which it takes: 10 % of the
    # weights, 4-bit codes, codebooks of 12 bits.
    "ese-85f": EngineConfig(n_pes=64, queue_depth=10, entry_bits=9, spmat_depth=6144, ptr_depth=1,
                            bias_depth=1024, act_depth=16, acc_depth=72, codebooks=3,
                            weight_bits=12, acc_bits=28, shift_bits=2, pointers=False,
                            state_depth=1024, peephole_depth=1024),
    # An LSTM of 128 units with projection to 64 and peepholes on an iCE40UP5K: weights of 8 bits in
    # SPRAM, whose words have 16.
    "lstm-up5k": EngineConfig(n_pes=4, queue_depth=1, entry_bits=13, code_bits=8, min_code_bits=8,
                              spmat_depth=16384, ptr_depth=1, bias_depth=524, act_depth=32,
                              acc_depth=148, act_bits=13, weight_bits=8, acc_bits=24, bias_bits=16,
                              shift_base=6, shift_bits=2, direct_weights=True, pointers=False,
                              state_depth=128, peephole_depth=128, serial_cells=True),
    # EIE's machine (ISCA 2016, section VI): 64 PEs with 131,072 entries each.
    "eie-64": EngineConfig(n_pes=64, spmat_depth=131072, ptr_depth=32768, bias_depth=256,
                           act_depth=1024, acc_depth=256, input_lanes=4),
}
