"""Entry decoding: relative row index to row, and the code's place in the codebook."""

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import DECODE_LATENCY, EngineConfig

from .checks import checked_config, checked_contents
from .layouts import Kind, broadcast_signature, entry_layout, values_layout
from .ram_style import small_memory

__all__ = ["Decode", "split_entry"]


def split_entry(m: Module, config: EngineConfig, entry: Value, code_sel: Value
                ) -> tuple[Value, Value]:
    """Code of an entry, with the sign of a weight that is stored directly, and its index."""
    code = Signal(config.code_bits)
    index = Signal(config.entry_bits - config.min_code_bits)
    with m.Switch(code_sel):
        for bits in range(config.min_code_bits, config.code_bits + 1):
            with m.Case(bits - config.min_code_bits):
                low = entry[:bits].as_signed() if config.direct_weights else entry[:bits]
                m.d.comb += [code.eq(low), index.eq(entry[bits:config.entry_bits])]
    return code, index


class Decode(wiring.Component):
    """Splits an entry, accumulates its row index and looks its code up in the codebook.

    EIE's first stage: codebook look-up and address accumulation side by side. The codebook, the
    split between code and index, and the first row come along with the column. Weights stored
    directly (ESE) need no codebook. Without pointers `SpMatStream` has split the entry already.

    Latency: ``DECODE_LATENCY`` = 1 cycle. The multiplier may be far away on the device, so its
    operands leave from registers. Throughput: 1 per cycle.

    Parameters
    ----------
    config
        Engine configuration.
    init
        Codebook values the memory starts with (unsigned two's complement).

    Members
    -------
    i_broadcast : ``In(broadcast_signature(config))``
        Load messages fill the codebook.
    i : ``In(stream.Signature(entry_layout(config), always_ready=True))``
    weight : ``Out(signed(weight_bits))``
    values : ``Out(values_layout(config))``
        Zero where there is no entry.
    row : ``Out(acc_addr_bits)``
    valid : ``Out(1)``
        Row and operands are an entry's.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        More words than the memory holds, or a word that is not an unsigned integer of its width.
    """

    LATENCY = DECODE_LATENCY

    def __init__(self, config: EngineConfig, init=()):
        self._config = checked_config(config)
        self.codebook = memory.MemoryData(
            shape=config.weight_bits, depth=config.codebook_depth,
            init=checked_contents("codebook", init, config.codebook_depth, config.weight_bits))
        super().__init__({
            "i_broadcast": In(broadcast_signature(config)),
            "i": In(stream.Signature(entry_layout(config), always_ready=True)),
            "weight": Out(signed(config.weight_bits)),
            "values": Out(values_layout(config)),
            "row": Out(config.acc_addr_bits),
            "valid": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        route = self.i.payload.route
        if config.pointers:
            code, index = split_entry(m, config, self.i.payload.entry, route.code_sel)
            top = route.acc if config.recurrent else 0
            row = Mux(self.i.payload.first, top, self.row + 1) + index
        else:
            code, row = self.i.payload.code, route.acc + self.i.payload.row
        values = Signal.like(self.values, reset_less=True)
        if config.direct_weights:
            weight = Signal.like(self.weight, reset_less=True)
            m.d.sync += weight.eq(code.as_signed() << route.align)
            m.d.comb += self.weight.eq(weight)
        else:
            m.submodules.codebook = codebook = memory.Memory(
                self.codebook, attrs=small_memory(config.codebook_depth, platform))
            write, read = codebook.write_port(), codebook.read_port()
            message, args = self.i_broadcast.payload, self.i_broadcast.payload.args
            m.d.comb += [
                write.en.eq(self.i_broadcast.valid & (message.kind == Kind.LOAD_CODEBOOK)),
                write.addr.eq(args.load.addr), write.data.eq(args.load.data),
                read.addr.eq(Cat(code, route.codebook)), self.weight.eq(read.data),
            ]
        # Zero unless an entry comes: a drain then adds nothing.
        m.d.sync += [self.valid.eq(self.i.valid), values.eq(0)]
        m.d.comb += self.values.eq(values)
        with m.If(self.i.valid):
            m.d.sync += [self.row.eq(row), values.eq(self.i.payload.values)]
        return m
