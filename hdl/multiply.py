"""The registered signed multiplier: one ECP5 DSP slice, or its portable twin."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Multiplier"]


class Multiplier(wiring.Component):
    """Free-running signed multiplier, ``p = a * b``, in three register stages.

    On an ECP5 platform it is one ``MULT18X18D`` with its input, pipeline and output registers in
    use: Yosys packs no registers into that primitive, which costs the multiply path more than
    half of its clock rate. On every other platform, and in simulation, it is three stages of
    plain registers that compute the same.

    Latency: ``LATENCY`` = 3 cycles; ``p`` after edge ``t + 3`` is the product of the operands
    before edge ``t + 1``. Throughput: one product per cycle; there is no enable and no
    backpressure. The registers hold 0 at power-up and are not reset: a user that needs to tell
    products apart delays its own valid bit by ``LATENCY``.

    Resources: 1 ``MULT18X18D`` and nothing else on ECP5.

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
        An operand width out of range.
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
        if getattr(platform, "family", None) == "ecp5":
            m.submodules.dsp = self._dsp(m)
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

    def _dsp(self, m: Module) -> Instance:
        """The primitive. Its ports are single bits, so buses are taken apart here.

        SIGNEDA and SIGNEDB are constant: whether the device registers them makes no difference.
        Clock enable and reset of every register default to CE0 and RST0.
        """
        # Assignment sign-extends.
        a = Signal(signed(self.MAX_BITS))
        b = Signal(signed(self.MAX_BITS))
        p = Signal(signed(2 * self.MAX_BITS))
        m.d.comb += [a.eq(self.a), b.eq(self.b), self.p.eq(p)]
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
