"""The reset after power-up."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["HOLD_OFF", "HoldOff"]

#: Cycles from a steady clock to the first cycle of the link: 10 us at 100 MHz. Block RAM of iCE40
#: was seen to be ready after some 40 cycles of 12 MHz, and later at faster clocks.
HOLD_OFF = 1023


class HoldOff(wiring.Component):
    """Resets of the link and of the engine: for a time after power-up, the engine's on demand too.

    Block RAM of iCE40 reads zeros for the first microseconds after configuration, whatever it
    holds, and a PLL's first cycles may be short. Nothing reads a memory before they are over.

    Latency: both fall `HOLD_OFF` + 1 cycles after the reset of the domain; `engine` follows
    `restart` a cycle later.

    Members
    -------
    restart : ``In(1)``
    link : ``Out(1, init=1)``
    engine : ``Out(1, init=1)``
    """

    restart: In(1)
    link: Out(1, init=1)
    engine: Out(1, init=1)

    def elaborate(self, platform):
        m = Module()
        left = Signal(range(HOLD_OFF + 1), init=HOLD_OFF)
        held = left != 0
        m.d.sync += [self.link.eq(held), self.engine.eq(held | self.restart)]
        with m.If(held):
            m.d.sync += left.eq(left - 1)
        return m
