"""Activation queue: columns waiting in front of a PE (EIE, section IV)."""

from amaranth import *
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config
from .layouts import slot_layout, start_layout
from .pair_columns import PairColumns
from .shift_queue import ShiftQueue
from .spram import is_ultraplus

__all__ = ["ActQueue"]


class ActQueue(wiring.Component):
    """A queue of columns to multiply, each its pointer and its activation; of recurrent engines
    also markers and fences.

    The pointer is read on the way in, so empty columns never take a slot. The queue cannot
    refuse a column: `almost_full` rises at ``queue_depth`` slots and those above that hold what is
    still on its way (`EngineConfig.queue_capacity`).

    Latency: 1 cycle; with ``paired`` 3, of which one is in `PairColumns`, which counts as a slot,
    and one in a register at the head, which does not. Throughput: 1 per cycle.

    On iCE40 UltraPlus, which has no LUT RAM, the words shift (`ShiftQueue`).

    Parameters
    ----------
    config
        Engine configuration.

    Members
    -------
    i : ``In(stream.Signature(start_layout(config), always_ready=True))``
    o : ``Out(stream.Signature(slot_layout(config)))``
    almost_full : ``Out(1)``
        Combinational: ``queue_depth`` slots or more are taken.
    waiting : ``Out(1)``
        Combinational: one or more is.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        super().__init__({
            "i": In(stream.Signature(start_layout(config), always_ready=True)),
            "o": Out(stream.Signature(slot_layout(config))),
            "almost_full": Out(1), "waiting": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        arrives, take = self.i, Signal()
        if config.paired:
            m.submodules.pair_columns = pair_columns = PairColumns(config)
            wiring.connect(m, wiring.flipped(self.i), pair_columns.i)
            arrives = pair_columns.o
        valid, slot, filled = self._slots(m, platform, arrives.valid, arrives.payload, take)
        leaves = self.o.payload.as_value()
        if config.paired:
            # LUT RAM answers within a cycle, but there is none left behind it.
            with m.If(take):
                m.d.sync += [self.o.valid.eq(valid), leaves.eq(slot)]
            m.d.comb += [
                take.eq(~self.o.valid | self.o.ready), pair_columns.empty.eq(~valid),
                self.almost_full.eq(filled[config.queue_depth - 1] | (
                    pair_columns.waiting & filled[config.queue_depth - 2])),
                self.waiting.eq(self.o.valid | valid | pair_columns.waiting),
            ]
        else:
            m.d.comb += [
                self.o.valid.eq(valid), leaves.eq(slot), take.eq(self.o.ready),
                self.almost_full.eq(filled[config.queue_depth - 1]), self.waiting.eq(valid),
            ]
        return m

    def _slots(self, m: Module, platform: object, put: Value, slot: data.View, take: Value
               ) -> tuple[Value, Value, list[Value]]:
        """The slots: whether there is a first one, and what is in it; and whether more than so
        many are taken."""
        depth = self._config.queue_capacity
        if is_ultraplus(platform):
            m.submodules.fifo = queue = ShiftQueue(len(slot.as_value()), depth)
            room, first = ~queue.filled[-1], (queue.o.valid, queue.o.payload)
            m.d.comb += [queue.i.valid.eq(put), queue.i.payload.eq(slot), queue.o.ready.eq(take)]
            filled = list(queue.filled)
        else:
            m.submodules.fifo = queue = fifo.SyncFIFO(width=len(slot.as_value()), depth=depth)
            room, first = queue.w_rdy, (queue.r_rdy, queue.r_data)
            m.d.comb += [queue.w_en.eq(put), queue.w_data.eq(slot), queue.r_en.eq(take)]
            filled = [queue.level > count for count in range(depth)]
        m.d.sync += Assert(~put | room, "activation queue overflow")
        return *first, filled
