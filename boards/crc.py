"""CRC-32, a bit per cycle."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Crc32"]

#: The polynomial of Ethernet and zlib, lowest bit first.
_POLYNOMIAL = 0xEDB88320

#: What the register holds after bytes and their own CRC, whatever the bytes.
_RESIDUE = 0xDEBB20E3


class Crc32(wiring.Component):
    """CRC-32 as of zlib, of a stream of bytes.

    A bit per cycle takes a third of the logic that a byte per cycle would, and no serial line has
    more than a byte in 40 cycles.

    Throughput: a byte every 9 cycles. While ``i.ready`` is high, the outputs hold.

    Members
    -------
    i : ``In(stream.Signature(8))``
    clear : ``In(1)``
        Begin anew; only while ``i.ready`` is high.
    shift : ``In(1)``
        The byte being transferred is not counted in; ``next`` goes on to the next byte instead.
    next : ``Out(8)``
        The CRC to be sent behind the bytes so far: its lowest byte, and after each transfer with
        ``shift`` the one above.
    good : ``Out(1)``
        The last four bytes were the CRC of those before.
    """

    i: In(stream.Signature(8))
    clear: In(1)
    shift: In(1)
    next: Out(8)
    good: Out(1)

    def elaborate(self, platform):
        m = Module()
        value = Signal(32, init=0xFFFF_FFFF)
        bits = Signal(8)
        left = Signal(4)
        plain = Signal()
        m.d.comb += [
            self.i.ready.eq(left == 0),
            self.next.eq(~value[:8]),
            self.good.eq(value == _RESIDUE),
        ]
        feedback = Signal()
        m.d.comb += feedback.eq((value[0] ^ bits[0]) & ~plain)
        with m.If(left != 0):
            m.d.sync += [
                value.eq((value >> 1) ^ Mux(feedback, _POLYNOMIAL, 0)),
                bits.eq(bits >> 1),
                left.eq(left - 1),
            ]
        with m.Else():
            with m.If(self.i.valid):
                m.d.sync += [bits.eq(self.i.payload), plain.eq(self.shift), left.eq(8)]
            with m.If(self.clear):
                m.d.sync += value.eq(0xFFFF_FFFF)
        return m
