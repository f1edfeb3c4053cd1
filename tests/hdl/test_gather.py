# amaranth: UnusedElaboratable=no
"""Proves that the gather tree and what is behind it give whole units in order.

For every number of PEs, at one unit per cycle: tokens at the smallest distance that keeps the
values of two PEs of a lane apart.
"""

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from openese.hdl.gather import GatherTree, sum_layout
from openese.hdl.pre_activations import PreActivations
from openese.hdl.units import Units, gates_layout
from openese.model.config import GATE_LANES

from .helpers import plain, play, recurrent, simulate

SIZES = [1, 3, 4, 5, 8, 9, 64]


class Joined(wiring.Component):
    """The tree, the rounding and the collector, as they stand in the engine."""

    def __init__(self, config):
        self._config = config
        super().__init__({
            "i": In(sum_layout(config)).array(config.n_pes), "four": In(1),
            "o_valid": Out(1), "o_gates": Out(gates_layout(config)), "o_pe": Out(config.pe_bits),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.gather = gather = GatherTree(self._config)
        m.submodules.units = units = Units(self._config)
        m.d.comb += [port.eq(gate) for port, gate in zip(gather.i, self.i, strict=True)]
        m.submodules.rounding = rounding = PreActivations(self._config)
        m.d.comb += [port.eq(out) for port, out in zip(rounding.i, gather.o, strict=True)]
        m.d.comb += [port.eq(gate) for port, gate in zip(units.i, rounding.o, strict=True)]
        m.d.comb += [
            units.four.eq(self.four), self.o_valid.eq(units.o_valid),
            self.o_gates.eq(units.o_gates), self.o_pe.eq(units.o_pe),
        ]
        return m


def period(n_pes: int) -> int:
    """Cycles between tokens."""
    return -(-n_pes // GATE_LANES) * GATE_LANES


class Run:
    """Tokens at given cycles; a token reaches PE ``p`` after ``p`` cycles.

    Attributes
    ----------
    units
        (cycle, PE, gates of each channel) of every unit.
    sent
        (cycle of the last gate, PE, gates of each channel), in the order of tokens and PEs.
    """

    def __init__(self, config, four: bool, tokens):
        dut = Joined(config)
        rng = np.random.default_rng(0)
        self.units, self.sent = [], []
        gates = 4 if four else 1
        low, high = -(1 << config.act_bits - 1), 1 << config.act_bits - 1
        values = {}  # (cycle, PE) -> activations of all channels
        for token in tokens:
            for pe in range(config.n_pes):
                unit = rng.integers(low, high, (config.channels, gates))
                for k in range(gates):
                    assert (token + pe + k, pe) not in values
                    values[token + pe + k, pe] = unit[:, k].tolist()
                self.sent.append((token + pe + gates - 1, pe, unit.tolist()))
        end = max(token for token in tokens) + config.n_pes + 15
        point = config.shift_base + config.bias_guard

        async def testbench(ctx):
            ctx.set(dut.four, int(four))
            for cycle in range(end):
                for pe, port in enumerate(dut.i):
                    # What is not valid holds anything.
                    known = values.get((cycle, pe))
                    junk = rng.integers(low, high, config.channels).tolist()
                    ctx.set(port, {"valid": int(known is not None),
                                   "values": [value << point for value in known or junk]})
                if ctx.get(dut.o_valid):
                    found = plain(ctx.get(dut.o_gates))
                    self.units.append((cycle, ctx.get(dut.o_pe), [unit[:gates] for unit in found]))
                await ctx.tick()

        simulate(dut, testbench)

    def expected(self, latency: int) -> list:
        return [(cycle + latency, pe, unit) for cycle, pe, unit in self.sent]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("four", [True, False])
@pytest.mark.parametrize("n_pes", SIZES)
def test_one_unit_per_cycle_in_order(n_pes, four, channels):
    config = recurrent(n_pes=n_pes, channels=channels)
    tokens = [3 + period(n_pes) * k for k in range(4)]
    run = Run(config, four, tokens)
    # A register per level, the rounding, and a register behind the last gate.
    assert run.units == run.expected(config.fan_levels + PreActivations.LATENCY + 1)
    if n_pes % GATE_LANES == 0:
        first = run.units[0][0]
        assert [cycle for cycle, *_ in run.units] == list(range(first, first + 4 * n_pes))


@pytest.mark.parametrize("four", [True, False])
@pytest.mark.parametrize("n_pes", SIZES)
def test_tokens_farther_apart(n_pes, four):
    rng = np.random.default_rng(n_pes)
    config = recurrent(n_pes=n_pes)
    tokens = np.cumsum(period(n_pes) + rng.integers(6, size=5)).tolist()
    run = Run(config, four, tokens)
    assert run.units == run.expected(config.fan_levels + PreActivations.LATENCY + 1)


def test_clear_begins_with_pe_0_again():
    """The last row of a layer may have units in some PEs only, but all PEs give theirs."""
    config = recurrent(n_pes=5)
    dut = Units(config)
    idle = {f"i.{lane}": {"values": [0], "valid": 0} for lane in range(GATE_LANES)}

    def gate(lane, value):
        return {**idle, f"i.{lane}": {"values": [value], "valid": 1}}

    script = [gate(0, 10), gate(1, 11), {**idle, "clear": 1}, gate(0, 20), gate(1, 21),
              gate(2, 22), gate(3, 23), gate(0, 24), gate(0, 30), idle]
    trace = play(dut, script, ["o_valid", "o_gates", "o_pe"])
    assert [(cycle, step["o_pe"], step["o_gates"][0][0]) for cycle, step in enumerate(trace)
            if step["o_valid"]] == [
        (1, 0, 10), (2, 1, 11), (4, 0, 20), (5, 1, 21), (6, 2, 22), (7, 3, 23), (8, 4, 24),
        (9, 0, 30)]


def test_a_unit_out_of_order_is_an_assertion():
    dut = Units(recurrent(n_pes=4))
    with pytest.raises(AssertionError, match="a unit came out of order"):
        play(dut, [{"i.1": {"values": [3], "valid": 1}}], [], extra=1)
    # So are two at a time.
    both = {"i.0": {"values": [3], "valid": 1}, "i.1": {"values": [3], "valid": 1}}
    with pytest.raises(AssertionError, match="a unit came out of order"):
        play(Units(recurrent(n_pes=4)), [both], [], extra=1)


def test_reset_forgets_half_a_unit():
    config = recurrent(n_pes=1)
    reset = Signal()
    dut = Units(config)
    valid, none = {"values": [7], "valid": 1}, {"values": [0], "valid": 0}
    script = [{"i.0": valid, "four": 1}, {"i.0": valid, "four": 1},
              {"i.0": none, "four": 1, "reset": 1}]
    script += [{"i.0": {"values": [k], "valid": 1}, "four": 1} for k in range(4)] + [{"i.0": none}]
    trace = play(dut, script, ["o_valid", "o_gates"], reset=reset)
    assert [(cycle, step["o_gates"]) for cycle, step in enumerate(trace) if step["o_valid"]] == [
        (7, [[0, 1, 2, 3]])]


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 4$"):
        GatherTree(4)
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not None$"):
        Units(None)
