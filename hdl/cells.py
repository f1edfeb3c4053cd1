# amaranth: UnusedElaboratable=no
# The units are unused exactly when the cells are, which Amaranth reports by itself.
"""Cells: runs a recurrent layer's accumulators through the element-wise unit (ESE, ElementWise)."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import GATE_LANES, EngineConfig
from openese.model.program import Op

from .checks import checked_config, checked_contents
from .elementwise import ElementWise
from .fan import Relay
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
from .result_queue import ResultQueue, result_layout
from .skid import Skid
from .units import Units

__all__ = ["Cells"]


class Cells(wiring.Component):
    """Executes CELL and STATE instructions beside the sequencer, one at a time.

    CELL waits until the accumulators are complete in all PEs, then sends tokens. A token goes
    from PE to PE; each drains the accumulators of its next unit. They come back through the gather
    tree in order, become pre-activations (`PreActivations`) and units (`Units`), and run through
    `ElementWise`, the results of which wait in a queue until all of
    their destinations take them: the activation memories, the sequencer, which broadcasts them as
    columns, and the output stream. Tokens are sent only while that queue has room for a result
    of every PE.

    Throughput: 1 unit per cycle; with ``n_pes`` not a multiple of 4, ``n_pes`` units in the
    ``token_period`` next to it.

    Parameters
    ----------
    config
        Engine configuration.
    peepholes
        Words the peephole memory starts with.
    biases
        Of every lane, words its bias memory starts with.

    Members
    -------
    start : ``In(1)``, command : ``In(instruction_layout(config))``
        Begin with this instruction; only while `idle`. The CELL message went out a cycle before.
    active : ``In(channels)``
        Channels that have a step.
    idle : ``Out(1)``
        Nothing is under way, and all results have reached their destinations.
    fence : ``In(1)``
        Some PE has not accumulated all that came before the CELL message.
    o_token : ``Out(1)``
        To PE 0.
    i : ``In(sum_layout(config)).array(4)``
        From the gather tree.
    i_load : ``In(broadcast_signature(config))``
    o_feed : ``Out(stream.Signature(scan_layout(config, 2 * lnzd_levels)))``
        Results as columns, as the LNZD tree would give them.
    o_beat : ``Out(input_signature(config))``
        Results for the activation memories.
    o_act : ``Out(stream.Signature(act_out_layout(config)))``
    saturations : ``Out``
        Values clipped in this cycle.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        More words than the memory holds, or a word that is not an unsigned integer of its width.
    """

    def __init__(self, config: EngineConfig, peepholes=(), biases=()):
        self._config = checked_config(config)
        self.pre_activations = PreActivations(config, biases)
        self.elementwise = ElementWise(config, checked_contents(
            "peephole", peepholes, config.peephole_depth, 3 * config.act_bits))
        super().__init__({
            "start": In(1), "command": In(instruction_layout(config)),
            "active": In(config.channels), "idle": Out(1), "fence": In(1), "o_token": Out(1),
            "i": In(sum_layout(config)).array(GATE_LANES),
            "i_load": In(broadcast_signature(config)),
            "o_feed": Out(stream.Signature(scan_layout(config, 2 * config.lnzd_levels))),
            "o_beat": Out(input_signature(config)),
            "o_act": Out(stream.Signature(act_out_layout(config))),
            "saturations": Out(range((GATE_LANES + 1) * config.channels + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.units = units = Units(config)
        m.submodules.elementwise = elementwise = self.elementwise
        m.submodules.queue = queue = ResultQueue(config)
        # A word of block RAM goes nowhere but to a register.
        m.submodules.head = head = Skid(result_layout(config))
        wiring.connect(m, queue.o, head.i)
        results = head.o
        m.submodules.skid = skid = Skid(act_out_layout(config))
        wiring.connect(m, skid.o, wiring.flipped(self.o_act))
        # Whether the sequencer takes a column it knows late.
        m.submodules.feed = feed = Skid(self.o_feed.payload.shape())
        wiring.connect(m, feed.o, wiring.flipped(self.o_feed))
        m.submodules.pre_activations = pre_activations = self.pre_activations

        command = Signal.like(self.command, reset_less=True)
        active = Signal.like(self.active, reset_less=True)
        m.d.comb += [
            pre_activations.start.eq(self.start), pre_activations.base.eq(self.command.base),
            pre_activations.shift.eq(command.shift), pre_activations.relu.eq(command.relu),
            pre_activations.biased.eq(command.biased),
            units.four.eq(command.gates[0]), units.clear.eq(self.start),
            elementwise.cell.eq(command.cell), elementwise.peephole.eq(command.peephole),
            elementwise.cell_shift.eq(command.cell_shift),
            elementwise.peep_shift.eq(command.peep_shift), elementwise.active.eq(active),
            elementwise.hold.eq(command.hold),
            self.saturations.eq(elementwise.saturated + pre_activations.saturated),
        ]
        for sums, taken, gate, port in zip(
                self.i, pre_activations.i, pre_activations.o, units.i, strict=True):
            m.d.comb += [taken.eq(sums), port.eq(gate)]
        self._load(m, elementwise)
        arriving = self._feed_units(m, command, units, elementwise)
        taken, finished, dumped = self._give_results(m, command, results, feed.i, skid)
        m.d.comb += [
            queue.i.valid.eq(elementwise.o_valid),
            queue.i.payload.values.eq(elementwise.o_values),
            queue.i.payload.nonzero.eq(elementwise.o_values.as_value().any()),
        ]

        # Tokens while there is room for a result of every PE.
        wait = Signal(range(max(config.drain_wait, config.token_period, 8) + 1))
        groups = Signal(config.rows_bits)
        reserved = Signal(range(config.results_depth + 1))
        ready = (reserved <= config.results_depth - config.n_pes) & (wait == 0)
        with m.If(self.o_token & ~taken):
            m.d.sync += reserved.eq(reserved + config.n_pes)
        with m.Elif(self.o_token & taken):
            m.d.sync += reserved.eq(reserved + config.n_pes - 1)
        with m.Elif(taken):
            m.d.sync += reserved.eq(reserved - 1)
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.idle.eq(1)
                m.d.sync += [
                    command.eq(self.command), active.eq(self.active), reserved.eq(0),
                    groups.eq(self.command.rows), wait.eq(config.drain_wait - 2),
                ]
                with m.If(self.start):
                    m.next = "FENCE"
                    with m.If(self.command.op == Op.STATE):
                        m.next = "READ"

            with m.State("FENCE"), m.If((wait == 0) & ~self.fence):
                m.next = "RUN"

            with m.State("RUN"):
                with m.If((groups != 0) & ready):
                    m.d.comb += self.o_token.eq(1)
                    m.d.sync += [groups.eq(groups - 1), wait.eq(config.token_period - 1)]
                with m.If(finished):
                    m.next = "SETTLE"

            # The last beat enters the tree to the activation memories, and PEs that have no unit in
            # the last row give theirs; nobody else may use the output stream before it is empty.
            with m.State("SETTLE"), m.If(~arriving & ~skid.o.valid & ~feed.o.valid):
                m.next = "IDLE"

            with m.State("READ"):
                m.d.comb += [elementwise.dump_en.eq(1), elementwise.dump_addr.eq(command.state)]
                m.d.sync += wait.eq(ElementWise.DUMP_LATENCY)
                m.next = "SHOW"

            with m.State("SHOW"), m.If(wait == 0):
                m.d.comb += dumped.eq(1)
                with m.If(skid.i.ready):
                    m.d.sync += command.state.eq(command.state + 1)
                    m.next = "READ"
                    with m.If(finished):
                        m.next = "SETTLE"
        return m

    def _load(self, m: Module, elementwise: ElementWise) -> None:
        # Memories are far apart, and what is for one of them is found out on the way.
        m.submodules.load = relay = Relay(broadcast_signature(self._config))
        wiring.connect(m, wiring.flipped(self.i_load), relay.i)
        kind, load = relay.o.payload.kind, relay.o.payload.args.load
        biases = self.pre_activations.i_load
        m.d.comb += [
            biases.valid.eq(relay.o.valid), biases.payload.eq(relay.o.payload),
            elementwise.load_valid.eq(relay.o.valid & (
                (kind == Kind.LOAD_CELL) | (kind == Kind.LOAD_RESULT)
                | (kind == Kind.LOAD_PEEPHOLE))),
            elementwise.load_target.eq(kind.as_value() - Kind.LOAD_CELL.value),
            elementwise.load_addr.eq(load.addr), elementwise.load_channel.eq(load.channel),
            elementwise.load_data.eq(load.data),
        ]

    def _feed_units(self, m: Module, command, units: Units, elementwise: ElementWise) -> Value:
        """Units that exist, with their places in the memories; a last row may have fewer.

        Returns whether units are still to come.
        """
        config = self._config
        left = Signal(config.rows_bits)
        state = Signal(config.state_addr_bits)
        peep = Signal(config.peephole_addr_bits)
        exists = units.o_valid & ((left != 1) | (units.o_pe < command.rem)) & (left != 0)
        m.d.comb += [
            elementwise.i_valid.eq(exists), elementwise.i_gates.eq(units.o_gates),
            elementwise.i_state.eq(state), elementwise.i_peep.eq(peep),
        ]
        with m.If(exists):
            m.d.sync += [state.eq(state + 1), peep.eq(peep + 1)]
        with m.If(units.o_valid & (units.o_pe == config.n_pes - 1)):
            m.d.sync += left.eq(left - 1)
        with m.If(self.start):
            m.d.sync += [left.eq(Mux(self.command.op == Op.CELL, self.command.rows, 0)),
                         state.eq(self.command.state), peep.eq(self.command.peep)]
        return left != 0

    def _give_results(self, m: Module, command, results, feed, skid: Skid):
        """Results to their destinations; returns when one is taken, and whether all are."""
        config = self._config
        values = results.payload.values
        pe, final = Signal(config.pe_bits), Signal(config.pe_bits, reset_less=True)
        left = Signal(config.rows_bits)
        dumped = Signal()
        last_of_row = (pe == config.n_pes - 1) | ((left == 1) & (pe == final))
        last = (left == 1) & last_of_row

        out_ready = ~command.to_out | skid.i.ready
        taken = Signal()
        m.d.comb += [
            results.ready.eq(taken),
            feed.valid.eq(results.valid & command.to_feed & out_ready),
            taken.eq(results.valid & out_ready & (~command.to_feed | feed.ready)),
            feed.payload.values.eq(values), feed.payload.nonzero.eq(results.payload.nonzero),
            feed.payload.lane.eq(pe), feed.payload.last.eq(last_of_row),
            skid.i.valid.eq((taken & command.to_out) | dumped),
            skid.i.payload.data.eq(Mux(dumped, self.elementwise.dump_values.as_value(),
                                       values.as_value())),
            skid.i.payload.last.eq(last),
        ]

        # A beat is full when its last lane is, or with the last result.
        lane = Signal(range(config.input_lanes))
        group = Signal.like(self.o_beat.payload.group)
        act = Signal(config.act_addr_bits)
        full = (lane == config.input_lanes - 1) | last_of_row
        beat = self.o_beat.payload
        m.d.sync += self.o_beat.valid.eq(taken & full & command.to_act)
        finished = Signal()
        step = taken | (dumped & skid.i.ready)
        m.d.comb += finished.eq(step & last)
        with m.If(taken):
            with m.Switch(lane):
                for k in range(config.input_lanes):
                    with m.Case(k):
                        m.d.sync += beat.values[k].eq(values)
            m.d.sync += [beat.group.eq(group), beat.act.eq(act), lane.eq(lane + 1)]
            with m.If(full):
                m.d.sync += [lane.eq(0), group.eq(group + 1)]
        with m.If(step):
            m.d.sync += pe.eq(pe + 1)
            with m.If(last_of_row):
                m.d.sync += [pe.eq(0), group.eq(0), act.eq(act + 1), left.eq(left - 1)]
        with m.If(self.start):
            m.d.sync += [pe.eq(0), group.eq(0), lane.eq(0), act.eq(self.command.act),
                         left.eq(self.command.rows), final.eq(self.command.rem - 1)]
        return taken, finished, dumped
