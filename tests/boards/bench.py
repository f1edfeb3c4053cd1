"""Link and engine in a simulator, and a host's end that exchanges bytes with them."""

import numpy as np
from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.boards.host import HostEnd
from openese.boards.link import Link
from openese.hdl.engine import Engine
from openese.sim.simulation import Simulation


class LinkBench(wiring.Component):
    """A link with its engine, at the bytes of the line; the reset comes late, as on a board."""

    i: In(stream.Signature(8))
    o: Out(stream.Signature(8))
    line_break: In(1)

    def __init__(self, config, image=None, **options):
        self._link = Link(config, **options)
        self._engine = Engine(config, image)
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        link, engine = self._link, self._engine
        restart = Signal(8, init=-1)
        m.d.sync += restart.eq(Cat(link.restart, restart))
        m.submodules.link = link
        m.submodules.engine = ResetInserter(restart[-1])(engine)
        wiring.connect(m, wiring.flipped(self.i), link.i_uart)
        wiring.connect(m, link.o_uart, wiring.flipped(self.o))
        wiring.connect(m, link.o_host, engine.i_host)
        wiring.connect(m, engine.o_host, link.i_host)
        wiring.connect(m, link.o_act, engine.i_act)
        wiring.connect(m, engine.o_act, link.i_act)
        m.d.comb += link.i_break.eq(self.line_break)
        return m


class Line:
    """A simulated board and the host's end of its link; time is counted in cycles.

    ``fault``, called with bytes and "to_board" or "to_host", gives what passes instead.
    """

    #: Cycles a second: the clock of a board, so that times are those of a real line.
    CLOCK = 1e6

    def __init__(self, component, backend="cxxrtl", fault=None, **host):
        self.simulation = Simulation(component, backend)
        self.fault = fault or (lambda data, direction: data)
        self.cycles = 0
        self._host = host
        self.end = None

    @property
    def now(self):
        return self.cycles / self.CLOCK

    def open(self, session=1):
        self.end = HostEnd(session, self.now, **self._host)
        self.run(lambda: self.end.identification is not None)

    def exchange(self, data, extra=500):
        """Send bytes, go on for `extra` cycles; what came back."""
        result = self.simulation.run({"i": np.frombuffer(data, np.uint8)}, {"o": None},
                                     extra_cycles=extra)
        self.cycles += result.cycles
        return result.outputs["o"].astype(np.uint8).tobytes()

    def step(self, waiting=True):
        data = self.fault(self.end.outgoing(self.now, waiting), "to_board")
        data = self.fault(self.exchange(data), "to_host")
        self.end.incoming(data, self.now)

    def run(self, done, limit=100_000):
        for _ in range(limit):
            if done():
                return
            self.step()
        raise TimeoutError("not done")
