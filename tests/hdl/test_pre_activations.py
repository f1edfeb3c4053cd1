# amaranth: UnusedElaboratable=no
"""Proves pre-activations equal to the rounding of the reference, with every sum's own bias."""

import numpy as np
import pytest
from amaranth.hdl import Signal
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.hdl.layouts import Kind
from openese.hdl.pre_activations import PreActivations
from openese.model import reference
from openese.model.config import GATE_LANES

from .helpers import load_message, plain, recurrent, simulate, unsigned

LATENCY = PreActivations.LATENCY


def signed_numbers(rng, bits: int, shape) -> np.ndarray:
    """Of all magnitudes, and both rails."""
    values = rng.integers(-(1 << bits - 1), 1 << bits - 1, shape) >> rng.integers(0, bits, shape)
    rails = rng.random(shape)
    values[rails < 0.05] = -(1 << bits - 1)
    values[rails > 0.95] = (1 << bits - 1) - 1
    return values


class Run:
    """Sums of all lanes, at random times.

    Attributes
    ----------
    got
        Of every lane (cycle, values).
    saturated
        Count of every cycle.
    """

    def __init__(self, dut, config, sums, times, *, base=0, shift=0, relu=0, biased=1, loads=(),
                 reset_at=None):
        self.got = [[] for _ in range(config.gate_lanes)]
        self.saturated = {}
        reset = Signal()

        async def testbench(ctx):
            rng = np.random.default_rng(5)
            for load in loads:
                ctx.set(dut.i_load.valid, 1)
                ctx.set(dut.i_load.payload, load)
                await ctx.tick()
            ctx.set(dut.i_load.valid, 0)
            ctx.set(dut.start, 1)
            ctx.set(dut.base, base)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.base, 3)
            for name, value in (("shift", shift), ("relu", relu), ("biased", biased)):
                ctx.set(getattr(dut, name), value)
            # The first sum comes as early as it may.
            await ctx.tick().repeat(PreActivations.START_LATENCY - 1)
            place = [0] * config.gate_lanes
            for cycle in range(max(map(max, times)) + LATENCY + 3):
                ctx.set(reset, int(cycle == reset_at))
                for k, port in enumerate(dut.i):
                    now = k < len(sums) and cycle in times[k]
                    values = (sums[k][place[k]] if now
                              else rng.integers(-9999, 9999, config.channels)).tolist()
                    ctx.set(port, {"valid": int(now), "values": values})
                    place[k] += now
                    out = plain(ctx.get(dut.o[k]))
                    if out["valid"]:
                        self.got[k].append((cycle, out["values"]))
                self.saturated[cycle] = ctx.get(dut.saturated)
                await ctx.tick()

        simulate(dut, testbench, reset=reset)


@st.composite
def cases(draw):
    acc_bits = draw(st.integers(16, 48))
    config = recurrent(
        n_pes=draw(st.integers(1, 9)), acc_bits=acc_bits, act_bits=draw(st.integers(13, 17)),
        bias_bits=draw(st.integers(4, 32)), bias_guard=draw(st.integers(1, 8)),
        shift_base=draw(st.integers(0, min(24, acc_bits - 1))), shift_bits=draw(st.integers(1, 5)),
        bias_depth=draw(st.integers(12, 150)), channels=draw(st.integers(1, 3)))
    if config.channels == 1:
        config = config.with_(serial_cells=draw(st.booleans()))
    return (config, draw(st.integers(0, (1 << config.shift_bits) - 1)), draw(st.booleans()),
            draw(st.booleans()), draw(st.integers(0, 1 << 16)))


@given(cases())
@settings(deadline=None, max_examples=40, derandomize=True)
def test_equals_the_reference(case):
    """Lanes on their own, with and without gaps, from any place of the bias memories."""
    config, s, relu, biased, seed = case
    rng = np.random.default_rng(seed)
    lanes, count = config.bias_lanes, 10
    base = int(rng.integers(config.bias_depth - count + 1))
    biases = signed_numbers(rng, config.bias_bits, (lanes, config.bias_depth))
    sums = signed_numbers(rng, config.acc_bits, (lanes, count, config.channels))
    # One lane without gaps.
    times = [range(count) if lane == 0 else
             sorted(rng.choice(30, count, replace=False).tolist()) for lane in range(lanes)]
    words = [[unsigned(int(bias), config.bias_bits) for bias in row] for row in biases]
    dut = PreActivations(config, words)
    run = Run(dut, config, sums, times, base=base, shift=s, relu=int(relu), biased=int(biased))
    clipped = 0
    for lane in range(lanes):
        expected, count_clipped = reference.write_back(
            sums[lane], biases[lane, base:base + count, None] * biased,
            shift=config.shift_base + config.bias_guard + s, bias_guard=config.bias_guard,
            relu=relu, act_bits=config.act_bits)
        clipped += count_clipped
        assert run.got[lane] == [(time + LATENCY, values) for time, values in zip(
            times[lane], expected.tolist(), strict=True)]
    assert sum(run.saturated.values()) == clipped
    assert run.got[lanes:] == [[]] * (config.gate_lanes - lanes)


def test_saturations_are_counted_with_their_values():
    config = recurrent(channels=2, n_pes=8)
    big = 1 << 30
    sums = np.array([[[big, -big], [0, 0], [big, 1]]] * GATE_LANES)
    run = Run(PreActivations(config), config, sums, [range(3)] * GATE_LANES)
    assert [run.saturated[LATENCY + k] for k in range(3)] == [8, 0, 4]
    assert sum(run.saturated.values()) == 12
    # What ReLU sets to 0 is not clipped.
    run = Run(PreActivations(config), config, sums, [range(3)] * GATE_LANES, relu=1)
    assert [run.saturated[LATENCY + k] for k in range(3)] == [4, 0, 4]


@pytest.mark.parametrize("serial", [False, True])
@pytest.mark.parametrize("depth", [24, 300])
def test_biases_load_into_their_lane(depth, serial):
    """In LUT RAM as in block RAM; loads of other memories are none."""
    config = recurrent(n_pes=5, bias_depth=depth, serial_cells=serial)
    lanes = config.bias_lanes
    assert lanes == (1 if serial else 4)
    rng = np.random.default_rng(depth)
    biases = rng.integers(-500, 500, (lanes, depth))
    loads = []
    for lane, addr in np.ndindex(biases.shape):
        word = unsigned(4 * int(biases[lane, addr]), config.bias_bits)
        loads += [load_message(Kind.LOAD_BIAS, lane, addr, word),
                  load_message(Kind.LOAD_ACT, lane, addr, 444)]
        if lanes > 1:
            loads.append(load_message(Kind.LOAD_BIAS, 4, addr, 444))
    sums = np.zeros((lanes, depth, 1), dtype=int)
    run = Run(PreActivations(config), config, sums, [range(depth)] * lanes, loads=loads)
    assert [[values[0] for _, values in lane] for lane in run.got] == biases.tolist()


def test_reset_forgets_what_is_under_way():
    config = recurrent(n_pes=1)
    run = Run(PreActivations(config), config, np.zeros((1, 2, 1), dtype=int), [[0, 4]], reset_at=1)
    assert [cycle for cycle, _ in run.got[0]] == [4 + LATENCY]


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 5$"):
        PreActivations(5)
    config = recurrent()
    with pytest.raises(ValueError, match=r"^bias has 25 words but the memory of this "
                                         r"configuration holds 24$"):
        PreActivations(config, [[0] * 25] * 3)
    with pytest.raises(ValueError, match=r"^bias word 0 must be an integer from 0 to 262143 "
                                         r"\(18 bits\), not 262144$"):
        PreActivations(config, [[1 << 18]] * 3)
