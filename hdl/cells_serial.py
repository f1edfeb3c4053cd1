# amaranth: UnusedElaboratable=no
# The unit is unused exactly when the cells are, which Amaranth reports by itself.
"""Cells of small devices: runs a recurrent layer's accumulators through the serial unit."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig
from openese.model.program import Op

from .checks import checked_config, checked_contents
from .elementwise_serial import SerialElementWise
from .gather import sum_layout
from .layouts import (
    Kind,
    act_out_layout,
    broadcast_signature,
    input_signature,
    instruction_layout,
    scan_layout,
)
from .pre_activations import PreActivations

__all__ = ["SerialCells"]


class SerialCells(wiring.Component):
    """Executes CELL and STATE as `Cells` does, one unit after the other.

    A token goes to one PE, which drains the accumulators of its next unit into
    `SerialElementWise`. While a unit is computed, the next one's gates come; its result waits in
    one register until all of its destinations have taken it.

    Throughput: a unit in the cycles that `SerialElementWise` takes for it.

    Parameters
    ----------
    config
        Engine configuration with ``serial_cells``.
    peepholes
        Words the peephole memory starts with.
    biases
        Words the bias memory starts with, as a list of one.

    Members
    -------
    o_token : ``Out(1)``, o_pe : ``Out(pe_bits)``
        To this PE.
    i : ``In(sum_layout(config)).array(1)``
        From the gather tree.
    start, command, active, idle, fence, i_load, o_feed, o_beat, o_act, saturations
        As of `Cells`.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        An engine without serial element-wise unit; more words than the memory holds, or a word
        that is not an unsigned integer of its width.
    """

    def __init__(self, config: EngineConfig, peepholes=(), biases=()):
        self._config = checked_config(config)
        self.pre_activations = PreActivations(config, biases)
        self.elementwise = SerialElementWise(config, checked_contents(
            "peephole", peepholes, config.peephole_depth, 3 * config.act_bits))
        super().__init__({
            "start": In(1), "command": In(instruction_layout(config)),
            "active": In(1), "idle": Out(1), "fence": In(1),
            "o_token": Out(1), "o_pe": Out(config.pe_bits),
            "i": In(sum_layout(config)).array(config.gate_lanes),
            "i_load": In(broadcast_signature(config)),
            "o_feed": Out(stream.Signature(scan_layout(config, 2 * config.lnzd_levels))),
            "o_beat": Out(input_signature(config)),
            "o_act": Out(stream.Signature(act_out_layout(config))),
            "saturations": Out(2),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.elementwise = elementwise = self.elementwise
        m.submodules.pre_activations = pre_activations = self.pre_activations

        command = Signal.like(self.command, reset_less=True)
        is_state = Signal(reset_less=True)
        pe = Signal(config.pe_bits)
        last_of_row = (pe == config.n_pes - 1) | ((command.rows == 1) & (pe == command.rem - 1))
        last = (command.rows == 1) & last_of_row
        kind, load = self.i_load.payload.kind, self.i_load.payload.args.load
        m.d.comb += [
            elementwise.cell.eq(command.cell), elementwise.peephole.eq(command.peephole),
            elementwise.cell_shift.eq(command.cell_shift),
            elementwise.peep_shift.eq(command.peep_shift),
            elementwise.four.eq(command.gates[0]), elementwise.clear.eq(self.start),
            pre_activations.i[0].eq(self.i[0]), pre_activations.start.eq(self.start),
            pre_activations.base.eq(self.command.base), pre_activations.shift.eq(command.shift),
            pre_activations.relu.eq(command.relu), pre_activations.biased.eq(command.biased),
            pre_activations.i_load.valid.eq(self.i_load.valid),
            pre_activations.i_load.payload.eq(self.i_load.payload),
            elementwise.i_valid.eq(pre_activations.o[0].valid),
            elementwise.i_gate.eq(pre_activations.o[0].values[0]),
            elementwise.i_state.eq(command.state), elementwise.i_peep.eq(command.peep),
            elementwise.load_valid.eq(self.i_load.valid & (
                (kind == Kind.LOAD_CELL) | (kind == Kind.LOAD_PEEPHOLE))),
            elementwise.load_target.eq(kind.as_value() - Kind.LOAD_CELL.value),
            elementwise.load_addr.eq(load.addr), elementwise.load_data.eq(load.data),
            self.saturations.eq(elementwise.saturated + pre_activations.saturated),
        ]
        taken = self._give_result(m, command, elementwise.o, pe, last_of_row, last)

        # Of a unit under way, the counters tell its place; tokens are one unit ahead.
        m.d.sync += self.o_token.eq(elementwise.token & ~last)
        m.d.sync += self.o_pe.eq(Mux(last_of_row, 0, pe + 1))
        with m.If(taken):
            m.d.sync += [
                command.state.eq(command.state + 1), command.peep.eq(command.peep + 1),
                pe.eq(pe + 1),
            ]
            with m.If(last_of_row):
                m.d.sync += [pe.eq(0), command.rows.eq(command.rows - 1),
                             command.act.eq(command.act + 1)]

        wait = Signal(range(config.drain_wait - 1))
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.idle.eq(1)
                m.d.sync += [
                    command.eq(self.command), is_state.eq(self.command.op == Op.STATE), pe.eq(0),
                    wait.eq(config.drain_wait - 2),
                ]
                with m.If(self.start):
                    m.next = "FENCE"
                    with m.If(self.command.op == Op.STATE):
                        m.d.sync += command.to_out.eq(1)
                        m.next = "RUN"

            with m.State("FENCE"):
                with m.If(wait != 0):
                    m.d.sync += wait.eq(wait - 1)
                with m.Elif(~self.fence):
                    m.d.sync += [self.o_token.eq(1), self.o_pe.eq(0)]
                    m.next = "RUN"

            with m.State("RUN"):
                m.d.comb += elementwise.dump.eq(is_state)
                with m.If(taken & last):
                    m.next = "IDLE"
        return m

    def _give_result(self, m: Module, command, result, pe: Value, last_of_row: Value, last: Value
                     ) -> Value:
        """The result to its destinations; returns when all have taken it."""
        config = self._config
        fresh, fed, sent = Signal(init=1), Signal(), Signal()
        feed, out = self.o_feed, self.o_act
        now_fed = ~command.to_feed | fed | feed.ready
        now_sent = ~command.to_out | sent | out.ready
        m.d.comb += [
            feed.valid.eq(result.valid & command.to_feed & ~fed),
            feed.payload.values[0].eq(result.payload), feed.payload.nonzero.eq(result.payload != 0),
            feed.payload.lane.eq(pe), feed.payload.last.eq(last_of_row),
            out.valid.eq(result.valid & command.to_out & ~sent),
            out.payload.data[0].eq(result.payload), out.payload.last.eq(last),
            result.ready.eq(now_fed & now_sent),
        ]
        taken = result.valid & result.ready
        m.d.sync += [
            fresh.eq(~result.valid | result.ready),
            fed.eq(result.valid & ~result.ready & now_fed),
            sent.eq(result.valid & ~result.ready & now_sent),
        ]

        # A beat is full when its last lane is, or with the last result of a row.
        beat = self.o_beat.payload
        m.d.comb += [value.eq(result.payload) for value in (lanes[0] for lanes in beat.values)]
        m.d.comb += beat.act.eq(command.act)
        full = Const(1)
        if config.input_lanes == 1:
            m.d.comb += beat.group.eq(pe)
        else:
            lane = Signal(range(config.input_lanes))
            group = Signal.like(beat.group)
            full = (lane == config.input_lanes - 1) | last_of_row
            m.d.comb += beat.group.eq(group)
            for k in range(config.input_lanes - 1):
                kept = Signal.like(result.payload, reset_less=True, name=f"kept_{k}")
                with m.If(lane == k):
                    m.d.sync += kept.eq(result.payload)
                with m.Else():
                    m.d.comb += beat.values[k][0].eq(kept)
            with m.If(taken):
                m.d.sync += lane.eq(lane + 1)
                with m.If(full):
                    m.d.sync += [lane.eq(0), group.eq(group + 1)]
                with m.If(last_of_row):
                    m.d.sync += group.eq(0)
        m.d.comb += self.o_beat.valid.eq(result.valid & fresh & full & command.to_act)
        return taken
