# amaranth: UnusedElaboratable=no
"""The top of a board: clock, reset, serial link and engine."""

from amaranth import *
from amaranth.build import Platform
from amaranth.lib import io, wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In, Out

from openese.hdl.engine import Engine
from openese.model.compile import Image
from openese.model.config import EngineConfig

from .family import ClockSettings
from .link import Link
from .platforms import Board
from .uart import UartReceiver, UartTransmitter, divisor

__all__ = ["HOLD_OFF", "HoldOff", "SerialEngine", "Top"]

#: Cycles from a steady clock to the first cycle of link and engine: 10 us at 100 MHz, where 3 us
#: are enough for the block RAM of iCE40.
HOLD_OFF = 1023


class SerialEngine(wiring.Component):
    """An engine at a serial line.

    The UART is in domain ``board``, link and engine are in domain ``sync``. Both have the same
    clock; the user resets ``sync`` while ``is_break`` is high, so that a host can start afresh
    whatever was under way.

    Parameters
    ----------
    config : EngineConfig
        Engine configuration.
    divisor : int
        Clock cycles per bit on the line.
    image : Image or None
        Compiled model for the memories to start with.

    Members
    -------
    rx : ``In(1, init=1)``, tx : ``Out(1, init=1)``
        The line.
    is_break : ``Out(1)``
        The line is in a break.
    overrun : ``Out(1)``
        A byte came too early and was lost: the host sent without credit.

    Raises
    ------
    ValueError
        Activations do not fit the link, or the image is for another configuration.
    """

    def __init__(self, config: EngineConfig, divisor: int, image: Image | None = None):
        self._divisor = divisor
        self._link = Link(config)
        self._engine = Engine(config, image)
        super().__init__({
            "rx": In(1, init=1),
            "tx": Out(1, init=1),
            "is_break": Out(1),
            "overrun": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.link, m.submodules.engine = link, engine = self._link, self._engine
        m.submodules.rx = rx = DomainRenamer("board")(UartReceiver(self._divisor))
        m.submodules.tx = tx = DomainRenamer("board")(UartTransmitter(self._divisor))
        m.d.comb += [
            rx.rx.eq(self.rx), self.tx.eq(tx.tx),
            self.is_break.eq(rx.is_break), self.overrun.eq(rx.overrun),
        ]
        wiring.connect(m, rx.o, link.i_uart)
        wiring.connect(m, link.o_uart, tx.i)
        wiring.connect(m, link.o_host, engine.i_host)
        wiring.connect(m, engine.o_host, link.i_host)
        wiring.connect(m, link.o_act, engine.i_act)
        wiring.connect(m, engine.o_act, link.i_act)
        return m


class HoldOff(wiring.Component):
    """The reset of link and engine: high for a time after power-up, and while it is asked for.

    Block RAM of iCE40 reads zeros for the first microseconds after configuration, whatever it
    holds, and a PLL's first cycles may be short. Nothing reads a memory before they are over.

    Latency: `reset` falls `HOLD_OFF` + 1 cycles after the reset of the domain, and follows
    `restart` a cycle later.

    Members
    -------
    restart : ``In(1)``
    reset : ``Out(1, init=1)``
    """

    restart: In(1)
    reset: Out(1, init=1)

    def elaborate(self, platform):
        m = Module()
        left = Signal(range(HOLD_OFF + 1), init=HOLD_OFF)
        m.d.sync += self.reset.eq(self.restart | (left != 0))
        with m.If(left != 0):
            m.d.sync += left.eq(left - 1)
        return m


class Top(Elaboratable):
    """What a board's device holds.

    The oscillator's clock goes through a PLL. The board's first light blinks while the engine's
    clock runs, the second tells that a byte was lost. Link and engine are reset until the PLL has
    locked and `HOLD_OFF` cycles have passed, and by a break on the serial line; memory contents
    stay.

    Parameters
    ----------
    config
        Engine configuration.
    board
        The board.
    target_mhz
        Wanted clock of the engine.
    image
        Compiled model for the memories to start with, or ``None``.

    Attributes
    ----------
    pll : ClockSettings
        What the clock is made with; ``pll.output_hz`` is the clock that is really run.

    Raises
    ------
    ValueError
        The PLL cannot make the clock, or the serial rate does not divide it, or the engine's
        activations do not fit the link.
    """

    def __init__(self, config: EngineConfig, board: Board, target_mhz: float,
                 image: Image | None = None):
        self._board = board
        self.pll: ClockSettings = board.family.pll(board.platform().default_clk_frequency,
                                                   target_mhz * 1e6)
        self._engine = SerialEngine(config, divisor(self.pll.output_hz, board.baud), image)

    def elaborate(self, platform: Platform):
        m = Module()
        m.submodules.serial = engine = self._engine
        self._clocks(m, platform, engine.is_break)

        uart = platform.request("uart", self._board.uart, dir="-")
        m.submodules.rx_pin = rx_pin = io.Buffer("i", uart.rx)
        m.submodules.tx_pin = tx_pin = io.Buffer("o", uart.tx)
        m.d.comb += [engine.rx.eq(rx_pin.i), tx_pin.o.eq(engine.tx)]

        # Half a second on, half a second off.
        half = round(self.pll.output_hz / 2)
        count, beat = Signal(range(half)), Signal()
        m.d.board += count.eq(count + 1)
        with m.If(count == half - 1):
            m.d.board += [count.eq(0), beat.eq(~beat)]
        self._lights(m, platform, (beat, engine.overrun))
        return m

    def _lights(self, m: Module, platform: Platform, states: tuple[Value, ...]) -> None:
        """Show states at the board's lights, as many as it has; other colours of them are dark."""
        shown = dict(zip(self._board.lights, states, strict=False))
        for name, number in dict.fromkeys((name, number) for name, number, _ in shown):
            port = platform.request(name, number, dir="-")
            colours = {None: port} if isinstance(port, io.PortLike) else {
                colour: getattr(port, colour) for colour in ("r", "g", "b")}
            for colour, pad in colours.items():
                light = io.Buffer("o", pad)
                m.submodules[f"{name}_{number}{'_' + colour if colour else ''}"] = light
                m.d.comb += light.o.eq(shown.get((name, number, colour), 0))

    def _clocks(self, m: Module, platform: Platform, restart: Value) -> None:
        """Drive both domains from the oscillator through the PLL."""
        pin = platform.request(platform.default_clk, dir="-")
        m.submodules.pll = pll = self.pll.component(pin)

        m.domains.board = board = ClockDomain()
        m.domains.sync = sync = ClockDomain()
        # Kept, or the net gets the name of one of its users and the constraint finds nothing.
        clock = Signal(attrs={"keep": 1})
        platform.add_clock_constraint(clock, self.pll.output_hz)
        m.submodules.board_reset = ResetSynchronizer(~pll.locked, domain="board")
        m.submodules.hold_off = hold_off = DomainRenamer("board")(HoldOff())
        m.d.comb += [
            clock.eq(pll.clk_out), board.clk.eq(clock), sync.clk.eq(clock),
            hold_off.restart.eq(restart), sync.rst.eq(hold_off.reset),
        ]
