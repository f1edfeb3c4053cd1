"""Element-wise unit of small devices: the cells of recurrent layers in steps of one multiplier."""

from collections.abc import Callable
from functools import cache

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import GATE_LANES, WRITE_BACK_LATENCY, EngineConfig
from openese.model.elementwise import (
    PEEP_SHIFT_MAX,
    activation_table,
    table_split,
    unit_frac,
)
from openese.model.program import Cell

from .activation import delayed
from .checks import checked_config, checked_contents
from .multiply import Multiplier

__all__ = ["SerialElementWise", "serial_cycles", "token_latency"]

# Operands: gates or what became of them, and the cell state.
_FIRST, _SECOND, _THIRD, _FOURTH, _STATE = range(5)
# Second factors. The first one is the operand read two steps before, a factor that is an operand
# was read in the step before. WITH_SIGN: the operand minus 1, if it is not negative. A peephole
# weight is chosen by the number of its gate in the field `read`.
_NOTHING, _GATE, _HALF, _SQUASH, _OPERAND, _WITH_SIGN, _PEEPHOLE = range(7)
# Where results go; a unit ends with `_RESULT`. Of gates' places, this and their number.
_RESULT, _NEW_STATE, _GATE_PLACE = 1, 2, 4


def _low(act_bits: int) -> int:
    """Binary point of sums in the accumulator that are no sums of products of two operands."""
    return unit_frac(act_bits) - 1 - PEEP_SHIFT_MAX


#: From a product's first operand being read to the accumulator taking it.
_PRODUCT = 2 + Multiplier.LATENCY
#: From a place in the table being known to the interpolated value standing in the accumulator.
_LOOKUP = 4 + Multiplier.LATENCY

#: A step. ``load``: the accumulator takes the product for its own value, ``shift``: it is halved
#: as often as the cell's shift asks for; ``place``: what it holds looks up sigmoid or tanh;
#: ``token``: the next unit may be asked for.
_WORD = data.StructLayout({
    "read": 3, "factor": 3, "load": 1, "shift": 1, "place": 1, "sigmoid": 1, "write": 3, "token": 1,
})


class _Steps:
    """The steps of a unit, written down in any order."""

    def __init__(self):
        self.words: dict[int, dict[str, int]] = {}

    def put(self, step: int, **fields: int) -> None:
        word = self.words.setdefault(step, {})
        assert not word.keys() & fields.keys(), f"step {step} cannot do that as well"
        word.update(fields)

    def product(self, step: int, a: int, b: int, *, load: bool = True) -> int:
        """Two operands' product; the step in which it stands in the accumulator."""
        self.put(step, read=a)
        self.put(step + 1, read=b)
        self.put(step + 2, factor=_OPERAND)
        return self._take(step, load)

    def scaled(self, step: int, a: int, factor: int, *, load: bool = True) -> int:
        """An operand times a constant; the step in which it stands in the accumulator."""
        self.put(step, read=a)
        self.put(step + 2, factor=factor)
        return self._take(step, load)

    def function(self, step: int, sigmoid: bool, write: int) -> int:
        """Of what stands in the accumulator in this step; the step that writes it."""
        self.put(step, place=1, sigmoid=int(sigmoid))
        self.put(step + _LOOKUP, write=write, sigmoid=int(sigmoid))
        return step + _LOOKUP

    def gate(self, step: int, gate: int, sigmoid: bool) -> int:
        """Function of a gate to its own place; others may begin every four steps."""
        return self.function(self.scaled(step, gate, _GATE), sigmoid, _GATE_PLACE + gate)

    def gate_with_peephole(self, step: int, gate: int) -> int:
        """Sigmoid of a gate and what its peephole sees; the step of the lookup."""
        self.put(step, read=_STATE)
        self.put(step + 2, read=gate, factor=_PEEPHOLE)
        shift = self._take(step, True)
        self.put(shift, shift=1)
        place = self.scaled(shift, gate, _GATE, load=False)
        self.function(place, True, _GATE_PLACE + gate)
        return place

    def new_cell(self, step: int) -> int:
        """The new cell state from i in the first place, f and g; the step that writes it."""
        shift = self.product(step, _FIRST, _THIRD)
        self.put(shift, shift=1)
        done = self.product(shift, _SECOND, _STATE, load=False)
        self.put(done, write=_NEW_STATE)
        return done

    def _take(self, step: int, load: bool) -> int:
        if load:
            self.put(step + _PRODUCT, load=1)
        return step + _PRODUCT + 1

    def finished(self, latency: int) -> list[dict[str, int]]:
        """The words in order, with a token so that gates come behind the last read."""
        reads = {step: word["read"] for step, word in self.words.items() if "read" in word}
        # A shift takes any number of cycles, in which gates must not come nearer.
        shifts = [step for step, word in self.words.items() if word.get("shift")]
        if set(reads.values()) != {_STATE}:
            # And not in the first step, which the memory of steps also gives between two units.
            self.put(max(max(reads) + 1 - latency, max(shifts, default=0) + 1), token=1)
        return [self.words.get(step, {}) for step in range(max(self.words) + 1)]


def _copy(steps: _Steps, operand: int) -> None:
    steps.put(steps.scaled(0, operand, _GATE), write=_RESULT)


def _tanh(steps: _Steps) -> None:
    steps.function(steps.scaled(0, _FIRST, _GATE), False, _RESULT)


def _gru(steps: _Steps) -> None:
    r = steps.gate(0, _FIRST, True)
    z = steps.gate(4, _SECOND, True)
    # a2 + r a3, with a2 as two halves.
    steps.product(r + 1, _FIRST, _FOURTH)
    steps.scaled(r + 3, _THIRD, _HALF, load=False)
    n = steps.function(steps.scaled(r + 4, _THIRD, _HALF, load=False), False, _GATE_PLACE + _THIRD)
    assert z < n
    # z h + (-n) (z - 1), by three reads; it is -n that was written.
    steps.put(n + 1, read=_THIRD)
    steps.put(n + 2, read=_SECOND)
    steps.put(n + 3, read=_STATE, factor=_WITH_SIGN)
    steps.put(n + 4, factor=_OPERAND)
    steps.put(n + 1 + _PRODUCT, load=1)
    steps.put(n + 3 + _PRODUCT, write=_RESULT | _NEW_STATE)


def _lstm(steps: _Steps) -> None:
    steps.gate(0, _FIRST, True)
    g = steps.gate(4, _THIRD, False)
    steps.gate(8, _SECOND, True)
    c = steps.new_cell(g)
    steps.gate(c - 3, _FOURTH, True)
    _lstm_result(steps, steps.scaled(c + 1, _STATE, _SQUASH))


def _lstm_with_peepholes(steps: _Steps) -> None:
    i = steps.gate_with_peephole(0, _FIRST)
    f = steps.gate_with_peephole(i + _LOOKUP - _PRODUCT, _SECOND)
    g = steps.gate(f + 4 - _PRODUCT - 1, _THIRD, False)
    c = steps.new_cell(g)
    o = steps.gate_with_peephole(c + 1, _FOURTH)
    _lstm_result(steps, steps.scaled(o + 4 - _PRODUCT - 1, _STATE, _SQUASH))


def _lstm_result(steps: _Steps, place: int) -> None:
    t = steps.function(place, False, _GATE_PLACE + _THIRD)
    steps.put(steps.product(t, _FOURTH, _THIRD), write=_RESULT)


#: What is computed, by the cell and whether it has peepholes; ``None`` shows cell states.
_PROGRAMS: dict[tuple[Cell | None, bool], Callable[[_Steps], None]] = {
    (None, False): lambda steps: _copy(steps, _STATE),
    (Cell.PASS, False): lambda steps: _copy(steps, _FIRST),
    (Cell.TANH, False): _tanh,
    (Cell.GRU, False): _gru,
    (Cell.LSTM, False): _lstm,
    (Cell.LSTM, True): _lstm_with_peepholes,
}


@cache
def _steps_of(config: EngineConfig, cell: Cell | None, peephole: bool) -> list[dict[str, int]]:
    steps = _Steps()
    _PROGRAMS[cell, peephole](steps)
    return steps.finished(token_latency(config))


def serial_cycles(config: EngineConfig, cell: Cell | None, peephole: bool = False,
                  cell_shift: int = 0, peep_shift: int = 0, *, until_token: bool = False) -> int:
    """Cycles of a unit of a cell, of ``None`` those to show a cell state; or to its ``token``."""
    steps = _steps_of(config, cell, peephole)
    end = [bool(word.get("token")) for word in steps].index(True) if until_token else len(steps)
    # Each peephole is shifted, and in an LSTM the product of i and g.
    shifts = sum(word.get("shift", 0) for word in steps[:end])
    peepholes = sum(word.get("factor") == _PEEPHOLE for word in steps[:end])
    return end + peepholes * (PEEP_SHIFT_MAX - peep_shift) + (shifts - peepholes) * cell_shift


def token_latency(config: EngineConfig) -> int:
    """From the step with ``token`` to the first gate that comes of it."""
    return 1 + WRITE_BACK_LATENCY + config.fan_levels


class SerialElementWise(wiring.Component):
    """The arithmetic of LSTM, GRU and tanh cells of one channel, one unit after the other.

    Bit for bit what `openese.model.elementwise` says. A unit takes the steps of a small program:
    they read one operand at a time, multiply, accumulate, look up the table of tanh and write
    results back to the memory that also holds the cell states. Gates of the next unit may arrive
    while a unit ends.

    Everything is a sum of products whose result stands in the same bits of the accumulator: an
    interpolation is ``t[k] (1 - x) + t[k + 1] x``, a GRU's result ``n (1 - z) + h z``.

    Latency: `serial_cycles`, of an LSTM ``50 + cell_shift``, with peepholes
    ``80 + cell_shift + 3 (7 - peep_shift)``, of a GRU 39, of a tanh 14 and of others 7; and two
    cycles before the first one. Throughput: a unit per latency but one cycle.

    Resources: 1 multiplier, a table of 512 words of ``act_bits``, steps of 14 bits.

    Parameters
    ----------
    config
        Engine configuration with ``serial_cells``.
    peepholes
        Words the peephole memory starts with.

    Members
    -------
    cell : ``In(2)``, peephole : ``In(1)``, cell_shift, peep_shift : ``In(3)``
        What to compute, see `openese.model.program`; steady while anything is inside.
    dump : ``In(1)``
        Give cell states instead, as long as it is high.
    clear : ``In(1)``, four : ``In(1)``
        No gate has arrived; a unit has four gates, else one.
    i_valid : ``In(1)``, i_gate : ``In(signed(act_bits))``
        Gates in order. Those of a unit come after ``token`` of the one before, by ``config`` not
        earlier than gates can come from a PE that is sent a token a cycle later.
    token : ``Out(1)``
        The next unit's gates may be asked for.
    i_state : ``In(state_addr_bits)``, i_peep : ``In(peephole_addr_bits)``
        The unit's places in the memories, until its result is taken.
    o : ``Out(stream.Signature(signed(act_bits)))``
        Results.
    saturated : ``Out(1)``
        A cell state was clipped.
    load_valid : ``In(1)``, load_target : ``In(2)``
        Write a memory: 0 cell states, 2 peepholes. Only while nothing is inside.
    load_addr, load_data : ``In``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        An engine without serial element-wise unit; more words than the memory holds, or a word
        that is not an unsigned integer of its width.
    """

    def __init__(self, config: EngineConfig, peepholes=()):
        self._config = checked_config(config)
        if not (config.recurrent and config.serial_cells):
            raise ValueError("config must have a serial element-wise unit: serial_cells, and "
                             "state_depth of 1 or more")
        bits = config.act_bits
        # Gates stand behind the cell states, from a multiple of their number on.
        self._gates_at = -(-config.state_depth // GATE_LANES)
        self.values = memory.MemoryData(
            shape=signed(bits), depth=(self._gates_at + 1) * GATE_LANES, init=[])
        self.peepholes = memory.MemoryData(
            shape=3 * bits, depth=max(1, config.peephole_depth),
            init=checked_contents("peephole", peepholes, config.peephole_depth, 3 * bits))
        # The table is that of -tanh, see `_factor`.
        self.table = memory.MemoryData(
            shape=signed(bits), depth=1 << table_split(bits)[0],
            init=[-value for value in activation_table(bits)[0].tolist()])
        words, self._starts = [], {}
        for program in _PROGRAMS:
            if program[1] and not config.peephole_depth:
                continue
            self._starts[program] = len(words)
            words += _steps_of(config, *program)
        self.steps = memory.MemoryData(shape=_WORD, depth=len(words) + 1, init=words)
        super().__init__({
            "cell": In(2), "peephole": In(1), "cell_shift": In(3), "peep_shift": In(3),
            "dump": In(1), "clear": In(1), "four": In(1),
            "i_valid": In(1), "i_gate": In(signed(bits)), "token": Out(1),
            "i_state": In(config.state_addr_bits), "i_peep": In(config.peephole_addr_bits),
            "o": Out(stream.Signature(signed(bits))), "saturated": Out(1),
            "load_valid": In(1), "load_target": In(2),
            "load_addr": In(max(config.state_addr_bits, config.peephole_addr_bits)),
            "load_data": In(3 * bits),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        bits, one = config.act_bits, unit_frac(config.act_bits)
        _, rest = table_split(bits)
        m.submodules.steps = steps = memory.Memory(self.steps)
        step = steps.read_port()
        word = step.data

        # A shift repeats its step. Between units the memory gives the first step of one, which
        # only reads.
        count = Signal(3, reset_less=True)
        shifting = word.shift & (count != 0)
        with m.If(shifting):
            m.d.sync += count.eq(count - 1)
        with m.Elif(word.factor == _PEEPHOLE):
            m.d.sync += count.eq(~self.peep_shift)
        with m.Elif(word.place):
            m.d.sync += count.eq(self.cell_shift)

        # Memory of cell states and gates: one read and one write per cycle.
        m.submodules.values = values = memory.Memory(self.values)
        read, write = values.read_port(), values.write_port()

        def place_of(gate: Value) -> Value:
            return Cat(gate[:2], Const(self._gates_at, len(read.addr) - 2))

        m.d.comb += read.addr.eq(
            Mux(word.read == _STATE, self.i_state, place_of(word.read)))
        held = Signal(signed(bits), reset_less=True)
        m.d.sync += held.eq(read.data)

        # What is looked up: its magnitude, and for how long it has been under way.
        place = Signal(one, reset_less=True)
        under_way = delayed(m, word.place, 2 + Multiplier.LATENCY, "under_way")
        m.submodules.table = table = memory.Memory(self.table)
        entry = table.read_port()
        index = place[rest:]
        # The last segment is flat.
        m.d.comb += entry.addr.eq(Mux(under_way[2] & ~index.all(), index + 1, index))

        m.submodules.multiplier = multiplier = Multiplier(bits, bits)
        looks_up = under_way[2] | under_way[3]
        accumulator = Signal(signed(2 * bits), reset_less=True)
        load = word.load | under_way[-1]
        m.d.comb += [
            multiplier.a.eq(Mux(looks_up, entry.data, held)),
            multiplier.b.eq(self._factor(m, word, read.data)
                            | Mux(looks_up, self._fraction(place[:rest], under_way[3]), 0)),
        ]
        m.d.sync += accumulator.eq(
            Mux(load, 0, Mux(shifting, accumulator >> 1, accumulator)) + multiplier.p)

        # Rounded, and negated: a magnitude for the table, or a result of the table.
        gru_tanh = (self.cell == Cell.GRU) & ~word.sigmoid
        negative = delayed(m, word.place & (accumulator[-1] ^ gru_tanh), _LOOKUP, "negative")
        negate = Mux(word.place, accumulator[-1], negative[-1])
        low = _low(bits)
        is_low = Mux(word.place, ~gru_tanh, self.dump | (self.cell == Cell.PASS))
        part = Mux(is_low, accumulator[low:low + bits + 1], accumulator[one:])
        last = Mux(is_low, accumulator[low - 1], accumulator[one - 1])
        rounded = Signal(signed(bits + 1))
        m.d.comb += rounded.eq((part ^ negate.replicate(bits + 1)) + (last ^ negate))
        above = accumulator[low + bits:]
        beyond = (rounded[one] | rounded[bits] | (~word.sigmoid & rounded[one - 1])
                  | (is_low & above.any() & ~above.all()))
        with m.If(word.place):
            m.d.sync += place.eq(
                Mux(beyond, ~0, Mux(word.sigmoid, rounded, rounded << 1)))

        clipped = rounded[bits] ^ rounded[one]
        value = Signal(signed(bits))
        rail = Cat((~rounded[bits]).replicate(one), rounded[bits])
        # From -1 .. 1 to 0 .. 1: adding 1 inverts the sign bit.
        half = Cat(rounded[1:one], ~rounded[one], Const(0, 1))
        m.d.comb += value.eq(Mux(word.sigmoid, half, Mux(clipped, rail, rounded)))
        to_gate = word.write[2]
        to_state = ~to_gate & word.write[1]
        m.d.sync += self.saturated.eq(to_state & clipped & (self.cell == Cell.LSTM))
        with m.If(~to_gate & word.write[0]):
            m.d.sync += [self.o.payload.eq(value), self.o.valid.eq(1)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)

        # Gates arrive when nothing else is written.
        arrived = Signal(range(GATE_LANES))
        arrives = self.i_valid & (~self.four | (arrived == GATE_LANES - 1))
        with m.If(self.clear):
            m.d.sync += arrived.eq(0)
        with m.Elif(self.i_valid):
            m.d.sync += arrived.eq(Mux(self.four, arrived + 1, 0))
        self._run(m, step, shifting, arrives)
        loads = self.load_valid & (self.load_target == 0)
        m.d.comb += [
            write.en.eq(loads | self.i_valid | to_gate | to_state),
            write.addr.eq(Mux(self.i_valid, place_of(arrived),
                              Mux(to_gate, place_of(word.write), self.i_state))),
            write.data.eq(Mux(self.i_valid, self.i_gate, value)),
        ]
        m.d.sync += Assert(~(self.i_valid & (to_gate | to_state)), "a gate came too early")
        with m.If(loads):
            m.d.comb += [write.addr.eq(self.load_addr), write.data.eq(self.load_data)]
        return m

    def _run(self, m: Module, step, shifting: Value, arrives: Value) -> None:
        """Goes through the steps of a unit when its gates are there and the result has room."""
        starts = {program: Const(at, len(step.addr)) for program, at in self._starts.items()}
        start = Signal.like(step.addr)
        with m.Switch(Cat(self.dump, self.peephole, self.cell)):
            for (cell, peephole), at in starts.items():
                if cell is None:
                    patterns = ["---1"]
                elif (cell, not peephole) in starts:
                    patterns = [f"{cell:02b}{peephole:d}0"]
                else:
                    patterns = [f"{cell:02b}-0"]
                with m.Case(*patterns):
                    m.d.comb += start.eq(at)

        complete = Signal()
        running = Signal()
        next_step = Signal.like(step.addr, reset_less=True)
        room = ~self.o.valid | (self.o.ready & ~self.dump)
        go = ~running & (complete | self.dump) & room
        ends = ~step.data.write[2] & step.data.write[0]
        m.d.comb += [
            step.en.eq(~shifting), step.addr.eq(Mux(running, next_step, start)),
            self.token.eq(step.data.token),
        ]
        with m.If(~shifting):
            m.d.sync += next_step.eq(step.addr + 1)
        m.d.sync += [
            running.eq(go | (running & ~ends)),
            complete.eq(~self.clear & (arrives | (complete & ~go))),
        ]

    def _factor(self, m: Module, word: Value, operand: Value) -> Value:
        """The second factor, but for what the table is multiplied by; 0 if there is none."""
        bits, one = self._config.act_bits, unit_frac(self._config.act_bits)
        low = _low(bits)
        peephole = self._read_peephole(m, word.read[:2])
        factor = Signal(signed(bits))
        with m.Switch(word.factor):
            with m.Case(_GATE):
                m.d.comb += factor.eq(1 << low)
            with m.Case(_HALF):
                m.d.comb += factor.eq(1 << (one - 1))
            with m.Case(_SQUASH):
                # From the cell state's binary point to a gate's: 4 - cell_shift bits to the right.
                m.d.comb += factor.eq((1 << self.cell_shift) << (low - 4))
            with m.Case(_OPERAND):
                m.d.comb += factor.eq(operand)
            with m.Case(_WITH_SIGN):
                m.d.comb += factor.eq(Cat(operand[:one], Const(1, 1)))
            with m.Case(_PEEPHOLE):
                m.d.comb += factor.eq(peephole)
        return factor

    def _fraction(self, fraction: Value, second: Value) -> Value:
        """The fraction ``x`` of a segment as ``x - 1``, then as ``-x``."""
        segment, _ = table_split(self._config.act_bits)
        return Cat(Const(0, segment), Mux(second, (-fraction)[:len(fraction) + 1],
                                          Cat(fraction, Const(1, 1))))

    def _read_peephole(self, m: Module, gate: Value) -> Value:
        bits = self._config.act_bits
        if not self._config.peephole_depth:
            return Const(0, bits)
        m.submodules.peepholes = peepholes = memory.Memory(self.peepholes)
        read, write = peepholes.read_port(), peepholes.write_port()
        m.d.comb += [
            read.addr.eq(self.i_peep), write.addr.eq(self.load_addr),
            write.data.eq(self.load_data),
            write.en.eq(self.load_valid & (self.load_target == 2)),
        ]
        i, f, o = (read.data.word_select(k, bits) for k in range(3))
        return Mux(gate[1], o, Mux(gate[0], f, i))
