"""What the netlist of every family must compute: block RAMs, the multiplier, a whole engine."""

import json
from collections.abc import Callable

import numpy as np
from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.boards.build import KEEP, Netlist, simulation_sources, synthesise
from openese.boards.ecp5 import ECP5
from openese.boards.platforms import BOARDS
from openese.hdl.engine import Engine
from openese.hdl.export import dedupe, run_yosys, to_rtlil
from openese.hdl.multiply import Multiplier
from openese.model import host
from openese.model.compile import compile_network, size_for
from openese.model.quantise import quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import run_reference
from openese.sim.simulation import Simulation
from openese.sim.streams import describe, pack, random_stalls
from openese.sim.verilator import VerilogSimulation

#: Takes a component and the modules to keep; gives the netlist and its simulation.
Simulate = Callable[..., tuple[Netlist, Simulation]]


def simulator(board: str, directory) -> Simulate:
    """What synthesises a component for a board and simulates the netlist."""
    def start(component, keep=()):
        netlist = synthesise(component, board, keep=keep)
        path = directory / "netlist.v"
        path.write_text(netlist.verilog)
        # Compiling takes longer than running, so the compiler is not to optimise.
        return netlist, VerilogSimulation([path, *simulation_sources(board)], "top",
                                          describe(component), optimise=0)
    return start


def ecp5_memories(component: wiring.Component) -> dict[str, int]:
    """Cells of a component once Yosys has mapped its memories for ECP5; the logic, which takes it
    most of the time, is left as it is."""
    text = dedupe(to_rtlil(component, "top", BOARDS["ulx3s-85f"].platform()),
                  keep=KEEP if isinstance(component, Engine) else ())
    script = ["read_rtlil top.il", *ECP5.prepare,
              f"{ECP5.synthesis} -top top {ECP5.synthesis_options} -run begin:map_gates",
              "tee -q -o stat.json stat -json"]
    results, _ = run_yosys(script, {"top.il": text}, ["stat.json"])
    return json.loads(results["stat.json"])["design"]["num_cells_by_type"]


class Ram(wiring.Component):
    """A memory that writes and reads one word per transfer of `i`, or one with a register behind
    it."""

    def __init__(self, width, depth, init, granularity, registered=False):
        self.words = memory.MemoryData(shape=unsigned(width), depth=depth, init=init)
        self._granularity, self._registered = granularity, registered
        address = range(depth)
        super().__init__({
            "i": In(stream.Signature(data.StructLayout({
                "write_addr": address, "write_data": width, "read_addr": address,
                "write_en": width // granularity}))),
            "o": Out(stream.Signature(width)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.words = words = memory.Memory(self.words)
        write, read = words.write_port(granularity=self._granularity), words.read_port()
        go, job = self.i.valid & self.i.ready, self.i.payload
        m.d.comb += [
            self.i.ready.eq(~self.o.valid | self.o.ready),
            write.addr.eq(job.write_addr), write.data.eq(job.write_data),
            write.en.eq(Mux(go, job.write_en, 0)),
            read.addr.eq(job.read_addr), read.en.eq(go),
        ]
        valid, word = self.i.valid, read.data
        if self._registered:
            valid, word = Signal(), Signal(len(read.data), reset_less=True)
            with m.If(self.i.ready):
                m.d.sync += [valid.eq(self.i.valid), word.eq(read.data)]
        with m.If(self.i.ready):
            m.d.sync += self.o.valid.eq(valid)
        m.d.comb += self.o.payload.eq(word)
        return m


def check_ram(simulate: Simulate, width: int, depth: int, granularity: int, *,
              registered: bool = False) -> Netlist:
    """Every word as it was at power-up, then random traffic, with undefined reads among it."""
    rng = np.random.default_rng(width)
    init = [int(word) for word in rng.integers(0, 1 << width, depth)]
    dut = Ram(width, depth, init, granularity, registered)
    netlist, simulation = simulate(dut)

    count, lanes = depth + 3000, width // granularity
    jobs = {
        "write_addr": rng.integers(0, min(depth, 32), count),
        "write_data": rng.integers(0, 1 << width, count),
        "read_addr": np.r_[np.arange(depth), rng.integers(0, min(depth, 32), 3000)],
        "write_en": np.r_[np.zeros(depth, int), rng.integers(0, 1 << lanes, 3000)],
    }
    words, expected, undefined = list(init), [], []
    lane_mask = (1 << granularity) - 1
    for write_addr, value, read_addr, enable in zip(*map(np.ndarray.tolist, jobs.values()),
                                                    strict=True):
        written = sum(lane_mask << lane * granularity for lane in range(lanes)
                      if enable >> lane & 1)
        collision = written if write_addr == read_addr else 0
        # Bits that are being written read as the complement of what was there.
        expected.append(words[read_addr] ^ collision)
        undefined.append(bool(collision))
        words[write_addr] = words[write_addr] & ~written | value & written

    assert any(undefined)
    with simulation:
        result = simulation.run({"i": pack(dut.i.payload.shape(), jobs)}, {"o": count},
                                stalls={"i": random_stalls(1, 0.2), "o": random_stalls(2, 0.2)})
    np.testing.assert_array_equal(result.outputs["o"], np.array(expected, dtype=np.uint64))
    return netlist


class Product(wiring.Component):
    """The multiplier with a valid bit that travels along."""

    def __init__(self, a_bits, b_bits):
        self._multiplier = Multiplier(a_bits, b_bits)
        super().__init__({
            "i": In(stream.Signature(data.StructLayout({"a": signed(a_bits),
                                                        "b": signed(b_bits)}),
                                     always_ready=True)),
            "o": Out(stream.Signature(signed(a_bits + b_bits), always_ready=True)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.multiplier = multiplier = self._multiplier
        valid = Signal(Multiplier.LATENCY)
        m.d.sync += valid.eq(Cat(self.i.valid, valid))
        m.d.comb += [
            multiplier.a.eq(self.i.payload.a), multiplier.b.eq(self.i.payload.b),
            self.o.payload.eq(multiplier.p), self.o.valid.eq(valid[-1]),
        ]
        return m


def check_multiplier(simulate: Simulate, a_bits: int, b_bits: int) -> Netlist:
    """Every pair of extremes, -1 times -1, and random operands, after the stated latency."""
    dut = Product(a_bits, b_bits)
    netlist, simulation = simulate(dut)
    rng = np.random.default_rng(0)
    a, b = (np.r_[low, low, -low - 1, -low - 1, -1, rng.integers(low, -low, 500)]
            for low in (-1 << a_bits - 1, -1 << b_bits - 1))
    b[:4] = b[[0, 2, 0, 2]]
    with simulation:
        result = simulation.run({"i": pack(dut.i.payload.shape(), {"a": a, "b": b})},
                                {"o": len(a)}, stalls={"i": random_stalls(3, 0.3)})
    np.testing.assert_array_equal(result.values("o"), a * b)
    assert (result.times["o"] - result.times["i"] == Multiplier.LATENCY).all()
    return netlist


def check_engine(simulate: Simulate) -> Netlist:
    """A network in the memories at power-up, then another one loaded over it."""
    networks = random_network(5, [24, 20, 6], 0.4), random_network(6, [17, 9], 0.5)
    config = size_for(networks[0], 2, input_lanes=2, spmat_depth=2048, ptr_depth=2048,
                      act_depth=256)
    runs = []
    for seed, network in enumerate(networks):
        quantised = quantise(network, config)
        inputs = random_inputs(seed, network, 8)
        runs.append((compile_network(quantised, config), inputs,
                     run_reference(quantised, inputs)))
    dut = Engine(config, runs[0][0])
    netlist, simulation = simulate(dut, KEEP)

    saturations = 0
    with simulation:
        for image, inputs, reference in runs:
            if image is not dut.image:
                words = [host.stop(), host.load_words(image, config), host.start()]
                simulation.run({"i_host": np.concatenate(words)}, {})
            result = simulation.run(
                {"i_act": pack(dut.i_act.payload.shape(), host.pack_inputs(inputs, config))},
                {"o_act": reference.outputs.size},
                stalls={"i_act": random_stalls(1, 0.3), "o_act": random_stalls(2, 0.3)})
            np.testing.assert_array_equal(
                result.values("o_act")["data"].reshape(reference.outputs.shape),
                reference.outputs)
            answer = simulation.run({"i_host": host.read(host.Register.SATURATIONS)},
                                    {"o_host": 1})
            saturations += reference.saturations
            assert int(answer.outputs["o_host"][0]) == saturations
    return netlist
