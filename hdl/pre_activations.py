"""Pre-activations: what the PEs have accumulated, with the bias, as the element-wise unit takes it.
"""

from itertools import pairwise

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config, checked_contents
from .gather import gate_layout, sum_layout
from .layouts import Kind, broadcast_signature
from .ram_style import small_memory
from .round_off import RoundOff, half_up

__all__ = ["PreActivations"]


class PreActivations(wiring.Component):
    """Rounds the sums of every lane of the gather tree; once for all PEs, behind them.

    Sums of a lane come in the order of its bias memory, so that a counter finds their biases.

    Latency: ``LATENCY`` = 3 cycles. Throughput: 1 per lane and cycle.

    Parameters
    ----------
    config
        Engine configuration with an element-wise unit.
    biases
        For every lane that has PEs, what its memory starts with (unsigned two's complement).

    Members
    -------
    i : ``In(sum_layout(config)).array(gate_lanes)``
    o : ``Out(gate_layout(config)).array(gate_lanes)``
    start : ``In(1)``, base : ``In(bias_addr_bits)``
        The next sum of each lane has its bias here. It comes ``START_LATENCY`` = 4 cycles later or
        more.
    shift : ``In(shift_bits)``, relu : ``In(1)``, biased : ``In(1)``
        Steady while sums arrive. Without `biased` the bias is 0.
    i_load : ``In(broadcast_signature(config))``
    saturated : ``Out(range(gate_lanes * channels + 1))``
        How many of the values on `o` were clipped.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        More words than a memory holds, or a word that is not an unsigned integer of its width.
    """

    LATENCY = RoundOff.LATENCY
    START_LATENCY = 4

    def __init__(self, config: EngineConfig, biases=()):
        self._config = checked_config(config)
        contents = [*biases] or [()] * config.bias_lanes
        self.biases = [
            memory.MemoryData(shape=config.bias_bits, depth=config.bias_depth,
                              init=checked_contents("bias", init, config.bias_depth,
                                                    config.bias_bits))
            for init in contents]
        lanes = config.gate_lanes
        super().__init__({
            "i": In(sum_layout(config)).array(lanes), "o": Out(gate_layout(config)).array(lanes),
            "start": In(1), "base": In(config.bias_addr_bits),
            "shift": In(config.shift_bits), "relu": In(1), "biased": In(1),
            "i_load": In(broadcast_signature(config)),
            "saturated": Out(range(lanes * config.channels + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        start, base = Signal(), Signal.like(self.base, reset_less=True)
        shift, relu = Signal.like(self.shift), Signal()
        m.d.sync += [start.eq(self.start), base.eq(self.base),
                     shift.eq(self.shift), relu.eq(self.relu)]
        clipped = []
        for k, (words, sums, out) in enumerate(zip(self.biases, self.i, self.o, strict=False)):
            bias = self._bias(m, k, words, start, base, sums.valid, platform)
            valid = [sums.valid] + [
                Signal(name=f"valid_{k}_{age}") for age in range(self.LATENCY)]
            m.d.sync += [after.eq(before) for before, after in pairwise(valid)]
            m.d.comb += out.valid.eq(valid[-1])
            for c in range(config.channels):
                m.submodules[f"round_off_{k}_{c}"] = round_off = RoundOff(config)
                m.d.comb += [
                    round_off.acc.eq(sums.values[c]), round_off.bias.eq(bias),
                    round_off.shift.eq(shift), round_off.relu.eq(relu),
                    out.values[c].eq(round_off.value),
                ]
                clipped.append(round_off.clipped & valid[-2])
        m.d.sync += self.saturated.eq(sum(clipped))
        return m

    def _bias(self, m: Module, k: int, words: memory.MemoryData, start: Value, base: Value,
              taken: Value, platform) -> Value:
        """The bias of a lane's sum, one cycle after it."""
        config = self._config
        m.submodules[f"biases_{k}"] = biases = memory.Memory(
            words, attrs=small_memory(config.bias_depth, platform))
        write, read = biases.write_port(), biases.read_port()
        kind, load = self.i_load.payload.kind, self.i_load.payload.args.load
        m.d.comb += [
            write.en.eq(self.i_load.valid & (kind == Kind.LOAD_BIAS) & (load.pe == k)),
            write.addr.eq(load.addr), write.data.eq(load.data),
        ]
        # The word of the next sum is in a register before it comes, and the one after that at the
        # memory's output: block RAM answers late.
        place = Signal(config.bias_addr_bits)
        filling = Signal(2)
        word = Signal.like(read.data, reset_less=True)
        steps = filling.any() | taken
        m.d.comb += [read.addr.eq(place), read.en.eq(steps)]
        m.d.sync += filling.eq(Cat(start, filling[0]))
        with m.If(start):
            m.d.sync += place.eq(base)
        with m.Elif(steps):
            m.d.sync += [place.eq(place + 1), word.eq(read.data)]
        bias = Signal(signed(max(config.bias_bits, config.bias_guard) + 1), reset_less=True,
                      name=f"bias_{k}")
        m.d.sync += bias.eq(half_up(config, Mux(self.biased, word, 0)))
        return bias
