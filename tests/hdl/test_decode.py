# amaranth: UnusedElaboratable=no
"""Proves that entries decode to rows and codebook values for every split of the entry word.

Also to weights that are stored directly, and to rows that count from the accumulator a column's
route names, or without pointers back from it.
"""

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.decode import Decode
from openese.hdl.layouts import Kind, route_layout
from openese.model.config import DECODE_LATENCY, EngineConfig

from .helpers import (
    SMALL,
    act_message,
    column_words,
    load_message,
    mark_messages,
    play,
    recurrent,
    scan_message,
    signed,
    unsigned,
    write_message,
)

WATCH = ["weight", "values", "row", "valid"]


def codebooks(config: EngineConfig, seed: int = 0) -> list[int]:
    """Random words for all codebooks with both rails; word 0 of each is 0."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1 << config.weight_bits, size=config.codebook_depth)
    words[1], words[2] = 1 << config.weight_bits - 1, (1 << config.weight_bits - 1) - 1
    words[::1 << config.code_bits] = 0
    return words.tolist()


def entries(words: list[int], *values: int, **route: int) -> list[dict]:
    """A column as SpMatRead gives it; the flag is gone by then."""
    return [{"entry": word, "values": list(values), "route": route, "first": int(k == 0)}
            for k, word in enumerate(words)]


def check(config: EngineConfig, book: int, code_bits: int, seed: int, gaps: float) -> None:
    """Random columns through one codebook and split, against rows and values chosen beforehand."""
    rng = np.random.default_rng(seed)
    index_bits = config.entry_bits - code_bits
    table = codebooks(config, seed)
    script = []
    expected = {}  # cycle -> (weight, value, row, is a filler)
    for _ in range(25):
        count = int(rng.integers(1, 7))
        rows = sorted(rng.choice(config.acc_depth, size=count, replace=False).tolist())
        codes = rng.integers(1, 1 << code_bits, size=count).tolist()
        value = int(rng.integers(-(1 << config.act_bits - 1), 1 << config.act_bits - 1))
        words = column_words(rows, codes, code_bits, index_bits)
        mask = (1 << config.entry_bits) - 1
        column = iter(zip(rows, codes, strict=True))
        for item in entries([word & mask for word in words], value, codebook=book,
                            code_sel=code_bits - config.min_code_bits):
            while rng.random() < gaps:
                script.append({})
            cycle = len(script)
            script.append({"i.valid": 1, "i.payload": item})
            filler = item["entry"] & ((1 << code_bits) - 1) == 0
            row, code = (None, 0) if filler else next(column)
            weight = signed(table[(book << config.code_bits) + code], config.weight_bits)
            expected[cycle] = weight, value, row
        assert next(column, None) is None

    trace = play(Decode(config, init=table), script, WATCH, extra=2)
    for cycle, (weight, value, row) in expected.items():
        decoded = trace[cycle + DECODE_LATENCY]
        assert (decoded["weight"], decoded["values"]) == (weight, [value]), cycle
        if row is None:
            assert weight == 0
        else:
            assert decoded["row"] == row, cycle
    assert [bool(step["valid"]) for step in trace] == [
        cycle - DECODE_LATENCY in expected for cycle in range(len(trace))]
    check_no_operand_without_an_entry(trace)


def check_no_operand_without_an_entry(trace: list[dict]) -> None:
    """The product of a cycle without an entry must be 0: a drain may be on its way instead."""
    for cycle, step in enumerate(trace):
        if not step["valid"]:
            assert not any(step["values"]), cycle


@pytest.mark.parametrize("gaps", [0.0, 0.4])
@pytest.mark.parametrize(("entry_bits", "code_bits", "min_code_bits"),
                         [(8, 4, 4), (8, 4, 2), (8, 5, 3), (9, 8, 1), (2, 1, 1), (12, 4, 4)])
def test_every_split_and_codebook(entry_bits, code_bits, min_code_bits, gaps):
    config = SMALL.with_(entry_bits=entry_bits, code_bits=code_bits, min_code_bits=min_code_bits,
                         acc_depth=40)
    seed = 0
    for bits in range(min_code_bits, code_bits + 1):
        for book in range(config.codebooks) if bits == code_bits else (config.codebooks - 1,):
            seed += 1
            check(config, book, bits, seed, gaps)


def test_fillers_add_nothing_and_move_on_by_the_largest_index():
    config = SMALL.with_(entry_bits=5, acc_depth=32)  # 4-bit codes, 1-bit index
    words = column_words([0, 1, 31], [3, 4, 5], 4, 1)
    assert [word & 31 for word in words] == [3, 4, *[16] * 14, 16 + 5]
    table = codebooks(config)
    script = [{"i.valid": 1, "i.payload": item} for item in entries(
        [word & 31 for word in words], -7, code_sel=config.code_bits - config.min_code_bits)]
    trace = play(Decode(config, init=table), script, WATCH, extra=1)
    assert [step["row"] for step in trace[1:]] == [0, 1, *range(3, 31, 2), 31]
    assert [step["weight"] for step in trace[3:-1]] == [0] * 14


def test_split_and_codebook_are_those_of_the_entry():
    """Whatever is broadcast meanwhile: the entry's column may have been sent long before."""
    table = codebooks(SMALL)
    messages = [*mark_messages(SMALL, codebook=2, code_sel=2), act_message(55, -1),
                write_message(acc=9, bias=21), load_message(Kind.LOAD_BIAS, 1, 33, 0x3FFFF),
                *mark_messages(SMALL, codebook=1, code_sel=0), scan_message(rows=1)]
    script, expected = [], []
    for k in range(60):
        code_sel, book, entry = k % 3, k // 3 % 3, (37 * k + 1) % 256
        script.append({"i_broadcast.valid": 1, "i_broadcast.payload": messages[k % len(messages)],
                       "i.valid": 1, "i.payload": {
                           "entry": entry, "values": [k], "first": 1,
                           "route": {"codebook": book, "code_sel": code_sel}}})
        code, index = entry & (4 << code_sel) - 1, entry >> code_sel + SMALL.min_code_bits
        expected.append((signed(table[(book << SMALL.code_bits) + code], SMALL.weight_bits),
                         index % 16))
    trace = play(Decode(SMALL, init=table), script, WATCH, extra=1)
    assert [(step["weight"], step["row"]) for step in trace[1:]] == expected


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_rows_count_from_the_accumulator_of_the_column(channels):
    """Columns of different matrices follow each other without a gap; all channels go along."""
    config = recurrent(channels=channels, acc_depth=100)
    rng = np.random.default_rng(channels)
    script, expected = [], []
    for _ in range(60):
        rows = sorted(rng.choice(40, size=int(rng.integers(1, 6)), replace=False).tolist())
        values = rng.integers(-32768, 32768, channels).tolist()
        acc = int(rng.integers(60))
        words = column_words(rows, [1] * len(rows), 4, 4)
        at = acc
        for item in entries([word & 255 for word in words], *values, acc=acc, code_sel=2):
            script.append({"i.valid": 1, "i.payload": item})
            at += item["entry"] >> 4
            expected.append((at, values))
            at += 1
    trace = play(Decode(config), script, WATCH, extra=1)
    assert [(step["row"], step["values"]) for step in trace[1:]] == expected


@pytest.mark.parametrize("acc_depth", [12, 16, 100])
@pytest.mark.parametrize("kind", [SMALL, recurrent(channels=3)], ids=["feed-forward", "recurrent"])
def test_rows_without_pointers_count_back_from_the_end_of_the_column(kind, acc_depth):
    """The end may be where there is no accumulator any more: rows are counted modulo."""
    config = kind.with_(pointers=False, acc_depth=acc_depth)
    table, rng = codebooks(config), np.random.default_rng(acc_depth)
    size = 1 << config.acc_addr_bits
    script, expected = [], []
    for _ in range(80):
        height = int(rng.integers(1, acc_depth + 1))
        acc = int(rng.integers(acc_depth - height + 1))
        book, values = int(rng.integers(3)), rng.integers(-9, 9, config.channels).tolist()
        route = {"acc": (acc + height) % size, "codebook": book,
                 "code_sel": int(rng.integers(3))}
        # Whatever the order: a row is found without those before it.
        for row in {0, height - 1, *rng.integers(height, size=3).tolist()}:
            code = int(rng.integers(16))
            script.append({"i.valid": 1, "i.payload": {
                "code": code, "row": unsigned(row - height, config.acc_addr_bits),
                "values": values, "route": route}})
            expected.append((signed(table[16 * book + code], config.weight_bits), acc + row,
                             values))
            if rng.random() < 0.2:
                script.append({})
                expected.append(None)
    trace = play(Decode(config, init=table), script, WATCH, extra=1)
    assert [(step["weight"], step["row"], step["values"]) if step["valid"] else None
            for step in trace[1:]] == expected
    check_no_operand_without_an_entry(trace)


def test_weights_stored_directly_without_pointers():
    """Their sign is there already, whatever the width that they are stored in."""
    config = SMALL.with_(pointers=False, direct_weights=True, entry_bits=12, code_bits=9,
                         min_code_bits=7, weight_bits=12)
    cases = [(weight, align, sel) for weight in (-256, -255, -64, -1, 0, 1, 63, 255)
             for align in range(4) for sel in range(3)]
    script = [{"i.valid": 1, "i.payload": {
        "code": unsigned(weight, 9), "row": 15 - k % 12, "values": [5],
        "route": {"align": align, "code_sel": sel, "acc": 12}}}
        for k, (weight, align, sel) in enumerate(cases)]
    trace = play(Decode(config), script, WATCH, extra=1)
    assert [(step["weight"], step["row"]) for step in trace[1:]] == [
        (weight << align, 11 - k % 12) for k, (weight, align, _) in enumerate(cases)]


@pytest.mark.parametrize(("entry_bits", "code_bits", "min_code_bits", "weight_bits"),
                         [(16, 12, 12, 12), (16, 12, 12, 16), (8, 5, 3, 6), (20, 16, 14, 18)])
def test_weights_stored_directly(entry_bits, code_bits, min_code_bits, weight_bits):
    """Every width of weight, both ends, and 0 as a filler; codebooks do not exist."""
    config = SMALL.with_(entry_bits=entry_bits, code_bits=code_bits, weight_bits=weight_bits,
                         min_code_bits=min_code_bits, direct_weights=True)
    assert "codebook" not in dict(iter(route_layout(config)))
    rng = np.random.default_rng(entry_bits)
    script, expected = [], []
    for bits in range(min_code_bits, code_bits + 1):
        ends = [-(1 << bits - 1), (1 << bits - 1) - 1, 0, -1, 1]
        for weight in ends + rng.integers(ends[0], ends[1], 40).tolist():
            index = int(rng.integers(min(8, 1 << entry_bits - bits)))
            script.append({"i.valid": 1, "i.payload": {
                "entry": index << bits | weight & (1 << bits) - 1, "values": [7], "first": 1,
                "route": {"code_sel": bits - min_code_bits}}})
            expected.append((weight, index))
        # What comes without valid is no entry.
        script.append({})
        expected.append(None)
    # A load of a codebook finds nothing.
    script[0] |= {"i_broadcast.valid": 1,
                  "i_broadcast.payload": load_message(Kind.LOAD_CODEBOOK, 0, 1, 5)}
    trace = play(Decode(config), script, WATCH, extra=1)
    assert [(step["weight"], step["row"]) if step["valid"] else None
            for step in trace[1:]] == expected
    check_no_operand_without_an_entry(trace)


def test_load_fills_the_codebooks_of_every_pe():
    table = codebooks(SMALL, 4)
    script = [{"i_broadcast.valid": 1,
               "i_broadcast.payload": load_message(Kind.LOAD_CODEBOOK, addr % 3, addr, word)}
              for addr, word in enumerate(table)]
    script += [{"i_broadcast.valid": 1,
                "i_broadcast.payload": load_message(kind, 0, 1, 0x1234)}
               for kind in (Kind.LOAD_SPMAT, Kind.LOAD_PTR, Kind.LOAD_BIAS)]
    for book in range(SMALL.codebooks):
        script += [{"i.valid": 1, "i.payload": {
            "entry": code, "route": {"codebook": book, "code_sel": 2}, "first": 1}}
            for code in range(16)]
    trace = play(Decode(SMALL), script, WATCH, extra=1)
    weights = [step["weight"] for step, did in zip(trace[1:], script, strict=True)
               if "i.valid" in did]
    assert weights == [signed(word, SMALL.weight_bits) for word in table]


def test_a_loaded_word_is_found_by_the_next_entry():
    load = {"i_broadcast.valid": 1,
            "i_broadcast.payload": load_message(Kind.LOAD_CODEBOOK, 2, 21, 0x8001)}
    item = {"i.valid": 1, "i.payload": {"entry": 5, "values": [3], "first": 1,
                                        "route": {"codebook": 1, "code_sel": 2}}}
    dut = Decode(SMALL, init=[7] * SMALL.codebook_depth)
    trace = play(dut, [item, load, item, item], WATCH, extra=1)
    assert [step["weight"] for step in trace if step["valid"]] == [7, -0x7FFF, -0x7FFF]


@pytest.mark.parametrize("channels", [1, 4])
def test_values_are_zero_without_an_entry(channels):
    config = recurrent(channels=channels)
    rng = np.random.default_rng(channels)
    script, expected = [], [[0] * channels]
    for _ in range(200):
        values = rng.integers(-32768, 32768, channels).tolist()
        comes = rng.random() < 0.5
        script.append({"i.valid": 1, "i.payload": {
            "entry": int(rng.integers(256)), "values": values, "first": 1,
            "route": {"code_sel": 2}}} if comes else {})
        expected.append(values if comes else [0] * channels)
    trace = play(Decode(config), script, WATCH, extra=1)
    assert [step["values"] for step in trace] == expected


def test_reset_drops_the_entry_inside():
    item = {"i.valid": 1, "i.payload": {"entry": 1, "values": [1], "first": 1}}
    trace = play(Decode(SMALL), [item, {**item, "reset": 1}, {}, item], ["valid"], extra=2,
                 reset=Signal())
    assert [step["valid"] for step in trace] == [0, 1, 0, 0, 1, 0]


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 1$"):
        Decode(1)
    with pytest.raises(ValueError, match=r"^codebook has 49 words but the memory of this "
                                         r"configuration holds 48$"):
        Decode(SMALL, init=[0] * 49)
    with pytest.raises(ValueError, match=r"^codebook word 0 must be an integer from 0 to 65535 "
                                         r"\(16 bits\), not -1$"):
        Decode(SMALL, init=[-1])
