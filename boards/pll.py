"""Clock generation on ECP5: divider settings of the PLL and the primitive."""

from dataclasses import dataclass

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Ecp5Pll", "PllSettings"]

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

    Members
    -------
    clk_in : ``In(1)``
    clk_out : ``Out(1)``
    locked : ``Out(1)``
        Asynchronous.
    """

    clk_in: In(1)
    clk_out: Out(1)
    locked: Out(1)

    def __init__(self, settings: PllSettings):
        self._settings = settings
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        s = self._settings
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
            i_CLKI=self.clk_in, i_CLKFB=feedback, o_CLKOP=feedback, o_CLKOS=self.clk_out,
            o_LOCK=self.locked,
            i_RST=Const(0), i_STDBY=Const(0), i_PLLWAKESYNC=Const(0),
            i_PHASESEL0=Const(0), i_PHASESEL1=Const(0), i_PHASEDIR=Const(1),
            i_PHASESTEP=Const(1), i_PHASELOADREG=Const(1),
            i_ENCLKOP=Const(0), i_ENCLKOS=Const(0),
        )
        return m
