"""Link and engine in a simulator, a host's end that exchanges bytes with them, and a small model
to run."""

from dataclasses import dataclass, field

import numpy as np
from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.boards.host import HostEnd, pack_beats
from openese.boards.link import Link
from openese.boards.protocol import Identification, beat_bytes
from openese.hdl.engine import Engine
from openese.model.compile import Image, compile_network, size_for
from openese.model.host import MAGIC, Register, load_words, pack_inputs, read, start
from openese.model.network import CompressedNetwork
from openese.model.quantise import QuantisedNetwork, quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import Reference, run_reference
from openese.sim.simulation import Simulation


class LinkBench(wiring.Component):
    """A link with its engine, at the bytes of the line. The engine's reset comes 8 cycles late, as
    late as a board's may."""

    i: In(stream.Signature(8))
    o: Out(stream.Signature(8))
    line_break: In(1)

    def __init__(self, config, image=None, **options):
        self._link = Link(config, **options)
        self._engine = Engine(config, image)
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.link = link = self._link
        engine = self._engine
        restart = Signal(8, init=-1)
        m.d.sync += restart.eq(Cat(link.restart, restart))
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
    """A simulated board and the host's end of its link; time is counted in cycles, a million a
    second.

    ``fault``, called with bytes and "to_board" or "to_host", gives what passes instead. `host` are
    arguments of `HostEnd`.
    """

    def __init__(self, component, backend="cxxrtl", fault=None, host=None, **options):
        self.simulation = Simulation(component, backend, **options)
        self.fault = fault or (lambda data, direction: data)
        self.cycles = 0
        self._host = host or {}
        self.end = None

    @property
    def now(self):
        return self.cycles / 1e6

    def open(self, session=1):
        self.end = HostEnd(session, self.now, **self._host)
        self.run(lambda end: end.identification is not None)

    def exchange(self, data, extra=500, **settings):
        """Send bytes, go on for `extra` cycles; what came back."""
        result = self.simulation.run({"i": np.frombuffer(data, np.uint8)}, {"o": None},
                                     extra_cycles=extra, settings=settings)
        self.cycles += result.cycles
        return result.outputs["o"].astype(np.uint8).tobytes()

    def step(self):
        data = self.fault(self.end.outgoing(self.now), "to_board")
        data = self.fault(self.exchange(data), "to_host")
        self.end.incoming(data, self.now)

    def run(self, done, limit=20_000):
        for _ in range(limit):
            if done(self.end):
                return
            self.step()
        raise TimeoutError("not done")


@dataclass
class Model:
    """A small network and the engine for it."""

    seed: int = 3
    network: CompressedNetwork = field(init=False)
    quantised: QuantisedNetwork = field(init=False)
    image: Image = field(init=False)

    def __post_init__(self):
        self.network = random_network(self.seed, [24, 16, 12], 0.4)
        self.config = size_for(self.network, 4, input_lanes=2, spmat_depth=128)
        self.quantised = quantise(self.network, self.config)
        self.image = compile_network(self.quantised, self.config)

    def vectors(self, seed, count=6) -> tuple[np.ndarray, Reference]:
        inputs = random_inputs(seed, self.network, count)
        return inputs, run_reference(self.quantised, inputs)

    def line(self, **options):
        """An engine without a model. The buffers are small, so that they fill up."""
        identification = Identification.of(self.config, board="bench", clock_hz=10**6,
                                           buffer_bytes=512)
        return Line(LinkBench(self.config, identification=identification, sent_bytes=256),
                    **options)

    def send(self, end, seed=0):
        """Load it, start it, and send vectors."""
        inputs, _ = self.vectors(seed)
        end.send_words([*load_words(self.image, self.config), *start()])
        end.send_beats(pack_beats(pack_inputs(inputs, self.config)), beat_bytes(self.config))

    def check(self, line, seed=0):
        """The outputs of those vectors, and the engine has seen nothing else."""
        end = line.end
        expected = self.vectors(seed)[1].outputs
        line.run(lambda end: len(end.activations) == expected.size)
        end.send_words(np.concatenate([read(each) for each in (
            Register.MAGIC, Register.PASSES, Register.ERRORS)]))
        line.run(lambda end: len(end.words) == 3)
        assert np.array_equal(np.reshape(end.activations, expected.shape), expected)
        assert np.array_equal(np.flatnonzero(end.last) + 1,
                              np.arange(1, len(expected) + 1) * expected.shape[1])
        assert list(end.words) == [MAGIC, len(expected), 0]
