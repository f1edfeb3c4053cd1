"""A queue for devices without LUT RAM."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["ShiftQueue"]


class ShiftQueue(wiring.Component):
    """A queue whose words move up as the first one is taken.

    A register file that is read at any place takes a tree of multiplexers for every bit of a word.
    Here a word is always read at one end: a bit of a place is a register and one LUT in front of
    it, which together are one logic cell of iCE40.

    Latency: 1 cycle. Throughput: 1 per cycle. A word that comes while all places are taken is
    lost.

    Resources: ``(width + 1) * depth`` logic cells on iCE40, and a LUT per place for its enable.

    Parameters
    ----------
    width
        Bits of a word.
    depth
        Places, 1 or more.

    Members
    -------
    i : ``In(stream.Signature(width, always_ready=True))``
    o : ``Out(stream.Signature(width))``
    filled : ``Out(depth)``
        Bit ``k``: more than ``k`` words are waiting.

    Raises
    ------
    ValueError
        A width or depth below 1.
    """

    def __init__(self, width: int, depth: int):
        for name, value in (("width", width), ("depth", depth)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of 1 or more, not {value!r}")
        super().__init__({
            "i": In(stream.Signature(width, always_ready=True)),
            "o": Out(stream.Signature(width)),
            "filled": Out(depth),
        })

    def elaborate(self, platform):
        m = Module()
        depth, filled = len(self.filled), Signal.like(self.filled)
        words = [Signal.like(self.i.payload, reset_less=True, name=f"word_{k}")
                 for k in range(depth)]
        put, take = self.i.valid, self.o.valid & self.o.ready
        with m.If(put & ~take):
            m.d.sync += filled.eq(Cat(1, filled)[:depth])
        with m.Elif(take & ~put):
            m.d.sync += filled.eq(filled[1:])
        for k, word in enumerate(words):
            # A place behind the last word takes whatever comes, which is the next word or nothing.
            behind, its_word = (filled[k + 1], words[k + 1]) if k + 1 < depth else (0, word)
            with m.If(take | ~filled[k]):
                m.d.sync += word.eq(Mux(behind, its_word, self.i.payload))
        m.d.comb += [
            self.filled.eq(filled), self.o.valid.eq(filled[0]), self.o.payload.eq(words[0]),
        ]
        return m
