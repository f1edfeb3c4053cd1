# amaranth: UnusedElaboratable=no
"""Proves every cell of the element-wise unit bit for bit, its latency and rate, its memories,
channels without a step, and the count of saturated cell states."""

import re
from dataclasses import dataclass, field

import numpy as np
import pytest
from amaranth.hdl import Value

from openese.hdl.elementwise import ElementWise
from openese.model import elementwise
from openese.model.elementwise import PEEP_SHIFT_MAX, SHIFT_MAX
from openese.model.program import Cell

from .helpers import SMALL, plain, recurrent, simulate, unsigned

CONFIG = recurrent(state_depth=64, peephole_depth=48)

#: Targets of the load port.
CELLS, RESULTS, PEEPHOLES = range(3)


def drawn(rng: np.random.Generator, bits: int, *shape: int) -> np.ndarray:
    """Signed numbers: both rails and what is around 0, small ones, and any."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    corners = rng.choice([low, low + 1, -1, 0, 1, high - 1, high], shape)
    small = rng.normal(0, 1 << (bits - 5), shape).astype(np.int64).clip(low, high)
    anything = rng.integers(low, high, shape, endpoint=True)
    return np.choose(rng.integers(3, size=shape), [corners, small, anything])


@dataclass
class Operation:
    """Units of one layer in a row, ``gates`` of shape (units, 4, channels)."""

    cell: Cell
    gates: np.ndarray
    state: int = 0
    peep: int = 0
    peephole: bool = False
    cell_shift: int = 0
    peep_shift: int = 0
    active: int = -1
    hold: bool = True


@dataclass
class Memories:
    """Cell states and former results, (words, channels); peephole weights of i, f, o, (words, 3).
    """

    cells: np.ndarray
    results: np.ndarray
    weights: np.ndarray
    saturated: list[int] = field(default_factory=list)

    @classmethod
    def drawn(cls, config, seed: int) -> "Memories":
        rng = np.random.default_rng(seed)
        shape = (config.state_depth, config.channels)
        return cls(drawn(rng, config.act_bits, *shape), drawn(rng, config.act_bits, *shape),
                   drawn(rng, config.act_bits, max(1, config.peephole_depth), 3))

    def words(self, bits: int) -> list[int]:
        """Words of the peephole memory."""
        return [sum(unsigned(int(weight), bits) << bits * k for k, weight in enumerate(three))
                for three in self.weights]

    def loads(self, config) -> list[tuple[int, int, int, int]]:
        """Target, address, channel and data of loads of everything, in no order."""
        bits = config.act_bits
        loads = [(CELLS, at, c, unsigned(int(v), bits))
                 for (at, c), v in np.ndenumerate(self.cells)]
        if config.channels > 1:
            loads += [(RESULTS, at, c, unsigned(int(v), bits))
                      for (at, c), v in np.ndenumerate(self.results)]
        if config.peephole_depth:
            loads += [(PEEPHOLES, at, 0, word) for at, word in enumerate(self.words(bits))]
        order = np.random.default_rng(len(loads)).permutation(len(loads))
        return [loads[k] for k in order]

    def step(self, config, operation: Operation) -> np.ndarray:
        """What `operation` gives, (units, channels), by the model; changes the memories."""
        units, bits = len(operation.gates), config.act_bits
        at = slice(operation.state, operation.state + units)
        gates, cells = operation.gates.transpose(1, 0, 2), self.cells[at]
        clipped = np.zeros(cells.shape, bool)
        new = cells
        match operation.cell:
            case Cell.PASS:
                results = gates[0].copy()
            case Cell.TANH:
                results = elementwise.tanh(gates[0], bits)
            case Cell.GRU:
                results = new = elementwise.gru_cell(gates, cells, act_bits=bits)
            case Cell.LSTM:
                weights = self.weights[operation.peep:operation.peep + units].T[:, :, None]
                results, new, clipped = elementwise.lstm_cell(
                    gates, cells, act_bits=bits, cell_shift=operation.cell_shift,
                    peephole=weights if operation.peephole else None,
                    peep_shift=operation.peep_shift)
        if not operation.hold:
            return results
        stepping = np.array([operation.active >> c & 1 for c in range(config.channels)], bool)
        self.cells[at] = np.where(stepping, new, cells)
        self.results[at] = np.where(stepping, results, self.results[at])
        self.saturated += [int(count) for count in (clipped & stepping).sum(1) if count]
        return self.results[at].copy()


def check(config, operations, *, seed: int = 0, gaps: float = 0.0, at_power_up: bool = False
          ) -> Memories:
    """Loads, runs `operations` one as soon as the other is out, dumps; compares all with the model.

    `at_power_up` has the peephole memory start with its words. Every result must come exactly
    ``LATENCY`` cycles after its input and none besides. Inputs hold anything while not valid.
    """
    memories = Memories.drawn(config, seed)
    bits = config.act_bits
    dut = ElementWise(config, memories.words(bits) if at_power_up else ())
    loads = memories.loads(config)
    if at_power_up:
        loads = [load for load in loads if load[0] != PEEPHOLES]
    rng = np.random.default_rng(seed)
    saturated, dumped = [], []
    ports = {name: Value.cast(getattr(dut, name))
             for name in ("i_gates", "i_state", "i_peep", "load_addr", "load_channel", "load_data")}

    def junk(ctx, *names):
        for name in names:
            port = ports[name]
            ctx.set(port, int.from_bytes(rng.bytes(-(-len(port) // 8)), "little")
                    & ((1 << len(port)) - 1))

    async def tick(ctx):
        count = ctx.get(dut.saturated)
        saturated.extend([count] if count else [])
        await ctx.tick()

    async def testbench(ctx):
        ctx.set(dut.load_valid, 1)
        for target, address, channel, word in loads:
            ctx.set(dut.load_target, target)
            junk(ctx, "load_data")
            high = ctx.get(ports["load_data"]) >> bits << bits if target != PEEPHOLES else 0
            ctx.set(dut.load_addr, address)
            ctx.set(dut.load_channel, channel)
            ctx.set(dut.load_data, high | word)
            await tick(ctx)
        ctx.set(dut.load_valid, 0)

        for number, operation in enumerate(operations):
            for name in ("cell", "cell_shift", "peep_shift"):
                ctx.set(getattr(dut, name), int(getattr(operation, name)))
            ctx.set(dut.peephole, int(operation.peephole))
            ctx.set(dut.hold, int(operation.hold))
            ctx.set(dut.active, operation.active & ((1 << config.channels) - 1))
            expected = memories.step(config, operation).tolist()
            gates = operation.gates.transpose(0, 2, 1).reshape(len(operation.gates), -1).tolist()
            inputs, cycle, given, taken = [], 0, 0, 0
            while taken < len(expected):
                junk(ctx, "i_gates", "i_state", "i_peep", "load_addr", "load_data")
                valid = given < len(gates) and rng.random() >= gaps
                ctx.set(dut.i_valid, int(valid))
                if valid:
                    ctx.set(ports["i_gates"], sum(
                        unsigned(value, bits) << bits * k for k, value in enumerate(gates[given])))
                    ctx.set(dut.i_state, operation.state + given)
                    if operation.peephole:
                        ctx.set(dut.i_peep, operation.peep + given)
                    inputs.append(cycle)
                    given += 1
                due = taken < len(inputs) and cycle == inputs[taken] + dut.LATENCY
                assert ctx.get(dut.o_valid) == due, (number, cycle)
                if due:
                    assert plain(ctx.get(dut.o_values)) == expected[taken], (number, taken)
                    taken += 1
                await tick(ctx)
                cycle += 1
            ctx.set(dut.i_valid, 0)

        for address in range(config.state_depth):
            ctx.set(dut.dump_en, 1)
            ctx.set(dut.dump_addr, address)
            await tick(ctx)
            ctx.set(dut.dump_en, 0)
            junk(ctx, "i_state")
            for _ in range(dut.DUMP_LATENCY - 1):
                await tick(ctx)
            dumped.append(plain(ctx.get(dut.dump_values)))
            # They stay until others are asked for.
            await tick(ctx)
            assert plain(ctx.get(dut.dump_values)) == dumped[-1]

    simulate(dut, testbench)
    assert dumped == memories.cells.tolist()
    assert saturated == memories.saturated
    return memories


def operation(config, cell: Cell, rng: np.random.Generator, units: int, **options) -> Operation:
    return Operation(cell, drawn(rng, config.act_bits, units, 4, config.channels), **options)


@pytest.mark.parametrize("gaps", [0.0, 0.6])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_cells(channels, gaps):
    """Each on words of its own, then twice on the same."""
    config = CONFIG.with_(channels=channels, state_depth=256)
    rng = np.random.default_rng(channels)
    units = 40 if channels < 5 else 16
    memories = check(config, [
        operation(config, cell, rng, units, state=64 * k + state, cell_shift=cell_shift)
        for k, cell in enumerate(Cell)
        for state, cell_shift in ((0, 0), (24, 3), (24, 3), (24, 3))], seed=channels, gaps=gaps)
    # Those of the LSTM; clips of other cells on their way to a result are no saturated states.
    assert memories.saturated


def spread(config, units: int, **options: list) -> list[Operation]:
    """LSTM layers of words of their own, one for each value of the only list in `options`.

    All of them step three times. One simulation of many is quicker than one of each.
    """
    (name, values), = ((k, v) for k, v in options.items() if isinstance(v, list))
    rng = np.random.default_rng(config.act_bits)
    return [operation(config, Cell.LSTM, rng, units, state=units * k, peep=units * k,
                      **{**options, name: value})
            for _ in range(3) for k, value in enumerate(values)]


@pytest.mark.parametrize("peephole", [False, True])
def test_lstm_of_every_cell_shift(peephole):
    config = CONFIG.with_(state_depth=192, peephole_depth=192)
    check(config, spread(config, 24, cell_shift=list(range(SHIFT_MAX + 1)), peephole=peephole,
                         peep_shift=2))


@pytest.mark.parametrize("act_bits", [10, 16, 17])
def test_peepholes_of_every_shift(act_bits):
    config = CONFIG.with_(act_bits=act_bits, state_depth=192, peephole_depth=192)
    check(config, spread(config, 24, peep_shift=list(range(PEEP_SHIFT_MAX + 1)), cell_shift=2,
                         peephole=True), seed=act_bits, at_power_up=act_bits == 16)


@pytest.mark.parametrize("act_bits", [8, 9])
def test_peepholes_of_narrow_activations(act_bits):
    """Down to where the product is added unshifted."""
    config = CONFIG.with_(act_bits=act_bits)
    rng = np.random.default_rng(act_bits)
    check(config, [operation(config, Cell.LSTM, rng, 40, cell_shift=1, peephole=True,
                             peep_shift=peep_shift)
                   for peep_shift in range(min(PEEP_SHIFT_MAX, act_bits - 2) + 1)])


def test_layers_take_turns():
    """Cells of all kinds one behind the other; peephole words and state words begin elsewhere."""
    config = CONFIG.with_(channels=2)
    rng = np.random.default_rng(1)
    layers = [(Cell.LSTM, {"state": 0, "peephole": True, "peep": 20, "peep_shift": 3}),
              (Cell.GRU, {"state": 12}), (Cell.TANH, {"state": 24}),
              (Cell.LSTM, {"state": 36, "cell_shift": 4}), (Cell.PASS, {"state": 48})]
    check(config, [operation(config, cell, rng, 12, active=active, **options)
                   for active in (0b11, 0b01, 0b10, 0b00, 0b11) for cell, options in layers])


def test_channels_without_a_step():
    """They keep their cell states and give what they last gave, at first what was loaded."""
    config = CONFIG.with_(channels=5)
    rng = np.random.default_rng(0)
    check(config, [operation(config, cell, rng, 8, state=16 * k + 4, active=active)
                   for k, cell in enumerate(Cell)
                   for active in (0b00000, 0b10110, 0b01001, 0b11111, 0b10000)], gaps=0.2)


def test_products_of_the_rails():
    """-1 times -1 in every multiplier that can meet it: the hidden state of a GRU, peepholes."""
    low, high = -32768, 32767
    rails = np.array(np.meshgrid(*[[low, high]] * 4)).reshape(4, 16).T[:, :, None]
    config = CONFIG.with_(state_depth=16, peephole_depth=16)
    for cell, peephole in ((Cell.GRU, False), (Cell.LSTM, False), (Cell.LSTM, True)):
        for seed in range(3):
            check(config, [Operation(cell, rails, peephole=peephole, peep_shift=shift)
                           for shift in (0, 7)], seed=seed)


@pytest.mark.parametrize("channels", [1, 3])
def test_without_hold_every_channel_gives_its_result(channels):
    config = recurrent(channels=channels)
    rng = np.random.default_rng(2)
    check(config, [operation(config, cell, rng, 8, state=4, active=active, hold=hold)
                   for active in (0b111, 0b011, 0b001)
                   for cell, hold in ((Cell.TANH, True), (Cell.PASS, False), (Cell.TANH, True))])


@pytest.mark.parametrize("target", [CELLS, RESULTS])
def test_a_load_writes_one_channel(target):
    """Loads in no order, read back through results of idle channels and dumps."""
    config = CONFIG.with_(channels=3, state_depth=20, peephole_depth=7)
    rng = np.random.default_rng(target)
    cell = Cell.GRU if target == CELLS else Cell.PASS
    check(config, [operation(config, cell, rng, 20, active=0)], seed=target)


def test_engine_without_peepholes():
    config = CONFIG.with_(peephole_depth=0)
    rng = np.random.default_rng(0)
    for cell in (Cell.LSTM, Cell.GRU):
        check(config, [operation(config, cell, rng, 40, cell_shift=shift) for shift in (0, 3)])


def test_constructor_errors():
    for words, message in [
        ([0] * 49, "peephole has 49 words but the memory of this configuration holds 48"),
        ([1 << 48], "peephole word 0 must be an integer from 0 to 281474976710655 (48 bits), "
                    f"not {1 << 48}"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            ElementWise(CONFIG, words)
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 4$"):
        ElementWise(4)
    with pytest.raises(ValueError, match=r"^config must have an element-wise unit: state_depth "
                                         r"of 1 or more$"):
        ElementWise(SMALL)
