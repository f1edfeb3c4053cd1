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
from .protocol import SENT_BYTES, Identification
from .reset import HoldOff
from .uart import UartReceiver, UartTransmitter, divisor

__all__ = ["SerialEngine", "Top"]


class SerialEngine(wiring.Component):
    """An engine at a serial line.

    The user asserts `reset` while ``is_break`` is high, so that a host can start afresh whatever
    was under way. ``sync`` needs no reset.

    Parameters
    ----------
    config : EngineConfig
        Engine configuration.
    divisor : int
        Clock cycles per bit on the line.
    image : Image or None
        Compiled model for the memories to start with.
    identification : Identification or None
        What the board tells the host about itself: `Identification.of` the same `config` and
        `image`. ``None``: the engine, the model and the divisor only.
    sent_bytes : int
        Bytes kept until the host has acknowledged them, a power of two.

    Members
    -------
    reset : ``In(1)``
        Of the engine, see `Engine`.
    link_reset : ``In(1)``
        Of UART and link.
    rx : ``In(1, init=1)``, tx : ``Out(1, init=1)``
        The line.
    is_break : ``Out(1)``
        The line is in a break, or the host opens a session: assert `reset`. High for 16 cycles or
        more; the reset may come up to 8 cycles late.
    overrun : ``Out(1)``
        A byte came too early and was lost. The host sends it again.

    Raises
    ------
    ValueError
        Activations do not fit the link, or image or identification are for another configuration.
    """

    def __init__(self, config: EngineConfig, divisor: int, image: Image | None = None, *,
                 identification: Identification | None = None, sent_bytes: int = SENT_BYTES):
        self._divisor = divisor
        if identification is None:
            identification = Identification.of(config, image, divisor=divisor)
        self._link = Link(config, identification, sent_bytes=sent_bytes)
        self._engine = Engine(config, image)
        super().__init__({
            "reset": In(1), "link_reset": In(1),
            "rx": In(1, init=1),
            "tx": Out(1, init=1),
            "is_break": Out(1),
            "overrun": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        link, engine = self._link, self._engine
        m.submodules.link, m.submodules.engine = link, engine
        rx, tx = UartReceiver(self._divisor), UartTransmitter(self._divisor)
        m.submodules.rx = ResetInserter(self.link_reset)(rx)
        m.submodules.tx = ResetInserter(self.link_reset)(tx)
        m.d.comb += [
            engine.reset.eq(self.reset), link.reset.eq(self.link_reset),
            rx.rx.eq(self.rx), self.tx.eq(tx.tx), link.i_break.eq(rx.is_break),
            self.is_break.eq(link.restart), self.overrun.eq(rx.overrun),
        ]
        wiring.connect(m, rx.o, link.i_uart)
        wiring.connect(m, link.o_uart, tx.i)
        wiring.connect(m, link.o_host, engine.i_host)
        wiring.connect(m, engine.o_host, link.i_host)
        wiring.connect(m, link.o_act, engine.i_act)
        wiring.connect(m, engine.o_act, link.i_act)
        return m


class Top(Elaboratable):
    """What a board's device holds.

    The oscillator's clock goes through a PLL. The board's first light blinks while the engine's
    clock runs, the second tells that a byte was lost. Link and engine are reset until the PLL has
    locked and `openese.boards.reset.HOLD_OFF` cycles have passed, the engine also when the host
    starts afresh; memory contents stay.

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
    build
        Fingerprint of the bitstream that the board tells the host, 32 bits.
    baud
        Rate of the serial link, unless it is the board's.

    Attributes
    ----------
    config : EngineConfig
        That of the engine.
    pll : ClockSettings
        What the clock is made with; ``pll.output_hz`` is the clock that is really run.

    Raises
    ------
    ValueError
        The PLL cannot make the clock, or the serial rate does not divide it, or the engine's
        activations do not fit the link.
    """

    def __init__(self, config: EngineConfig, board: Board, target_mhz: float,
                 image: Image | None = None, build: int = 0, baud: int | None = None):
        self.config, self._board = config, board
        self.pll: ClockSettings = board.family.pll(board.platform().default_clk_frequency,
                                                   target_mhz * 1e6)
        cycles = divisor(self.pll.output_hz, board.baud if baud is None else baud)
        identification = Identification.of(
            config, image, board=board.name, preset=board.name if config == board.config else "",
            clock_hz=round(self.pll.output_hz), build=build, divisor=cycles,
            buffer_bytes=board.buffer_bytes)
        self._engine = SerialEngine(config, cycles, image, identification=identification,
                                    sent_bytes=board.sent_bytes)

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
        m.d.sync += count.eq(count + 1)
        with m.If(count == half - 1):
            m.d.sync += [count.eq(0), beat.eq(~beat)]
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

        m.domains.start = start = ClockDomain()
        m.domains.sync = sync = ClockDomain(reset_less=True)
        # Kept, or the net gets the name of one of its users and the constraint finds nothing.
        clock = Signal(attrs={"keep": 1})
        platform.add_clock_constraint(clock, self.pll.output_hz)
        m.submodules.start_reset = ResetSynchronizer(~pll.locked, domain="start")
        m.submodules.hold_off = hold_off = DomainRenamer("start")(HoldOff())
        m.d.comb += [
            clock.eq(pll.clk_out),
            start.clk.eq(clock), sync.clk.eq(clock),
            hold_off.restart.eq(restart),
            self._engine.link_reset.eq(hold_off.link), self._engine.reset.eq(hold_off.engine),
        ]
