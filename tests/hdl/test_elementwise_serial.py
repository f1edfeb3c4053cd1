# amaranth: UnusedElaboratable=no
"""Proves every cell of the serial element-wise unit bit for bit, how long a unit takes, that gates
of the next unit may come while one ends, results that wait, its memories, and the count of
saturated cell states."""

import re

import numpy as np
import pytest
from amaranth.hdl import Value

from openese.hdl.elementwise_serial import SerialElementWise, serial_cycles, token_latency
from openese.model.elementwise import PEEP_SHIFT_MAX, SHIFT_MAX
from openese.model.program import Cell

from .helpers import SMALL, plain, recurrent, simulate, unsigned
from .test_elementwise import Memories, Operation, drawn, operation, spread

NEVER = 1 << 30

CONFIG = recurrent(state_depth=64, peephole_depth=48, serial_cells=True)


def check(config, operations, *, seed: int = 0, gaps: float = 0.0, stalls: float = 0.0,
          at_power_up: bool = False) -> Memories:
    """Loads, runs `operations` one as soon as the other is out, shows all cell states; compares
    with the model.

    A unit's gates come as early as allowed or after the unit before, and without `gaps` and `stalls` every result when it
    must. Ports hold anything while not valid.
    """
    memories = Memories.drawn(config, seed)
    bits = config.act_bits
    dut = SerialElementWise(config, memories.words(bits) if at_power_up else ())
    loads = [load for load in memories.loads(config) if not (at_power_up and load[0] == 2)]
    rng = np.random.default_rng(seed)
    saturated, dumped = [], []

    def junk(ctx, *names):
        for name in names:
            port = Value.cast(getattr(dut, name))
            ctx.set(port.as_unsigned(), int(rng.integers(1 << 40)) & ((1 << len(port)) - 1))

    async def testbench(ctx):
        cycle, tokens = 0, []

        async def tick():
            nonlocal cycle
            saturated.extend([1] if ctx.get(dut.saturated) else [])
            tokens.extend([cycle] if ctx.get(dut.token) else [])
            await ctx.tick()
            cycle += 1

        ctx.set(dut.load_valid, 1)
        for target, address, _, word in loads:
            junk(ctx, "load_data", "i_state", "i_peep")
            ctx.set(dut.load_target, target)
            ctx.set(dut.load_addr, address)
            ctx.set(dut.load_data, word)
            await tick()
        ctx.set(dut.load_valid, 0)

        for number, operation in enumerate(operations):
            for name in ("cell", "cell_shift", "peep_shift"):
                ctx.set(getattr(dut, name), int(getattr(operation, name)))
            ctx.set(dut.peephole, int(operation.peephole))
            four = operation.cell in (Cell.LSTM, Cell.GRU)
            ctx.set(dut.four, int(four))
            junk(ctx, "i_peep", "i_gate")
            ctx.set(dut.clear, 1)
            await tick()
            ctx.set(dut.clear, 0)
            expected = memories.step(config, operation)[:, 0].tolist()
            gates = operation.gates[:, :4 if four else 1, 0].tolist()
            length = serial_cycles(config, operation.cell, operation.peephole,
                                   operation.cell_shift, operation.peep_shift)
            # Cycles in which units had all gates, and in which results were taken.
            coming, complete, taken, waits = [], [], [], False
            given, allowed, late = 0, cycle, True
            while len(taken) < len(expected):
                if given < len(gates) and cycle >= allowed:
                    # In time, or when the unit before is done.
                    late = not late and len(taken) < given and rng.random() < gaps
                    if not late:
                        coming, given = list(gates[given]), given + 1
                    allowed = NEVER
                if late and ctx.get(dut.o.valid) and len(taken) == given - 1:
                    allowed = cycle + 1
                junk(ctx, "i_gate", "load_addr", "load_data")
                if not operation.peephole:
                    junk(ctx, "i_peep")
                ctx.set(dut.i_valid, int(bool(coming)))
                if coming:
                    ctx.set(dut.i_gate, coming.pop(0))
                    complete.extend([] if coming else [cycle])
                ctx.set(dut.i_state, operation.state + len(taken))
                if operation.peephole:
                    ctx.set(dut.i_peep, operation.peep + len(taken))
                ready = rng.random() >= stalls
                ctx.set(dut.o.ready, int(ready))
                if ctx.get(dut.o.valid):
                    if not waits:
                        begin = max(complete[len(taken)] + 1, taken[-1] if taken else 0)
                        assert cycle == begin + 1 + length, (number, len(taken))
                    assert ctx.get(dut.o.payload) == expected[len(taken)], (number, len(taken))
                    waits = not ready
                    taken.extend([cycle] if ready else [])
                await tick()
                if tokens:
                    allowed = tokens.pop() + token_latency(config)

        ctx.set(dut.dump, 1)
        ctx.set(dut.o.ready, 0)
        for address in range(config.state_depth):
            ctx.set(dut.i_state, address)
            while not ctx.get(dut.o.valid):
                await tick()
            for _ in range(int(rng.integers(2)) * 9):
                await tick()
            dumped.append([plain(ctx.get(dut.o.payload))])
            ctx.set(dut.o.ready, 1)
            await tick()
            ctx.set(dut.o.ready, 0)

    simulate(dut, testbench, limit=100_000)
    assert dumped == memories.cells.tolist()
    assert saturated == memories.saturated
    return memories


@pytest.mark.parametrize(("gaps", "stalls"), [(0.0, 0.0), (0.6, 0.0), (0.0, 0.9), (0.3, 0.5)])
def test_cells(gaps, stalls):
    """Each on words of its own, then twice on the same."""
    config = CONFIG.with_(state_depth=256)
    rng = np.random.default_rng(0)
    memories = check(config, [
        operation(config, cell, rng, 24, state=64 * k + state, cell_shift=cell_shift)
        for k, cell in enumerate(Cell)
        for state, cell_shift in ((0, 0), (24, 3), (24, 3), (24, 3))], gaps=gaps, stalls=stalls)
    # Those of the LSTM; clips of other cells on their way to a result are no saturated states.
    assert memories.saturated


@pytest.mark.parametrize("peephole", [False, True])
def test_lstm_of_every_cell_shift(peephole):
    config = CONFIG.with_(state_depth=192, peephole_depth=192)
    check(config, spread(config, 16, cell_shift=list(range(SHIFT_MAX + 1)), peephole=peephole,
                         peep_shift=2))


@pytest.mark.parametrize("act_bits", [13, 14, 16, 17])
def test_peepholes_of_every_shift(act_bits):
    config = CONFIG.with_(act_bits=act_bits, state_depth=192, peephole_depth=192)
    check(config, spread(config, 12, peep_shift=list(range(PEEP_SHIFT_MAX + 1)), cell_shift=2,
                         peephole=True), seed=act_bits, at_power_up=act_bits == 16)
