"""Host words: decoded by a small model of the loader, every memory must be what was compiled."""

import numpy as np
import pytest

from openese.model.compile import compile_network, size_for
from openese.model.config import EngineConfig
from openese.model.host import (
    MAGIC,
    HostOp,
    InputRegister,
    Register,
    Target,
    load,
    load_words,
    pack_inputs,
    read,
    start,
    stop,
)
from openese.model.program import instruction_bits
from openese.model.quantise import quantise
from openese.model.random_network import random_inputs, random_network


def decode_loads(words, widths):
    """{(target, pe): {address: value}} of a stream that holds nothing but LOADs."""
    memories, words = {}, [int(word) for word in words]
    while words:
        head, address, count, *words = words
        assert head >> 28 == HostOp.LOAD
        assert head >> 16 & 0xFF == 0
        key = Target(head >> 24 & 15), head & 0xFFFF
        per_item = -(-widths[key[0]] // 32)
        memory = memories.setdefault(key, {})
        for place in range(count):
            item, words = words[:per_item], words[per_item:]
            memory[address + place] = sum(word << 32 * n for n, word in enumerate(item))
    return memories


@pytest.mark.parametrize("n_pes", [1, 3, 8])
@pytest.mark.parametrize("sizes", [[20, 30, 7], [20, 2]])  # 2 rows leave PEs without a matrix
def test_everything_is_loaded(sizes, n_pes):
    network = random_network(1, sizes, 0.3)
    config = size_for(network, n_pes, act_depth=1 << 16, ptr_depth=1 << 16)
    image = compile_network(quantise(network, config), config)
    widths = {
        Target.SPMAT: config.spmat_word_bits, Target.PTR: config.ptr_word_bits,
        Target.BIAS: config.bias_bits, Target.CODEBOOK: config.weight_bits,
        Target.PROGRAM: instruction_bits(config), Target.REGISTER: 32,
    }
    assert widths[Target.PROGRAM] > 32
    words = load_words(image, config)
    assert words.dtype == np.uint32
    memories = decode_loads(words, widths)

    def contents(target, pe=0):
        memory = memories.pop((target, pe))
        assert list(memory) == list(range(len(memory)))
        return list(memory.values())

    for pe in range(n_pes):
        assert contents(Target.SPMAT, pe) == image.spmat[pe].tolist()
        assert contents(Target.PTR, pe) == image.ptr[pe].tolist()
        assert contents(Target.BIAS, pe) == image.bias[pe].tolist()
    assert contents(Target.CODEBOOK) == image.codebook.tolist()
    assert contents(Target.PROGRAM) == image.program
    registers = contents(Target.REGISTER)
    assert registers[InputRegister.IN_ROWS] == image.in_rows
    assert [registers[InputRegister.IN_BASE0], registers[InputRegister.IN_BASE1]] == list(
        image.in_base)
    assert memories == {}


def test_commands():
    assert start().tolist() == [0x20000000]
    assert stop().tolist() == [0x30000000]
    assert read(Register.MAGIC).tolist() == [0x40000000]
    assert read(Register.ERRORS).tolist() == [0x45000000]
    assert MAGIC == 0x0E5E0001
    assert load(Target.BIAS, [5, 6], 18, address=7, pe=258).tolist() == [
        0x12000102, 7, 2, 5, 6]


def test_wide_items_go_low_word_first():
    assert load(Target.PROGRAM, [0x1_0000_0002, 1 << 69], 70).tolist() == [
        0x14000000, 0, 2, 2, 1, 0, 0, 0, 1 << 5]
    assert load(Target.SPMAT, [0xFFFFFFFF], 32).tolist()[3:] == [0xFFFFFFFF]


def test_an_empty_load_has_only_a_head():
    for width in (9, 70):
        assert load(Target.SPMAT, [], width, pe=1).tolist() == [0x10000001, 0, 0]


@pytest.mark.parametrize(("item", "width", "text"), [
    (512, 9, r"items for SPMAT must be 0 to 511, found 512\.\.512"),
    (-1, 9, r"items for SPMAT must be 0 to 511, found -1\.\.-1"),
    (1 << 70, 70, r"items for SPMAT must be 0 to 1180591620717411303423, found"),
])
def test_items_that_do_not_fit_are_refused(item, width, text):
    with pytest.raises(ValueError, match=text):
        load(Target.SPMAT, [item], width)


def test_an_image_for_another_engine_is_refused():
    network = random_network(1, [4, 4])
    config = size_for(network, 2)
    image = compile_network(quantise(network, config), config)
    with pytest.raises(ValueError, match="compiled for another engine: compile it for this one"):
        load_words(image, config.with_(queue_depth=2))


@pytest.mark.parametrize(("n_pes", "lanes"), [(1, 1), (4, 1), (4, 2), (4, 4), (6, 3)])
def test_inputs_fill_lanes_and_are_padded(n_pes, lanes):
    network = random_network(1, [10, 3])
    config = EngineConfig(n_pes=n_pes, input_lanes=lanes)
    inputs = random_inputs(1, network, 5)
    beats = pack_inputs(inputs, config)
    per_vector = config.rows(10) * n_pes // lanes
    assert beats.shape == (5 * per_vector, lanes)
    for vector in range(5):
        sent = beats[vector * per_vector:(vector + 1) * per_vector].ravel().tolist()
        assert sent[:10] == inputs[vector].tolist()
        assert not any(sent[10:])


def test_wrong_inputs_are_refused():
    config = EngineConfig(n_pes=2)
    with pytest.raises(ValueError, match=r"inputs must lie in -32768\.\.32767"):
        pack_inputs([[40000]], config)
    with pytest.raises(ValueError, match=r"inputs must have shape \(n, 3\), not \(3,\)"):
        pack_inputs([1, 2, 3], config)
    with pytest.raises(ValueError, match="raw integers"):
        pack_inputs([[0.5]], config)
    assert pack_inputs(np.zeros((0, 3), int), config).shape == (0, 1)
