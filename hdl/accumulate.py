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

    The accumulator is read one cycle before its product arrives and written in the cycle of the
    sum, so only the youngest sum is forwarded. Widths are proved at compile time: the sum never
    wraps.

    Latency: ``ACC_LATENCY`` = 1 cycle from product to memory. Throughput: 1 per cycle.

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
        `drained` in the next cycle. The product must be 0, and the cycle before must not have
        been one for this row.
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
            self.words, attrs=small_memory(config.acc_depth, platform))
        write, read = words.write_port(), words.read_port()

        valid_1 = Signal()
        clear_1, forward = Signal(reset_less=True), Signal(reset_less=True)
        row_1 = Signal(config.acc_addr_bits, reset_less=True)
        before, total = Signal(signed(config.acc_bits)), Signal(signed(config.acc_bits))
        youngest = Signal.like(total, reset_less=True)
        m.d.sync += [
            valid_1.eq(self.valid), clear_1.eq(self.clear), row_1.eq(self.row),
            # The read meets the write of the youngest sum: its data are not used then.
            forward.eq(valid_1 & (row_1 == self.row)), youngest.eq(total),
        ]
        # Zero where the mux has an input to spare: the adder has none.
        m.d.comb += [
            read.addr.eq(self.row), self.drained.eq(read.data),
            before.eq(Mux(clear_1, 0, Mux(forward, youngest, self.drained))),
            total.eq(before + self.product),
            write.en.eq(valid_1), write.addr.eq(row_1), write.data.eq(total),
            self.busy.eq(self.valid | valid_1),
        ]
        m.d.sync += Assert(~(valid_1 & clear_1) | (self.product == 0), "a product for a drain")
        return m
