"""Words and activations as bytes: a head that says what follows, and how many."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.hdl.layouts import act_out_layout, act_signature
from openese.model.config import EngineConfig

from .protocol import ACTIVATIONS, LAST, MAX_RECORD, beat_bytes

__all__ = ["RecordReader", "RecordWriter"]

#: Bytes of a word, and of an activation, lowest first.
_WORD_BYTES, _ACT_BYTES = 4, 2


def _check(config: EngineConfig) -> None:
    if config.act_bits > 8 * _ACT_BYTES:
        raise ValueError(f"the serial link carries activations of at most {8 * _ACT_BYTES} bits, "
                         f"not {config.act_bits}; lower act_bits")


class RecordReader(wiring.Component):
    """Bytes from the host to words and beats of activations for the engine.

    Throughput: a word or beat of ``n`` bytes every ``n + 1`` cycles, ``n + 3`` for the first one
    of a record.

    Parameters
    ----------
    config : EngineConfig
        Gives the widths.

    Members
    -------
    i : ``In(stream.Signature(8))``
    o_host : ``Out(stream.Signature(32))``
    o_act : ``Out(act_signature(config))``

    Raises
    ------
    ValueError
        Activations wider than 16 bits.
    """

    def __init__(self, config: EngineConfig):
        _check(config)
        self._config = config
        super().__init__({
            "i": In(stream.Signature(8)),
            "o_host": Out(stream.Signature(32)),
            "o_act": Out(act_signature(config)),
        })

    def elaborate(self, platform):
        m = Module()
        sizes = {0: _WORD_BYTES, 1: beat_bytes(self._config)}
        gathered = Signal(8 * max(sizes.values()), reset_less=True)
        missing = Signal(range(max(sizes.values()) + 1))
        left = Signal(range(MAX_RECORD))
        kind = Signal()

        def begin(kind):
            return missing.eq(Mux(kind, sizes[1], sizes[0]))

        with m.If(self.i.valid & self.i.ready):
            m.d.sync += gathered.eq(Cat(gathered, self.i.payload)[8:])
        with m.FSM():
            with m.State("HEAD"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.next = "KIND"
            # A byte comes late in a cycle, from block RAM that may be far: it goes nowhere but to
            # `gathered`.
            with m.State("KIND"):
                m.d.sync += [Cat(left, kind).eq(gathered[-8:]),
                             begin((gathered[-8:] & ACTIVATIONS) != 0)]
                m.next = "BYTES"
            with m.State("BYTES"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.sync += missing.eq(missing - 1)
                    with m.If(missing == 1):
                        m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += [self.o_act.valid.eq(kind), self.o_host.valid.eq(~kind)]
                m.d.sync += begin(kind)
                with m.If(Mux(kind, self.o_act.ready, self.o_host.ready)):
                    m.d.sync += left.eq(left - 1)
                    m.next = "BYTES"
                    with m.If(left == 0):
                        m.next = "HEAD"
        m.d.comb += self.o_host.payload.eq(gathered[-32:])
        self._unpack(m, gathered[len(gathered) - 8 * sizes[1]:])
        return m

    def _unpack(self, m: Module, beat: Value) -> None:
        """An activation takes 16 bits whatever the engine's width."""
        config, payload = self._config, self.o_act.payload
        bits = 8 * _ACT_BYTES
        if config.channels == 1:
            values = [payload[lane] for lane in range(config.input_lanes)]
        else:
            values = [payload.values[lane][channel] for lane in range(config.input_lanes)
                      for channel in range(config.channels)]
            m.d.comb += payload.active.eq(beat[bits * len(values):])
        m.d.comb += [value.eq(beat.word_select(place, bits).as_signed())
                     for place, value in enumerate(values)]


class RecordWriter(wiring.Component):
    """Words and activations from the engine to bytes, a record each.

    The inputs have turns, a cycle each while no record is under way, so neither starves.

    Throughput: a record of ``n`` bytes, head included, in ``n + 1`` or ``n + 2`` cycles.

    Parameters
    ----------
    config : EngineConfig
        Gives the widths.

    Members
    -------
    i_host : ``In(stream.Signature(32))``
    i_act : ``In(stream.Signature(act_out_layout(config)))``
    o : ``Out(stream.Signature(8))``

    Raises
    ------
    ValueError
        Activations wider than 16 bits.
    """

    def __init__(self, config: EngineConfig):
        _check(config)
        self._config = config
        super().__init__({
            "i_host": In(stream.Signature(32)),
            "i_act": In(stream.Signature(act_out_layout(config))),
            "o": Out(stream.Signature(8)),
        })

    def elaborate(self, platform):
        m = Module()
        act_bytes = _ACT_BYTES * self._config.channels
        size = max(_WORD_BYTES, act_bytes)
        # Bytes that wait, the next one lowest, and how many follow it.
        waiting = Signal(8 * (1 + size))
        left = Signal(range(1 + size))
        m.d.comb += self.o.payload.eq(waiting[:8])

        values = []
        for channel in range(self._config.channels):
            value = Signal(signed(8 * _ACT_BYTES), name=f"value_{channel}")
            m.d.comb += value.eq(self.i_act.payload.data[channel])
            values.append(value)
        act_head = Const(ACTIVATIONS, 8) | Mux(self.i_act.payload.last, LAST, 0)
        sources = [
            (self.i_host, Cat(Const(0, 8), self.i_host.payload), _WORD_BYTES),
            (self.i_act, Cat(act_head[:8], *values), act_bytes),
        ]
        turn = Signal()
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += [
                waiting.eq(waiting >> 8), left.eq(left - 1), self.o.valid.eq(left != 0)]
        with m.If(~self.o.valid):
            m.d.sync += turn.eq(~turn)
            with m.Switch(turn):
                for number, (source, content, payload) in enumerate(sources):
                    with m.Case(number):
                        m.d.comb += source.ready.eq(1)
                        m.d.sync += [
                            waiting.eq(content), left.eq(payload),
                            self.o.valid.eq(source.valid)]
        return m
