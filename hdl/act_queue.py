"""Activation queue: columns waiting in front of a PE (EIE, section IV)."""

from amaranth import *
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config
from .layouts import start_layout
from .shift_queue import ShiftQueue
from .spram import is_ultraplus

__all__ = ["ActQueue"]


class ActQueue(wiring.Component):
    """A queue of columns to multiply, each its pointer and its activation; of recurrent engines
    also markers and fences.

    The pointer is read on the way in, so empty columns never take a slot. The queue cannot
    refuse a column: `almost_full` rises at ``queue_depth`` columns and the slots above that hold
    what is still on its way (`EngineConfig.queue_capacity`).

    Latency: 1 cycle. Throughput: 1 per cycle.

    On iCE40 UltraPlus, which has no LUT RAM, the words shift (`ShiftQueue`).

    Parameters
    ----------
    config
        Engine configuration.

    Members
    -------
    i : ``In(stream.Signature(start_layout(config), always_ready=True))``
    o : ``Out(stream.Signature(start_layout(config)))``
    almost_full : ``Out(1)``
        Combinational: ``queue_depth`` columns or more are waiting.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        layout = start_layout(config)
        super().__init__({
            "i": In(stream.Signature(layout, always_ready=True)),
            "o": Out(stream.Signature(layout)),
            "almost_full": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        depth = config.queue_capacity
        arrives, leaves = self.i.payload.as_value(), self.o.payload.as_value()
        if is_ultraplus(platform):
            m.submodules.fifo = queue = ShiftQueue(len(arrives), depth)
            room = ~queue.filled[-1]
            m.d.comb += [
                queue.i.valid.eq(self.i.valid), queue.i.payload.eq(arrives),
                self.o.valid.eq(queue.o.valid), leaves.eq(queue.o.payload),
                queue.o.ready.eq(self.o.ready),
                self.almost_full.eq(queue.filled[config.queue_depth - 1]),
            ]
        else:
            m.submodules.fifo = queue = fifo.SyncFIFO(width=len(arrives), depth=depth)
            room = queue.w_rdy
            m.d.comb += [
                queue.w_en.eq(self.i.valid), queue.w_data.eq(arrives),
                self.o.valid.eq(queue.r_rdy), leaves.eq(queue.r_data),
                queue.r_en.eq(self.o.ready),
                self.almost_full.eq(queue.level >= config.queue_depth),
            ]
        m.d.sync += Assert(~self.i.valid | room, "activation queue overflow")
        return m
