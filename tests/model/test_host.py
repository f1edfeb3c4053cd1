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
    call,
    dumped,
    load,
    load_state,
    load_words,
    pack_inputs,
    read,
    reset_state,
    start,
    stop,
    unpack_state,
)
from openese.model.program import instruction_bits
from openese.model.quantise import quantise
from openese.model.random_network import (
    RandomLayer,
    random_inputs,
    random_network,
    random_recurrent,
)
from openese.model.reference import LayerState, zero_state


def decode_loads(words, widths):
    """{(target, pe): {address: value}} of a stream that holds nothing but LOADs; of the memories
    that have channels {(target, pe, channel): ...}."""
    memories, words = {}, [int(word) for word in words]
    while words:
        head, address, count, *words = words
        assert head >> 28 == HostOp.LOAD
        key = Target(head >> 24 & 15), head & 0xFFFF
        if key[0] in (Target.ACT, Target.CELL, Target.RESULT):
            key = *key, head >> 16 & 0xFF
        else:
            assert head >> 16 & 0xFF == 0
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


STACK = [RandomLayer(cell="lstm", size=7, proj=3, peepholes=True),
         RandomLayer(cell="rnn_tanh", size=2), RandomLayer(cell="gru", size=5),
         RandomLayer(cell="linear", size=4)]


def recurrent_image(n_pes=3, **fields):
    network = random_recurrent(1, 6, STACK, fixed_bits=12 if fields.get("direct_weights") else None)
    config = size_for(network, n_pes, **fields)
    quantised = quantise(network, config)
    return quantised, compile_network(quantised, config)


@pytest.mark.parametrize("fields", [{}, {"pointers": False, "direct_weights": True}])
def test_everything_of_a_recurrent_engine_is_loaded(fields):
    _, image = recurrent_image(**fields)
    config = image.config
    widths = dict.fromkeys(Target, 32) | {
        Target.PROGRAM: instruction_bits(config), Target.PEEPHOLE: 3 * config.act_bits}
    words = load_words(image, config)
    memories = decode_loads(words, widths)
    assert list(memories[Target.PEEPHOLE, 0].values()) == image.peephole
    assert len(image.peephole) == 7
    assert max(image.peephole) >> 32
    assert list(memories[Target.PROGRAM, 0].values()) == image.program
    assert ((Target.PTR, 0) in memories) == config.pointers
    assert ((Target.CODEBOOK, 0) in memories) != config.direct_weights
    # States begin at 0.
    states = {key: memory for key, memory in memories.items() if len(key) == 3}
    assert states == decode_loads(reset_state(image), widths)
    assert not any(value for memory in states.values() for value in memory.values())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n_pes", [1, 3, 8])
def test_states_are_loaded(n_pes, channels):
    _, image = recurrent_image(n_pes, channels=channels)
    rng = np.random.default_rng(0)

    def values(n):
        return rng.integers(-32768, 32768, (channels, n))

    state = [LayerState(values(3), values(7)), LayerState(values(2), None),
             LayerState(values(5), None)]
    memories = decode_loads(load_state(image, state), dict.fromkeys(Target, 32))
    for channel in range(channels):
        for table, layer in zip(image.states, state, strict=True):
            for i, value in enumerate(layer.h[channel].tolist()):
                memory = memories[Target.ACT, i % n_pes, channel]
                assert memory.pop(table.act + i // n_pes) == value & 0xFFFF
        # Units of the LSTM, with several channels outputs of its projection, the tanh cell (not
        # used), the GRU.
        gru = 12 if channels > 1 else 9
        cell = [*state[0].c[channel], *state[2].h[channel]]
        assert memories.pop((Target.CELL, 0, channel)) == {
            place: int(value) & 0xFFFF
            for place, value in zip(
                [*range(7), *range(gru, gru + 5)], cell, strict=True)}
        if channels > 1:
            result = [0] * 7 + [value for layer in state for value in layer.h[channel]]
            assert memories.pop((Target.RESULT, 0, channel)) == {
                place: int(value) & 0xFFFF for place, value in enumerate(result)}
    assert not any(memories.values())
    sent = dumped(image, state)
    assert sent.shape == (3 + 2 + 5 + 7, channels)
    assert sent[-1].tolist() == state[0].c[:, -1].tolist()
    back = unpack_state(image, sent)
    for one, other in zip(back, state, strict=True):
        assert one.h.tolist() == other.h.tolist()
    assert back[0].c.tolist() == state[0].c.tolist()
    assert back[1].c is back[2].c is None


def test_one_channel_is_loaded_alone():
    quantised, image = recurrent_image(channels=3)
    state = zero_state(quantised, 3)
    words = load_state(image, state, channels=[1])
    assert {key[2] for key in decode_loads(words, dict.fromkeys(Target, 32))} == {1}
    with pytest.raises(ValueError, match=r"channels must be 0 to 2, not 3"):
        load_state(image, state, channels=[3])


def test_states_of_other_networks_are_refused():
    quantised, image = recurrent_image()
    state = zero_state(quantised, 1)
    with pytest.raises(ValueError, match=r"a state of 3 recurrent layers is needed, not of 2"):
        load_state(image, state[:2])
    with pytest.raises(ValueError, match=r"layer 'layers.1': h must have shape \(1, 2\), "
                                         r"not \(1, 3\)"):
        load_state(image, [state[0], state[0], state[2]])
    with pytest.raises(ValueError, match=r"layer 'layers.0': c must have shape \(1, 7\), not \(\)"):
        dumped(image, [LayerState(state[0].h, None), *state[1:]])
    with pytest.raises(ValueError, match=r"inputs must lie in -32768\.\.32767"):
        load_state(image, [LayerState(state[0].h + 40000, state[0].c), *state[1:]])
    with pytest.raises(ValueError, match=r"the state of this network has shape \(17, 1\), "
                                         r"not \(3, 1\)"):
        unpack_state(image, [[1], [2], [3]])


def test_networks_without_state_load_none():
    network = random_network(1, [4, 4])
    config = size_for(network, 2)
    image = compile_network(quantise(network, config), config)
    assert load_state(image, []).tolist() == reset_state(image).tolist() == []


def test_commands():
    assert start().tolist() == [0x20000000]
    assert stop().tolist() == [0x30000000]
    assert read(Register.MAGIC).tolist() == [0x40000000]
    assert read(Register.ERRORS).tolist() == [0x45000000]
    assert call(300).tolist() == [0x5000012C]
    assert load(Target.ACT, [9], 16, pe=2, channel=5).tolist() == [0x16050002, 0, 1, 9]
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


@pytest.mark.parametrize(("n_pes", "lanes", "channels"), [(1, 1, 2), (4, 2, 3), (6, 3, 32)])
def test_channels_stand_side_by_side(n_pes, lanes, channels):
    config = EngineConfig(n_pes=n_pes, input_lanes=lanes, channels=channels)
    rng = np.random.default_rng(0)
    inputs = rng.integers(-32768, 32768, (4, channels, 10))
    active = rng.random((4, channels)) < 0.5
    beats = pack_inputs(inputs, config, active)
    for c in range(channels):
        alone = pack_inputs(inputs[:, c], config.with_(channels=1))
        assert beats["values"][:, :, c].tolist() == alone.tolist()
        of_beat = np.repeat(active[:, c], len(alone) // 4)
        assert (beats["active"] >> np.uint64(c) & np.uint64(1)).tolist() == of_beat.tolist()
    assert beats["active"].dtype == np.uint64
    assert set(pack_inputs(inputs, config)["active"].tolist()) == {(1 << channels) - 1}
    assert pack_inputs(inputs[:0], config)["values"].shape == (0, lanes, channels)


def test_wrong_inputs_of_channels_are_refused():
    config = EngineConfig(n_pes=2, channels=3)
    with pytest.raises(ValueError, match=r"inputs must have shape \(n, 3, in_features\), "
                                         r"not \(4, 2, 5\)"):
        pack_inputs(np.zeros((4, 2, 5), int), config)
    with pytest.raises(ValueError, match=r"active must be bool of shape \(4, 3\), not int64"):
        pack_inputs(np.zeros((4, 3, 5), int), config, np.zeros((4, 3), int))
    with pytest.raises(ValueError, match=r"active must be bool of shape \(4, 3\), not bool of"):
        pack_inputs(np.zeros((4, 3, 5), int), config, [True])
    with pytest.raises(ValueError, match="active is for engines of several channels"):
        pack_inputs([[1]], EngineConfig(n_pes=2), [[True]])


def test_wrong_inputs_are_refused():
    config = EngineConfig(n_pes=2)
    with pytest.raises(ValueError, match=r"inputs must lie in -32768\.\.32767"):
        pack_inputs([[40000]], config)
    with pytest.raises(ValueError, match=r"inputs must have shape \(n, 3\), not \(3,\)"):
        pack_inputs([1, 2, 3], config)
    with pytest.raises(ValueError, match="raw integers"):
        pack_inputs([[0.5]], config)
    assert pack_inputs(np.zeros((0, 3), int), config).shape == (0, 1)
