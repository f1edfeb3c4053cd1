"""The words a host sends to an engine and the registers it reads back.

A command is one word, ``op`` in bits 31:28, ``target`` in 27:24, ``channel`` in 23:16, ``pe`` in
15:0. LOAD is followed by an address, a count and that many items of ``ceil(width / 32)`` words, low
word first.
"""

from collections.abc import Iterable
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openese.model.compile import Image
from openese.model.config import EngineConfig
from openese.model.program import instruction_bits
from openese.model.reference import LayerState, State, checked_inputs

__all__ = ["MAGIC", "HostOp", "InputRegister", "Register", "Target", "call", "dumped", "load",
           "load_state", "load_words", "pack_inputs", "read", "reset_state", "start", "stop",
           "unpack_state"]

MAGIC = 0x0E5E0001
"""What `Register.MAGIC` reads: this host protocol, version 1."""


class HostOp(IntEnum):
    """Commands."""

    LOAD = 1
    """Write a memory; stops the engine as STOP does and waits until it is idle."""
    START = 2
    """Run the program over and over, one pass per input vector."""
    STOP = 3
    """Finish the pass being run, then idle; input already buffered stays."""
    READ = 4
    """Answer the register `target` with one word."""
    CALL = 5
    """Stop the engine as STOP does, wait until it is idle, then run the routine at program address
    `pe` once (recurrent engines)."""


class Target(IntEnum):
    """What LOAD writes."""

    SPMAT = 0
    PTR = 1
    BIAS = 2
    CODEBOOK = 3
    """Broadcast to all PEs."""
    PROGRAM = 4
    REGISTER = 5
    """`InputRegister`."""
    ACT = 6
    """Activation memory of a PE, one channel (recurrent engines, as all that follow)."""
    CELL = 7
    """State memory of the element-wise unit, one channel."""
    RESULT = 8
    """Its results memory, which idle channels repeat, one channel (several channels only)."""
    PEEPHOLE = 9
    """Its peephole weights."""


class InputRegister(IntEnum):
    """Registers that LOAD writes: where input vectors go."""

    IN_ROWS = 0
    """Rows of an input vector; writing it also empties the input buffers."""
    IN_BASE0 = 1
    IN_BASE1 = 2


class Register(IntEnum):
    """Registers that READ answers, all of 32 bits."""

    MAGIC = 0
    SIGNATURE = 1
    """`EngineConfig.signature`."""
    CYCLES = 2
    """Cycles spent running, low 32 bits."""
    SATURATIONS = 3
    """Values clipped by write-backs."""
    PASSES = 4
    """Input vectors finished."""
    ERRORS = 5
    """Bit 0: an unknown command was received."""
    EXPOSED = 6
    """Cycles in which the element-wise unit was at work and no PE was."""
    STALLS = 7
    """Cycles in which the broadcast waited because the queue of a PE was full."""


def _command(op: HostOp, target: int = 0, pe: int = 0, channel: int = 0) -> int:
    return op << 28 | target << 24 | channel << 16 | pe


def load(target: Target, items: ArrayLike, width: int, *, address: int = 0,
         pe: int = 0, channel: int = 0) -> NDArray[np.uint32]:
    """A LOAD command: `items`, unsigned integers of `width` bits, from `address` on.

    Raises
    ------
    ValueError
        An item that `width` does not hold.
    """
    # Python ints where instructions may exceed 64 bits, arrays for the large memories.
    items = np.asarray(items, dtype=object if width > 32 else np.int64)
    if items.size and not 0 <= items.min() <= items.max() < 1 << width:
        raise ValueError(f"items for {target.name} must be 0 to {(1 << width) - 1}, found "
                         f"{items.min()}..{items.max()}")
    count = -(-width // 32)
    words = np.empty((len(items), count), dtype=np.uint32)
    for place in range(count):
        words[:, place] = items >> 32 * place & 0xFFFF_FFFF
    head = [_command(HostOp.LOAD, target, pe, channel), address, len(items)]
    return np.concatenate([np.array(head, dtype=np.uint32), words.ravel()])


def load_words(image: Image, config: EngineConfig) -> NDArray[np.uint32]:
    """All LOAD commands that put `image` into an engine: uint32 ``(words,)`` for ``i_host``.

    States of recurrent layers begin at 0.

    Raises
    ------
    ValueError
        An image compiled for another engine.
    """
    if image.config != config:
        raise ValueError("the image was compiled for another engine: compile it for this one")
    parts = []
    for pe in range(config.n_pes):
        parts.append(load(Target.SPMAT, image.spmat[pe], config.spmat_word_bits, pe=pe))
        if config.pointers:
            parts.append(load(Target.PTR, image.ptr[pe], config.ptr_word_bits, pe=pe))
    for lane, words in enumerate(image.bias):
        parts.append(load(Target.BIAS, words, config.bias_bits, pe=lane))
    if not config.direct_weights:
        parts.append(load(Target.CODEBOOK, image.codebook, config.weight_bits))
    if image.peephole:
        parts.append(load(Target.PEEPHOLE, image.peephole, 3 * config.act_bits))
    return np.concatenate([
        *parts,
        reset_state(image),
        load(Target.PROGRAM, image.program, instruction_bits(config)),
        load(Target.REGISTER, [image.in_rows, *image.in_base], 32,
             address=InputRegister.IN_ROWS),
    ])


def load_state(image: Image, state: State, channels: Iterable[int] | None = None
               ) -> NDArray[np.uint32]:
    """The LOAD commands that give recurrent layers a state: uint32 ``(words,)``, maybe none.

    Like every LOAD, they make the next pass compute its accumulators afresh from the state.

    Parameters
    ----------
    image
        The network in the engine.
    state
        Hidden and cell states of all channels.
    channels
        Channels to load. ``None``: all.

    Raises
    ------
    ValueError
        A state of other layers, channels or sizes, values that ``act_bits`` does not hold, or a
        channel that the engine does not have.
    """
    config = image.config
    channels = range(config.channels) if channels is None else list(channels)
    for channel in channels:
        if not 0 <= channel < config.channels:
            raise ValueError(f"channels must be 0 to {config.channels - 1}, not {channel!r}")
    _check_state(image, state)

    def words(values: NDArray) -> NDArray:
        return values & ((1 << config.act_bits) - 1)

    parts = []
    for table, layer in zip(image.states, state, strict=True):
        for channel in channels:
            own = words(np.asarray(layer.h)[channel])
            for pe in range(min(config.n_pes, table.out_features)):
                parts.append(load(Target.ACT, own[pe::config.n_pes], config.act_bits,
                                  address=table.act, pe=pe, channel=channel))
            if table.has_cell or table.is_gru:
                cell = words(np.asarray(layer.c)[channel]) if table.has_cell else own
                parts.append(load(Target.CELL, cell, config.act_bits, address=table.state,
                                  channel=channel))
            if config.channels > 1:
                # What a projection reads of an idle channel does not matter: its result is kept.
                inner = np.zeros(table.results - table.state, dtype=own.dtype)
                parts.append(load(Target.RESULT, np.concatenate([inner, own]), config.act_bits,
                                  address=table.state, channel=channel))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)


def _check_state(image: Image, state: State) -> None:
    bits, channels = image.config.act_bits, image.config.channels
    if len(state) != len(image.states):
        raise ValueError(f"a state of {len(image.states)} recurrent layers is needed, "
                         f"not of {len(state)}")
    for table, layer in zip(image.states, state, strict=True):
        wanted = [("h", layer.h, table.out_features)]
        if table.has_cell:
            wanted.append(("c", layer.c, table.units))
        for what, values, size in wanted:
            if np.shape(values) != (channels, size):
                raise ValueError(f"layer {table.name!r}: {what} must have shape "
                                 f"({channels}, {size}), not {np.shape(values)}")
            checked_inputs(np.asarray(values), size, bits)


def reset_state(image: Image) -> NDArray[np.uint32]:
    """The LOAD commands that set the states of all channels to 0."""
    channels = image.config.channels
    return load_state(image, [
        LayerState(np.zeros((channels, table.out_features), dtype=np.int64),
                   np.zeros((channels, table.units), dtype=np.int64) if table.has_cell else None)
        for table in image.states])


def dumped(image: Image, state: State) -> NDArray[np.int64]:
    """What the routine at `Image.dump` sends of a state: the output ``data``, (beats, channels).

    Hidden states of all recurrent layers, then cell states of all LSTMs. Raises ``ValueError`` as
    `load_state`.
    """
    _check_state(image, state)
    parts = [layer.h for layer in state]
    parts += [layer.c for table, layer in zip(image.states, state, strict=True) if table.has_cell]
    return np.concatenate(parts, axis=1).T.astype(np.int64)


def unpack_state(image: Image, values: ArrayLike) -> State:
    """The state that the routine at `Image.dump` has sent; the inverse of `dumped`.

    Raises
    ------
    ValueError
        Another number of values than this network's state has.
    """
    sizes = [table.out_features for table in image.states]
    sizes += [table.units for table in image.states if table.has_cell]
    values = np.asarray(values, dtype=np.int64)
    if values.shape != (sum(sizes), image.config.channels):
        raise ValueError(f"the state of this network has shape ({sum(sizes)}, "
                         f"{image.config.channels}), not {values.shape}")
    parts = iter([part.T for part in np.split(values, np.cumsum(sizes)[:-1])])
    hidden = [next(parts) for _ in image.states]
    return [LayerState(h, next(parts) if table.has_cell else None)
            for table, h in zip(image.states, hidden, strict=True)]


def start() -> NDArray[np.uint32]:
    """The START command."""
    return np.array([_command(HostOp.START)], dtype=np.uint32)


def stop() -> NDArray[np.uint32]:
    """The STOP command."""
    return np.array([_command(HostOp.STOP)], dtype=np.uint32)


def call(address: int) -> NDArray[np.uint32]:
    """The CALL command of a routine, such as that at `Image.dump`."""
    return np.array([_command(HostOp.CALL, pe=address)], dtype=np.uint32)


def read(register: Register) -> NDArray[np.uint32]:
    """The READ command of a register."""
    return np.array([_command(HostOp.READ, register)], dtype=np.uint32)


def pack_inputs(inputs: ArrayLike, config: EngineConfig, active: ArrayLike | None = None
                ) -> NDArray[np.int32] | dict[str, NDArray]:
    """Beats of ``i_act`` for raw inputs ``(n, in_features)``, or ``(n, channels, in_features)``.

    Activation ``b * input_lanes + l`` of a vector is lane ``l`` of its beat ``b``; a vector is
    padded with zeros to whole rows of PEs.

    Parameters
    ----------
    inputs
        With the dimension of channels, which an engine of one channel need not have.
    config
        The engine.
    active
        bool ``(n, channels)``: which channels have a step in each vector; only for engines of
        several channels. ``None``: all.

    Returns
    -------
    int32 ``(beats, input_lanes)``, ``rows(in_features) * n_pes / input_lanes`` beats a vector. Of
    engines of several channels the fields of the payload: ``values`` int32
    ``(beats, input_lanes, channels)`` and ``active`` uint64 ``(beats,)``, channel 0 in bit 0.

    Raises
    ------
    ValueError
        Another shape, or as `run_reference`.
    """
    inputs = np.asarray(inputs)
    many = config.channels > 1
    if many and (inputs.ndim != 3 or inputs.shape[1] != config.channels):
        raise ValueError(f"inputs must have shape (n, {config.channels}, in_features), "
                         f"not {inputs.shape}")
    if active is not None and not many:
        raise ValueError("active is for engines of several channels: leave vectors out instead")
    if not many and inputs.ndim == 3 and inputs.shape[1] == 1:
        inputs = inputs[:, 0]
    features = inputs.shape[-1] if inputs.ndim else 0
    n = len(inputs) if inputs.ndim else 0
    checked = checked_inputs(inputs.reshape(-1, features) if many else inputs, features,
                             config.act_bits)
    padded = np.zeros((len(checked), config.rows(features) * config.n_pes), dtype=np.int32)
    padded[:, :features] = checked
    if not many:
        return padded.reshape(-1, config.input_lanes)
    beats = padded.shape[1] // config.input_lanes
    values = padded.reshape(n, config.channels, beats, config.input_lanes).transpose(0, 2, 3, 1)
    active = np.ones((n, config.channels), dtype=bool) if active is None else np.asarray(active)
    if active.dtype != bool or active.shape != (n, config.channels):
        raise ValueError(f"active must be bool of shape ({n}, {config.channels}), "
                         f"not {active.dtype} of {active.shape}")
    mask = (active.astype(np.uint64) << np.arange(config.channels, dtype=np.uint64)).sum(
        axis=1, dtype=np.uint64)
    return {
        "values": values.reshape(-1, config.input_lanes, config.channels),
        "active": np.repeat(mask, beats),
    }
