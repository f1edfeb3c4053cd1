# amaranth: UnusedElaboratable=no

"""Raw payloads and numbers translate both ways for every shape; ports are found; errors are clear.
"""

import numpy as np
import pytest
from amaranth.hdl import Module, Shape, signed, unsigned
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.sim.streams import (
    PlainPort,
    StreamPort,
    describe,
    pack,
    random_stalls,
    stall_pattern,
    to_words,
    unpack,
)


def with_ports(ports):
    class Some(wiring.Component):
        def __init__(self):
            super().__init__(ports)

        def elaborate(self, platform):
            return Module()

    return Some()


leaves = st.builds(Shape, st.integers(1, 64), st.booleans())


@st.composite
def shapes(draw, depth=2):
    kind = draw(st.sampled_from(("leaf", "struct", "array"))) if depth else "leaf"
    if kind == "leaf":
        return draw(leaves)
    if kind == "array":
        return data.ArrayLayout(draw(shapes(depth - 1)), draw(st.integers(1, 3)))
    parts = draw(st.lists(shapes(depth - 1), min_size=1, max_size=3))
    return data.StructLayout({f"f{k}": part for k, part in enumerate(parts)})


def numbers(rng, shape, n):
    """Random values of a shape, as `pack` takes them."""
    if isinstance(shape, data.StructLayout):
        return {key: numbers(rng, field.shape, n) for key, field in shape}
    if isinstance(shape, data.ArrayLayout):
        parts = [numbers(rng, shape.elem_shape, n) for _ in range(shape.length)]
        return parts if isinstance(parts[0], dict) else np.stack(parts, axis=1)
    low = -(1 << shape.width - 1) if shape.signed else 0
    high = (1 << shape.width - shape.signed) - 1
    return rng.integers(low, high, n, np.int64 if shape.signed else np.uint64, endpoint=True)


def flat(shape, value):
    """A value in one Python number, the slow and plain way."""
    if isinstance(shape, data.Layout):
        total = 0
        for key, field in shape:
            total |= flat(field.shape, value[key]) << field.offset
        return total
    return int(value) & ((1 << shape.width) - 1)


def has_struct_in_array(shape):
    if isinstance(shape, data.ArrayLayout):
        return isinstance(shape.elem_shape, data.StructLayout) or \
            has_struct_in_array(shape.elem_shape)
    return isinstance(shape, data.StructLayout) and any(
        has_struct_in_array(field.shape) for _, field in shape)


@settings(max_examples=60, deadline=None)
@given(shapes().filter(lambda shape: not has_struct_in_array(shape)), st.integers(0, 2**32))
def test_pack_and_unpack_every_shape(shape, seed):
    n = 5
    values = numbers(np.random.default_rng(seed), shape, n)
    raw = pack(shape, values)
    width = Shape.cast(shape).width
    joined = [int(v) for v in raw] if width <= 64 else [
        sum(int(word) << 32 * k for k, word in enumerate(row)) for row in raw]

    def one(value, k):
        return {key: one(v, k) for key, v in value.items()} if isinstance(value, dict) else value[k]

    assert joined == [flat(shape, one(values, k)) for k in range(n)]

    def equal(a, b):
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        return np.array_equal(a, b)

    assert equal(values, unpack(shape, raw))


def test_shape_castables():
    class Kind(enum.Enum, shape=3):
        A = 1
        B = 6

    class Item(data.Struct):
        kind: Kind
        value: signed(4)

    raw = pack(Item, {"kind": [1, 6], "value": [-1, 7]})
    assert raw.tolist() == [0b1111001, 0b0111110]
    assert unpack(Item, raw)["value"].tolist() == [-1, 7]
    assert unpack(range(10), [9, 0]).tolist() == [9, 0]


@pytest.mark.parametrize(("shape", "values", "text"), [
    (signed(4), [8], "payload must be -8 to 7, but is 8 to 8"),
    (unsigned(4), [-1, 3], "payload must be 0 to 15, but is -1 to 3"),
    (unsigned(4), [0.5], r"payload needs whole numbers of shape \(n,\), not float64 \(1,\)"),
    (data.StructLayout({"a": 4, "b": 1}), {"a": [1]},
     r"payload needs the fields \['a', 'b'\], not \['a'\]"),
    (data.StructLayout({"a": 4, "b": 1}), [1],
     r"payload needs the fields \['a', 'b'\], not list"),
    (data.StructLayout({"a": 4, "b": 1}), {"a": [1, 2], "b": [1]},
     r"Fields of a payload must have equal lengths, not \[1, 2\]"),
    (data.StructLayout({"a": data.StructLayout({"b": 1})}), {"a": {"b": [2]}},
     r"payload\.a\.b must be 0 to 1, but is 2 to 2"),
    (data.ArrayLayout(8, 3), [[1, 2]],
     r"payload needs values of shape \(n, 3\), not \(1, 2\)"),
])
def test_pack_refuses(shape, values, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        pack(shape, values)


@pytest.mark.parametrize(("raw", "width", "text"), [
    ([-1], 8, r"Payloads of 'i' must be raw, that is unsigned: use pack\(\) for signed numbers"),
    ([256], 8, "Payload 256 of 'i' does not fit 8 bits"),
    ([1.0], 8, "Payloads of 'i' must be whole numbers, not float64"),
    (np.array([1 << 100], object), 100, "Payloads of 'i' must be whole numbers of 100 bits"),
    ([[1, 2]], 100, r"Payloads of 'i', 100 bits, must be an array \(n,\) or \(n, 4\), "
                    r"not \(1, 2\)"),
    ([[0, 0, 0, 16]], 100, "A payload of 'i' does not fit 100 bits"),
    ([[1 << 32, 0, 0]], 96, "Words of 'i' must be numbers of 32 bits"),
])
def test_raw_payloads_that_do_not_fit(raw, width, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        to_words(raw, width, "i")


def test_describe_finds_streams_and_plain_ports():
    inner = wiring.Signature({"s": Out(stream.Signature(3)), "ok": In(1, init=1)})
    layout = data.StructLayout({"a": signed(5)})
    component = with_ports({
        "i": In(stream.Signature(layout)), "o": Out(stream.Signature(8, always_ready=True)),
        "x": In(inner).array(2), "n": Out(inner), "level": Out(signed(4)),
        "enable": In(2, init=3).array(2),
    })
    interface = describe(component)
    assert interface.streams == {
        "i": StreamPort("i", layout, True), "o": StreamPort("o", 8, False, has_ready=False),
        "x_0_s": StreamPort("x_0_s", 3, True), "x_1_s": StreamPort("x_1_s", 3, True),
        "n_s": StreamPort("n_s", 3, False),
    }
    assert interface.plain == {
        "x_0_ok": PlainPort("x_0_ok", 1, False), "x_1_ok": PlainPort("x_1_ok", 1, False),
        "n_ok": PlainPort("n_ok", 1, True, 1), "level": PlainPort("level", signed(4), False),
        "enable_0": PlainPort("enable_0", 2, True, 3),
        "enable_1": PlainPort("enable_1", 2, True, 3),
    }


def test_an_always_valid_input_is_refused():
    with pytest.raises(ValueError, match=r"^Stream 'i' is an always-valid input, which would need "
                                         r"data in every cycle: give it a valid signal$"):
        describe(with_ports({"i": In(stream.Signature(8, always_valid=True))}))


def test_stall_patterns():
    assert stall_pattern("1101", "i").tolist() == [1, 1, 0, 1]
    assert stall_pattern([True, False], "i").tolist() == [1, 0]
    assert stall_pattern(None, "i") is None
    pattern = random_stalls(7, 0.25)
    assert np.array_equal(pattern, random_stalls(7, 0.25))
    assert abs(pattern.mean() - 0.75) < 0.03
    assert random_stalls(0, 0).all()
    assert random_stalls(0, 0.999999, 10).any()


@pytest.mark.parametrize(("pattern", "text"), [
    ("10x", "Stall pattern of 'i' must consist of 0 and 1, not '10x'"),
    ("000", "Stall pattern of 'i' must hold at least one 1, or nothing ever moves"),
    ([], "Stall pattern of 'i' must hold at least one 1, or nothing ever moves"),
])
def test_stall_patterns_that_are_none(pattern, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        stall_pattern(pattern, "i")


def test_a_probability_of_one_is_refused():
    with pytest.raises(ValueError, match=r"^probability of a stall must be 0 to below 1, not 1$"):
        random_stalls(0, 1)
