# amaranth: UnusedElaboratable=no
"""Proves that payloads hold everything the configuration allows, and match the model's packing."""

import pytest
from amaranth.hdl import Shape
from amaranth.lib import data
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.hdl.act_memory import lane_layout
from openese.hdl.gather import gate_layout
from openese.hdl.layouts import (
    Kind,
    Tag,
    act_out_layout,
    act_signature,
    broadcast_layout,
    broadcast_signature,
    entry_layout,
    input_layout,
    input_signature,
    instruction_layout,
    marker_layout,
    ptr_layout,
    route_layout,
    scan_layout,
    slot_layout,
    start_layout,
)
from openese.hdl.sequencer import program_load_layout
from openese.hdl.write_back import result_layout
from openese.model.config import PRESETS, EngineConfig
from openese.model.program import Op, encode, instruction_fields

from .helpers import SMALL, mark_messages, marker_parts, plain, recurrent


@st.composite
def configs(draw):
    """Engines of all shapes and kinds, the smallest of everything among them."""
    n_pes = draw(st.sampled_from([1, 2, 3, 4, 8, 9, 64, 256]))
    direct = draw(st.booleans())
    code_bits = draw(st.integers(1, 16 if direct else 8))
    state_depth = draw(st.sampled_from([0, 1, 3, 64, 65536]))
    peephole_depth = draw(st.sampled_from([k for k in (0, 1, 60) if k <= state_depth]))
    depth = st.sampled_from([1, 2, 3, 64, 100, 65536])
    return EngineConfig(
        n_pes=n_pes, code_bits=code_bits, min_code_bits=draw(st.integers(1, code_bits)),
        entry_bits=draw(st.integers(code_bits + 1, 24)), spmat_depth=draw(depth),
        ptr_depth=draw(depth), bias_depth=draw(depth), act_depth=max(2, draw(depth)),
        acc_depth=draw(depth), codebooks=draw(st.sampled_from([1, 2, 3, 64])),
        program_depth=draw(st.sampled_from([2, 3, 1024])),
        act_bits=draw(st.integers(8, 17) if state_depth else st.integers(4, 18)),
        state_depth=state_depth,
        peephole_depth=peephole_depth, direct_weights=direct, pointers=draw(st.booleans()),
        channels=draw(st.sampled_from([1, 2, 3, 32])),
        weight_bits=draw(st.integers(max(4, code_bits), 18)), bias_bits=draw(st.integers(4, 32)),
        shift_bits=draw(st.integers(1, 5)),
        input_lanes=draw(st.sampled_from([k for k in (1, 2, 4, n_pes) if n_pes % k == 0])))


def fields_of(layout: data.Layout) -> dict:
    """Every number in a layout by its path, nested layouts taken apart."""
    found = {}
    for name, part in layout:
        if isinstance(part.shape, data.Layout):
            found |= {f"{name}.{path}": shape for path, shape in fields_of(part.shape).items()}
        else:
            found[str(name)] = Shape.cast(part.shape)
    return found


@given(configs())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_every_field_holds_its_largest_value(config):
    largest = {
        "args.scan.act": config.act_depth - 1, "args.scan.rows": config.act_depth,
        "args.scan.rem": config.n_pes,
        "args.write.acc": config.acc_depth - 1,
        "args.load.pe": config.n_pes - 1,
        "args.load.addr": max(config.spmat_depth, config.ptr_depth, config.bias_depth,
                              config.codebooks << config.code_bits) - 1,
        "args.load.data": max(2**(config.entry_bits + config.pointers), 4 * config.spmat_depth,
                              2**config.bias_bits, 2**config.weight_bits) - 1,
    }
    marker = {"route.code_sel": config.code_bits - config.min_code_bits}
    if not config.direct_weights:
        marker["route.codebook"] = config.codebooks - 1
    else:
        marker["route.align"] = config.weight_bits - config.code_bits
    if config.pointers:
        largest["args.act.ptr"] = config.ptr_depth - 1
    else:
        marker |= {"spmat": config.spmat_depth - 1, "drop": 0}
        # The columns of a matrix may take all accumulators.
        drop = fields_of(marker_layout(config))["drop"]
        assert drop.signed
        assert 1 << drop.width - 1 >= config.acc_depth
        assert config.acc_depth < 1 << instruction_layout(config)["height"].width
    if config.recurrent or not config.pointers:
        marker["route.acc"] = config.acc_depth - 1
    if config.recurrent:
        largest |= {
            "args.write.gates": 3, "args.load.channel": config.channels - 1,
        }
        largest["args.load.addr"] = max(
            largest["args.load.addr"], config.act_depth - 1, config.state_depth - 1,
            config.peephole_depth - 1)
        words = 3 * config.act_bits if config.peephole_depth else config.act_bits
        largest["args.load.data"] = max(largest["args.load.data"], 2**words - 1)
    else:
        largest |= {
            "args.write.act": config.act_depth - 1, "args.write.bias": config.bias_depth - 1,
            "args.write.shift": 2**config.shift_bits - 1,
        }
    for layout, values in ((broadcast_layout(config), largest), (marker_layout(config), marker)):
        shapes = fields_of(layout)
        for path, value in values.items():
            assert value < 1 << shapes[path].width, path
    # Nothing in a marker has no largest value here, and its parts hold it, but not with one less.
    assert fields_of(marker_layout(config)).keys() == marker.keys()
    assert marker_layout(config).size == config.marker_bits
    part = fields_of(broadcast_layout(config))["args.mark.part"].width
    assert part == config.channels * config.act_bits
    assert part * (config.marker_parts - 1) < config.marker_bits <= part * config.marker_parts
    groups = config.n_pes // config.input_lanes
    assert groups - 1 < 1 << fields_of(input_layout(config))["group"].width
    assert fields_of(lane_layout(config))["group"] == fields_of(input_layout(config))["group"]
    assert config.spmat_depth - 1 < 1 << fields_of(ptr_layout(config))["start"].width
    lane = scan_layout(config, 2 * config.lnzd_levels)["lane"]
    assert config.n_pes - 1 < 1 << lane.width

    # Verilog has no signals of width 0.
    everything = [
        act_out_layout(config), broadcast_layout(config), entry_layout(config),
        input_layout(config), instruction_layout(config), lane_layout(config),
        marker_layout(config), ptr_layout(config),
        program_load_layout(config), result_layout(config), scan_layout(config, 0),
        scan_layout(config, 2), start_layout(config), route_layout(config), gate_layout(config)]
    for layout in everything:
        for path, shape in fields_of(layout).items():
            assert shape.width > 0, path
            # Activations are the only signed numbers that travel, but for what a marker subtracts.
            names = path.split(".")
            assert shape.signed == ("values" in names or path == "drop" or (
                "data" in names and layout == act_out_layout(config))), path
            assert not shape.signed or path == "drop" or shape.width == config.act_bits


@given(configs(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_instructions_are_what_the_compiler_packs(config, random):
    values = {name: random.randrange(1 << width)
              for name, width in instruction_fields(config).items()}
    values["op"] = random.choice(list(Op))
    word = encode(config, **values)
    layout = instruction_layout(config)
    assert plain(layout.from_bits(word)) == values
    assert word < 1 << layout.size
    load = program_load_layout(config)
    assert load["data"].width == layout.size
    assert config.program_depth - 1 < 1 << load["addr"].width


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_legal_layouts(name):
    config = PRESETS[name]
    # A word of peephole weights is three activations and goes to no PE.
    peepholes = 2 * config.act_bits if config.peephole_depth else 0
    assert Shape.cast(broadcast_layout(config)).width - peepholes <= 64


def test_pointer_word_has_the_start_below_the_length_class():
    word = 133 | 2 << SMALL.spmat_addr_bits
    assert plain(ptr_layout(SMALL).from_bits(word)) == {"start": 133, "length": 2}
    assert ptr_layout(SMALL).size == SMALL.ptr_word_bits


def test_lane_0_is_in_the_lowest_bits():
    config = SMALL.with_(n_pes=4, input_lanes=4)
    layout = act_signature(config).members["payload"].shape
    word = sum((value & 0xFFFF) << 16 * lane for lane, value in enumerate([1, -2, 3, -4]))
    assert plain(layout.from_bits(word)) == [1, -2, 3, -4]


def test_output_has_the_activation_below_last():
    assert plain(act_out_layout(SMALL).from_bits(0x1_8000)) == {"data": [-32768], "last": 1}
    assert plain(act_out_layout(SMALL).from_bits(0x0_FFFF)) == {"data": [-1], "last": 0}
    two = act_out_layout(SMALL.with_(channels=2))
    assert plain(two.from_bits(0x1_0007_FFFE)) == {"data": [-2, 7], "last": 1}


def test_channel_0_is_in_the_lowest_bits_of_a_lane():
    config = SMALL.with_(n_pes=4, input_lanes=2, channels=3)
    layout = act_signature(config).members["payload"].shape
    numbers = [1, -2, 3, -4, 5, -6]
    word = sum((value & 0xFFFF) << 16 * k for k, value in enumerate(numbers)) | 0b101 << 96
    assert plain(layout.from_bits(word)) == {"values": [[1, -2, 3], [-4, 5, -6]], "active": 0b101}


def test_feed_forward_engines_carry_nothing_of_recurrent_ones():
    names = {path for path in fields_of(broadcast_layout(SMALL)) if "act" not in path.split(".")}
    assert names == {"kind"} | {f"args.scan.{name}" for name in (
        "rows", "rem", "dense")} | {"args.mark.part", "args.mark.last"} | {
        f"args.write.{name}" for name in ("acc", "bias", "shift", "relu", "discard")} | {
        f"args.load.{name}" for name in ("pe", "addr", "data")}
    assert set(fields_of(marker_layout(SMALL))) == {"route.codebook", "route.code_sel"}
    assert set(fields_of(marker_layout(recurrent(pointers=False, direct_weights=True)))) == {
        "route.align", "route.code_sel", "route.acc", "spmat", "drop"}
    # Without pointers feed-forward engines need to know as well where a column ends.
    assert set(fields_of(marker_layout(SMALL.with_(pointers=False)))) == {
        "route.codebook", "route.code_sel", "route.acc", "spmat", "drop"}


def test_entries_of_a_column_with_a_pointer_count_from_its_beginning():
    """Others know their row, and are split already."""
    route = {"route.codebook", "route.code_sel"}
    assert set(fields_of(entry_layout(SMALL))) == {"values.0", *route, "entry", "first"}
    without = fields_of(entry_layout(SMALL.with_(pointers=False)))
    assert set(without) == {"values.0", *route, "route.acc", "code", "row"}
    assert (without["code"].width, without["row"].width) == (4, 4)


def test_queues_hold_no_more_than_they_must():
    """A part of a marker needs no room of its own, and a matrix without pointers no address."""
    assert set(fields_of(start_layout(SMALL))) == {"values.0", "ptr.start", "ptr.length"}
    assert set(fields_of(start_layout(SMALL.with_(pointers=False)))) == {"values.0"}
    assert set(fields_of(start_layout(recurrent()))) == {
        "values.0", "ptr.start", "ptr.length", "tag"}
    assert set(fields_of(start_layout(recurrent(pointers=False, channels=2)))) == {
        "values.0", "values.1", "tag"}
    for config in (SMALL, recurrent(), recurrent(pointers=False, queue_depth=1)):
        assert slot_layout(config) == start_layout(config)
    assert set(fields_of(slot_layout(recurrent(pointers=False, channels=2)))) == {
        "values.0", "values.1", "tag", "second.0", "second.1", "two"}


def test_a_marker_has_the_route_below_the_address():
    config = SMALL.with_(pointers=False, act_bits=5)
    layout = marker_layout(config)
    fields = {"route": {"codebook": 2, "code_sel": 1, "acc": 11}, "spmat": 199, "drop": -12}
    assert plain(layout.from_bits(layout.const(fields).as_bits())) == fields
    assert layout.const(fields).as_bits() >> route_layout(config).size == 199 | (32 - 12) << 8
    # Five parts of 5 bits, lowest first.
    fields = fields.pop("route") | fields
    assert [message["args"]["mark"]["last"] for message in mark_messages(
        config, **fields)] == [0, 0, 0, 0, 1]
    assert sum(part << 5 * k for k, part in enumerate(marker_parts(config, **fields))) == (
        2 | 1 << 2 | 11 << 4 | 199 << 8 | (32 - 12) << 16)


def test_tags_differ():
    assert sorted(tag.value for tag in Tag) == [0, 1, 2, 3]


def test_only_what_may_stall_has_ready():
    assert broadcast_signature(SMALL).always_ready
    assert input_signature(SMALL).always_ready
    assert not act_signature(SMALL).always_ready


def test_kinds_differ():
    assert len({kind.value for kind in Kind}) == len(Kind) == 13
    # What goes to the element-wise unit is told apart by its distance from the first of them.
    assert [kind.value - Kind.LOAD_CELL.value for kind in (
        Kind.LOAD_CELL, Kind.LOAD_RESULT, Kind.LOAD_PEEPHOLE)] == [0, 1, 2]
