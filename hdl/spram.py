# amaranth: UnusedElaboratable=no
# What does not fit an SPRAM is refused while its user is being elaborated.
"""The large memories of iCE40 UltraPlus."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["SPRAM_DEPTH", "SPRAM_WIDTH", "Spram", "is_ultraplus", "uses_spram"]

#: Words of ``SB_SPRAM256KA`` and bits of a word.
SPRAM_DEPTH, SPRAM_WIDTH = 16384, 16

#: Matrix memories up to this number of words stay in block RAM, which has contents at power-up.
BLOCK_RAM_WORDS = 2048


def is_ultraplus(platform: object) -> bool:
    """Whether `platform` is an iCE40 UltraPlus, the only iCE40 with multipliers and SPRAM."""
    return str(getattr(platform, "device", "")).startswith("iCE40UP")


def uses_spram(platform: object, depth: int) -> bool:
    """Whether a matrix memory of `depth` words shall be an SPRAM on `platform`.

    An SPRAM has one port. A matrix memory needs no more: it is filled while its engine stands.
    """
    return is_ultraplus(platform) and depth > BLOCK_RAM_WORDS


class Spram(wiring.Component):
    """One ``SB_SPRAM256KA`` with the ports of a memory; for iCE40 UltraPlus only.

    Its portable twin is ``amaranth.lib.memory.Memory``: both answer a read in the next cycle and
    hold the answer until the next read. The primitive has one port, so the data of a read in the
    cycle of a write, at whatever address, are undefined.

    Latency: 1 cycle. Throughput: a read or a write per cycle.

    Resources: 1 ``SB_SPRAM256KA`` and a LUT4 per address bit.

    Parameters
    ----------
    words : memory.MemoryData
        Shape and depth.

    Members
    -------
    write : ``In(en, addr, data)``
    read : ``In(en, addr, data)``
        ``data`` is an output.

    Raises
    ------
    ValueError
        More words or bits than the primitive has, or contents at power-up, which it cannot have.
    """

    def __init__(self, words: memory.MemoryData):
        width = Shape.cast(words.shape).width
        if words.depth > SPRAM_DEPTH or width > SPRAM_WIDTH:
            raise ValueError(
                f"an SPRAM of iCE40 UltraPlus holds {SPRAM_DEPTH} words of {SPRAM_WIDTH} bits, not "
                f"{words.depth} of {width}: choose spmat_depth of at most {SPRAM_DEPTH} and "
                f"entries of at most {SPRAM_WIDTH} bits, with pointers their flag included")
        if any(words.init):
            raise ValueError(
                "the SPRAM of iCE40 UltraPlus has no contents at power-up: build the engine empty "
                "and load the model over the link, or choose spmat_depth of at most "
                f"{BLOCK_RAM_WORDS}, which block RAM holds")
        port = {"en": In(1), "addr": In(range(words.depth))}
        super().__init__({
            "write": Out(wiring.Signature({**port, "data": In(width)})),
            "read": Out(wiring.Signature({**port, "data": Out(width)})),
        })

    def elaborate(self, platform):
        m = Module()
        addr = Signal(range(SPRAM_DEPTH))
        data_in, data_out = Signal(SPRAM_WIDTH), Signal(SPRAM_WIDTH)
        m.d.comb += [
            addr.eq(Mux(self.write.en, self.write.addr, self.read.addr)),
            data_in.eq(self.write.data), self.read.data.eq(data_out),
        ]
        m.submodules.spram = Instance(
            "SB_SPRAM256KA",
            i_CLOCK=ClockSignal(), i_CHIPSELECT=self.write.en | self.read.en,
            i_WREN=self.write.en, i_MASKWREN=Const(0b1111, 4), i_ADDRESS=addr, i_DATAIN=data_in,
            o_DATAOUT=data_out,
            # Active low, whatever its name says.
            i_POWEROFF=Const(1), i_STANDBY=Const(0), i_SLEEP=Const(0))
        return m
