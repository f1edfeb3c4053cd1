# amaranth: UnusedElaboratable=no
"""Proves write-back equal to the rounding of the reference: ties, rails, ReLU and saturations.

Every channel alike, of rows in any order and at any distance.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from amaranth.hdl import Signal
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.hdl.layouts import Kind
from openese.hdl.write_back import WriteBack
from openese.model import reference
from openese.model.config import DRAIN_LATENCY, WRITE_BACK_LATENCY, EngineConfig

from .helpers import (
    SMALL,
    act_message,
    load_message,
    mark_messages,
    plain,
    scan_message,
    simulate,
    unsigned,
    write_message,
    write_messages,
)

#: Small enough to try every accumulator around both rails.
TINY = SMALL.with_(act_bits=4, weight_bits=4, acc_bits=16, bias_bits=6, shift_base=0, shift_bits=2,
                   acc_depth=1024, act_depth=1024, bias_depth=1024)


class Run:
    """One simulation: messages at given cycles, with the accumulators played by the testbench.

    A list of messages is sent cycle after cycle.

    Attributes
    ----------
    results
        (cycle, act, value, saturated) of every activation; with several channels, a list of
        values.
    drains
        (cycle, row).
    busy, clipped
        Cycles in which `busy` and `saturated` were high.
    """

    def __init__(self, dut, messages, accumulators, cycles, *, pe=0, reset_at=None):
        self.results, self.drains, self.busy, self.clipped = [], [], [], []
        messages = self._spread(messages)
        reset = Signal()
        rng = np.random.default_rng(0)
        junk = write_message(acc=3, act=7, bias=5, shift=1, relu=1, discard=1)

        async def testbench(ctx):
            ctx.set(dut.id, pe)
            channels = len(dut.drained)
            asked = []
            for cycle in range(cycles):
                ctx.set(reset, int(cycle == reset_at))
                ctx.set(dut.i.valid, int(cycle in messages))
                ctx.set(dut.i.payload, messages.get(cycle, junk))
                row = asked[cycle - DRAIN_LATENCY] if cycle >= DRAIN_LATENCY else None
                for c in range(channels):
                    if row is None:
                        ctx.set(dut.drained[c], int(rng.integers(-2000, 2000)))
                    elif channels == 1:
                        ctx.set(dut.drained[c], accumulators[row])
                    else:
                        ctx.set(dut.drained[c], accumulators[row][c])
                saturated = ctx.get(dut.saturated)
                payload = plain(ctx.get(dut.o.payload))
                value = payload["values"] if channels > 1 else payload["values"][0]
                if ctx.get(dut.o.valid):
                    self.results.append((cycle, payload["act"], value, saturated))
                if saturated:
                    self.clipped.append(cycle)
                if ctx.get(dut.busy):
                    self.busy.append(cycle)
                asked.append(ctx.get(dut.row) if ctx.get(dut.drain) else None)
                if asked[cycle] is not None:
                    self.drains.append((cycle, asked[cycle]))
                await ctx.tick()

        simulate(dut, testbench, reset=reset)

    @staticmethod
    def _spread(messages) -> dict[int, dict]:
        """The message of every cycle that has one."""
        spread = {}
        for cycle, sent in messages.items():
            for k, message in enumerate(sent if isinstance(sent, list) else [sent]):
                assert cycle + k not in spread, "two messages in a cycle"
                spread[cycle + k] = message
        return spread


def rounded(config: EngineConfig, acc: int, bias: int, s: int, relu: bool) -> tuple[int, bool]:
    """The activation by exact fractions, and whether it was clipped."""
    shift = config.shift_base + config.bias_guard + s
    exact = Fraction(acc, 1 << shift) + Fraction(bias, 1 << config.bias_guard)
    # The guard bits are all that is kept before rounding; a floor before it changes nothing.
    y = math.floor(exact + Fraction(1, 2))
    y = max(y, 0) if relu else y
    low, high = -(1 << config.act_bits - 1), (1 << config.act_bits - 1) - 1
    return min(max(y, low), high), not low <= y <= high


@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize("s", [0, 1, 3])
def test_every_accumulator_around_ties_and_both_rails(s, relu):
    shift = TINY.bias_guard + s
    span = min(10 << shift, TINY.acc_depth // 2)
    accumulators = list(range(-span, span))
    for bias in (0, 1, -1, 2, -3, 31, -32):
        dut = WriteBack(TINY, init=[unsigned(bias, TINY.bias_bits)] * len(accumulators))
        run = Run(dut, {0: write_messages(len(accumulators), shift=s, relu=relu)},
                  accumulators, len(accumulators) + 12)
        expected = [rounded(TINY, acc, bias, s, relu) for acc in accumulators]
        assert [(value, bool(clip)) for _, _, value, clip in run.results] == expected


def test_half_rounds_up():
    # Four guard-less units are 1.0: -1.5, -0.5, 0.5 and 1.5 round up.
    ties = [-6, -2, 2, 6]
    run = Run(WriteBack(TINY), {0: write_messages(4)}, ties, 18)
    assert [value for _, _, value, _ in run.results] == [-1, 0, 1, 2]


@st.composite
def cases(draw):
    """A configuration, accumulators, biases and the fields of WRITE."""
    acc_bits = draw(st.integers(16, 48))
    config = EngineConfig(
        n_pes=2, acc_bits=acc_bits, act_bits=draw(st.integers(4, 18)),
        bias_bits=draw(st.integers(4, 32)), bias_guard=draw(st.integers(1, 8)),
        shift_base=draw(st.integers(0, min(24, acc_bits - 1))), shift_bits=draw(st.integers(1, 5)),
        acc_depth=16, act_depth=32, bias_depth=32)
    rows = draw(st.integers(1, 16))

    def numbers(bits):
        low, high = -(1 << bits - 1), (1 << bits - 1) - 1
        near = st.integers(max(low, -300), min(high, 300))
        return st.lists(st.one_of(st.integers(low, high), near, st.sampled_from([low, high])),
                        min_size=rows, max_size=rows)

    return (config, draw(numbers(acc_bits)), draw(numbers(config.bias_bits)),
            draw(st.integers(0, (1 << config.shift_bits) - 1)), draw(st.booleans()))


@given(cases())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_equals_the_reference(case):
    config, accumulators, biases, s, relu = case
    dut = WriteBack(config, init=[unsigned(bias, config.bias_bits) for bias in biases])
    rows = len(accumulators)
    run = Run(dut, {0: write_messages(rows, shift=s, relu=int(relu))}, accumulators, rows + 12)
    shift = config.shift_base + config.bias_guard + s
    values, saturations = reference.write_back(
        accumulators, np.array(biases), shift=shift, bias_guard=config.bias_guard, relu=relu,
        act_bits=config.act_bits)
    assert [value for _, _, value, _ in run.results] == values.tolist()
    assert len(run.clipped) == saturations
    assert [value for _, _, value, _ in run.results] == [
        rounded(config, acc, bias, s, relu)[0]
        for acc, bias in zip(accumulators, biases, strict=True)]


@pytest.mark.parametrize("guard", [1, 2, 8])
@pytest.mark.parametrize(("acc_bits", "shift_base", "bias_bits"), [
    (20, 4, 16), (20, 4, 15), (20, 4, 17), (20, 4, 4), (16, 4, 4), (16, 4, 12), (48, 4, 4),
    (16, 15, 4)])
def test_sum_of_extremes_does_not_wrap(acc_bits, shift_base, bias_bits, guard):
    """Accumulator and bias at their ends, for all orders of the widths that are added."""
    config = SMALL.with_(acc_bits=acc_bits, shift_base=shift_base, bias_bits=bias_bits,
                         bias_guard=guard, act_bits=8)
    ends = [-(1 << acc_bits - 1), (1 << acc_bits - 1) - 1]
    for bias in (-(1 << bias_bits - 1), (1 << bias_bits - 1) - 1):
        dut = WriteBack(config, init=[unsigned(bias, config.bias_bits)] * 2)
        run = Run(dut, {0: write_messages(2)}, ends, 16)
        assert [(value, bool(clip)) for _, _, value, clip in run.results] == [
            rounded(config, acc, bias, 0, False) for acc in ends]


def test_latency_addresses_and_back_to_back_commands():
    biases = [4 * (k - 12) for k in range(SMALL.bias_depth)]
    dut = WriteBack(SMALL, init=[unsigned(bias, SMALL.bias_bits) for bias in biases])
    messages = {
        3: write_messages(7, act=20, bias=2),
        20: write_messages(1, act=5, bias=23),
        # One may be inside when the next begins.
        24: write_messages(12, act=0, bias=11),
    }
    run = Run(dut, messages, [0] * SMALL.acc_depth, 50)
    expected, drains, busy = [], [], []
    for cycle, (act, rows, bias) in {3: (20, 7, 2), 20: (5, 1, 23), 24: (0, 12, 11)}.items():
        expected += [(cycle + WRITE_BACK_LATENCY + k, act + k, biases[bias + k] // 4, 0)
                     for k in range(rows)]
        drains += [(cycle + 1 + k, k) for k in range(rows)]
        busy += range(cycle + 1, cycle + WRITE_BACK_LATENCY + rows)
    assert run.results == expected
    assert run.drains == drains
    assert run.busy == sorted(set(busy))
    assert dut.LATENCY == WRITE_BACK_LATENCY


@pytest.mark.parametrize("gaps", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("config", [SMALL, SMALL.with_(channels=2)], ids=["SMALL", "channels"])
def test_rows_in_any_order_and_at_any_distance(config, gaps):
    """Accumulator, bias and place of the result are the message's own; others come between."""
    rng = np.random.default_rng(int(10 * gaps))
    others = [act_message(5, *[-1] * config.channels), scan_message(act=3, rows=2),
              *mark_messages(config, code_sel=1),
              load_message(Kind.LOAD_PTR, 0, 4, 3), load_message(Kind.LOAD_BIAS, 1, 4, 3),
              load_message(Kind.LOAD_CODEBOOK, 0, 4, 3), None]
    biases = (4 * rng.integers(-500, 500, config.bias_depth)).tolist()
    accumulators = rng.integers(-(1 << 28), 1 << 28, (config.acc_depth, config.channels))
    if config.channels == 1:
        accumulators = accumulators[:, 0]
    messages, expected, drains, cycle = {}, [], [], 2
    for _ in range(120):
        while rng.random() < gaps:
            if message := others[rng.integers(len(others))]:
                messages[cycle] = message
            cycle += 1
        acc, bias, act = (int(rng.integers(depth)) for depth in (
            config.acc_depth, config.bias_depth, config.act_depth))
        messages[cycle] = write_message(acc=acc, bias=bias, act=act, shift=2)
        drains.append((cycle + 1, acc))
        found = [rounded(config, int(value), biases[bias], 2, False)
                 for value in np.atleast_1d(accumulators[acc])]
        values = [value for value, _ in found]
        expected.append((cycle + WRITE_BACK_LATENCY, act,
                         values if config.channels > 1 else values[0],
                         sum(clip for _, clip in found)))
        cycle += 1
    dut = WriteBack(config, init=[unsigned(bias, config.bias_bits) for bias in biases])
    run = Run(dut, messages, accumulators.tolist(), cycle + 12)
    assert run.results == expected
    assert run.drains == drains
    assert run.busy == sorted({at + k for at, _ in drains for k in range(WRITE_BACK_LATENCY)})
    clips = [clip for *_, clip in expected]
    assert 0 < sum(map(bool, clips)) < len(clips)


@pytest.mark.parametrize("first", range(4))
def test_other_settings_from_the_cycle_of_the_result_on(first):
    """Shift, ReLU and discard may change with the first message that comes no earlier."""
    settings = [{"shift": 0, "relu": 0, "discard": 0}, {"shift": 3, "relu": 1, "discard": 0},
                {"shift": 1, "relu": 0, "discard": 1}, {"shift": 2, "relu": 1, "discard": 1}]
    accumulators = [value << 14 for value in (-5, 6, -100_000, 100_000)] * 3
    for second in range(4):
        run = Run(WriteBack(SMALL), {
            1: write_messages(4, act=3, **settings[first]),
            4 + WRITE_BACK_LATENCY: write_messages(4, acc=4, act=20, **settings[second])},
            accumulators, 30)
        expected = [
            (cycle + k + WRITE_BACK_LATENCY, act + k, *rounded(
                SMALL, accumulators[k], 0, chosen["shift"], bool(chosen["relu"])))
            for cycle, act, chosen in ((1, 3, settings[first]),
                                       (4 + WRITE_BACK_LATENCY, 20, settings[second]))
            for k in range(4) if not chosen["discard"]]
        assert run.results == expected
        assert run.clipped == [cycle for cycle, *_, clip in expected if clip]


def test_saturations_are_counted_with_their_activation():
    big = 1 << 30
    accumulators = [big, -big, 0, big, 5, -big]
    dut = WriteBack(SMALL)
    plain_run = Run(dut, {0: write_messages(6)}, accumulators, 20)
    assert [(value, clip) for _, _, value, clip in plain_run.results] == [
        (32767, 1), (-32768, 1), (0, 0), (32767, 1), (0, 0), (-32768, 1)]
    assert plain_run.clipped == [cycle for cycle, _, _, clip in plain_run.results if clip]
    # What ReLU sets to 0 is not clipped.
    relu_run = Run(WriteBack(SMALL), {0: write_messages(6, relu=1)}, accumulators, 20)
    assert [(value, clip) for _, _, value, clip in relu_run.results] == [
        (32767, 1), (0, 0), (0, 0), (32767, 1), (0, 0), (0, 0)]


def test_discard_clears_without_writing_or_counting():
    run = Run(WriteBack(SMALL), {2: write_messages(SMALL.acc_depth, discard=1)},
              [1 << 30] * SMALL.acc_depth, 34)
    assert run.drains == [(3 + row, row) for row in range(SMALL.acc_depth)]
    assert run.results == []
    assert run.clipped == []
    assert run.busy == list(
        range(3, 2 + SMALL.acc_depth + WRITE_BACK_LATENCY))


def test_biases_load_into_the_own_pe_only():
    biases = [3 * k - 30 for k in range(SMALL.bias_depth)]
    stream = []
    for addr, bias in enumerate(biases):
        word = unsigned(4 * bias, SMALL.bias_bits)
        stream += [load_message(Kind.LOAD_BIAS, 1, addr, word),
                   load_message(Kind.LOAD_BIAS, 2, addr, 444),
                   load_message(Kind.LOAD_PTR, 1, addr, 444)]
    messages = dict(enumerate(stream))
    messages[len(stream)] = write_messages(12, bias=0)
    messages[len(stream) + 25] = write_messages(12, bias=12)
    run = Run(WriteBack(SMALL), messages, [0] * 12, len(stream) + 50, pe=1)
    assert [value for _, _, value, _ in run.results] == biases


@pytest.mark.parametrize("channels", [2, 5])
def test_channels_share_biases_and_are_counted_one_by_one(channels):
    config = SMALL.with_(channels=channels)
    rng = np.random.default_rng(channels)
    # Half of the accumulators are beyond the rails.
    accumulators = rng.integers(-(1 << 31), 1 << 31, (12, channels)) >> rng.integers(
        0, 5, (12, channels))
    accumulators[:3] = np.array([[(1 << 31) - 1], [0], [0]])
    accumulators[1, -1] = (1 << 31) - 1
    biases = rng.integers(-5000, 5000, 12).tolist()
    for relu in (0, 1):
        dut = WriteBack(config, init=[unsigned(bias, config.bias_bits) for bias in biases])
        run = Run(dut, {1: write_messages(12, act=3, shift=4, relu=relu)},
                  accumulators.tolist(), 30)
        assert len(run.results) == 12
        for k, (cycle, act, values, saturated) in enumerate(run.results):
            expected = [rounded(config, int(acc), biases[k], 4, bool(relu))
                        for acc in accumulators[k]]
            assert values == [value for value, _ in expected]
            assert saturated == sum(clip for _, clip in expected)
            assert (cycle, act) == (1 + WRITE_BACK_LATENCY + k, 3 + k)
        clips = [saturated for *_, saturated in run.results]
        assert clips[:3] == [channels, 1, 0]


def test_write_begins_at_its_first_accumulator():
    run = Run(WriteBack(SMALL), {0: write_messages(4, acc=7, act=2)},
              [1024 * row for row in range(12)], 20)
    assert [row for _, row in run.drains] == [7, 8, 9, 10]
    assert [(act, value) for _, act, value, _ in run.results] == [
        (2, 7), (3, 8), (4, 9), (5, 10)]


def test_reset_ends_a_command():
    # The last message comes in the cycle of the reset.
    run = Run(WriteBack(SMALL), {0: write_messages(12), 16: write_messages(1, act=9)},
              [0] * 12, 30, reset_at=11)
    first, after = WRITE_BACK_LATENCY, 16 + WRITE_BACK_LATENCY
    assert [cycle for cycle, *_ in run.results] == [*range(first, 12), after]
    assert run.results[-1][1] == 9
    assert run.busy == [*range(1, 12), *range(17, after + 1)]


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 5$"):
        WriteBack(5)
    with pytest.raises(ValueError, match=r"^bias has 25 words but the memory of this "
                                         r"configuration holds 24$"):
        WriteBack(SMALL, init=[0] * 25)
    with pytest.raises(ValueError, match=r"^bias word 0 must be an integer from 0 to 262143 "
                                         r"\(18 bits\), not 262144$"):
        WriteBack(SMALL, init=[1 << 18])
