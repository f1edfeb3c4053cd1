"""Every backend gives the same payloads in the same cycles, whatever the stalls and the design."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from openese.sim.simulation import Simulation, run
from openese.sim.streams import StreamError, pack, random_stalls

from .toys import (
    ACCESS,
    NUMBER,
    TERM,
    Asserting,
    Lane,
    Lanes,
    Pair,
    Queue,
    Table,
    Through,
    Tree,
    Unruly,
    Wide,
)

BACKENDS = ("amaranth", "cxxrtl", "verilator")


def same(make, inputs, outputs, **arguments):
    """Run on every backend; all must agree with the first, whose result is returned."""
    first, *others = (run(make(), inputs, outputs, backend=b, **arguments) for b in BACKENDS)
    for other in others:
        assert (other.start, other.cycles) == (first.start, first.cycles)
        for mine, its in ((first.outputs, other.outputs), (first.times, other.times),
                          (first.signals, other.signals)):
            assert mine.keys() == its.keys()
            for name in mine:
                np.testing.assert_array_equal(mine[name], its[name], err_msg=name)
    return first


stalls = st.builds(random_stalls, st.integers(0, 1000), st.sampled_from([0, 0.3, 0.8]))
# Every example builds three simulators, too slow for shrinking.
repeatable = settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])


@repeatable
@given(st.lists(st.integers(0, 255), max_size=30), stalls, stalls)
def test_queue(values, stall_i, stall_o):
    result = same(Queue, {"i": values}, {"o": len(values)},
                  stalls={"i": stall_i, "o": stall_o}, signals=["level"])
    assert result.outputs["o"].tolist() == values
    assert (result.times["o"] > result.times["i"]).all()
    assert (result.signals["level"] <= 5).all()


@repeatable
@given(st.lists(st.tuples(st.integers(-2048, 2047), st.integers(0, 3), st.booleans()),
                min_size=1, max_size=40), stalls, stalls)
def test_memories_and_signed_structs(terms, stall_i, stall_o):
    weights = [-128, 127, 3, -1, 0, 77, -5, 1]
    sums, expected = [0] * 4, []
    for k, (value, row, last) in enumerate(terms):
        sums[row] += value * weights[k % 8]
        if last:
            expected.append((sums[row], row))
    raw = pack(TERM, dict(zip(("value", "row", "last"), map(list, zip(*terms, strict=True)),
                              strict=True)))
    result = same(lambda: Lane(weights), {"i": raw}, {"o": len(expected)},
                  stalls={"i": stall_i, "o": stall_o})
    values = result.values("o")
    assert list(zip(values["sum"].tolist(), values["row"].tolist(), strict=True)) == expected


@repeatable
@given(st.lists(st.tuples(st.integers(-256, 255), st.integers(-256, 255)), max_size=20),
       st.tuples(stalls, stalls, stalls))
def test_two_inputs_and_two_outputs(pairs, patterns):
    a, b = (pack(NUMBER, np.array([p[k] for p in pairs], np.int64)) for k in (0, 1))
    result = same(Pair, {"a": a, "b": b}, {"total": len(pairs), "difference": len(pairs)},
                  stalls=dict(zip(("a", "total", "difference"), patterns, strict=True)))
    assert result.values("total").tolist() == [x + y for x, y in pairs]
    assert result.values("difference").tolist() == [x - y for x, y in pairs]
    np.testing.assert_array_equal(result.times["a"], result.times["b"])


def test_wide_payloads_settings_and_signals():
    values = [(1 << 100) - 1, 1 << 99, 0x0123456789ABCDEF0123456, 0]
    result = same(Wide, {"i": values}, {"o": 4}, stalls={"i": "10"}, signals=["seen"],
                  settings={"mask": 1 << 69})
    joined = [sum(int(word) << 32 * k for k, word in enumerate(row)) for row in result.outputs["o"]]
    assert joined == [value ^ 1 << 69 for value in values]
    assert result.times["i"].tolist() == [0, 2, 4, 6]
    assert result.times["o"].tolist() == [1, 3, 5, 7]
    assert result.signals["seen"].shape == (8, 3)
    # Without a setting the input keeps the initial value of its member.
    assert same(Wide, {"i": [0]}, {"o": 1}).outputs["o"].tolist() == [[5, 0, 0, 0]]


def test_combinational_array_of_streams():
    result = same(Through, {"i_0": [1, 2, 15], "i_1": [7]}, {"o_0": 3, "o_1": 1},
                  stalls={"o_0": "01"})
    assert result.outputs["o_0"].tolist() == [2, 3, 16]
    assert result.times["o_0"].tolist() == result.times["i_0"].tolist() == [1, 3, 5]
    assert result.times["o_1"].tolist() == [0]


def test_rows_that_do_not_exist_read_zero_and_ignore_writes():
    raw = pack(ACCESS, {"row": [0, 4, 5, 7, 7, 6, 0], "write": [0, 0, 0, 1, 0, 0, 0],
                        "value": np.array([0] * 3 + [9] + [0] * 3, object)})
    result = same(Table, {"i": raw}, {"o": 7})
    assert result.outputs["o"].tolist() == [[0, 0, 32], [5, 0, 0], *[[0] * 3] * 4, [0, 0, 32]]


def test_merged_modules_simulate_as_separate_ones():
    """Amaranth's simulator merges nothing; the compiled ones merge what is equal."""
    rng = np.random.default_rng(3)
    n = 60
    raw = pack(TERM, {"value": rng.integers(-2048, 2048, n), "row": rng.integers(0, 4, n),
                      "last": rng.integers(0, 2, n)})
    weights = [[1, -2, 3, -4, 5, -6, 7, -8], [1, -2, 3, -4, 5, -6, 7, -8],
               [1, -2, 3, -4, 5, -6, 7, -7], [1, -2, 3, -4, 5, -6, 7, -8]]
    result = same(lambda: Lanes(weights, [0, 0, 0, 9]), {"i": raw}, {"o": None},
                  signals=["index"], extra_cycles=5)
    values = result.values("o")
    assert (values[:, 0] == values[:, 1]).all()
    assert (values[:, 0] != values[:, 2]).any()
    assert (values[:, 0] != values[:, 3]).all()


def test_nested_modules_with_unnamed_ports(capfd):
    rng = np.random.default_rng(4)
    values = rng.integers(0, 256, 50)
    for steps in (((1, 1), (1, 1)), ((1, 2), (1, 3))):
        same(lambda steps=steps: Tree(steps), {"i": values}, {"o": 50}, stalls={"i": "110"})
    capfd.readouterr()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("drops", "text"), [
    (True, "o.valid fell in cycle 1, before the transfer that was offered took place"),
    (False, "o.payload changed in cycle 1, before the transfer that was offered took place"),
])
def test_broken_stream_rules_are_caught(backend, drops, text):
    with pytest.raises(StreamError, match=f"^{backend}: {text}$"):
        run(Unruly(drops=drops), {}, {"o": 1}, stalls={"o": "0001"}, backend=backend)


def test_a_failed_assertion_names_its_cycle(backend):
    with pytest.raises(AssertionError, match=rf"^{backend}: in cycle 2: Assertion violated: met 3"):
        run(Asserting(), {"i": [1, 2, 3, 4]}, backend=backend)


def test_a_simulation_goes_on_where_it_stopped():
    with Simulation(Lane([2, 3]), "amaranth") as a, Simulation(Lane([2, 3]), "cxxrtl") as b, \
            Simulation(Lane([2, 3]), "verilator") as c:
        for round_ in range(3):
            raw = pack(TERM, {"value": [1, 1], "row": [0, 0], "last": [1, 1]})
            results = [s.run({"i": raw}, {"o": 2}, stalls={"i": "100"}) for s in (a, b, c)]
            for result in results:
                # Weights 2, 3, 0, 0, ...: the address goes on as well.
                assert result.values("o")["sum"].tolist() == ([2, 5] if round_ == 0 else [5, 5])
                np.testing.assert_array_equal(result.times["o"], results[0].times["o"])
                assert result.start == results[0].start
                assert result.cycles == results[0].cycles
        assert result.start > 0
        for s in (a, b, c):
            s.reset()
            # Registers start anew, the sums in the memory stay.
            again = s.run({"i": raw}, {"o": 2}, stalls={"i": "100"})
            assert again.start == 0
            assert again.times["i"].tolist() == [0, 3]
            assert again.values("o")["sum"].tolist() == [7, 10]
