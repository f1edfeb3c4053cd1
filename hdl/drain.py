"""Drain: gives the accumulators of one hidden unit after the other (recurrent engines)."""

from itertools import pairwise

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import DRAIN_LATENCY, EngineConfig

from .checks import checked_config
from .layouts import Kind, broadcast_signature

__all__ = ["Drain"]


class Drain(wiring.Component):
    """Asks for the accumulators of a unit at every token, and for any single one to clear it.

    A CELL message tells where the accumulators of a layer begin and how many a unit has. What is
    drained goes to the element-wise unit as it is: all that needs a bias, a shift or a
    saturation is there, once for all PEs (`PreActivations`). A WRITE message clears an
    accumulator.

    Latency: 2 cycles from a token to the request, ``DRAIN_LATENCY`` = 4 more to the value.
    Throughput: 1 accumulator per cycle; tokens are as far apart as a unit has accumulators.

    Parameters
    ----------
    config
        Engine configuration with an element-wise unit.

    Members
    -------
    i : ``In(broadcast_signature(config))``
    i_token, o_token : ``In(1)``, ``Out(1)``
        Drain the accumulators of the next unit; passed on to the next PE a cycle later.
    drain : ``Out(1)``, row : ``Out(acc_addr_bits)``
        Read and clear this accumulator.
    valid : ``Out(1)``
        The value comes that a token asked for.
    busy : ``Out(1)``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    LATENCY = DRAIN_LATENCY

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        super().__init__({
            "i": In(broadcast_signature(config)), "i_token": In(1), "o_token": Out(1),
            "drain": Out(1), "row": Out(config.acc_addr_bits),
            "valid": Out(1), "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        kind, command = self.i.payload.kind, self.i.payload.args.write
        clearing, active = Signal(), Signal()
        gates, left = Signal(2, reset_less=True), Signal(2)

        m.d.sync += [clearing.eq(0), active.eq(0), self.o_token.eq(self.i_token)]
        with m.If(active):
            m.d.sync += self.row.eq(self.row + 1)
        with m.If(left != 0):
            m.d.sync += [left.eq(left - 1), active.eq(1)]
        with m.If(self.i_token):
            m.d.sync += [left.eq(gates), active.eq(1)]
        with m.If(self.i.valid & ((kind == Kind.CELL) | (kind == Kind.WRITE))):
            m.d.sync += [self.row.eq(command.acc), clearing.eq(kind == Kind.WRITE)]
        with m.If(self.i.valid & (kind == Kind.CELL)):
            m.d.sync += gates.eq(command.gates)

        valid = [active] + [Signal(name=f"valid_{k}") for k in range(1, DRAIN_LATENCY + 1)]
        m.d.sync += [after.eq(before) for before, after in pairwise(valid)]
        m.d.comb += [
            self.drain.eq(active | clearing), self.valid.eq(valid[-1]),
            self.busy.eq(self.drain | Cat(valid).any()),
        ]
        return m
