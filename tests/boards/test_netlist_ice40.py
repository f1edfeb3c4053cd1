# amaranth: UnusedElaboratable=no
"""Proves that what Yosys makes for iCE40 UltraPlus computes what the RTL does: block RAMs of every
width, the multiplier, SPRAM, and whole engines with their matrices in block RAM and in SPRAM,
simulated in Verilator. Also that our models give what Yosys's own give wherever the device defines
it, and wrong data for undefined reads."""

import re
from pathlib import Path

import numpy as np
import pytest
from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.boards.build import KEEP, simulation_sources
from openese.hdl.engine import Engine
from openese.hdl.export import to_verilog
from openese.hdl.multiply import Multiplier
from openese.hdl.spram import SPRAM_DEPTH, SPRAM_WIDTH, Spram
from openese.model import host
from openese.model.compile import compile_network
from openese.model.config import EngineConfig
from openese.model.quantise import QuantisedLayer, QuantisedNetwork, Widths, quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import run_reference
from openese.sim.streams import describe, pack, random_stalls, unpack
from openese.sim.verilator import VerilatorError, VerilogSimulation, lint

from .netlists import Product, check_engine, check_multiplier, check_ram, simulator


@pytest.fixture
def simulate(tmp_path):
    """Synthesise a component and simulate the netlist."""
    return simulator("icebreaker", tmp_path)


def registers(cells: dict[str, int]) -> int:
    return sum(count for kind, count in cells.items() if kind.startswith("SB_DFF"))


@pytest.mark.parametrize(("width", "depth", "granularity", "blocks"), [
    (2, 2048, 2, 1), (4, 1024, 4, 1), (8, 512, 8, 1), (16, 256, 16, 1), (16, 256, 1, 1),
    (9, 1024, 9, 3), (13, 512, 13, 2),
])
def test_block_ram(simulate, width, depth, granularity, blocks):
    assert check_ram(simulate, width, depth, granularity).cells["SB_RAM40_4K"] == blocks


@pytest.mark.parametrize(("a_bits", "b_bits"), [(16, 16), (5, 9)])
def test_multiplier(simulate, a_bits, b_bits):
    netlist = check_multiplier(simulate, a_bits, b_bits)
    assert netlist.cells["SB_MAC16"] == 1
    # Three valid bits and nothing of the data path.
    assert registers(netlist.cells) == Multiplier.LATENCY


def test_multiplier_at_every_corner(simulate):
    """Operands around 0, both rails and every power of two, all of them times all of them."""
    dut = Product(16, 16)
    _, simulation = simulate(dut)
    near = np.array([sign * (1 << k) + d
                     for k in range(16) for sign in (-1, 1) for d in (-1, 0, 1)])
    values = np.unique(near[(near >= -1 << 15) & (near < 1 << 15)])
    a, b = (grid.ravel() for grid in np.meshgrid(values, values))
    with simulation:
        result = simulation.run({"i": pack(dut.i.payload.shape(), {"a": a, "b": b})},
                                {"o": len(a)})
    np.testing.assert_array_equal(result.values("o"), a * b)


class SpramUser(wiring.Component):
    """An SPRAM that does one job per transfer: a write, or a read that answers."""

    def __init__(self, width: int, depth: int):
        self._spram = Spram(memory.MemoryData(shape=width, depth=depth, init=[]))
        super().__init__({
            "i": In(stream.Signature(data.StructLayout({
                "write": 1, "addr": range(depth), "data": width}))),
            "o": Out(stream.Signature(width)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.spram = spram = self._spram
        job, go = self.i.payload, self.i.valid & self.i.ready
        m.d.comb += [
            self.i.ready.eq(~self.o.valid | self.o.ready),
            spram.write.addr.eq(job.addr), spram.write.data.eq(job.data),
            spram.write.en.eq(go & job.write),
            spram.read.addr.eq(job.addr), spram.read.en.eq(go & ~job.write),
            self.o.payload.eq(spram.read.data),
        ]
        with m.If(self.i.ready):
            m.d.sync += self.o.valid.eq(self.i.valid & ~job.write)
        return m


@pytest.mark.parametrize(("width", "depth"), [(SPRAM_WIDTH, SPRAM_DEPTH), (9, 5000)])
def test_spram(simulate, width, depth):
    rng = np.random.default_rng(width)
    dut = SpramUser(width, depth)
    netlist, simulation = simulate(dut)
    assert netlist.cells["SB_SPRAM256KA"] == 1
    assert "SB_RAM40_4K" not in netlist.cells
    # Every word is written; then reads, a few of them behind rewrites.
    addr = np.r_[rng.permutation(depth), rng.integers(0, 64, 4000), np.arange(depth)]
    write = np.r_[np.ones(depth, int), rng.integers(0, 2, 4000), np.zeros(depth, int)]
    value = rng.integers(0, 1 << width, len(addr))
    words, expected = {}, []
    for at, is_write, word in zip(addr.tolist(), write.tolist(), value.tolist(), strict=True):
        if is_write:
            words[at] = word
        else:
            expected.append(words[at])
    with simulation:
        result = simulation.run(
            {"i": pack(dut.i.payload.shape(), {"write": write, "addr": addr, "data": value})},
            {"o": len(expected)}, stalls={"i": random_stalls(1, 0.2), "o": random_stalls(2, 0.2)})
    np.testing.assert_array_equal(result.outputs["o"], np.array(expected, dtype=np.uint64))


def test_engine(simulate):
    cells = check_engine(simulate).cells
    assert cells["SB_MAC16"] == 2
    assert cells["SB_RAM40_4K"] > 10
    assert "SB_SPRAM256KA" not in cells


@pytest.mark.parametrize("direct", [False, True])
def test_engine_with_matrices_in_spram(simulate, direct):
    """Two networks, each loaded as an UP5K engine must be; the second one over the first."""
    config = EngineConfig(
        n_pes=4, spmat_depth=SPRAM_DEPTH, ptr_depth=256, bias_depth=16, act_depth=32, acc_depth=16,
        input_lanes=2, codebooks=2, queue_depth=2, pointers=False,
        **({"direct_weights": True, "entry_bits": 15, "code_bits": 12, "min_code_bits": 12}
           if direct else {}))
    dut = Engine(config)
    netlist, simulation = simulate(dut, KEEP)
    assert netlist.cells["SB_SPRAM256KA"] == netlist.cells["SB_MAC16"] == config.n_pes
    with simulation:
        for seed, shape in enumerate(([24, 20, 6], [17, 9])):
            network = random_network(seed, shape, 0.4)
            quantised = quantise(network, config)
            inputs = random_inputs(seed, network, 8)
            reference = run_reference(quantised, inputs)
            words = [host.stop(), host.load_words(compile_network(quantised, config), config),
                     host.start()]
            simulation.run({"i_host": np.concatenate(words)}, {})
            result = simulation.run(
                {"i_act": pack(dut.i_act.payload.shape(), host.pack_inputs(inputs, config))},
                {"o_act": reference.outputs.size},
                stalls={"i_act": random_stalls(1, 0.3), "o_act": random_stalls(2, 0.3)})
            np.testing.assert_array_equal(
                result.values("o_act")["data"].reshape(reference.outputs.shape), reference.outputs)


def diagonal(values: list[int], config: EngineConfig, shift: int) -> QuantisedNetwork:
    """One layer that multiplies each activation by one of `values`."""
    n = len(values)
    layer = QuantisedLayer(
        name="fc", rows=n, cols=n, row_idx=np.arange(n, dtype=np.int32),
        code=np.arange(1, n + 1, dtype=np.uint16), col_ptr=np.arange(n + 1),
        codebook=np.array([0, *values] + [0] * ((1 << config.code_bits) - n - 1)), weight_frac=15,
        bias=np.zeros(n, np.int64), in_frac=0, out_frac=15 - shift, shift=shift, relu=False)
    return QuantisedNetwork([layer], 0, Widths.of(config))


def test_engine_with_extreme_operands(simulate):
    """-1, 1 and both rails as weights times the same as activations: low bits, then high bits."""
    config = EngineConfig(n_pes=2, spmat_depth=2049, ptr_depth=16, bias_depth=4, act_depth=8,
                          acc_depth=4, codebooks=1, shift_base=0, shift_bits=4, bias_guard=1)
    extremes = [-32768, -1, 1, 32767]
    inputs = np.array([[value] * 4 for value in extremes])
    dut = Engine(config)
    netlist, simulation = simulate(dut, KEEP)
    assert netlist.cells["SB_SPRAM256KA"] == 2
    with simulation:
        # Half rounds up.
        for shift, row, expected in ((1, 1, [16384, 1, 0, -16383]), (16, 0, [16384, 1, 0, -16383])):
            network = diagonal(extremes, config, shift)
            reference = run_reference(network, inputs)
            assert reference.outputs[row].tolist() == expected
            words = [host.stop(), host.load_words(compile_network(network, config), config),
                     host.start()]
            simulation.run({"i_host": np.concatenate(words)}, {})
            result = simulation.run(
                {"i_act": pack(dut.i_act.payload.shape(), host.pack_inputs(inputs, config))},
                {"o_act": reference.outputs.size})
            np.testing.assert_array_equal(
                result.values("o_act")["data"].reshape(reference.outputs.shape),
                reference.outputs)


def yosys_models(directory: Path) -> Path:
    """Yosys's own models of what we model too, under names of their own."""
    text = simulation_sources("icebreaker")[1].read_text()
    head = text[:text.index("module SB_IO")]
    modules = [re.search(rf"^module {name} .*?^endmodule$", text, re.M | re.S)[0].replace(
        f"module {name}", f"module yosys_{name}", 1)
        for name in ("SB_LUT4", "SB_RAM40_4K", "SB_SPRAM256KA")]
    path = directory / "yosys_models.v"
    path.write_text("\n".join([head, *modules]))
    return path


#: Modes of a write port and a read port of a block RAM.
MODES = [(0, 0), (1, 1), (2, 2), (3, 3), (0, 3), (2, 1)]


class BothModels(wiring.Component):
    """Our models beside Yosys's: what each memory read, and 16 LUTs."""

    def __init__(self):
        self.job = data.StructLayout({
            "read": 1, "read_addr": 11, "write": 1, "write_addr": 11, "mask": 16, "data": 16,
            "select": 1, "spram_write": 1, "spram_addr": 14, "spram_mask": 4})
        self.words = data.ArrayLayout(data.ArrayLayout(16, 2), len(MODES) + 2)
        super().__init__({"i": In(stream.Signature(self.job, always_ready=True)),
                          "o": Out(stream.Signature(self.words, always_ready=True))})

    def elaborate(self, platform):
        m = Module()
        job, go, out = self.i.payload, self.i.valid, self.o.payload
        rng = np.random.default_rng(0)
        init = {f"p_INIT_{k:X}": Const(int.from_bytes(rng.bytes(32)), 256) for k in range(16)}
        for side, prefix in enumerate(("", "yosys_")):
            for k, (write, read) in enumerate(MODES):
                m.submodules += Instance(
                    f"{prefix}SB_RAM40_4K", p_WRITE_MODE=write, p_READ_MODE=read, **init,
                    i_RCLK=ClockSignal(), i_RCLKE=go, i_RE=job.read, i_RADDR=job.read_addr,
                    i_WCLK=ClockSignal(), i_WCLKE=go, i_WE=job.write, i_WADDR=job.write_addr,
                    i_MASK=job.mask, i_WDATA=job.data, o_RDATA=out[k][side])
            m.submodules += Instance(
                f"{prefix}SB_SPRAM256KA", i_CLOCK=ClockSignal(), i_CHIPSELECT=go & job.select,
                i_WREN=job.spram_write, i_MASKWREN=job.spram_mask, i_ADDRESS=job.spram_addr,
                i_DATAIN=job.data, i_STANDBY=Const(0), i_SLEEP=Const(0), i_POWEROFF=Const(1),
                o_DATAOUT=out[len(MODES)][side])
            inputs = Signal(4, reset_less=True)
            m.d.sync += inputs.eq(job.data)
            for k in range(16):
                m.submodules += Instance(
                    f"{prefix}SB_LUT4", p_LUT_INIT=Const(init["p_INIT_0"].value >> 16 * k, 16),
                    **{f"i_I{n}": inputs[n] for n in range(4)},
                    o_O=out[len(MODES) + 1][side][k])
        m.d.sync += self.o.valid.eq(go)
        return m


def test_models_agree_with_yosys(tmp_path):
    rng = np.random.default_rng(0)
    count, words = 6000, 64
    # The first jobs write words of the SPRAM; its reads are of these.
    spram_write = np.r_[np.ones(words, int), rng.integers(0, 2, count - words)]
    jobs = {
        "read": rng.integers(0, 2, count), "read_addr": rng.integers(0, 1 << 11, count),
        "write_addr": rng.integers(0, 1 << 11, count), "mask": rng.integers(0, 1 << 16, count),
        "data": rng.integers(0, 1 << 16, count), "spram_write": spram_write,
        "spram_addr": np.r_[np.arange(words), rng.integers(0, words, count - words)],
        "spram_mask": np.r_[np.full(words, 15), rng.integers(0, 16, count - words)],
        "select": np.r_[np.ones(words, int), rng.integers(0, 4, count - words) != 0],
    }
    # A row that is read while it is written is what the models are meant to differ in.
    same = (jobs["read_addr"] & 0xff) == (jobs["write_addr"] & 0xff)
    jobs["write"] = rng.integers(0, 2, count) & ~same
    dut = BothModels()
    path = tmp_path / "both.v"
    path.write_text(to_verilog(dut))
    sources = [path, *simulation_sources("icebreaker"), yosys_models(tmp_path)]
    with VerilogSimulation(sources, "top", describe(dut)) as simulation:
        result = simulation.run({"i": pack(dut.job, jobs)}, {"o": count})
    got = unpack(dut.words, result.outputs["o"])
    defined = np.ones((count, len(MODES) + 2), bool)
    # A read of the SPRAM is seen until the next job that is selected; a write leaves garbage.
    last = np.maximum.accumulate(np.where(jobs["select"] == 1, np.arange(count), 0))
    defined[:, len(MODES)] = jobs["spram_write"][last] == 0
    assert defined[:, len(MODES)].sum() > count // 3
    np.testing.assert_array_equal(got[..., 0][defined], got[..., 1][defined])


@pytest.mark.parametrize("text", [
    "SB_RAM40_4K #(.WRITE_MODE(4)) dut();", "SB_RAM40_4K #(.READ_MODE(-1)) dut();",
    "SB_RAM40_4K #(.NEG_CLK_R(1)) dut();", "SB_SPRAM256KA dut(.RESET(1'b0));",
])
def test_models_refuse_other_modes(text):
    models = simulation_sources("icebreaker")[0].read_text()
    with pytest.raises(VerilatorError, match=r"MODE|NEG_CLK_R|RESET"):
        lint(f"{models}\nmodule top();\n{text}\nendmodule\n")
