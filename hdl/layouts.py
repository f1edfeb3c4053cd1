"""Payloads of the streams between the blocks, all derived from the engine configuration."""

from amaranth import *
from amaranth.lib import data, enum, stream

from openese.model.config import EngineConfig
from openese.model.program import instruction_fields

__all__ = [
    "Kind", "Tag", "act_out_layout", "act_signature", "broadcast_layout", "broadcast_signature",
    "entry_layout", "input_layout", "input_signature", "instruction_layout", "marker_layout",
    "ptr_layout", "route_layout", "scan_layout", "slot_layout", "start_layout", "status_layout",
    "values_layout",
]


class Kind(enum.Enum, shape=4):
    """What a broadcast message is.

    What goes to the activation queues has zeros above its two lowest bits, which make the `Tag`.
    """

    ACT = 0  #: a non-zero activation and the address of its column pointer
    MARK = 1  #: a part of what the columns that follow have in common, lowest first
    CELL = 2  #: mark the end of what a cell depends on, and prepare its drain
    SCAN = 4  #: read a region of the activation memory out
    WRITE = 5  #: clear an accumulator of every PE, after rounding and writing it back if need be
    LOAD_SPMAT = 8
    LOAD_PTR = 9
    LOAD_BIAS = 10
    LOAD_CODEBOOK = 11
    LOAD_CELL = 12  #: of the element-wise unit, as the next two
    LOAD_RESULT = 13
    LOAD_PEEPHOLE = 14
    LOAD_ACT = 15


class Tag(enum.Enum, shape=2):
    """What an element of an activation queue is."""

    COLUMN = 0
    PART = 1  #: of a marker, not the last
    FENCE = 2  #: no more before it
    MARK = 3  #: the last part of a marker


def values_layout(config: EngineConfig) -> data.ArrayLayout:
    """An activation of every channel."""
    return data.ArrayLayout(signed(config.act_bits), config.channels)


def route_layout(config: EngineConfig) -> data.StructLayout:
    """What a column needs beside its activations: where its entries go and how they are coded."""
    fields = instruction_fields(config)
    weights = "align" if config.direct_weights else "codebook"
    route = {weights: fields[weights], "code_sel": fields["code_sel"]}
    if config.recurrent or not config.pointers:
        # The first accumulator; without pointers the one behind the last.
        route |= {"acc": config.acc_addr_bits}
    return data.StructLayout(route)


def marker_layout(config: EngineConfig) -> data.StructLayout:
    """What the columns of a matrix have in common: their route and, without pointers, where the
    entries of the first one are, and the negative of their height."""
    fields = {"route": route_layout(config)}
    if not config.pointers:
        fields |= {"spmat": config.spmat_addr_bits, "drop": signed(config.acc_addr_bits + 1)}
    return data.StructLayout(fields)


def broadcast_layout(config: EngineConfig) -> data.StructLayout:
    """A message from the sequencer or the host to all PEs: its kind and a union of arguments."""
    load_addr_bits = max(config.spmat_addr_bits, config.ptr_addr_bits, config.bias_addr_bits,
                         config.codebook_addr_bits)
    load_bits = max(config.spmat_word_bits, config.ptr_word_bits, config.bias_bits,
                    config.weight_bits)
    act = {"values": values_layout(config)}
    mark = {"part": Shape.cast(values_layout(config)).width, "last": 1}
    scan = {"act": config.act_addr_bits, "rows": config.rows_bits, "rem": config.pe_bits + 1,
            "dense": 1}
    write = {"acc": config.acc_addr_bits}
    load = {"pe": config.pe_bits, "addr": load_addr_bits, "data": load_bits}
    if config.pointers:
        act |= {"ptr": config.ptr_addr_bits}
    if config.recurrent:
        write |= {"gates": 2}
    else:
        write |= {"act": config.act_addr_bits, "bias": config.bias_addr_bits,
                  "shift": config.shift_bits, "relu": 1, "discard": 1}
    if config.recurrent:
        load |= {"channel": max(1, (config.channels - 1).bit_length())}
        load["addr"] = max(load_addr_bits, config.act_addr_bits, config.state_addr_bits,
                           config.peephole_addr_bits)
        load["data"] = max(load_bits, 3 * config.act_bits if config.peephole_depth
                           else config.act_bits)
    return data.StructLayout({
        "kind": Kind,
        "args": data.UnionLayout({
            "act": data.StructLayout(act), "mark": data.StructLayout(mark),
            "scan": data.StructLayout(scan),
            "write": data.StructLayout(write), "load": data.StructLayout(load),
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
        "values": data.ArrayLayout(values_layout(config), config.input_lanes),
    })


def input_signature(config: EngineConfig) -> stream.Signature:
    """Input beats; PEs take one every cycle."""
    return stream.Signature(input_layout(config), always_ready=True)


def act_signature(config: EngineConfig) -> stream.Signature:
    """The engine's input: ``input_lanes`` activations per beat, lane 0 in the lowest bits.

    With several channels each lane has an activation of each, and the beat says which channels
    have a step in this vector; the last beat of a vector counts.
    """
    if config.channels == 1:
        return stream.Signature(data.ArrayLayout(signed(config.act_bits), config.input_lanes))
    return stream.Signature(data.StructLayout({
        "values": data.ArrayLayout(values_layout(config), config.input_lanes),
        "active": config.channels,
    }))


def act_out_layout(config: EngineConfig) -> data.StructLayout:
    """The engine's output: one activation of every channel per beat."""
    return data.StructLayout({"data": values_layout(config), "last": 1})


def scan_layout(config: EngineConfig, lane_bits: int) -> data.StructLayout:
    """An item of the LNZD tree.

    ``nonzero`` = 0 says that a whole row of activations is zero, in all channels; ``last`` marks
    the final item of a row. ``lane`` is the position below the node the item comes from.
    """
    fields = {"values": values_layout(config), "nonzero": 1, "last": 1}
    if lane_bits:
        fields["lane"] = lane_bits
    return data.StructLayout(fields)


def status_layout(config: EngineConfig, level: int) -> data.StructLayout:
    """What a PE (level 0) or all PEs below a node of this level report to the sequencer.

    ``busy``, ``stall`` (a queue is almost full), ``fence`` (work from before a fence is left),
    ``working`` (an entry was read), and ``saturations`` in this cycle.
    """
    return data.StructLayout({
        "busy": 1, "stall": 1, "fence": 1, "working": 1,
        "saturations": Shape.cast(range(config.channels + 1)).width + 3 * level,
    })


def ptr_layout(config: EngineConfig) -> data.StructLayout:
    """A column pointer: start address, and 0, 1, 2 or "3 or more" entries."""
    return data.StructLayout({"start": config.spmat_addr_bits, "length": 2})


def start_layout(config: EngineConfig) -> data.StructLayout:
    """An element of an activation queue: of a column, its activations and, with pointers, where
    its entries are.

    In recurrent engines, whose matrices follow each other without a pause, the ``tag`` tells
    columns from what stands between them. A part of a marker is in the place of activations.
    """
    fields = {"values": values_layout(config)}
    if config.pointers:
        fields |= {"ptr": ptr_layout(config)}
    if config.recurrent:
        fields |= {"tag": Tag}
    return data.StructLayout(fields)


def slot_layout(config: EngineConfig) -> data.StructLayout:
    """A slot of an activation queue: an element, or with ``paired`` perhaps ``two`` columns, of
    which ``second`` are the activations of the later one."""
    fields = dict(start_layout(config).members)
    if config.paired:
        fields |= {"second": values_layout(config), "two": 1}
    return data.StructLayout(fields)


def entry_layout(config: EngineConfig) -> data.StructLayout:
    """A matrix entry with the activations and the route of its column.

    With pointers, as it is stored, with whether it is the ``first`` of its column. Without, its
    code and its ``row``, counted back from the end of its column.
    """
    fields = {"values": values_layout(config), "route": route_layout(config)}
    if config.pointers:
        fields |= {"entry": config.entry_bits, "first": 1}
    else:
        fields |= {"code": config.code_bits, "row": config.acc_addr_bits}
    return data.StructLayout(fields)


def instruction_layout(config: EngineConfig) -> data.StructLayout:
    """A program word; the compiler packs the same fields."""
    return data.StructLayout(instruction_fields(config))
