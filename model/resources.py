"""What the memories of an engine take of an FPGA of Lattice's ECP5 family.

The figures are those of `EngineConfig` and follow Yosys: block RAMs as `openese build` will report
them, or a few more where Yosys finds a mix of shapes. Logic and multipliers are not estimated.
"""

from dataclasses import dataclass

from openese.model.config import EngineConfig
from openese.model.elementwise import activation_table, unit_frac
from openese.model.program import instruction_bits, instruction_fields

__all__ = ["BLOCK_BITS", "DEVICES", "EngineMemory", "block_rams", "engine_memories"]

#: Block RAMs (DP16KD) of the devices.
DEVICES = {"LFE5U-25F": 56, "LFE5U-45F": 108, "LFE5U-85F": 208}

#: Bits of a block RAM, parity included.
BLOCK_BITS = 18432

#: Words and widths a block RAM can have.
_SHAPES = ((16384, 1), (8192, 2), (4096, 4), (2048, 9), (1024, 18), (512, 36))

#: LUT RAMs of 16 x 4 bits that Yosys spends rather than a block RAM.
_WORTH_A_BLOCK = 21


@dataclass(frozen=True)
class EngineMemory:
    """Equal memories of an engine.

    Parameters
    ----------
    name
        What they hold.
    count
        How many there are.
    words, width
        Size of one, its width in bits.
    lanes
        Parts of a word that can be written alone, each ``width / lanes`` bits wide.
    lookup
        Read in the cycle of the address, which block RAM cannot do.
    """

    name: str
    count: int
    words: int
    width: int
    lanes: int = 1
    lookup: bool = False

    @property
    def bits(self) -> int:
        """Bits of all of them."""
        return self.count * self.words * self.width

    @property
    def brams(self) -> int:
        """Block RAMs of all of them; 0 where they are LUT RAM.

        They are that if they are read in the cycle of the address, or where fewer than 22 LUT RAMs
        of 16 x 4 bits do for each block RAM.
        """
        # A block RAM enables its writes by 9 bits.
        lane = self.width // self.lanes
        padded = lane if self.lanes == 1 else 9 * -(-lane // 9)
        blocks = block_rams(self.words, self.lanes * padded)
        small = self._luts <= _WORTH_A_BLOCK * blocks
        return 0 if self.lookup or small else self.count * blocks

    @property
    def lut_rams(self) -> int:
        """LUT RAMs of 16 x 4 bits of all of them; 0 where they are block RAM."""
        return 0 if self.brams else self.count * self._luts

    @property
    def _luts(self) -> int:
        return -(-self.words // 16) * -(-self.width // 4)


def block_rams(words: int, width: int) -> int:
    """Block RAMs of one memory, in the shape that takes fewest."""
    return min(-(-words // depth) * -(-width // bits) for depth, bits in _SHAPES)


def engine_memories(config: EngineConfig) -> list[EngineMemory]:
    """All memories of an engine, in the order of their path through it."""
    pes, channels, bits = config.n_pes, config.channels, config.act_bits
    fields = instruction_fields(config)
    route = sum(fields.get(name, 0) for name in ("codebook", "align", "code_sel", "acc"))
    start = config.ptr_word_bits if config.pointers else config.spmat_addr_bits + 1
    column = channels * bits + route + start + config.recurrent

    memories = [
        EngineMemory("matrix words", pes, config.spmat_depth, config.spmat_word_bits)]
    if config.pointers:
        memories.append(
            EngineMemory("column pointers", pes, config.ptr_depth, config.ptr_word_bits))
    if not config.direct_weights:
        memories.append(EngineMemory(
            "codebooks", pes, config.codebook_depth, config.weight_bits))
    memories += [
        EngineMemory("biases", pes, config.bias_depth, config.bias_bits),
        # Each activation knows whether it is zero.
        EngineMemory("activations", pes, config.act_depth, channels * (bits + 1), channels),
        EngineMemory("accumulators", pes * channels, config.acc_depth, config.acc_bits),
        EngineMemory("activation queues", pes, config.queue_capacity, column, lookup=True),
        EngineMemory("program", 1, config.program_depth, instruction_bits(config)),
    ]
    if config.recurrent:
        memories += _elementwise_memories(config)
    return memories


def _elementwise_memories(config: EngineConfig) -> list[EngineMemory]:
    channels, bits = config.channels, config.act_bits
    values, steps = activation_table(bits)
    word = unit_frac(bits) + max(1, int(max(steps)).bit_length())
    memories = [EngineMemory("cell states", 1, config.state_depth, channels * bits, channels)]
    if channels > 1:
        memories.append(EngineMemory(
            "results of idle channels", 1, config.state_depth, channels * bits, channels))
    if config.peephole_depth:
        memories.append(EngineMemory("peepholes", 1, config.peephole_depth, 3 * bits))
    # Sigmoids of i, f and o, tanh of g and c; and the queue of results, a power of 2 of which one
    # stands in a register.
    tokens = 4 * -(-config.n_pes // 4)
    return [*memories, EngineMemory("sigmoid and tanh", 5 * channels, len(values), word),
            EngineMemory("queue of results", 1, (1 << (2 * tokens + 63).bit_length()) - 1,
                         channels * bits)]
