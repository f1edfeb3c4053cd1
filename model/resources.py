"""What the memories of an engine take of an FPGA of Lattice's ECP5 family.

The figures are those of `EngineConfig` and follow Yosys: block RAMs as `openese build` will report
them, or a few more where Yosys finds a mix of shapes. Logic and multipliers are not estimated.
"""

from dataclasses import dataclass

import numpy as np

from openese.model.compile import Image
from openese.model.config import LUT_RAM_WORDS, EngineConfig
from openese.model.elementwise import activation_table, unit_frac
from openese.model.program import instruction_bits

__all__ = ["DEVICES", "EngineMemory", "block_rams", "engine_memories", "engine_report",
           "format_engine_report"]

#: Block RAMs (DP16KD) of the devices.
DEVICES = {"LFE5U-25F": 56, "LFE5U-45F": 108, "LFE5U-85F": 208}

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
    # Of recurrent engines an element of a queue says what it is; a pair has a second column.
    column = (channels * bits + (config.ptr_word_bits if config.pointers else 0)
              + (2 if config.recurrent else 0) + (channels * bits + 1 if config.paired else 0))
    if config.central_acts:
        # One for each lane of a beat, whose groups fill a power of 2 of words.
        lanes = config.input_lanes
        groups = 1 << (config.n_pes // lanes - 1).bit_length()
        acts = EngineMemory("activations", lanes, config.act_depth * groups, channels * bits,
                            channels)
    else:
        # Each activation knows whether it is zero.
        acts = EngineMemory("activations", pes, config.act_depth, channels * (bits + 1), channels)

    memories = [
        EngineMemory("matrix words", pes, config.spmat_depth, config.spmat_word_bits)]
    if config.pointers:
        memories.append(
            EngineMemory("column pointers", pes, config.ptr_depth, config.ptr_word_bits))
    if not config.direct_weights:
        memories.append(EngineMemory(
            "codebooks", pes, config.codebook_depth, config.weight_bits))
    memories += [
        EngineMemory("biases", config.bias_lanes, config.bias_depth, config.bias_bits,
                     lookup=config.bias_depth <= LUT_RAM_WORDS),
        acts,
        EngineMemory("accumulators", pes * channels, config.acc_depth, config.acc_bits,
                     lookup=config.acc_depth <= LUT_RAM_WORDS),
        EngineMemory("activation queues", pes, config.queue_capacity, column, lookup=True),
        EngineMemory("program", 1, config.program_depth, instruction_bits(config)),
    ]
    if config.recurrent:
        memories += _elementwise_memories(config)
    return memories


def _elementwise_memories(config: EngineConfig) -> list[EngineMemory]:
    channels, bits = config.channels, config.act_bits
    values, steps = activation_table(bits)
    if config.serial_cells:
        peepholes = [EngineMemory("peepholes", 1, config.peephole_depth, 3 * bits)]
        return [
            EngineMemory("cell states and gates", 1, -(-config.state_depth // 4) * 4 + 4, bits),
            *(peepholes if config.peephole_depth else []),
            EngineMemory("tanh", 1, len(values), bits),
            EngineMemory("steps of the cells", 1, 198 if config.peephole_depth else 118, 14)]
    word = unit_frac(bits) + max(1, int(max(steps)).bit_length())
    memories = [EngineMemory("cell states", 1, config.state_depth, channels * bits, channels)]
    if channels > 1:
        memories.append(EngineMemory(
            "results of idle channels", 1, config.state_depth, channels * bits, channels))
    if config.peephole_depth:
        memories.append(EngineMemory("peepholes", 1, config.peephole_depth, 3 * bits))
    # Sigmoids of i, f and o, tanh of g and c; and the queue of results, each with whether it is
    # zero.
    return [*memories, EngineMemory("sigmoid and tanh", 5 * channels, len(values), word),
            EngineMemory("queue of results", 1, config.results_depth, channels * bits + 1,
                         lookup=not config.results_in_block_ram)]


def engine_report(image: Image, device: str = "LFE5U-85F") -> dict:
    """What a compiled network asks of every PE, and what its engine's memories take of a device.

    Returns a dict with ``pes``, ``channels``, ``entry_bits``, ``pointers``; ``entries`` and
    ``fillers`` of all PEs, ``fullest_pe`` (entries of the PE that has most) and ``balance`` (that /
    mean), and the same for every matrix in ``rows``, with ``name``, ``rows``, ``columns``, ``nnz``
    and ``density``; ``memories``, each with ``name``, ``count``, ``words``, ``width``, ``bits``,
    ``brams`` and ``lut_rams`` (of 16 x 4 bits), and the sums of the last three; ``device``,
    ``brams_available`` and ``fits``: whether the device has as many block RAMs.

    Raises
    ------
    ValueError
        An unknown device.
    """
    if device not in DEVICES:
        raise ValueError(f"no device is called {device!r}; there are: {', '.join(DEVICES)}")
    config = image.config
    rows = [{"name": layer.name, "rows": layer.out_features, "columns": layer.in_features,
             **_loads(layer.lengths.sum(axis=1), int(layer.fillers.sum()))}
            for layer in image.layers]
    for row in rows:
        row["nnz"] = row["entries"] - row["fillers"]
        row["density"] = row["nnz"] / (row["rows"] * row["columns"])
    memories = [
        {"name": memory.name, "count": memory.count, "words": memory.words, "width": memory.width,
         "bits": memory.bits, "brams": memory.brams, "lut_rams": memory.lut_rams}
        for memory in engine_memories(config)]
    total = {key: sum(memory[key] for memory in memories) for key in ("bits", "brams", "lut_rams")}
    loads = sum(layer.lengths.sum(axis=1, dtype=np.int64) for layer in image.layers)
    return {
        "pes": config.n_pes, "channels": config.channels, "entry_bits": config.entry_bits,
        "pointers": config.pointers, **_loads(loads, image.fillers), "rows": rows,
        "memories": memories, **total, "device": device, "brams_available": DEVICES[device],
        "fits": total["brams"] <= DEVICES[device],
    }


def _loads(entries: np.ndarray, fillers: int) -> dict:
    """Figures of entries per PE."""
    total, fullest = int(entries.sum()), int(entries.max())
    return {"entries": total, "fillers": fillers, "fullest_pe": fullest,
            "balance": fullest * len(entries) / total if total else 1.0}


def format_engine_report(report: dict) -> str:
    """The report of `engine_report` as plain text."""
    words = ["pointers" if report["pointers"] else "no pointers",
             f"{report['entry_bits']}-bit entries"]
    if report["channels"] > 1:
        words.append(f"{report['channels']} channels")
    lines = [f"engine of {report['pes']} PEs that just holds it ({', '.join(words)}):"]
    matrices = [["matrix", "rows", "columns", "kept", "density", "entries", "fillers",
                 "fullest PE", "x mean"]]
    for row in [*report["rows"], report]:
        whole = row is report
        matrices.append([
            "total" if whole else row["name"],
            *(["", "", f"{row['entries'] - row['fillers']:,}", ""] if whole else [
                f"{row['rows']:,}", f"{row['columns']:,}", f"{row['nnz']:,}",
                f"{row['density']:.1%}"]),
            f"{row['entries']:,}", f"{row['fillers']:,}", f"{row['fullest_pe']:,}",
            f"{row['balance']:.3f}"])
    memories = [["memory", "number", "words", "bits wide", "bits", "block RAM", "LUT RAM"]]
    for row in report["memories"]:
        memories.append([row["name"], *(f"{row[key]:,}" for key in (
            "count", "words", "width", "bits", "brams", "lut_rams"))])
    memories.append(["total", "", "", "", *(f"{report[key]:,}" for key in (
        "bits", "brams", "lut_rams"))])
    verdict = "fits" if report["fits"] else "does not fit"
    return "\n".join([
        *lines, *_table(matrices), "", *_table(memories),
        f"  {report['device']}: {report['brams']} of {report['brams_available']} block RAMs: "
        f"{verdict}",
        "  block RAM of 18 kbit; a memory that takes at most 21 LUT RAMs of 16 x 4 bits for each "
        "block RAM is LUT RAM"])


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(
        cell.rjust(width) if k else cell.ljust(width)
        for k, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows]
