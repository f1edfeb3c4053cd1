"""Gather: brings the PEs' accumulators to the element-wise unit, a unit per cycle."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config
from .fan import ARITY
from .layouts import values_layout

__all__ = ["GatherTree", "gate_layout", "sum_layout"]


def gate_layout(config: EngineConfig) -> data.StructLayout:
    """A pre-activation of every channel on its way to the element-wise unit."""
    return data.StructLayout({"values": values_layout(config), "valid": 1})


def sum_layout(config: EngineConfig) -> data.StructLayout:
    """What a PE has accumulated for a pre-activation of every channel."""
    return data.StructLayout({
        "values": data.ArrayLayout(signed(config.acc_bits), config.channels), "valid": 1})


class GatherTree(wiring.Component):
    """Joins what the PEs give into ``gate_lanes`` lanes; PE ``p`` has lane ``p mod gate_lanes``.

    A PE takes four cycles for the gates of a unit and the next PE starts a cycle later, so four
    lanes carry a unit per cycle. PEs of a lane never give a value in the same cycle: the
    distance of tokens sees to that. With ``serial_cells`` there is one lane.

    Latency: ``config.fan_levels`` cycles. Throughput: a value per lane and cycle.

    Parameters
    ----------
    config
        Engine configuration.

    Members
    -------
    i : ``In(sum_layout(config)).array(n_pes)``
    o : ``Out(sum_layout(config)).array(gate_lanes)``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        super().__init__({
            "i": In(sum_layout(config)).array(config.n_pes),
            "o": Out(sum_layout(config)).array(config.gate_lanes),
        })

    def elaborate(self, platform):
        m = Module()
        layout, count = sum_layout(self._config), self._config.gate_lanes
        # A node joins eight neighbours, lane by lane; idle inputs count as zero.
        nodes = [[[self.i[p]] if p % count == lane else [] for lane in range(count)]
                 for p in range(self._config.n_pes)]
        for level in range(self._config.fan_levels):
            joined = []
            for first in range(0, len(nodes), ARITY):
                group = nodes[first:first + ARITY]
                lanes = []
                for lane in range(count):
                    inputs = [item for node in group for item in node[lane]]
                    if not inputs:
                        lanes.append([])
                        continue
                    out = Signal(layout, name=f"lane_{level}_{first}_{lane}")
                    values = Const(0)
                    for item in inputs:
                        values = values | Mux(item.valid, item.values.as_value(), 0)
                    valid = Cat(item.valid for item in inputs).any()
                    m.d.sync += [out.values.as_value().eq(values), out.valid.eq(valid)]
                    lanes.append([out])
                joined.append(lanes)
            nodes = joined
        for lane in range(count):
            for out in nodes[0][lane]:
                m.d.comb += self.o[lane].eq(out)
        return m
