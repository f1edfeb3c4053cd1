"""Activation queue: columns waiting in front of a PE (EIE, section IV)."""

from amaranth import *
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config
from .layouts import start_layout

__all__ = ["ActQueue"]


class ActQueue(wiring.Component):
    """A queue of columns to multiply, each its pointer and its activation.

    The pointer is read on the way in, so empty columns never take a slot. The queue cannot
    refuse a column: `almost_full` rises at ``queue_depth`` columns and the slots above that hold
    what is still on its way (`EngineConfig.queue_capacity`).

    Latency: 1 cycle. Throughput: 1 per cycle.

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
        width = Shape.cast(start_layout(self._config)).width
        m.submodules.fifo = queue = fifo.SyncFIFO(
            width=width, depth=self._config.queue_capacity)
        m.d.comb += [
            queue.w_en.eq(self.i.valid),
            queue.w_data.eq(self.i.payload.as_value()),
            self.o.valid.eq(queue.r_rdy),
            self.o.payload.as_value().eq(queue.r_data),
            queue.r_en.eq(self.o.ready),
            self.almost_full.eq(queue.level >= self._config.queue_depth),
        ]
        m.d.sync += Assert(~queue.w_en | queue.w_rdy, "activation queue overflow")
        return m
