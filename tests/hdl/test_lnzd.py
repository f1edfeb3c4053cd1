# amaranth: UnusedElaboratable=no
"""Proves leading-non-zero detection: order, zeros, negatives, partial rows, stalls, cycles."""

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.hdl.layouts import scan_layout
from openese.hdl.lnzd import ARITY, LnzdLeaf, LnzdNode, LnzdTree
from openese.sim import simulation
from openese.sim.streams import pack, random_stalls

from .helpers import SMALL, play, transfers

LEAVES = [1, 2, 3, 4, 5, 16, 17]
LEVELS = {1: 1, 2: 1, 3: 1, 4: 1, 5: 2, 16: 2, 17: 3}


class Whole(wiring.Component):
    """The first level, which is in the clusters, and the tree over it."""

    def __init__(self, config):
        self._config = config
        super().__init__({
            "i": In(stream.Signature(scan_layout(config, 0))).array(config.n_pes),
            "o": Out(stream.Signature(scan_layout(config, 2 * config.lnzd_levels))),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.tree = tree = LnzdTree(self._config)
        for k, port in enumerate(tree.i):
            heads = self.i[ARITY * k:ARITY * (k + 1)]
            m.submodules[f"leaf_{k}"] = leaf = LnzdLeaf(self._config, len(heads))
            for head, child in zip(heads, leaf.i, strict=True):
                wiring.connect(m, wiring.flipped(head), child)
            wiring.connect(m, leaf.o, port)
        wiring.connect(m, tree.o, wiring.flipped(self.o))
        return m


def rows_of(leaves: int, density: float, count: int, seed: int) -> np.ndarray:
    """Random rows of activations: a third negative, both rails, some rows all zero or all not."""
    rng = np.random.default_rng([leaves, seed])
    values = rng.choice([-32768, 32767, -1, 1, 256, -256, 77, 4096], size=(count, leaves))
    values *= rng.random((count, leaves)) < density
    values[rng.random(count) < 0.1] = 0
    values[0], values[-1] = 0, -1
    return values


def nonzero(rows) -> np.ndarray:
    """Which activations are broadcast; a last axis of `rows` may be the channels."""
    return rows.any(axis=2) if rows.ndim == 3 else rows != 0


def as_list(value) -> list[int]:
    """An activation of every channel."""
    return np.atleast_1d(value).tolist()


def leaf_items(rows, present=None) -> list[list[dict]]:
    """What the PEs offer: per leaf, one item per row."""
    present = nonzero(rows) if present is None else present
    return [[{"values": as_list(value), "nonzero": int(there), "last": 1}
             for value, there in zip(rows[:, leaf], present[:, leaf], strict=True)]
            for leaf in range(rows.shape[1])]


def expected_items(rows, present=None) -> list:
    """What the root gives: (lane, values, last), or None for a row of zeros."""
    present = nonzero(rows) if present is None else present
    found = []
    for row, there in zip(rows, present, strict=True):
        lanes = np.flatnonzero(there).tolist()
        found += [(lane, as_list(row[lane]), int(lane == lanes[-1])) for lane in lanes] or [None]
    return found


def taken(got) -> list:
    """Received items in the form of `expected_items`."""
    for _, item in got:
        assert item["nonzero"] or item["last"], "a zero item stands for a whole row"
    return [(item["lane"], item["values"], item["last"]) if item["nonzero"] else None
            for _, item in got]


def run(dut, inputs, *, gaps: float = 0.0, stalls: float = 0.0, seed: int = 0):
    """Offer the items of every child; returns (cycle, item) of all that comes out."""
    shape = dut.i[0].payload.shape()
    raw = {f"i_{k}": pack(shape, {name: [item[name] for item in items] for name, _ in shape})
           for k, items in enumerate(inputs)}
    # The PEs of a leaf are in step.
    step = ARITY if isinstance(dut, Whole) else 1
    patterns = {name: random_stalls(100 * seed + k // step, gaps) for k, name in enumerate(raw)}
    patterns["o"] = random_stalls(100 * seed + 99, stalls)
    result = simulation.run(dut, raw, {"o": None}, stalls=patterns, extra_cycles=120)
    values = result.values("o")
    items = [dict(zip(values, (np.asarray(part).tolist() for part in item), strict=True))
             for item in zip(*values.values(), strict=True)]
    return list(zip(result.times["o"].tolist(), items, strict=True))


@pytest.mark.parametrize("density", [0.0, 0.15, 0.6, 1.0])
@pytest.mark.parametrize("leaves", LEAVES)
def test_one_item_per_cycle_after_the_levels(leaves, density):
    config = SMALL.with_(n_pes=leaves)
    assert config.lnzd_levels == LEVELS[leaves]
    rows = rows_of(leaves, density, 25, 0)
    expected = expected_items(rows)
    got = run(Whole(config), leaf_items(rows))
    assert taken(got) == expected
    # No bubble within rows, between rows, or between scans.
    first = config.lnzd_latency
    assert [cycle for cycle, _ in got] == list(range(first, first + len(expected)))


@pytest.mark.parametrize(("gaps", "stalls"), [(0.0, 0.5), (0.5, 0.0), (0.3, 0.3), (0.8, 0.1)])
@pytest.mark.parametrize("leaves", [1, 3, 5, 17])
def test_random_stalls_on_every_stream(leaves, gaps, stalls):
    rows = rows_of(leaves, 0.4, 25, 1)
    expected = expected_items(rows)
    got = run(Whole(SMALL.with_(n_pes=leaves)), leaf_items(rows), gaps=gaps,
              stalls=stalls, seed=leaves)
    assert taken(got) == expected


@pytest.mark.parametrize("leaves", [1, 5, 17])
@pytest.mark.parametrize("channels", [2, 5])
def test_channels_go_together(channels, leaves):
    """An item is dropped only where it is zero in every channel."""
    config = SMALL.with_(n_pes=leaves, channels=channels)
    rows = np.stack([rows_of(leaves, 0.2, 25, seed) for seed in range(channels)], axis=2)
    expected = expected_items(rows)
    assert any(item and 0 in item[1] for item in expected)
    got = run(Whole(config), leaf_items(rows))
    assert taken(got) == expected
    assert len(got) == len(expected)
    stalled = run(Whole(config), leaf_items(rows), gaps=0.3, stalls=0.3)
    assert taken(stalled) == expected


@pytest.mark.parametrize("leaves", LEAVES)
def test_dense_scan_gives_zeros_as_well(leaves):
    rows = rows_of(leaves, 0.3, 6, 2)
    everything = np.ones_like(rows, dtype=bool)
    expected = expected_items(rows, everything)
    got = run(Whole(SMALL.with_(n_pes=leaves)), leaf_items(rows, everything), stalls=0.2)
    assert taken(got) == expected
    assert len(got) == rows.size


@pytest.mark.parametrize("leaves", LEAVES)
def test_absent_lanes_of_the_last_row(leaves):
    """Scans of every `rem`, one right after the other, sparse and dense."""
    blocks, masks = [], []
    for rem in range(1, leaves + 1):
        rows = rows_of(leaves, 0.7, 3, rem)
        for mask in (rows != 0, np.ones_like(rows, dtype=bool)):
            mask[-1, rem:] = False
            blocks.append(rows)
            masks.append(mask)
    rows, present = np.concatenate(blocks), np.concatenate(masks)
    expected = expected_items(rows, present)
    got = run(Whole(SMALL.with_(n_pes=leaves)), leaf_items(rows, present))
    assert taken(got) == expected


def test_every_pattern_of_a_row_of_four():
    patterns = np.array([[pattern >> lane & 1 for lane in range(4)] for pattern in range(16)])
    # Every pattern follows every other.
    rows = np.concatenate([patterns[[a, b]] for a in range(16) for b in range(16)]) * -3
    expected = expected_items(rows)
    got = run(Whole(SMALL.with_(n_pes=4)), leaf_items(rows))
    assert taken(got) == expected
    assert [cycle for cycle, _ in got] == list(range(2, 2 + len(expected)))


@pytest.mark.parametrize("children", [1, 2, 3, 4])
@pytest.mark.parametrize("stalls", [0.0, 0.4])
def test_node_merges_rows_of_several_items(children, stalls):
    """A node above nodes: children give several items per row, in their own time."""
    rng = np.random.default_rng(children)
    inputs, expected = [[] for _ in range(children)], []
    for _ in range(40):
        row = []
        for child in range(children):
            lanes = np.flatnonzero(rng.random(4) < rng.choice([0.0, 0.3, 0.9])).tolist()
            values = rng.integers(-9, 0, size=len(lanes)).tolist()
            inputs[child] += [
                {"values": [value], "nonzero": 1, "last": int(lane == lanes[-1]), "lane": lane}
                for lane, value in zip(lanes, values, strict=True)
            ] or [{"values": [0], "nonzero": 0, "last": 1, "lane": 0}]
            row += [(4 * child + lane, [value])
                    for lane, value in zip(lanes, values, strict=True)]
        expected += [(*item, int(item is row[-1])) for item in row] or [None]
    got = run(LnzdNode(SMALL, children, 2), inputs, gaps=stalls, stalls=stalls)
    assert taken(got) == expected
    if not stalls:
        assert [cycle for cycle, _ in got] == list(range(1, 1 + len(expected)))


def test_node_waits_for_every_child_that_has_items_left():
    one = {"values": [-4], "nonzero": 1, "last": 1, "lane": 2}
    zero = {"values": [0], "nonzero": 0, "last": 1, "lane": 0}
    waiting = {"i.1.valid": 1, "i.1.payload": one, "o.ready": 1}
    script = [waiting] * 4 + [{**waiting, "i.0.valid": 1, "i.0.payload": zero}, {"o.ready": 1}]
    trace = play(LnzdNode(SMALL, 2, 2), script, ["o.valid", "o.payload", "i.1.ready"])
    assert transfers(trace, "o") == [(5, {**one, "lane": 6})]
    assert [step["i.1.ready"] for step in trace] == [0, 0, 0, 0, 1, 0]


def test_ready_does_not_wait_for_the_output():
    """A second register takes what comes in when the output stalls: no path of `ready` through."""
    offer = {"i.0.valid": 1,
             "i.0.payload": {"values": [3], "nonzero": 1, "last": 1, "lane": 0}}
    trace = play(LnzdNode(SMALL, 1, 2), [offer] * 5 + [{**offer, "o.ready": 1}] * 3,
                 ["i.0.ready", "o.valid"])
    assert [step["i.0.ready"] for step in trace] == [1, 1, 0, 0, 0, 0, 1, 1]
    assert [step["o.valid"] for step in trace] == [0, 1, 1, 1, 1, 1, 1, 1]


def row_of(*values: int) -> dict:
    """The PEs of a leaf offer a row."""
    return {f"i.{k}.{part}": what for k, value in enumerate(values) for part, what in (
        ("valid", 1), ("payload", {"values": [value], "nonzero": int(value != 0), "last": 1}))}


def test_leaf_takes_a_row_when_the_one_before_has_been_given():
    rows = [row_of(5, 0, -6), row_of(0, 0, 0), row_of(1, 2, 3)]
    script = [rows[0], rows[1], rows[1], *[rows[2]] * 5]
    trace = play(LnzdLeaf(SMALL, 3), [{**step, "o.ready": 1} for step in script],
                 ["o.valid", "o.payload", "i.0.ready", "i.1.ready", "i.2.ready"])
    for k in range(3):
        assert [step[f"i.{k}.ready"] for step in trace] == [1, 0, 1, 1, 0, 0, 1, 0]
    assert [(cycle, item["lane"], item["values"], item["last"])
            for cycle, item in transfers(trace, "o") if item["nonzero"]] == [
        (2, 0, [5], 0), (3, 2, [-6], 1), (5, 0, [1], 0), (6, 1, [2], 0), (7, 2, [3], 1)]


def test_leaf_does_not_wait_for_the_output():
    offer = row_of(3)
    trace = play(LnzdLeaf(SMALL, 1), [offer] * 6 + [{**offer, "o.ready": 1}] * 3,
                 ["i.0.ready", "o.valid"])
    # Three rows are inside: the row itself, and two items at the output.
    assert [step["i.0.ready"] for step in trace] == [1, 1, 1, 0, 0, 0, 0, 1, 1]
    assert [step["o.valid"] for step in trace] == [0, 0, 1, 1, 1, 1, 1, 1, 1]


def test_pes_of_a_leaf_must_be_in_step():
    with pytest.raises(AssertionError, match="PEs are not in step"):
        play(LnzdLeaf(SMALL, 2), [{**row_of(1, 2), "i.1.valid": 0}], [], extra=1)


def test_reset_forgets_a_row_half_given():
    # Item 0 is given; after the reset the row starts again with it.
    both = {**row_of(9, 9), "o.ready": 1}
    script = [both, both, {"reset": 1}, both, *[{"o.ready": 1}] * 4]
    trace = play(LnzdLeaf(SMALL, 2), script, ["o.valid", "o.payload"], reset=Signal())
    assert [item["lane"] for _, item in transfers(trace[3:], "o")] == [0, 1]

    item = {"values": [9], "nonzero": 1, "last": 1, "lane": 3}
    both = {f"i.{k}.{part}": value for k in range(2)
            for part, value in (("valid", 1), ("payload", item))}
    # Child 0 is taken in cycle 0; after the reset the row starts again with child 0.
    script = [{**both, "o.ready": 1}, {"reset": 1}, *[{**both, "o.ready": 1}] * 2, {"o.ready": 1}]
    trace = play(LnzdNode(SMALL, 2, 2), script, ["o.valid", "o.payload"], reset=Signal())
    assert [item["lane"] for _, item in transfers(trace[2:], "o")] == [3, 7]


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 4$"):
        LnzdTree(4)
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 4$"):
        LnzdNode(4, 2, 2)
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 4$"):
        LnzdLeaf(4, 2)
    for children in (0, 5):
        with pytest.raises(ValueError, match=f"^children must be 1 to 4, not {children}$"):
            LnzdNode(SMALL, children, 2)
        with pytest.raises(ValueError, match=f"^children must be 1 to 4, not {children}$"):
            LnzdLeaf(SMALL, children)
