"""The instruction format: places of the fields, round trips and values that do not fit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.model.config import PRESETS, EngineConfig
from openese.model.program import Op, decode, encode, instruction_bits, instruction_fields

ORDER = ["op", "last", "from_input", "act", "rows", "rem", "base", "codebook", "code_sel", "shift",
         "relu"]


def test_fields_of_the_demonstration_engine():
    config = PRESETS["demo"]
    fields = instruction_fields(config)
    assert list(fields.items()) == [
        ("op", 3), ("last", 1), ("from_input", 1), ("act", 9), ("rows", 10), ("rem", 4),
        ("base", 11), ("codebook", 2), ("code_sel", 1), ("shift", 3), ("relu", 1)]
    assert instruction_bits(config) == 46
    assert encode(config, op=Op.OUTPUT, last=1, act=1, rows=3, rem=8) == (
        2 | 1 << 3 | 1 << 5 | 3 << 14 | 8 << 24)
    assert encode(config, op=Op.WRITE, relu=1) == 1 | 1 << 45


@pytest.mark.parametrize("config", [
    EngineConfig(n_pes=1, spmat_depth=1, ptr_depth=1, bias_depth=1, act_depth=2, acc_depth=1,
                 codebooks=1, program_depth=2, shift_bits=1),
    EngineConfig(n_pes=256, ptr_depth=1 << 16, act_depth=1 << 16, acc_depth=1 << 16, codebooks=64,
                 code_bits=8, min_code_bits=1, entry_bits=9, shift_bits=5),
    *(preset for preset in PRESETS.values() if not preset.recurrent),
])
def test_every_field_holds_its_largest_value(config):
    fields = instruction_fields(config)
    assert list(fields) == ORDER
    assert min(fields.values()) >= 1
    largest = {
        "op": max(Op), "act": config.act_depth - 1, "rem": config.n_pes,
        "rows": max(config.act_depth, config.acc_depth), "codebook": config.codebooks - 1,
        "base": max(config.ptr_depth, config.bias_depth) - 1, "last": 1, "from_input": 1,
        "code_sel": config.code_bits - config.min_code_bits, "relu": 1,
        "shift": (1 << config.shift_bits) - 1,
    }
    assert decode(config, encode(config, **largest)) == largest


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_round_trip(data):
    config = PRESETS[data.draw(st.sampled_from(sorted(PRESETS)))]
    widths = instruction_fields(config)
    fields = {name: data.draw(st.integers(0, (1 << width) - 1)) for name, width in widths.items()}
    word = encode(config, **fields)
    assert 0 <= word < 1 << instruction_bits(config)
    assert decode(config, word) == fields


def test_wrong_fields_are_refused():
    config = PRESETS["demo"]
    with pytest.raises(ValueError, match=r"instruction field act must be 0 to 511, not 512"):
        encode(config, op=Op.SPMV, act=512)
    with pytest.raises(ValueError, match=r"instruction field rows must be 0 to 1023, not -1"):
        encode(config, op=Op.SPMV, rows=-1)
    with pytest.raises(ValueError, match=r"an instruction has no field 'rowz', only op, last"):
        encode(config, op=Op.SPMV, rowz=1)
