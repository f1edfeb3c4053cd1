# amaranth: UnusedElaboratable=no
"""A board that is simulated to its serial pins, behind a pseudo-terminal.

A host program opens the terminal's path as it would a board's port, and has no means to tell the
two apart: every bit of every byte passes the pins of the board's serial engine.
"""

import errno
import os
import select
import threading
import tty
from collections.abc import Callable

import numpy as np
from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.compile import Image
from openese.model.config import EngineConfig
from openese.sim.simulate import choose_backend
from openese.sim.simulation import Simulation

from .protocol import Identification
from .reset import HOLD_OFF, HoldOff
from .top import SerialEngine
from .uart import FRAME_BITS, UartReceiver, UartTransmitter

__all__ = ["DIVISOR", "SerialBench", "SimulatedBoard"]

#: Clock cycles per bit: the fewest, for speed.
DIVISOR = 4

#: Bytes given to the line at a time: few, so that an answer is on its way soon.
_CHUNK_BYTES = 64

#: Clock cycles at a time while nothing comes from the host.
_CHUNK_CYCLES = 2048

#: Where a load may be longer, the design is flattened: three times as long to compile, and three
#: times as fast.
_QUICK_BYTES = 1 << 14

#: What an operating system keeps of a port nobody reads; what comes after it is lost.
_UNREAD_BYTES = 1 << 16


class SerialBench(wiring.Component):
    """A board's serial engine, its pins joined to a serial line of the host.

    Parameters
    ----------
    engine : SerialEngine
        What is on the board.
    divisor : int
        Clock cycles per bit on the host's side.

    Members
    -------
    i, o : ``In/Out(stream.Signature(8))``
        Bytes from the host, and to it.
    hold : ``In(1)``
        Holds the line to the board low: a break.
    overrun : ``Out(1)``
        The board has lost a byte, or the host has.
    """

    def __init__(self, engine: SerialEngine, divisor: int):
        self._engine = engine
        self._divisor = divisor
        super().__init__({
            "i": In(stream.Signature(8)),
            "o": Out(stream.Signature(8)),
            "hold": In(1),
            "overrun": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        engine = self._engine
        m.submodules.tx = tx = UartTransmitter(self._divisor)
        m.submodules.rx = rx = UartReceiver(self._divisor)
        # As in `openese.boards.top.Top`: link and engine are reset apart from each other.
        m.submodules.hold_off = hold_off = HoldOff()
        m.submodules.board = engine
        m.d.comb += [
            engine.reset.eq(hold_off.engine), engine.link_reset.eq(hold_off.link),
            hold_off.restart.eq(engine.is_break),
            engine.rx.eq(tx.tx & ~self.hold), rx.rx.eq(engine.tx),
            self.overrun.eq(engine.overrun | rx.overrun),
        ]
        wiring.connect(m, wiring.flipped(self.i), tx.i)
        wiring.connect(m, rx.o, wiring.flipped(self.o))
        return m


class SimulatedBoard:
    """A board in a simulator, at a pseudo-terminal; a context manager.

    A thread runs the simulation as fast as it can while bytes are under way or the engine may be
    at work, and sleeps otherwise. The board keeps its state when a host closes the port. Needs an
    operating system that has pseudo-terminals.

    Parameters
    ----------
    model
        A compiled model that is in the memories at power-up, or the configuration of an engine
        without one.
    divisor
        Clock cycles per bit, 4 or more: the fewer, the faster.
    identification
        What the board tells the host about itself. ``None``: the engine, the model, and
        "simulated" for its name.
    backend
        ``"cxxrtl"``, ``"amaranth"``, ``"verilator"``, or ``"auto"``: CXXRTL where there is a C++
        compiler, else Amaranth's simulator.
    fault
        Called with bytes that are about to pass and ``"to_board"`` or ``"to_host"``; what it
        returns passes instead. Runs in the thread.

    Attributes
    ----------
    port : str
        Path of the terminal.
    cycles : int
        Clock cycles simulated.
    bytes_in, bytes_out : int
        Bytes that the board was sent and has sent, faults included.
    overrun : bool
        A byte was lost because its receiver had no room.

    Raises
    ------
    ValueError
        A divisor or an engine that the serial line does not do, an unknown backend.
    """

    def __init__(self, model: Image | EngineConfig, *, divisor: int = DIVISOR,
                 identification: Identification | None = None, backend: str = "auto",
                 fault: Callable[[bytes, str], bytes] | None = None):
        image = model if isinstance(model, Image) else None
        config = model if image is None else model.config
        if identification is None:
            identification = Identification.of(config, image, board="simulated", divisor=divisor)
        backend = choose_backend(backend)
        options = {}
        if backend == "cxxrtl" and 4 * config.n_pes * config.spmat_depth > _QUICK_BYTES:
            options = {"flatten": True, "optimise": 3}
        engine = SerialEngine(config, divisor, image, identification=identification)
        self._simulation = Simulation(SerialBench(engine, divisor), backend, **options)
        self._fault = fault or (lambda data, direction: data)
        self._byte_cycles = FRAME_BITS * divisor
        # An engine that says nothing for longer is taken to wait: a pass reads every entry once,
        # all PEs at a time, and goes through all activations and units. Should it not, the host
        # asks in the end what is the matter, which wakes the board.
        self._longest = 20_000 + 4 * (config.spmat_depth + config.n_pes * config.act_depth) + (
            256 * config.state_depth)
        self.cycles = self.bytes_in = self.bytes_out = 0
        self.overrun = False
        self._error: BaseException | None = None
        self._closing = False
        self._break, self._break_done = threading.Event(), threading.Event()
        # The board's end of the terminal, and the host's, kept open so that it outlives a host.
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.port = os.ttyname(self._slave)
        self._wake_read, self._wake_write = os.pipe()
        # Power came on a while ago: the first byte shall find the board ready.
        self._simulate(b"", HOLD_OFF + _CHUNK_CYCLES)
        self._thread = threading.Thread(target=self._run, name="simulated board", daemon=True)
        self._thread.start()

    def __enter__(self) -> "SimulatedBoard":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def restart(self) -> None:
        """A break on the line, which a pseudo-terminal does not carry: link and engine start
        afresh, memories keep their contents. Returns when the line is idle again.
        """
        self._break_done.clear()
        self._break.set()
        os.write(self._wake_write, b"b")
        while not self._break_done.wait(0.1):
            if not self._thread.is_alive():
                raise RuntimeError("the simulated board has stopped")

    def close(self) -> None:
        """Switch the board off; raises what went wrong in the simulation."""
        if self._closing:
            return
        self._closing = True
        os.write(self._wake_write, b"c")
        self._thread.join()
        self._simulation.close()
        for end in (self._master, self._slave, self._wake_read, self._wake_write):
            os.close(end)
        if self._error is not None:
            raise self._error

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._error = error

    def _serve(self) -> None:
        incoming, outgoing = bytearray(), bytearray()
        quiet = 0
        while not self._closing:
            asleep = quiet >= self._longest and not incoming and not self._break.is_set()
            readable, writable, _ = select.select(
                [self._master, self._wake_read], [self._master] if outgoing else [], [],
                None if asleep else 0)
            if self._wake_read in readable:
                os.read(self._wake_read, 64)
            if writable:
                del outgoing[:self._write(outgoing)]
            if self._master in readable and len(incoming) < _CHUNK_BYTES:
                received = os.read(self._master, 4096)
                incoming += self._fault(received, "to_board")
            if self._break.is_set():
                self._simulate(b"", 20 * self._byte_cycles, hold=1)
                self._simulate(b"", 2 * self._byte_cycles, hold=0)
                incoming.clear()
                quiet = 0
                self._break.clear()
                self._break_done.set()
            if asleep and not incoming:
                continue
            chunk = bytes(incoming[:_CHUNK_BYTES])
            del incoming[:_CHUNK_BYTES]
            before = self.cycles
            sent = self._simulate(chunk, 0 if incoming else _CHUNK_CYCLES)
            quiet = 0 if chunk or sent else quiet + self.cycles - before
            outgoing += self._fault(sent, "to_host") if sent else b""
            del outgoing[_UNREAD_BYTES:]

    def _simulate(self, data: bytes, extra: int, **settings: int) -> bytes:
        """Send bytes to the board, go on for `extra` cycles; what the board sent meanwhile."""
        result = self._simulation.run(
            {"i": np.frombuffer(data, np.uint8)}, {"o": None}, settings=settings,
            signals=["overrun"], extra_cycles=extra)
        sent = result.outputs["o"].astype(np.uint8).tobytes()
        self.cycles += result.cycles
        self.bytes_in += len(data)
        self.bytes_out += len(sent)
        self.overrun |= bool(result.signals["overrun"][-1])
        return sent

    def _write(self, data: bytearray) -> int:
        """Bytes that the terminal took."""
        try:
            return os.write(self._master, data)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            return 0
