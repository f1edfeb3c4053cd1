"""Input buffer: fills the activation memories with the next vectors while one is computed."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config
from .layouts import act_signature, input_signature

__all__ = ["InputBuffer"]


class InputBuffer(wiring.Component):
    """Spreads the input stream over the PEs, alternating between two regions.

    A vector takes ``rows * n_pes / input_lanes`` beats; positions after its end are padding.
    A beat is taken every cycle unless both regions are full or write-back needs the memories.

    Parameters
    ----------
    config
        Engine configuration.

    Members
    -------
    rows : ``In(rows_bits)``, act : ``In(act_addr_bits).array(2)``
        The descriptor, steady while vectors arrive.
    flush : ``In(1)``
        Forget all that has arrived.
    hold : ``In(1)``
        Take no beat in this cycle.
    i : ``In(act_signature(config))``
    o : ``Out(input_signature(config))``
    full : ``Out(1)``, full_act : ``Out(act_addr_bits)``, full_active : ``Out(channels)``
        The oldest complete vector's region, and the channels that have a step in it.
    release : ``In(1)``
        The oldest complete vector is not needed any more.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        super().__init__({
            "rows": In(config.rows_bits), "act": In(config.act_addr_bits).array(2),
            "flush": In(1), "hold": In(1),
            "i": In(act_signature(config)), "o": Out(input_signature(config)),
            "full": Out(1), "full_act": Out(config.act_addr_bits),
            "full_active": Out(config.channels), "release": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        groups = self._config.n_pes // self._config.input_lanes
        filling, oldest = Signal(), Signal()
        full = Signal(2)
        row = Signal(self._config.rows_bits)
        group = Signal.like(self.o.payload.group)

        region = Mux(filling, self.act[1], self.act[0])
        m.d.comb += [
            self.i.ready.eq(
                ~full.bit_select(filling, 1) & (self.rows != 0) & ~self.hold & ~self.flush),
            self.o.valid.eq(self.i.valid & self.i.ready),
            self.o.payload.group.eq(group),
            self.o.payload.act.eq(region + row),
            self.full.eq(full.bit_select(oldest, 1)),
            self.full_act.eq(Mux(oldest, self.act[1], self.act[0])),
        ]
        if self._config.channels == 1:
            m.d.comb += [
                *(lane[0].eq(value) for lane, value in
                  zip(self.o.payload.values, self.i.payload, strict=True)),
                self.full_active.eq(1),
            ]
        else:
            active = Array(Signal(self._config.channels, name=f"active_{k}") for k in range(2))
            with m.If(self.o.valid):
                m.d.sync += active[filling].eq(self.i.payload.active)
            m.d.comb += [
                self.o.payload.values.eq(self.i.payload.values),
                self.full_active.eq(active[oldest]),
            ]
        with m.If(self.o.valid):
            m.d.sync += group.eq(group + 1)
            with m.If(group == groups - 1):
                m.d.sync += [group.eq(0), row.eq(row + 1)]
                with m.If(row == self.rows - 1):
                    m.d.sync += [
                        row.eq(0), filling.eq(~filling), full.bit_select(filling, 1).eq(1)]
        with m.If(self.release):
            m.d.sync += [full.bit_select(oldest, 1).eq(0), oldest.eq(~oldest)]
        with m.If(self.flush):
            m.d.sync += [filling.eq(0), oldest.eq(0), full.eq(0), row.eq(0), group.eq(0)]
        return m
