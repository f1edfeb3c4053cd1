"""Payloads of the streams between the blocks, all derived from the engine configuration."""

from amaranth import *
from amaranth.lib import data, enum, stream

from openese.model.config import EngineConfig
from openese.model.program import instruction_fields

__all__ = [
    "Kind", "act_out_layout", "act_signature", "broadcast_layout", "broadcast_signature",
    "entry_layout", "input_layout", "input_signature", "instruction_layout", "ptr_layout",
    "scan_layout", "start_layout",
]


class Kind(enum.Enum, shape=3):
    """What a broadcast message is."""

    ACT = 0  #: a non-zero activation and the address of its column pointer
    SCAN = 1  #: read a region of the activation memory out through the LNZD tree
    WRITE = 2  #: round, saturate and write back the accumulators, clearing them
    LOAD_SPMAT = 3
    LOAD_PTR = 4
    LOAD_BIAS = 5
    LOAD_CODEBOOK = 6


def broadcast_layout(config: EngineConfig) -> data.StructLayout:
    """A message from the sequencer or the host to all PEs: its kind and a union of arguments."""
    load_addr_bits = max(config.spmat_addr_bits, config.ptr_addr_bits, config.bias_addr_bits,
                         config.codebook_addr_bits)
    load_bits = max(config.spmat_word_bits, config.ptr_word_bits, config.bias_bits,
                    config.weight_bits)
    fields = instruction_fields(config)
    return data.StructLayout({
        "kind": Kind,
        "args": data.UnionLayout({
            "act": data.StructLayout({
                "ptr": config.ptr_addr_bits,
                "value": signed(config.act_bits),
            }),
            "scan": data.StructLayout({
                "act": config.act_addr_bits,
                "rows": config.rows_bits,
                "rem": config.pe_bits + 1,
                "codebook": fields["codebook"],
                "code_sel": fields["code_sel"],
                "dense": 1,
            }),
            "write": data.StructLayout({
                "act": config.act_addr_bits,
                "rows": config.rows_bits,
                "bias": config.bias_addr_bits,
                "shift": config.shift_bits,
                "relu": 1,
                "discard": 1,
            }),
            "load": data.StructLayout({
                "pe": config.pe_bits,
                "addr": load_addr_bits,
                "data": load_bits,
            }),
        }),
    })


def broadcast_signature(config: EngineConfig) -> stream.Signature:
    """Broadcast messages; PEs take one every cycle."""
    return stream.Signature(broadcast_layout(config), always_ready=True)


def input_layout(config: EngineConfig) -> data.StructLayout:
    """One beat of input on its way into the activation memories of a group of PEs."""
    groups = config.n_pes // config.input_lanes
    return data.StructLayout({
        "group": max(1, (groups - 1).bit_length()),
        "act": config.act_addr_bits,
        "values": data.ArrayLayout(signed(config.act_bits), config.input_lanes),
    })


def input_signature(config: EngineConfig) -> stream.Signature:
    """Input beats; PEs take one every cycle."""
    return stream.Signature(input_layout(config), always_ready=True)


def act_signature(config: EngineConfig) -> stream.Signature:
    """The engine's input: ``input_lanes`` activations per beat, lane 0 in the lowest bits."""
    return stream.Signature(
        data.ArrayLayout(signed(config.act_bits), config.input_lanes))


def act_out_layout(config: EngineConfig) -> data.StructLayout:
    """The engine's output: one activation per beat."""
    return data.StructLayout({"data": signed(config.act_bits), "last": 1})


def scan_layout(config: EngineConfig, lane_bits: int) -> data.StructLayout:
    """An item of the LNZD tree.

    ``nonzero`` = 0 says that a whole row of activations is zero; ``last`` marks the final item of
    a row. ``lane`` is the position below the node the item comes from.
    """
    fields = {"value": signed(config.act_bits), "nonzero": 1, "last": 1}
    if lane_bits:
        fields["lane"] = lane_bits
    return data.StructLayout(fields)


def ptr_layout(config: EngineConfig) -> data.StructLayout:
    """A column pointer: start address, and 0, 1, 2 or "3 or more" entries."""
    return data.StructLayout({"start": config.spmat_addr_bits, "length": 2})


def start_layout(config: EngineConfig) -> data.StructLayout:
    """A column ready to be multiplied: its pointer and the activation."""
    return data.StructLayout({"ptr": ptr_layout(config), "value": signed(config.act_bits)})


def entry_layout(config: EngineConfig) -> data.StructLayout:
    """A matrix entry with the activation of its column."""
    return data.StructLayout({
        "entry": config.entry_bits,
        "value": signed(config.act_bits),
        "first": 1,
    })


def instruction_layout(config: EngineConfig) -> data.StructLayout:
    """A program word; the compiler packs the same fields."""
    return data.StructLayout(instruction_fields(config))
