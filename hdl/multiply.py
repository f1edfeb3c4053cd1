# amaranth: UnusedElaboratable=no
# Operands that are too wide for a device are refused while the multiplier is being elaborated.
"""The registered signed multiplier: a device's DSP block, or its portable twin."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .spram import is_ultraplus

__all__ = ["Multiplier"]

#: Operand width of the primitive of iCE40 UltraPlus.
MAC16_BITS = 16


class Multiplier(wiring.Component):
    """Free-running signed multiplier, ``p = a * b``, in three register stages.

    On an ECP5 platform it is one ``MULT18X18D``, on a Gowin platform (GW1N and GW2A) one
    ``MULT18X18``, on iCE40 UltraPlus one ``SB_MAC16``, with its input, pipeline and output
    registers in use: Yosys packs no registers into these primitives, which costs the multiply path
    more than half of its clock rate. On every other platform, and in simulation, it is three stages
    of plain registers that compute the same.

    Latency: ``LATENCY`` = 3 cycles; ``p`` after edge ``t + 3`` is the product of the operands
    before edge ``t + 1``. Throughput: one product per cycle; there is no enable and no
    backpressure. The registers hold 0 at power-up and are not reset: a user that needs to tell
    products apart delays its own valid bit by ``LATENCY``.

    Resources: 1 ``MULT18X18D`` and nothing else on ECP5, 1 ``MULT18X18`` on Gowin, 1
    ``SB_MAC16`` on iCE40 UltraPlus, where an operand has at most 16 bits.

    Parameters
    ----------
    a_bits, b_bits : int
        Operand widths including the sign, 1 to 18.

    Members
    -------
    a : ``In(signed(a_bits))``
    b : ``In(signed(b_bits))``
    p : ``Out(signed(a_bits + b_bits))``
        The exact product.

    Raises
    ------
    ValueError
        An operand width out of range; when elaborated for iCE40 UltraPlus, one above 16.
    """

    LATENCY = 3

    #: Operand width of the device primitive.
    MAX_BITS = 18

    def __init__(self, a_bits: int, b_bits: int):
        for name, bits in (("a_bits", a_bits), ("b_bits", b_bits)):
            if not isinstance(bits, int) or not 1 <= bits <= self.MAX_BITS:
                raise ValueError(f"{name} must be an integer from 1 to {self.MAX_BITS}, "
                                 f"not {bits!r}")
        super().__init__({
            "a": In(signed(a_bits)),
            "b": In(signed(b_bits)),
            "p": Out(signed(a_bits + b_bits)),
        })

    def elaborate(self, platform):
        m = Module()
        family = getattr(platform, "family", None) or ""
        if family == "ecp5":
            m.submodules.dsp = self._ecp5(m)
            return m
        if family.startswith(("GW1N", "GW2A")):
            m.submodules.dsp = self._gowin(m)
            return m
        if is_ultraplus(platform):
            m.submodules.dsp = self._ice40(m)
            return m

        a = Signal.like(self.a, reset_less=True)
        b = Signal.like(self.b, reset_less=True)
        product = Signal.like(self.p, reset_less=True)
        p = Signal.like(self.p, reset_less=True)
        m.d.sync += [
            a.eq(self.a),
            b.eq(self.b),
            product.eq(a * b),
            p.eq(product),
        ]
        m.d.comb += self.p.eq(p)
        return m

    def _wide(self, m: Module, bits: int = MAX_BITS) -> tuple[Signal, Signal, Signal]:
        """Operands and product in the primitive's widths."""
        a = Signal(signed(bits))
        b = Signal(signed(bits))
        p = Signal(signed(2 * bits))
        # Assignment sign-extends.
        m.d.comb += [a.eq(self.a), b.eq(self.b), self.p.eq(p)]
        return a, b, p

    def _ecp5(self, m: Module) -> Instance:
        """ECP5's primitive. Its ports are single bits, so buses are taken apart here.

        SIGNEDA and SIGNEDB are constant: whether the device registers them makes no difference.
        Clock enable and reset of every register default to CE0 and RST0.
        """
        a, b, p = self._wide(m)
        ports = {f"i_{name}{i}": bus[i] for name, bus in (("A", a), ("B", b))
                 for i in range(self.MAX_BITS)}
        ports |= {f"o_P{i}": p[i] for i in range(2 * self.MAX_BITS)}
        return Instance(
            "MULT18X18D",
            p_REG_INPUTA_CLK="CLK0", p_REG_INPUTB_CLK="CLK0",
            p_REG_PIPELINE_CLK="CLK0", p_REG_OUTPUT_CLK="CLK0",
            # The portable twin has no reset, so the primitive takes none from the global net.
            p_GSR="DISABLED",
            i_CLK0=ClockSignal(), i_CE0=Const(1), i_RST0=Const(0),
            i_SIGNEDA=Const(1), i_SIGNEDB=Const(1),
            # 0 selects the parallel operand, 1 the shift chain of the neighbouring slice.
            i_SOURCEA=Const(0), i_SOURCEB=Const(0),
            **ports)

    def _gowin(self, m: Module) -> Instance:
        """Gowin's primitive: AREG, BREG, PIPE_REG and OUT_REG are its three register stages.

        ASIGN and BSIGN are constant, so their registers stay out of use.
        """
        a, b, p = self._wide(m)
        return Instance(
            "MULT18X18",
            p_AREG=Const(1, 1), p_BREG=Const(1, 1), p_PIPE_REG=Const(1, 1), p_OUT_REG=Const(1, 1),
            i_CLK=ClockSignal(), i_CE=Const(1), i_RESET=Const(0),
            i_ASIGN=Const(1), i_BSIGN=Const(1),
            # 0 selects the parallel operand, 1 the shift chain of the neighbouring block.
            i_ASEL=Const(0), i_BSEL=Const(0),
            i_SIA=Const(0, self.MAX_BITS), i_SIB=Const(0, self.MAX_BITS),
            i_A=a, i_B=b, o_DOUT=p)

    def _ice40(self, m: Module) -> Instance:
        """The primitive of iCE40 UltraPlus, fully pipelined: operands, partial products, their sum.

        The sum is taken from its register past the accumulator, whose own register would be a
        fourth stage.
        """
        for name, bits in (("a_bits", len(self.a)), ("b_bits", len(self.b))):
            if bits > MAC16_BITS:
                raise ValueError(f"{name} must be at most {MAC16_BITS} on iCE40, whose multiplier "
                                 f"is no wider, not {bits}: choose act_bits and weight_bits of at "
                                 f"most {MAC16_BITS}")
        a, b, p = self._wide(m, MAC16_BITS)
        # Resets, holds, loads, subtraction, and what comes from the neighbouring block.
        idle = ("AHOLD", "BHOLD", "CHOLD", "DHOLD", "OHOLDTOP", "OHOLDBOT", "IRSTTOP", "IRSTBOT",
                "ORSTTOP", "ORSTBOT", "OLOADTOP", "OLOADBOT", "ADDSUBTOP", "ADDSUBBOT", "CI",
                "ACCUMCI", "SIGNEXTIN")
        on = Const(1, 1)
        return Instance(
            "SB_MAC16",
            p_A_SIGNED=on, p_B_SIGNED=on, p_MODE_8x8=Const(0, 1),
            p_A_REG=on, p_B_REG=on,
            p_TOP_8x8_MULT_REG=on, p_BOT_8x8_MULT_REG=on,
            p_PIPELINE_16x16_MULT_REG1=on, p_PIPELINE_16x16_MULT_REG2=on,
            p_TOPOUTPUT_SELECT=Const(3, 2), p_BOTOUTPUT_SELECT=Const(3, 2),
            i_CLK=ClockSignal(), i_CE=Const(1), i_A=a, i_B=b,
            i_C=Const(0, 16), i_D=Const(0, 16), o_O=p,
            **{f"i_{name}": Const(0) for name in idle})
