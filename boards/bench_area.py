"""What the engine and its units cost on FPGAs, and how fast they are, out of context: no pins, no
board, every path from register to register."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median

from amaranth import *
from amaranth.build import Platform
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth_boards.icebreaker import ICEBreakerPlatform
from amaranth_boards.ulx3s import ULX3S_85F_Platform

from openese.hdl.accumulate import Accumulate
from openese.hdl.act_memory import ActMemory
from openese.hdl.act_queue import ActQueue
from openese.hdl.act_store import ActStore
from openese.hdl.cells import Cells
from openese.hdl.cells_serial import SerialCells
from openese.hdl.decode import Decode
from openese.hdl.drain import Drain
from openese.hdl.elementwise import ElementWise
from openese.hdl.elementwise_serial import SerialElementWise
from openese.hdl.engine import Engine
from openese.hdl.export import dedupe, run_yosys, to_rtlil
from openese.hdl.fan import Relay
from openese.hdl.gather import GatherTree
from openese.hdl.host import HostInterface
from openese.hdl.input_buffer import InputBuffer
from openese.hdl.layouts import broadcast_signature
from openese.hdl.lnzd import ARITY, LnzdLeaf
from openese.hdl.multiply import Multiplier
from openese.hdl.pe import ProcessingElement
from openese.hdl.pre_activations import PreActivations
from openese.hdl.ptr_read import PtrRead
from openese.hdl.sequencer import Sequencer
from openese.hdl.spmat_read import SpMatRead, SpMatStream
from openese.hdl.write_back import WriteBack
from openese.model.config import EngineConfig
from openese.sim.bench_ese import ese_machine, ese_on_chip

from .build import KEEP
from .ecp5 import ECP5
from .family import BuildError, Family
from .gowin import GW2A, TangNano20kPlatform
from .ice40 import ICE40
from .link import Link
from .platforms import BOARDS

__all__ = ["DEVICES", "ESE_DSP_PER_PE", "ESE_LUT_PER_PE", "Alone", "Device", "Registered",
           "bench_area", "units_of"]

#: ESE's whole design on an XCKU060 by its 1,024 PEs (FPGA 2017): 293,920 LUTs, 1,504 DSP slices.
ESE_LUT_PER_PE, ESE_DSP_PER_PE = 287, 1.47


@dataclass(frozen=True)
class Device:
    """A device to measure on.

    Parameters
    ----------
    title
        Its name.
    engine
        The engine to measure, of so many PEs; ``None``: of as many as suit the device.
    platform
        Amaranth platform class that primitives are chosen by; ``None``: portable logic.
    synthesis, prepare
        Command of Yosys, and commands before it.
    cells
        Field (``luts``, ``ffs``, ``brams``, ``multipliers``) to pattern of a cell's name to how
        many it counts for; the first pattern that fits counts.
    family, route
        How it is placed and routed: the family, whose router takes these arguments. ``None``: it
        is not.
    pins
        Text of the file ``top.cst`` that the router reads, if it must have one.
    one_channel
        Fields that are others for engines of one channel.
    """

    title: str
    engine: Callable[[int | None], EngineConfig] = field(repr=False)
    platform: type[Platform] | None
    synthesis: str
    prepare: tuple[str, ...]
    cells: Mapping[str, Mapping[str, float]] = field(repr=False)
    family: Family | None = None
    route: tuple[str, ...] = ()
    pins: str = ""
    one_channel: Mapping[str, object] = field(default_factory=dict)

    def for_engine(self, config: EngineConfig) -> "Device":
        """The device with what suits an engine."""
        return self if config.channels > 1 else replace(self, **self.one_channel)

    def count(self, cells: Mapping[str, int]) -> dict[str, float]:
        """``luts``, ``ffs``, ``brams`` and ``multipliers`` of a netlist's cells."""
        found = {}
        for what, weights in self.cells.items():
            total = sum(number * next((weight for pattern, weight in weights.items()
                                       if fnmatchcase(cell, pattern)), 0)
                        for cell, number in cells.items())
            found[what] = int(total) if total == int(total) else total
        return found


def _ese(n_pes: int | None) -> EngineConfig:
    """The engine that holds ESE's layer."""
    return ese_on_chip(64 if n_pes is None else n_pes)[1]


def _ese_machine(n_pes: int | None) -> EngineConfig:
    """ESE's own."""
    return ese_machine() if n_pes is None else ese_machine(n_pes)


def _sized(config: EngineConfig) -> Callable[[int | None], EngineConfig]:
    return lambda n_pes: config if n_pes is None else config.with_(n_pes=n_pes, input_lanes=1)


def _of_family(title: str, engine: Callable[[int | None], EngineConfig],
               platform: type[Platform], family: Family,
               cells: Mapping[str, Mapping[str, float]], *route: str, pins: str = "") -> Device:
    synthesis = f"{family.synthesis} -top top {family.synthesis_options}"
    return Device(title, engine, platform, synthesis, family.prepare, cells, family, route,
                  pins)


_XILINX = "synth_xilinx -top top -family xcu -flatten -noiopad -noclkbuf"


def _in_block_ram(*units: str) -> tuple[str, ...]:
    return (ECP5.prepare[0],
            *(f'setattr -set ram_style "block" *{unit}*/m:*' for unit in units))


DEVICES: dict[str, Device] = {
    # A LUT RAM of 16 x 4 takes the LUTs of three slices, one for writing: as nextpnr counts it.
    "ecp5": _of_family("LFE5U-85F, speed 6", _ese, ULX3S_85F_Platform, ECP5, {
        "luts": {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}, "ffs": {"TRELLIS_FF": 1},
        "brams": {"DP16KD": 1}, "multipliers": {"MULT18X18D": 1}},
        "--85k", "--package", "CABGA381", "--speed", "6", "--lpf-allow-unconstrained",
        "--router", "router2"),
    "up5k": _of_family("iCE40 UP5K", _sized(BOARDS["icebreaker"].config),
                       ICEBreakerPlatform, ICE40, {
        "luts": {"SB_LUT4": 1}, "ffs": {"SB_DFF*": 1}, "brams": {"SB_RAM40_4K*": 1},
        "multipliers": {"SB_MAC16": 1}},
        "--up5k", "--package", "sg48", "--pcf-allow-unconstrained"),
    "gw2a": _of_family("GW2A-18", _sized(BOARDS["tang-nano-20k"].config),
                       TangNano20kPlatform, GW2A, {
        "luts": {"LUT[1-4]": 1, "INV": 1, "ALU": 1, "RAM16S*4": 4}, "ffs": {"DFF*": 1},
        "brams": {"SDP*": 1, "DP*": 1, "SP": 1, "SPX9": 1, "pROM*": 1},
        "multipliers": {"MULT*": 1}},
        "--device", TangNano20kPlatform.part, "--vopt", "family=GW2A-18C", "--vopt", "cst=top.cst",
        pins="".join(f'IO_LOC "{port}" {pin};\n'
                     for port, pin in (("clk", 4), ("rst", 15), ("x", 16), ("y", 17)))),
    # UltraScale: LUT RAM counts the LUT6 it occupies, a shift register one. An inverter that is
    # left is one LUT. Accumulators are in block RAM. Of one channel the device has room there for
    # all memories of a PE but its queue, which is read without a clock; registers in a row stay
    # registers, of which there are two for every LUT; and wide multiplexers are made of MUXF7 and
    # MUXF8, which every slice has (of many channels Yosys 0.70 ends in the middle of that).
    "ku060": Device(
        "XCKU060 (synthesis only)", _ese_machine, None, _XILINX, _in_block_ram("accumulate"), {
            "luts": {"LUT[1-6]": 1, "INV": 1, "SRL*": 1, "RAM32M16": 8, "RAM64M8": 8,
                     "RAM32M": 4, "RAM64M": 4, "RAM256X1D": 8, "RAM128X1D": 4, "RAM*X1D": 2,
                     "RAM*X1S": 1},
            "ffs": {"FD?E": 1}, "brams": {"RAMB36E*": 1, "RAMB18E*": 0.5},
            "multipliers": {"DSP48E*": 1}}, one_channel={
                "synthesis": f"{_XILINX} -widemux 4 -nosrl",
                "prepare": _in_block_ram("accumulate", "act_memory", "decode", "write_back")}),
}


def units_of(config: EngineConfig) -> dict[str, Callable[[], wiring.Component]]:
    """Names of the units that an engine consists of, and what makes each; the engine is first, then
    a PE and its parts."""
    spmat = SpMatRead if config.pointers else SpMatStream
    units = {
        "engine": lambda: Engine(config),
        "pe": lambda: ProcessingElement(config),
        "ptr_read": lambda: PtrRead(config),
        "act_queue": lambda: ActQueue(config),
        "spmat_read": lambda: spmat(config),
        "decode": lambda: Decode(config),
        "multiplier": lambda: Multiplier(config.weight_bits, config.act_bits),
        "accumulate": lambda: Accumulate(config),
        "drain": lambda: Drain(config),
        "write_back": lambda: WriteBack(config),
        "act_memory": lambda: ActMemory(config),
        "act_store": lambda: ActStore(config),
        "relay": lambda: Relay(broadcast_signature(config)),
        "lnzd_leaf": lambda: LnzdLeaf(config, min(ARITY, config.n_pes)),
        "sequencer": lambda: Sequencer(config),
        "host": lambda: HostInterface(config),
        "input_buffer": lambda: InputBuffer(config),
        "link": lambda: Link(config),
    }
    del units["write_back" if config.recurrent else "drain"]
    if not config.pointers:
        del units["ptr_read"]
    for name in ("act_memory", "lnzd_leaf") if config.central_acts else ("act_store",):
        del units[name]
    if config.recurrent:
        elementwise, cells = ((SerialElementWise, SerialCells) if config.serial_cells
                              else (ElementWise, Cells))
        units |= {"pre_activations": lambda: PreActivations(config),
                  "elementwise": lambda: elementwise(config), "cells": lambda: cells(config),
                  "gather": lambda: GatherTree(config)}
    return units


def _ports(unit: wiring.Component) -> dict[str, tuple[Value, bool]]:
    """Ports of a component by name, as values and whether they are inputs; not those that are
    constant, or have no bits in this configuration."""
    found = {}
    for path, member, port in unit.signature.flatten(unit):
        value = Value.cast(port)
        if len(value) and not isinstance(value, Const):
            found["_".join(map(str, path))] = value, member.flow is In
    return found


class Alone(wiring.Component):
    """A component alone, its ports with plain names; ports without bits are left out.

    Parameters
    ----------
    unit
        The component.
    name
        Of the instance; `Device.prepare` knows units by their names.

    Members
    -------
    As of the component, flattened.
    """

    def __init__(self, unit: wiring.Component, name: str = "unit"):
        self.unit, self._name = unit, name
        super().__init__({name: (In if is_input else Out)(len(value))
                          for name, (value, is_input) in _ports(unit).items()})

    def elaborate(self, platform):
        m = Module()
        m.submodules[self._name] = self.unit
        for name, (value, is_input) in _ports(self.unit).items():
            port = getattr(self, name)
            m.d.comb += value.eq(port) if is_input else port.eq(value)
        return m


class Registered(wiring.Component):
    """A component between shift registers, so that all its paths are from register to register.

    Its reset comes from a register as well.

    Members
    -------
    x : ``In(1)``
        Shifted into registers at every input.
    y : ``Out(1)``
        Depends on registers at every output.
    """

    x: In(1)
    y: Out(1)

    def __init__(self, unit: wiring.Component):
        self.unit = unit
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.domains.unit = unit = ClockDomain(local=True)
        m.submodules.unit = DomainRenamer("unit")(self.unit)
        chain = Signal(reset_less=True)
        m.d.sync += [chain.eq(self.x), unit.rst.eq(chain)]
        m.d.comb += unit.clk.eq(ClockSignal())
        given = Signal(reset_less=True)
        for name, (value, is_input) in _ports(self.unit).items():
            bits = Signal(len(value), name=f"bits_{name}", reset_less=True)
            if is_input:
                m.d.sync += bits.eq(Cat(chain, bits))
                m.d.comb += value.eq(bits)
                chain = bits[-1]
            else:
                after = Signal(len(value), name=f"after_{name}", reset_less=True)
                m.d.sync += [bits.eq(value), after.eq(bits ^ Cat(given, after))]
                given = after[-1]
        # What only goes in must not be removed.
        m.d.sync += self.y.eq(given ^ chain)
        return m


def bench_area(devices: Sequence[str] = (), units: Sequence[str] = (), *,
               config: EngineConfig | None = None, n_pes: int | None = None,
               parts: bool = False, route: bool = False, seeds: int = 3, target_mhz: float = 150,
               progress: Callable[[str], None] = lambda name: None) -> list[dict]:
    """Synthesise, and if asked place and route, units of an engine, each alone.

    Parameters
    ----------
    devices
        Of `DEVICES`; all by default.
    units
        Of `units_of` the device's engine; all by default. A device leaves out what its engine does
        not have.
    config
        The engine. By default that of the device: `ese_machine` on ESE's, `ese_on_chip` on the one
        that holds it, else that of a board.
    n_pes
        PEs of the device's engine.
    parts
        Also tell where the engine's logic is: its modules one by one, none flattened, which takes
        somewhat more logic.
    route, seeds, target_mhz
        Whether to place and route, between shift registers, with how many seeds, and for which
        clock. Devices without open tools for this are synthesised only.

    Returns
    -------
    One dict for every device and unit: ``name``, ``device``, ``n_pes``, ``luts`` (LUTs, with carry
    and LUT RAM), ``ffs``, ``brams``, ``multipliers``, ``cells`` (primitive to number); of the
    engine ``luts_per_pe`` and ``multipliers_per_pe``, and with `parts` the list ``parts`` of
    modules with ``name``, ``instances`` and what one has of its own, without its submodules; with
    `route`, if there is a path between registers, ``fmax_mhz`` (the median) and ``fmax_seeds``.

    Raises
    ------
    ValueError
        An unknown device or unit, or a number of seeds below 1.
    BuildError, YosysError
        A tool is missing or failed.
    """
    unknown = [name for name in devices if name not in DEVICES]
    if unknown:
        raise ValueError(f"unknown device {unknown[0]!r}; devices: {', '.join(DEVICES)}")
    if seeds < 1:
        raise ValueError(f"the number of seeds must be 1 or more, not {seeds}")
    if config is not None and n_pes is not None:
        raise ValueError("give config or n_pes, not both")
    chosen = {name: DEVICES[name] for name in devices or DEVICES}
    engines = {name: device.engine(n_pes) if config is None else config
               for name, device in chosen.items()}
    makers = {name: units_of(engine) for name, engine in engines.items()}
    known = dict.fromkeys(unit for made in makers.values() for unit in made)
    unknown = [unit for unit in units if unit not in known]
    if unknown:
        raise ValueError(f"unknown unit {unknown[0]!r}; units of these engines: "
                         f"{', '.join(known)}")
    rows = []
    for name, device in chosen.items():
        device = device.for_engine(engines[name])
        for unit, make in makers[name].items():
            if units and unit not in units:
                continue
            progress(f"{unit} on {device.title}")
            row = {"name": unit, "device": name, "n_pes": engines[name].n_pes}
            row |= _area(make(), device, engines[name], unit, parts)
            if route and device.family is not None:
                speeds = _speeds(make(), device, seeds, target_mhz)
                if speeds:
                    row |= {"fmax_mhz": median(speeds), "fmax_seeds": speeds}
            rows.append(row)
    return rows


def _area(component: wiring.Component, device: Device, config: EngineConfig, unit: str,
          parts: bool) -> dict:
    text = _rtlil(Alone(component, unit), device)
    cells = _leaves(_stat(text, device, _keep(text))["design"]["num_cells_by_type"])
    row = device.count(cells) | {"cells": cells}
    if unit == "engine":
        # As ESE counts them: every channel has its own.
        pes = config.n_pes * config.channels
        row |= {"luts_per_pe": row["luts"] / pes, "multipliers_per_pe": row["multipliers"] / pes}
        if parts:
            row["parts"] = _parts(_stat(text, device, ["*"]), device)
    return row


def _rtlil(component: wiring.Component, device: Device) -> str:
    return to_rtlil(component, "top", device.platform and device.platform())


def _keep(text: str) -> list[str]:
    """Patterns of `KEEP` for modules that a design has."""
    names = [line.split()[1].rsplit(".", 1)[-1].lstrip("\\") for line in text.splitlines()
             if line.startswith("module ")]
    return [pattern for pattern in KEEP if any(fnmatchcase(name, pattern) for name in names)]


def _synthesis(text: str, device: Device, keep: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Commands and files for Yosys."""
    # abc9 fails where names of wires of a module that is not flattened meet its own.
    return (["read_rtlil top.il", *device.prepare, "rename -hide w:*", device.synthesis],
            {"top.il": dedupe(text, keep=keep)})


def _stat(text: str, device: Device, keep: Iterable[str]) -> dict:
    script, files = _synthesis(text, device, keep)
    results, _ = run_yosys([*script, "tee -q -o stat.json stat -json"], files, ["stat.json"])
    return json.loads(results["stat.json"])


def _leaves(cells: Mapping[str, int]) -> dict[str, int]:
    """Primitives, without instances of modules and what is for simulation."""
    return {cell: number for cell, number in sorted(cells.items())
            if "." not in cell and not cell.startswith("$")}


def _parts(stat: dict, device: Device) -> list[dict]:
    """Modules of a design of which none was flattened, most LUTs first."""
    modules = {name.lstrip("\\"): found["num_cells_by_type"]
               for name, found in stat["modules"].items()}
    instances: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        instances[name] += times
        for kind, number in modules[name].items():
            if kind in modules:
                visit(kind, times * number)

    visit("top", 1)
    rows = [{"name": name, "instances": number} | device.count(_leaves(modules[name]))
            for name, number in instances.items()]
    return sorted(rows, key=lambda row: (-row["instances"] * row["luts"], row["name"]))


def _speeds(component: wiring.Component, device: Device, seeds: int, target_mhz: float
            ) -> list[float]:
    """Fmax in MHz of every seed from 1; nothing if there is no path between registers."""
    text = _rtlil(Registered(component), device)
    script, files = _synthesis(text, device, _keep(text))
    if "-noiopads" in device.synthesis:
        # nextpnr for Gowin wants buffers at the pins. Synthesis would also put some at the ports of
        # modules that it keeps.
        script.append("iopadmap -bits -inpad IBUF O:I -outpad OBUF I:O top")
    results, _ = run_yosys([*script, "write_json top.json"], files, ["top.json"])
    netlist = results["top.json"]
    if device.family.refine is not None:
        netlist = device.family.refine(netlist)
    router = device.family.tools[device.family.router]
    if importlib.util.find_spec(router.module) is None:
        raise BuildError(f"{router.package} is not installed: pip install {router.package}")
    speeds = []
    for seed in range(1, seeds + 1):
        with tempfile.TemporaryDirectory(prefix="openese-area-") as directory:
            Path(directory, "top.json").write_text(netlist)
            Path(directory, "top.cst").write_text(device.pins)
            arguments = [*device.route, "--json", "top.json", "--report", "report.json",
                         "--freq", f"{target_mhz:g}", "--seed", str(seed),
                         "--timing-allow-fail"]
            done = subprocess.run([sys.executable, "-c", router.program, *arguments],
                                  cwd=directory, stdin=subprocess.DEVNULL, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  errors="replace", check=False)
            if done.returncode:
                tail = "\n".join(done.stdout.splitlines()[-8:])
                raise BuildError(f"{device.family.router} failed with status {done.returncode}. "
                                 f"End of its output:\n{tail}")
            report = json.loads(Path(directory, "report.json").read_text())
        if not report["fmax"]:
            return []  # nextpnr knows of no path, as in Gowin's multiplier
        (clock,) = report["fmax"].values()
        speeds.append(round(clock["achieved"], 2))
    return speeds
