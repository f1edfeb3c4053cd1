"""Columns in pairs: what a PE has no entries of shall cost it little."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config
from .layouts import Tag, slot_layout, start_layout

__all__ = ["PairColumns"]


class PairColumns(wiring.Component):
    """Puts two columns that follow each other into one slot of the activation queue.

    Where columns have no pointers, a PE sees each of them, also those of which it has no entry:
    four in ten of ESE's projection, with 8 rows to a PE. Of a pair it passes both in a cycle. An
    element waits for the next one, and a column goes on alone if no column follows it or if the
    queue is empty. Markers and fences always go alone.

    Latency: 1 cycle or more. Throughput: 1 element per cycle.

    Parameters
    ----------
    config
        Engine configuration with ``paired``.

    Members
    -------
    i : ``In(stream.Signature(start_layout(config), always_ready=True))``
    empty : ``In(1)``
        The queue is.
    o : ``Out(stream.Signature(slot_layout(config), always_ready=True))``
    waiting : ``Out(1)``
        An element is inside.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    def __init__(self, config: EngineConfig):
        checked_config(config)
        super().__init__({
            "i": In(stream.Signature(start_layout(config), always_ready=True)),
            "empty": In(1),
            "o": Out(stream.Signature(slot_layout(config), always_ready=True)),
            "waiting": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        held = Signal.like(self.i.payload, reset_less=True)
        is_column, column_follows, pair = Signal(), Signal(), Signal()
        slot = self.o.payload
        m.d.comb += [
            is_column.eq(held.tag == Tag.COLUMN),
            column_follows.eq(self.i.valid & (self.i.payload.tag == Tag.COLUMN)),
            pair.eq(self.waiting & is_column & column_follows),
            self.o.valid.eq(self.waiting & (self.i.valid | self.empty | ~is_column)),
            slot.tag.eq(held.tag), slot.values.eq(held.values),
            slot.second.eq(self.i.payload.values), slot.two.eq(pair),
        ]
        with m.If(self.i.valid):
            m.d.sync += [held.eq(self.i.payload), self.waiting.eq(~pair)]
        with m.Elif(self.o.valid):
            m.d.sync += self.waiting.eq(0)
        return m
