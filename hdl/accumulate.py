"""Accumulators of a PE, with forwarding so that no row repetition ever stalls."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import ACC_LATENCY, EngineConfig

from .checks import checked_config
from .ram_style import small_memory

__all__ = ["Accumulate"]


class Accumulate(wiring.Component):
    """Adds one product per cycle to the accumulator of its row; drains and clears on demand.

    The accumulator is read one cycle before its product arrives and written one cycle after the
    sum, so the two youngest sums are forwarded. Widths are proved at compile time: the sum never
    wraps.

    Latency: ``ACC_LATENCY`` = 2 cycles from product to memory. Throughput: 1 per cycle.

    Parameters
    ----------
    config
        Engine configuration.

    Members
    -------
    row, valid : ``In``
        Row of an entry, one cycle before its product.
    clear : ``In(1)``
        With ``valid``: instead of adding, set the accumulator to zero; its former value is on
        `drained` in the next cycle. A product for this row must not come in the cycle before.
    product : ``In(signed(act_bits + weight_bits))``
    drained : ``Out(signed(acc_bits))``
    busy : ``Out(1)``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    LATENCY = ACC_LATENCY

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        # Zero at power-up; after a reset the sequencer clears what a broken-off run left.
        self.words = memory.MemoryData(shape=config.acc_bits, depth=config.acc_depth, init=[])
        super().__init__({
            "row": In(config.acc_addr_bits),
            "valid": In(1),
            "clear": In(1),
            "product": In(signed(config.act_bits + config.weight_bits)),
            "drained": Out(signed(config.acc_bits)),
            "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.words = words = memory.Memory(
            self.words, attrs=small_memory(config.acc_depth))
        write, read = words.write_port(), words.read_port(domain="comb")

        # Stage 1 adds the product; stage 2 holds the sum that is being written.
        shape = signed(config.acc_bits)
        valid_1, valid_2 = Signal(), Signal()
        clear_1 = Signal(reset_less=True)
        row_1 = Signal(config.acc_addr_bits, reset_less=True)
        row_2 = Signal(config.acc_addr_bits, reset_less=True)
        before = Signal(shape, reset_less=True)
        forward = Signal(reset_less=True)
        total = Signal(shape, reset_less=True)

        m.d.comb += read.addr.eq(self.row)
        in_flight = valid_2 & (row_2 == self.row)
        m.d.sync += [
            valid_1.eq(self.valid), clear_1.eq(self.clear), row_1.eq(self.row),
            before.eq(Mux(in_flight, total, read.data.as_signed())),
            forward.eq(valid_1 & (row_1 == self.row)),
            valid_2.eq(valid_1), row_2.eq(row_1),
        ]
        with m.If(clear_1):
            m.d.sync += total.eq(0)
        with m.Else():
            m.d.sync += total.eq(Mux(forward, total, before) + self.product)
        m.d.comb += [
            write.en.eq(valid_2), write.addr.eq(row_2), write.data.eq(total),
            self.drained.eq(before),
            self.busy.eq(self.valid | valid_1 | valid_2),
        ]
        return m
