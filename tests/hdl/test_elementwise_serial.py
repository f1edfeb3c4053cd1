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

from .helpers import SMALL, plain, recurrent, simulate
from .test_elementwise import Memories, Operation, operation, spread

#: A cycle that does not come.
NEVER = 1 << 30

CONFIG = recurrent(state_depth=64, peephole_depth=48, serial_cells=True)


def check(config, operations, *, seed: int = 0, gaps: float = 0.0, stalls: float = 0.0,
          at_power_up: bool = False) -> Memories:
    """Loads, runs `operations` one as soon as the other is out, shows all cell states; compares
    with the model.

    A unit's gates come as early as allowed or after the unit before, and without `gaps` and
    `stalls` every result when it must. Ports hold anything while not valid.
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

        for number, layer in enumerate(operations):
            for name in ("cell", "cell_shift", "peep_shift"):
                ctx.set(getattr(dut, name), int(getattr(layer, name)))
            ctx.set(dut.peephole, int(layer.peephole))
            four = layer.cell in (Cell.LSTM, Cell.GRU)
            ctx.set(dut.four, int(four))
            junk(ctx, "i_peep", "i_gate")
            ctx.set(dut.clear, 1)
            await tick()
            ctx.set(dut.clear, 0)
            expected = memories.step(config, layer)[:, 0].tolist()
            gates = layer.gates[:, :4 if four else 1, 0].tolist()
            length = serial_cycles(config, layer.cell, layer.peephole,
                                   layer.cell_shift, layer.peep_shift)
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
                if not layer.peephole:
                    junk(ctx, "i_peep")
                ctx.set(dut.i_valid, int(bool(coming)))
                if coming:
                    ctx.set(dut.i_gate, coming.pop(0))
                    complete.extend([] if coming else [cycle])
                ctx.set(dut.i_state, layer.state + len(taken))
                if layer.peephole:
                    ctx.set(dut.i_peep, layer.peep + len(taken))
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
        operation(config, cell, rng, 10, state=64 * k + state, cell_shift=cell_shift)
        for k, cell in enumerate(Cell)
        for state, cell_shift in ((0, 0), (24, 3), (24, 3), (24, 3))], gaps=gaps, stalls=stalls)
    # Those of the LSTM; clips of other cells on their way to a result are no saturated states.
    assert memories.saturated


@pytest.mark.parametrize("peephole", [False, True])
def test_lstm_of_every_cell_shift(peephole):
    config = CONFIG.with_(state_depth=192, peephole_depth=192)
    check(config, spread(config, 8, cell_shift=list(range(SHIFT_MAX + 1)), peephole=peephole,
                         peep_shift=2))


@pytest.mark.parametrize("act_bits", [13, 16, 17])
def test_peepholes_of_every_shift(act_bits):
    config = CONFIG.with_(act_bits=act_bits, state_depth=192, peephole_depth=192)
    check(config, spread(config, 5, peep_shift=list(range(PEEP_SHIFT_MAX + 1)), cell_shift=2,
                         peephole=True), seed=act_bits, at_power_up=act_bits == 16)


def test_products_of_the_rails():
    """-1 times -1 wherever it can be met: the hidden state of a GRU, peepholes."""
    rails = np.array(np.meshgrid(*[[-32768, 32767]] * 4)).reshape(4, 16).T[:, :, None]
    config = CONFIG.with_(state_depth=16, peephole_depth=16)
    for cell, peephole in ((Cell.GRU, False), (Cell.LSTM, False), (Cell.LSTM, True)):
        check(config, [Operation(cell, rails, peephole=peephole, peep_shift=shift)
                       for shift in (0, 7)], seed=int(peephole))


def test_layers_take_turns():
    """Cells of all kinds one behind the other; peephole words and state words begin elsewhere."""
    rng = np.random.default_rng(1)
    layers = [(Cell.LSTM, {"state": 0, "peephole": True, "peep": 20, "peep_shift": 3}),
              (Cell.GRU, {"state": 12}), (Cell.TANH, {"state": 24}),
              (Cell.LSTM, {"state": 36, "cell_shift": 4}), (Cell.PASS, {"state": 48})]
    check(CONFIG, [operation(CONFIG, cell, rng, 5, **options)
                   for _ in range(3) for cell, options in layers], stalls=0.2)


def test_engine_without_peepholes():
    config = CONFIG.with_(peephole_depth=0)
    rng = np.random.default_rng(0)
    check(config, [operation(config, cell, rng, 12, cell_shift=3)
                   for cell in (Cell.LSTM, Cell.GRU)])


@pytest.mark.parametrize(("cell", "peephole", "cycles"), [
    (None, False, 7), (Cell.PASS, False, 7), (Cell.TANH, False, 14), (Cell.GRU, False, 39),
    (Cell.LSTM, False, 53), (Cell.LSTM, True, 80 + 3 + 3 * 2)])
def test_cycles_of_a_unit(cell, peephole, cycles):
    """What the docstring of the unit says, with a cell shift of 3 and a peephole shift of 5."""
    assert serial_cycles(CONFIG, cell, peephole, 3 if cell == Cell.LSTM else 0, 5) == cycles


def test_constructor_errors():
    for words, message in [
        ([0] * 49, "peephole has 49 words but the memory of this configuration holds 48"),
        ([1 << 48], "peephole word 0 must be an integer from 0 to 281474976710655 (48 bits), "
                    f"not {1 << 48}"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            SerialElementWise(CONFIG, words)
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 4$"):
        SerialElementWise(4)
    for config in (SMALL.with_(serial_cells=True), CONFIG.with_(serial_cells=False)):
        with pytest.raises(ValueError, match=r"^config must have a serial element-wise unit: "
                                             r"serial_cells, and state_depth of 1 or more$"):
            SerialElementWise(config)
