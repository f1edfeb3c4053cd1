"""The words a host sends to an engine and the registers it reads back.

A command is one word, ``op`` in bits 31:28, ``target`` in 27:24, ``pe`` in 15:0. LOAD is followed
by an address, a count and that many items of ``ceil(width / 32)`` words, low word first.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openese.model.compile import Image
from openese.model.config import EngineConfig
from openese.model.program import instruction_bits
from openese.model.reference import checked_inputs

__all__ = ["MAGIC", "HostOp", "InputRegister", "Register", "Target", "load", "load_words",
           "pack_inputs", "read", "start", "stop"]

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


def _command(op: HostOp, target: int = 0, pe: int = 0) -> int:
    return op << 28 | target << 24 | pe


def load(target: Target, items: ArrayLike, width: int, *, address: int = 0,
         pe: int = 0) -> NDArray[np.uint32]:
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
    head = [_command(HostOp.LOAD, target, pe), address, len(items)]
    return np.concatenate([np.array(head, dtype=np.uint32), words.ravel()])


def load_words(image: Image, config: EngineConfig) -> NDArray[np.uint32]:
    """All LOAD commands that put `image` into an engine: uint32 ``(words,)`` for ``i_host``.

    Raises
    ------
    ValueError
        An image compiled for another engine.
    """
    if image.config != config:
        raise ValueError("the image was compiled for another engine: compile it for this one")
    parts = []
    for pe in range(config.n_pes):
        parts += [
            load(Target.SPMAT, image.spmat[pe], config.spmat_word_bits, pe=pe),
            load(Target.PTR, image.ptr[pe], config.ptr_word_bits, pe=pe),
            load(Target.BIAS, image.bias[pe], config.bias_bits, pe=pe),
        ]
    return np.concatenate([
        *parts,
        load(Target.CODEBOOK, image.codebook, config.weight_bits),
        load(Target.PROGRAM, image.program, instruction_bits(config)),
        load(Target.REGISTER, [image.in_rows, *image.in_base], 32,
             address=InputRegister.IN_ROWS),
    ])


def start() -> NDArray[np.uint32]:
    """The START command."""
    return np.array([_command(HostOp.START)], dtype=np.uint32)


def stop() -> NDArray[np.uint32]:
    """The STOP command."""
    return np.array([_command(HostOp.STOP)], dtype=np.uint32)


def read(register: Register) -> NDArray[np.uint32]:
    """The READ command of a register."""
    return np.array([_command(HostOp.READ, register)], dtype=np.uint32)


def pack_inputs(inputs: ArrayLike, config: EngineConfig) -> NDArray[np.int32]:
    """Beats of ``i_act`` for raw inputs ``(n, in_features)``.

    Activation ``b * input_lanes + l`` of a vector is lane ``l`` of its beat ``b``; a vector is
    padded with zeros to whole rows of PEs.

    Returns
    -------
    int32 ``(n * rows(in_features) * n_pes / input_lanes, input_lanes)``

    Raises
    ------
    ValueError
        As `run_reference`.
    """
    inputs = np.asarray(inputs)
    features = inputs.shape[-1] if inputs.ndim else 0
    inputs = checked_inputs(inputs, features, config.act_bits)
    padded = np.zeros((len(inputs), config.rows(features) * config.n_pes), dtype=np.int32)
    padded[:, :features] = inputs
    return padded.reshape(-1, config.input_lanes)
