"""Element-wise unit: what a recurrent cell computes of its gates (ESE, section 5.2)."""

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import GATE_LANES, EngineConfig
from openese.model.elementwise import PEEP_SHIFT_MAX, SHIFT_MAX, unit_frac
from openese.model.program import Cell

from .activation import Activation, delayed
from .checks import checked_config, checked_contents
from .layouts import values_layout
from .multiply import Multiplier

__all__ = ["ElementWise"]

# Cycles after the input in which values are at hand.
_STATE = 2  # cell state and peephole weights, from their memories
_GATES = _STATE + Multiplier.LATENCY + 3  # pre-activations with their peepholes
_FIRST = _GATES + Activation.LATENCY  # sigmoid and tanh of the gates
_CELL = _FIRST + Multiplier.LATENCY + 3  # new cell state; of a GRU, pre-activation of n
_LAST_GATE = _CELL + Multiplier.LATENCY + 3  # output gate with its peephole
_SECOND = _LAST_GATE + Activation.LATENCY  # sigmoid of the output gate, tanh of the cell state
_RESULT = _SECOND + 1 + Multiplier.LATENCY + 2


class ElementWise(wiring.Component):
    """The arithmetic of LSTM, GRU and tanh cells for one unit of all channels per cycle.

    A pipeline without stalls; `openese.model.elementwise` says what it computes, bit for bit. Cell
    states (of a GRU its hidden states) are kept here. The results of channels without a step are
    their former ones, which are kept as well where there are several channels.

    Latency: ``LATENCY`` = 45 cycles, whatever the cell. Throughput: 1 unit per cycle.

    Resources per channel: 5 tables, 5 multipliers for them, 3 for cells and 3 for peepholes.

    Parameters
    ----------
    config
        Engine configuration with an element-wise unit.
    peepholes
        Words the peephole memory starts with.

    Members
    -------
    cell : ``In(2)``, peephole : ``In(1)``, cell_shift, peep_shift : ``In(3)``
    active : ``In(channels)``
        What to compute, see `openese.model.program`; steady while anything is inside.
    hold : ``In(1)``
        Channels that are not active give their former results.
    i_valid : ``In(1)``, i_gates : ``In(gates)``
        Four pre-activations of every channel.
    i_state : ``In(state_addr_bits)``, i_peep : ``In(peephole_addr_bits)``
        The unit's places in the memories.
    o_valid : ``Out(1)``, o_values : ``Out(values_layout(config))``
    saturated : ``Out(range(channels + 1))``
        Cell states clipped.
    load_valid : ``In(1)``, load_target : ``In(2)``
        Write a memory: 0 cell states, 1 results, 2 peepholes. Only while nothing is inside.
    load_addr, load_channel, load_data : ``In``
    dump_en : ``In(1)``, dump_addr : ``In(state_addr_bits)``
    dump_values : ``Out(values_layout(config))``
        Cell states asked for ``DUMP_LATENCY`` = 3 cycles ago, until the next are.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        An engine without element-wise unit; more words than the memory holds, or a word that is
        not an unsigned integer of its width.
    """

    LATENCY = _RESULT + 1
    DUMP_LATENCY = _STATE + 1

    def __init__(self, config: EngineConfig, peepholes=()):
        self._config = checked_config(config)
        if not config.recurrent:
            raise ValueError("config must have an element-wise unit: state_depth of 1 or more")
        bits = config.act_bits
        self.cells = memory.MemoryData(
            shape=values_layout(config), depth=config.state_depth, init=[])
        self.results = memory.MemoryData(
            shape=values_layout(config), depth=config.state_depth, init=[])
        self.peepholes = memory.MemoryData(
            shape=3 * bits, depth=max(1, config.peephole_depth),
            init=checked_contents("peephole", peepholes, config.peephole_depth, 3 * bits))
        super().__init__({
            "cell": In(2), "peephole": In(1), "cell_shift": In(3), "peep_shift": In(3),
            "active": In(config.channels), "hold": In(1),
            "i_valid": In(1),
            "i_gates": In(data.ArrayLayout(
                data.ArrayLayout(signed(bits), GATE_LANES), config.channels)),
            "i_state": In(config.state_addr_bits), "i_peep": In(config.peephole_addr_bits),
            "o_valid": Out(1), "o_values": Out(values_layout(config)),
            "saturated": Out(range(config.channels + 1)),
            "load_valid": In(1), "load_target": In(2),
            "load_addr": In(max(config.state_addr_bits, config.peephole_addr_bits)),
            "load_channel": In(range(config.channels)), "load_data": In(3 * bits),
            "dump_en": In(1), "dump_addr": In(config.state_addr_bits),
            "dump_values": Out(values_layout(config)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        valid = [self.i_valid]
        for k in range(1, self.LATENCY + 1):
            stage = Signal(name=f"valid_{k}")
            m.d.sync += stage.eq(valid[-1])
            valid.append(stage)
        state = delayed(m, self.i_state, self.LATENCY, "state")

        # Cell states: read with the gates, written when they are new.
        several = config.channels > 1
        m.submodules.cells = cells = memory.Memory(self.cells)
        read, write = cells.read_port(), cells.write_port(granularity=1 if several else None)
        m.d.comb += read.addr.eq(Mux(self.dump_en, self.dump_addr, self.i_state))
        before = Signal(values_layout(config), reset_less=True)
        m.d.sync += before.eq(read.data)
        dumping = delayed(m, self.dump_en, _STATE, "dumping")[-1]
        with m.If(dumping):
            m.d.sync += self.dump_values.eq(before)

        peep = self._read_peepholes(m)
        new, result = Signal(values_layout(config)), Signal(values_layout(config))
        clipped = Signal(config.channels)
        for c in range(config.channels):
            m.d.comb += [
                part.eq(value) for part, value in zip(
                    (new[c], result[c], clipped[c]),
                    self._channel(m, c, before[c], peep), strict=True)]
        counts = valid[_CELL] & (self.cell == Cell.LSTM)
        m.d.sync += self.saturated.eq(Mux(counts, sum(clipped & self.active), 0))

        # A load's data stand in every channel, of which one is written.
        load_enable = (1 << self.load_channel) if several else 1
        loaded = Signal(config.act_bits)
        m.d.comb += loaded.eq(self.load_data)
        as_loaded = Cat(loaded for _ in range(config.channels))
        is_gru = self.cell == Cell.GRU
        cell_written = Mux(is_gru, valid[self.LATENCY], valid[_CELL] & (self.cell == Cell.LSTM))
        enable = self.active if several else 1
        m.d.comb += [
            write.addr.eq(Mux(is_gru, state[self.LATENCY], state[_CELL])),
            write.data.as_value().eq(Mux(is_gru, self.o_values.as_value(), new.as_value())),
            write.en.eq(Mux(cell_written, enable, 0)),
        ]
        with m.If(self.load_valid & (self.load_target == 0)):
            m.d.comb += [write.addr.eq(self.load_addr), write.data.as_value().eq(as_loaded),
                         write.en.eq(load_enable)]

        values = Signal(values_layout(config), reset_less=True)
        m.d.comb += [self.o_valid.eq(valid[self.LATENCY]), self.o_values.eq(values)]
        if not several:
            m.d.sync += values.eq(result)
            return m

        # Results of channels that have no step now.
        m.submodules.results = results = memory.Memory(self.results)
        read, write = results.read_port(), results.write_port(granularity=1)
        former = Signal(values_layout(config), reset_less=True)
        m.d.comb += [
            read.addr.eq(state[_RESULT - 2]), write.addr.eq(state[self.LATENCY]),
            write.data.eq(values),
            write.en.eq(Mux(valid[self.LATENCY] & self.hold, self.active, 0)),
        ]
        m.d.sync += former.eq(read.data)
        for c in range(config.channels):
            m.d.sync += values[c].eq(
                Mux(self.active[c] | ~self.hold, result[c], former[c]))
        with m.If(self.load_valid & (self.load_target == 1)):
            m.d.comb += [write.addr.eq(self.load_addr), write.data.as_value().eq(as_loaded),
                         write.en.eq(load_enable)]
        return m

    def _read_peepholes(self, m: Module) -> list[Value]:
        """Weights of i, f and o, ``_STATE`` cycles after the input."""
        bits = self._config.act_bits
        if not self._config.peephole_depth:
            return []
        m.submodules.peepholes = peepholes = memory.Memory(self.peepholes)
        read, write = peepholes.read_port(), peepholes.write_port()
        word = Signal(3 * bits, reset_less=True)
        m.d.comb += [
            read.addr.eq(self.i_peep), write.addr.eq(self.load_addr),
            write.data.eq(self.load_data),
            write.en.eq(self.load_valid & (self.load_target == 2)),
        ]
        m.d.sync += word.eq(read.data)
        return [word.word_select(k, bits).as_signed() for k in range(3)]

    def _channel(self, m: Module, c: int, before: Value, peep: list[Value]
                 ) -> tuple[Value, Value, Value]:
        """The datapath of a channel: new cell state, result, and whether the state is clipped."""
        bits, one = self._config.act_bits, unit_frac(self._config.act_bits)
        half = 1 << (one - 1)
        a_0, a_1, a_2, a_3 = self.i_gates[c]
        gru, lstm = self.cell == Cell.GRU, self.cell == Cell.LSTM

        def name(part: str) -> str:
            return f"{part}_{c}"

        def register(value: Value, part: str) -> Signal:
            stage = Signal.like(value, reset_less=True, name=name(part))
            m.d.sync += stage.eq(value)
            return stage

        def saturate(value: Value, part: str) -> tuple[Signal, Value]:
            """`value` clipped to ``bits``, in a register; and whether it is now."""
            signs = value[bits - 1:]
            fits = signs.all() | ~signs.any()
            stage = Signal(signed(bits), reset_less=True, name=name(part))
            rail = Mux(value[-1], -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
            m.d.sync += stage.eq(Mux(fits, value, rail))
            return stage, ~fits

        def multiply(a: Value, b: Value, a_bits: int, b_bits: int, part: str) -> Value:
            multiplier = Multiplier(a_bits, b_bits)
            m.submodules[name(part)] = multiplier
            m.d.comb += [multiplier.a.eq(a), multiplier.b.eq(b)]
            return multiplier.p

        def function(x: Value, mode: Value, part: str) -> Value:
            unit = Activation(bits)
            m.submodules[name(part)] = unit
            m.d.comb += [unit.x.eq(x), unit.mode.eq(mode)]
            return unit.y

        def with_peephole(line: list[Value], at: int, weight: Value, cell: Value, part: str
                          ) -> Value:
            """A pre-activation, `line` cycles old, plus what its peephole sees; 6 cycles."""
            product = multiply(weight, cell, bits, bits, f"{part}_peephole")
            # Shifted by one bit less than it should be; the last bit rounds. Results of less than
            # 10 bits may want a shift to the left.
            left = max(0, PEEP_SHIFT_MAX + 2 - one)
            amount = (one - 2 + left - self.peep_shift).as_unsigned()
            shifted = register((product << left) >> amount, f"{part}_shifted")
            total = register(
                Mux(self.peephole, shifted, 0) + Cat(1, line[at + 4]).as_signed(),
                f"{part}_total")
            return saturate(total >> 1, f"{part}_gate")[0]

        # Lines along the pipeline, shared by what the cells have to keep.
        late = delayed(m, Mux(gru, a_2, Mux(lstm, a_3, a_0)), _RESULT, name("late"))
        third = delayed(m, Mux(gru, a_3, a_2), _FIRST, name("third"))
        kept = delayed(m, before, _SECOND + 1 - _STATE, name("kept"))

        def kept_at(cycle: int) -> Value:
            return kept[cycle - _STATE]

        if peep:
            gate_0 = with_peephole(delayed(m, a_0, _GATES - 2, name("first")), _STATE, peep[0],
                                   before, name("i"))
            gate_1 = with_peephole(delayed(m, a_1, _GATES - 2, name("second")), _STATE, peep[1],
                                   before, name("f"))
        else:
            gate_0 = delayed(m, a_0, _GATES, name("first"))[-1]
            gate_1 = delayed(m, a_1, _GATES, name("second"))[-1]
        i = function(gate_0, Const(0), "sigmoid_i")
        f = function(gate_1, Const(0), "sigmoid_f")
        g = function(third[_GATES], Const(1), "tanh_g")

        # LSTM: f c + i g. GRU: r (state's part of n) + (input's part of n).
        p_1 = multiply(i, Mux(gru, third[_FIRST], g), bits, bits, "input_product")
        p_2 = multiply(f, kept_at(_FIRST), bits, bits, "forget_product")
        at = _FIRST + Multiplier.LATENCY
        left = register(Mux(gru, p_1, p_2) + half, "left")
        right = register(Mux(gru, late[at] << one, p_1 >> self.cell_shift), "right")
        total = register(left + right, "total")
        new, clipped = saturate(total >> one, "new")
        clipped = register(clipped, "clipped")

        # tanh of the cell state, brought to the binary point of gates, or of n's pre-activation.
        aligned = register((new << 4) >> (SHIFT_MAX - self.cell_shift).as_unsigned(), "aligned")
        rounded = register((aligned + 1) >> 1, "rounded")
        squashed, _ = saturate(rounded, "squashed")
        wait = _LAST_GATE - _CELL
        is_tanh = self.cell == Cell.TANH
        x = Mux(lstm, delayed(m, squashed, wait - 3, name("squash"))[-1],
                Mux(is_tanh, late[_LAST_GATE], delayed(m, new, wait, name("candidate"))[-1]))
        second = function(x, Const(1), "tanh_c")
        if peep:
            weight = delayed(m, peep[2], _CELL - _STATE, name("o_weight"))[-1]
            gate_3 = with_peephole(late, _CELL, weight, new, name("o"))
        else:
            gate_3 = late[_LAST_GATE]
        o = function(gate_3, Const(0), "sigmoid_o")

        # LSTM: o tanh(c). GRU: n + z (h - n).
        z = delayed(m, f, _SECOND - _FIRST, name("z"))[-1]
        factor = register(Mux(gru, z, o), "factor")
        other = register(Mux(gru, kept_at(_SECOND) - second, second), "other")
        product = multiply(factor, other, bits, bits + 1, "output_product")
        scaled = register(product + half, "scaled")
        second_late = delayed(m, second, _RESULT - 1 - _SECOND, name("n"))[-1]
        added = Mux(gru, second_late, 0) + (scaled >> one)
        plain = Mux(is_tanh, second_late, late[_RESULT - 1])
        result = Signal(signed(bits), reset_less=True, name=name("result"))
        m.d.sync += result.eq(Mux(gru | lstm, added, plain))
        return new, result, clipped
