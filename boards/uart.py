"""An 8N1 serial receiver and transmitter with stream interfaces."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

__all__ = ["UartReceiver", "UartTransmitter", "divisor"]

#: Bits on the line per byte: start, eight data bits (lowest first), stop.
FRAME_BITS = 10

#: Largest tolerated departure from the wanted rate. Half a bit over a frame is 5 %; the other
#: side's own departure needs the rest.
TOLERANCE = 0.02


def divisor(clock_hz: float, baud: int) -> int:
    """Clock cycles per bit.

    Raises
    ------
    ValueError
        A rate that no whole number of cycles meets within 2 %, or of fewer than 4 cycles per bit.
    """
    if clock_hz <= 0 or baud <= 0:
        raise ValueError(f"clock and baud must be positive, not {clock_hz!r} and {baud!r}")
    cycles = round(clock_hz / baud)
    if cycles < 4 or abs(clock_hz / cycles / baud - 1) > TOLERANCE:
        raise ValueError(
            f"{baud} baud cannot be made from a clock of {clock_hz / 1e6:g} MHz within "
            f"{TOLERANCE:.0%}; choose a lower rate or one that divides the clock")
    return cycles


def _check_divisor(value: int) -> None:
    if not isinstance(value, int) or value < 4:
        raise ValueError(f"divisor must be an integer of 4 or more, not {value!r}")


class UartReceiver(wiring.Component):
    """Serial receiver, eight data bits, no parity, one stop bit.

    A byte is offered on ``o`` half a bit before its frame ends and stays until it is taken; a byte
    that arrives while the one before it still waits is dropped and sets ``overrun`` for good. A
    byte whose stop bit is low is dropped. If all its bits were low as well the line is in a break,
    and ``is_break`` is high until the line rises.

    Latency: ``9 * divisor + divisor // 2 + 3`` cycles from the start bit's edge, 2 of them in the
    synchroniser.

    Parameters
    ----------
    divisor : int
        Clock cycles per bit, 4 or more.

    Members
    -------
    rx : ``In(1, init=1)``
        The line, asynchronous.
    o : ``Out(stream.Signature(8))``
    is_break : ``Out(1)``
    overrun : ``Out(1)``

    Raises
    ------
    ValueError
        A divisor out of range.
    """

    def __init__(self, divisor: int):
        _check_divisor(divisor)
        self._divisor = divisor
        super().__init__({
            "rx": In(1, init=1),
            "o": Out(stream.Signature(8)),
            "is_break": Out(1),
            "overrun": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        rx = Signal(init=1)
        m.submodules.sync = FFSynchronizer(self.rx, rx, init=1)

        timer = Signal(range(self._divisor))
        left = Signal(range(FRAME_BITS))
        shift = Signal(8)

        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.FSM():
            with m.State("Idle"):
                # Half a bit from here is the middle of the start bit.
                m.d.sync += [timer.eq(self._divisor // 2 - 1), left.eq(FRAME_BITS - 1)]
                with m.If(~rx):
                    m.next = "Frame"
            with m.State("Frame"):
                m.d.sync += timer.eq(timer - 1)
                with m.If(timer == 0):
                    m.d.sync += [timer.eq(self._divisor - 1), left.eq(left - 1)]
                    with m.If((left == FRAME_BITS - 1) & rx):
                        # Too short for a start bit: noise.
                        m.next = "Idle"
                    with m.Elif(left == 0):
                        with m.If(rx):
                            with m.If(self.o.valid & ~self.o.ready):
                                m.d.sync += self.overrun.eq(1)
                            with m.Else():
                                m.d.sync += [self.o.payload.eq(shift), self.o.valid.eq(1)]
                            m.next = "Idle"
                        with m.Else():
                            m.d.sync += self.is_break.eq(shift == 0)
                            m.next = "Recover"
                    with m.Else():
                        # The start bit passes through and out again.
                        m.d.sync += shift.eq(Cat(shift[1:], rx))
            with m.State("Recover"), m.If(rx):
                m.d.sync += self.is_break.eq(0)
                m.next = "Idle"
        return m


class UartTransmitter(wiring.Component):
    """Serial transmitter, eight data bits, no parity, one stop bit.

    Throughput: one byte every ``10 * divisor`` cycles; the next byte is accepted in the last cycle
    of a stop bit, so that a full stream leaves no gap.

    Parameters
    ----------
    divisor : int
        Clock cycles per bit, 4 or more.

    Members
    -------
    i : ``In(stream.Signature(8))``
    tx : ``Out(1, init=1)``
        The line, a register.

    Raises
    ------
    ValueError
        A divisor out of range.
    """

    def __init__(self, divisor: int):
        _check_divisor(divisor)
        self._divisor = divisor
        super().__init__({
            "i": In(stream.Signature(8)),
            "tx": Out(1, init=1),
        })

    def elaborate(self, platform):
        m = Module()
        timer = Signal(range(self._divisor))
        left = Signal(range(FRAME_BITS))
        # Bits that follow the one on the line, filled up with stop bits.
        shift = Signal(FRAME_BITS - 1, init=-1)

        done = Signal()
        m.d.comb += done.eq((timer == 0) & (left == 0))
        m.d.comb += self.i.ready.eq(done)
        with m.If(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Elif(left != 0):
            m.d.sync += [
                Cat(self.tx, shift).eq(Cat(shift, 1)),
                timer.eq(self._divisor - 1),
                left.eq(left - 1),
            ]
        with m.Elif(self.i.valid):
            m.d.sync += [
                Cat(self.tx, shift).eq(Cat(0, self.i.payload, 1)),
                timer.eq(self._divisor - 1),
                left.eq(FRAME_BITS - 1),
            ]
        return m
