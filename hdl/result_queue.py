"""Result queue: units of a recurrent layer waiting for their destinations."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config
from .layouts import values_layout
from .ram_style import lut_ram

__all__ = ["ResultQueue", "result_layout"]


def result_layout(config: EngineConfig) -> data.StructLayout:
    """A value of each channel, and whether any is not zero: memory answers late in a cycle, so
    that is found out in front of it."""
    return data.StructLayout({"values": values_layout(config), "nonzero": 1})


class ResultQueue(wiring.Component):
    """A queue with a register behind its memory, which is deep and wide.

    The memory of one channel is LUT RAM, that of several is block RAM
    (`EngineConfig.results_in_block_ram`). Who fills it knows that there is room for
    ``results_depth`` results.

    Latency: 2 cycles. Throughput: 1 per cycle.

    Parameters
    ----------
    config
        Engine configuration.

    Members
    -------
    i : ``In(stream.Signature(result_layout(config), always_ready=True))``
    o : ``Out(stream.Signature(result_layout(config)))``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    #: From a result coming in to it being offered.
    LATENCY = 2

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        super().__init__({
            "i": In(stream.Signature(result_layout(config), always_ready=True)),
            "o": Out(stream.Signature(result_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.storage = storage = memory.Memory(
            shape=result_layout(config), depth=config.results_depth, init=[],
            attrs={} if config.results_in_block_ram else lut_ram(platform))
        write_port, read_port = storage.write_port(), storage.read_port()

        # A bit more than an address has tells a full memory from an empty one.
        written = Signal(range(2 * config.results_depth))
        read = Signal.like(written)
        waits, full = Signal(), Signal()
        m.d.comb += [
            waits.eq(written != read),
            full.eq(written - read == config.results_depth),
            write_port.en.eq(self.i.valid), write_port.addr.eq(written),
            write_port.data.eq(self.i.payload),
            read_port.en.eq(waits & (~self.o.valid | self.o.ready)), read_port.addr.eq(read),
            self.o.payload.eq(read_port.data),
        ]
        with m.If(self.i.valid):
            m.d.sync += written.eq(written + 1)
        with m.If(read_port.en):
            m.d.sync += read.eq(read + 1)
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += self.o.valid.eq(waits)
        m.d.sync += Assert(~self.i.valid | ~full, "a result had no room")
        return m
