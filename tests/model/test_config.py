"""Engine configurations: limits with their error texts, derived widths, presets."""

from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.model.config import PRESETS, EngineConfig

# Lowest and highest allowed value of every size, for an engine of 8 PEs and 4-bit codes.
LIMITS = {
    "n_pes": (1, 256), "queue_depth": (1, 1024), "entry_bits": (2, 24), "code_bits": (1, 8),
    "min_code_bits": (1, 4), "spmat_depth": (1, 262144), "ptr_depth": (1, 65536),
    "bias_depth": (1, 65536), "act_depth": (2, 65536), "acc_depth": (1, 65536),
    "codebooks": (1, 64), "program_depth": (2, 1024), "act_bits": (4, 18), "weight_bits": (4, 18),
    "acc_bits": (16, 48), "bias_bits": (4, 32), "shift_base": (0, 24), "shift_bits": (1, 5),
    "bias_guard": (1, 8), "input_lanes": (1, 8), "channels": (1, 32), "state_depth": (0, 65536),
    "peephole_depth": (0, 65536),
}
FLAGS = ["direct_weights", "pointers", "serial_cells"]
# What must change with a size for it to reach its limit.
ALONG = {
    ("entry_bits", 2): {"code_bits": 1, "min_code_bits": 1},
    ("code_bits", 1): {"min_code_bits": 1}, ("code_bits", 8): {"entry_bits": 9},
    ("peephole_depth", 65536): {"state_depth": 65536},
}


def test_every_size_has_a_tested_limit():
    assert {*LIMITS, *FLAGS} == {field.name for field in fields(EngineConfig)}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name):
    low, high = LIMITS[name]
    for value in (low, high):
        config = EngineConfig(**{"n_pes": 8, name: value} | ALONG.get((name, value), {}))
        assert getattr(config, name) == value
    for value in (low - 1, high + 1, -1, float(low), str(low), None, True):
        text = rf"^{name} must be an integer from {low} to {high}, not {value!r}$"
        with pytest.raises(ValueError, match=text):
            EngineConfig(**{"n_pes": 8, name: value})


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name):
    for value in (True, False):
        assert getattr(EngineConfig(n_pes=1, **{name: value}), name) is value
    for value in (0, 1, None, "yes"):
        with pytest.raises(ValueError, match=rf"^{name} must be True or False, not {value!r}$"):
            EngineConfig(n_pes=1, **{name: value})


def test_direct_weights_may_be_wide():
    wide = {"n_pes": 1, "direct_weights": True, "code_bits": 16, "entry_bits": 21}
    assert EngineConfig(**wide).spmat_word_bits == 22
    with pytest.raises(ValueError, match=r"^code_bits must be an integer from 1 to 8, not 16$"):
        EngineConfig(**wide | {"direct_weights": False})
    with pytest.raises(ValueError, match=r"^code_bits must be an integer from 1 to 16, not 17$"):
        EngineConfig(**wide | {"code_bits": 17})
    with pytest.raises(ValueError, match=r"^weight_bits must be at least code_bits \(16\) where "
                                         r"weights are stored directly, not 12$"):
        EngineConfig(**wide, weight_bits=12)


def test_recurrent_engines():
    assert not EngineConfig(n_pes=1).recurrent
    config = EngineConfig(n_pes=1, state_depth=100, peephole_depth=65)
    assert config.recurrent
    assert (config.state_addr_bits, config.peephole_addr_bits) == (7, 7)
    assert EngineConfig(n_pes=1).state_addr_bits == EngineConfig(n_pes=1).peephole_addr_bits == 1
    with pytest.raises(ValueError, match=r"^act_bits must be 8 to 17 for recurrent layers, "
                                         r"not 7$"):
        EngineConfig(n_pes=1, state_depth=1, act_bits=7)
    with pytest.raises(ValueError, match=r"^peephole_depth must be at most state_depth \(2\), "
                                         r"not 3$"):
        EngineConfig(n_pes=1, state_depth=2, peephole_depth=3)


def test_serial_cells():
    assert EngineConfig(n_pes=8).gate_lanes == 4
    config = EngineConfig(n_pes=8, state_depth=9, serial_cells=True)
    assert config.gate_lanes == 1
    with pytest.raises(ValueError, match=r"^channels must be 1 with serial_cells, not 2$"):
        config.with_(channels=2)
    with pytest.raises(ValueError, match=r"^act_bits must be 13 to 17 with serial_cells, not 12$"):
        config.with_(act_bits=12)


def test_sizes_that_exclude_each_other():
    with pytest.raises(ValueError, match=r"^entry_bits must be larger than code_bits \(4\) to leave"
                                         r" an index, not 4$"):
        EngineConfig(n_pes=8, entry_bits=4)
    with pytest.raises(ValueError, match=r"^input_lanes must divide n_pes \(8\), not 3$"):
        EngineConfig(n_pes=8, input_lanes=3)


def test_sizes_are_named_and_fixed():
    with pytest.raises(TypeError, match="positional"):
        EngineConfig(8)
    with pytest.raises(FrozenInstanceError):
        EngineConfig(n_pes=8).n_pes = 4


def test_with_checks_its_result():
    config = EngineConfig(n_pes=8)
    assert config.with_(n_pes=4, queue_depth=1) == EngineConfig(n_pes=4, queue_depth=1)
    assert config == EngineConfig(n_pes=8)
    with pytest.raises(ValueError, match=r"^n_pes must be an integer from 1 to 256, not 0$"):
        config.with_(n_pes=0)


@pytest.mark.parametrize("depth", ["spmat", "ptr", "bias", "act", "acc", "program"])
def test_address_widths_hold_every_address_and_are_never_zero(depth):
    for size in (1, 2, 3, 4, 5, 255, 256, 257, 1024):
        if size < LIMITS[f"{depth}_depth"][0]:
            continue
        width = getattr(EngineConfig(n_pes=1, **{f"{depth}_depth": size}), f"{depth}_addr_bits")
        assert width >= 1
        assert size - 1 < 1 << width
        assert width == 1 or size - 1 >= 1 << (width - 1)


def test_derived_widths():
    config = EngineConfig(n_pes=6, spmat_depth=2048, codebooks=3, act_depth=256, acc_depth=32)
    assert config.spmat_word_bits == 9
    # Only where columns have pointers is their end flagged.
    assert config.with_(pointers=False).spmat_word_bits == 8
    assert config.ptr_word_bits == 11 + 2
    assert config.codebook_depth == 48
    assert config.codebook_addr_bits == 6
    assert config.pe_bits == 3
    # 256 rows, not only row 255, must be countable.
    assert config.rows_bits == 9
    assert EngineConfig(n_pes=1).pe_bits == 1


@pytest.mark.parametrize(("changes", "bits", "parts"), [
    # One code width takes a bit as well, 4 codebooks take 2.
    ({}, 1 + 2, 1),
    # One of 64 accumulators, the address of an entry, and up to 64 rows, subtracted.
    ({"pointers": False}, 1 + 2 + 6 + 11 + 7, 2),
    ({"pointers": False, "act_bits": 14}, 1 + 2 + 6 + 11 + 7, 2),
    ({"pointers": False, "act_bits": 13}, 1 + 2 + 6 + 11 + 7, 3),
    ({"pointers": False, "act_bits": 4}, 1 + 2 + 6 + 11 + 7, 7),
    ({"pointers": False, "channels": 2}, 1 + 2 + 6 + 11 + 7, 1),
    ({"pointers": False, "acc_depth": 65}, 1 + 2 + 7 + 11 + 8, 2),
    ({"codebooks": 1, "min_code_bits": 1}, 2 + 1, 1),
    # First accumulator of 64, alignment from 0 to 12.
    ({"state_depth": 9}, 1 + 2 + 6, 1),
    ({"state_depth": 9, "pointers": False}, 1 + 2 + 6 + 11 + 7, 2),
    ({"state_depth": 9, "pointers": False, "act_bits": 8}, 1 + 2 + 6 + 11 + 7, 4),
    ({"state_depth": 9, "pointers": False, "channels": 32}, 1 + 2 + 6 + 11 + 7, 1),
    ({"state_depth": 9, "pointers": False, "direct_weights": True}, 1 + 4 + 6 + 11 + 7, 2),
])
def test_markers_take_as_many_parts_as_they_must(changes, bits, parts):
    config = EngineConfig(n_pes=6, **changes)
    assert (config.marker_bits, config.marker_parts) == (bits, parts)


def test_activations_are_central_where_all_are_broadcast_and_none_written_by_pes():
    config = EngineConfig(n_pes=64, state_depth=9, pointers=False)
    assert config.central_acts
    # Neither a tree to the PEs nor one back from them.
    assert config.scan_latency == config.with_(n_pes=1).scan_latency == 4
    assert config.with_(serial_cells=True).scan_latency == 3
    assert config.paired
    # A queue of one slot has no room for a pair.
    assert not config.with_(queue_depth=1).paired
    for other in (config.with_(pointers=True), config.with_(state_depth=0)):
        assert not other.central_acts
        assert not other.paired
        assert other.scan_latency > other.with_(n_pes=1).scan_latency > 3


@settings(deadline=None)
@given(st.integers(1, 256), st.integers(1, 2000))
def test_rows_of_the_pes_add_up(n_pes, n):
    config = EngineConfig(n_pes=n_pes)
    owned = [config.rows_of(pe, n) for pe in range(n_pes)]
    assert owned == [len(range(pe, n, n_pes)) for pe in range(n_pes)]
    assert max(owned) == config.rows(n)


def test_signatures_tell_configurations_apart():
    base = EngineConfig(n_pes=8)
    assert base.signature == EngineConfig(n_pes=8).signature
    assert 0 <= base.signature < 1 << 32
    others = [base.with_(**{name: getattr(base, name) + 1}) for name in LIMITS
              if name not in ("input_lanes", "min_code_bits", "peephole_depth")]
    others += [base.with_(input_lanes=2), base.with_(min_code_bits=3),
               base.with_(state_depth=1, peephole_depth=1)]
    others += [base.with_(**{name: not getattr(base, name)}) for name in FLAGS]
    assert len({config.signature for config in [base, *others]}) == len(LIMITS) + len(FLAGS) + 1


def test_presets():
    assert set(PRESETS) >= {"demo", "ulx3s-85f", "eie-64"}
    assert PRESETS["ulx3s-85f"].n_pes == 16
    # A matrix entry with its flag fills a 9-bit block RAM.
    assert PRESETS["ulx3s-85f"].spmat_word_bits == 9
    assert PRESETS["eie-64"].n_pes == 64
    assert len({config.signature for config in PRESETS.values()}) == len(PRESETS)


def test_shift_leaves_something_of_an_accumulator():
    with pytest.raises(ValueError, match=r"^shift_base must be less than acc_bits \(16\) to "
                                         r"leave something of an accumulator, not 16$"):
        EngineConfig(n_pes=1, acc_bits=16, shift_base=16)
