"""Units: collects the gates of one hidden unit after the other from the gather tree's lanes."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import GATE_LANES, EngineConfig

from .checks import checked_config
from .gather import gate_layout
from .layouts import values_layout

__all__ = ["Units", "gates_layout"]


def gates_layout(config: EngineConfig) -> data.ArrayLayout:
    """The pre-activations of a unit: four of every channel."""
    return data.ArrayLayout(data.ArrayLayout(signed(config.act_bits), GATE_LANES), config.channels)


class Units(wiring.Component):
    """Four lanes in which gates come one after the other, to whole units in order.

    Latency: 1 cycle from a unit's last gate. Throughput: 1 unit per cycle.

    Parameters
    ----------
    config
        Engine configuration.

    Members
    -------
    i : ``In(gate_layout(config)).array(4)``
    four : ``In(1)``
        A unit has four gates, else one; steady while gates arrive.
    clear : ``In(1)``
        The next unit is that of PE 0.
    o_valid : ``Out(1)``, o_gates : ``Out(gates_layout(config))``
    o_pe : ``Out(pe_bits)``
        The PE that it comes from.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        super().__init__({
            "i": In(gate_layout(config)).array(GATE_LANES), "four": In(1), "clear": In(1),
            "o_valid": Out(1), "o_gates": Out(gates_layout(config)), "o_pe": Out(config.pe_bits),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        lane = Signal(range(GATE_LANES))
        pe = Signal(config.pe_bits)
        complete = Signal(GATE_LANES)
        arrived = Signal(data.ArrayLayout(gates_layout(config), GATE_LANES))
        for k, port in enumerate(self.i):
            before = [Signal(values_layout(config), reset_less=True, name=f"before_{k}_{age}")
                      for age in range(GATE_LANES - 1)]
            count = Signal(range(GATE_LANES), name=f"count_{k}")
            m.d.comb += complete[k].eq(port.valid & (~self.four | (count == GATE_LANES - 1)))
            with m.If(port.valid):
                m.d.sync += [
                    count.eq(Mux(self.four, count + 1, 0)), before[0].eq(port.values),
                    before[1].eq(before[0]), before[2].eq(before[1]),
                ]
            for c in range(config.channels):
                gates = arrived[k][c]
                m.d.comb += [
                    gates[0].eq(Mux(self.four, before[2][c], port.values[c])),
                    gates[1].eq(before[1][c]), gates[2].eq(before[0][c]),
                    gates[3].eq(port.values[c]),
                ]

        gates = Signal(gates_layout(config), reset_less=True)
        with m.Switch(lane):
            for k in range(GATE_LANES):
                with m.Case(k):
                    m.d.sync += gates.eq(arrived[k])
        m.d.sync += [
            self.o_valid.eq(complete.any()), self.o_pe.eq(pe),
            Assert(complete == Mux(complete.any(), 1 << lane, 0), "a unit came out of order"),
        ]
        m.d.comb += self.o_gates.eq(gates)
        with m.If(complete.any()):
            m.d.sync += [lane.eq(lane + 1), pe.eq(pe + 1)]
            with m.If(pe == config.n_pes - 1):
                m.d.sync += [lane.eq(0), pe.eq(0)]
        with m.If(self.clear):
            m.d.sync += [lane.eq(0), pe.eq(0)]
        return m
