"""The four streams of an engine over one serial line. docs/boards.md describes the protocol."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

__all__ = ["BUFFER_BYTES", "CREDIT_BYTES", "MAX_PAYLOAD", "Channel", "ChannelBuffer",
           "FrameReader", "FrameWriter", "Link"]

#: Bytes that a channel buffers on the board, and so the most a host may have on the way. 16 ms,
#: the latency of a usual USB adapter, of a line at 1 Mbaud; one block RAM of ECP5.
BUFFER_BYTES = 2048

#: Bytes that one credit returns to the host.
CREDIT_BYTES = 64

#: Payload bytes of the longest frame.
MAX_PAYLOAD = 64


class Channel:
    """Channel numbers, the two highest bits of a frame's first byte."""

    #: Host words, 4 bytes each, both ways.
    HOST = 0
    #: Activations, 2 bytes each, both ways.
    ACT = 1
    #: An output activation that is the last of its vector; board to host only.
    ACT_LAST = 2
    #: A credit; board to host only, without payload; the low bits name the channel.
    CREDIT = 3


class FrameReader(wiring.Component):
    """Takes incoming frames apart and passes their payload to the channel they name.

    Frames of channels that the board does not receive are swallowed.

    Latency: combinational from ``i`` to the outputs.

    Members
    -------
    i : ``In(stream.Signature(8))``
    o_host, o_act : ``Out(stream.Signature(8))``
        The bytes of each channel, frame boundaries removed.
    """

    i: In(stream.Signature(8))
    o_host: Out(stream.Signature(8))
    o_act: Out(stream.Signature(8))

    def elaborate(self, platform):
        m = Module()
        left = Signal(range(MAX_PAYLOAD))
        channel = Signal(2)
        with m.FSM():
            with m.State("Header"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += Cat(left, channel).eq(self.i.payload)
                with m.If(self.i.valid):
                    m.next = "Payload"
            with m.State("Payload"):
                with m.Switch(channel):
                    for number, output in ((Channel.HOST, self.o_host), (Channel.ACT, self.o_act)):
                        with m.Case(number):
                            m.d.comb += [
                                output.payload.eq(self.i.payload),
                                output.valid.eq(self.i.valid),
                                self.i.ready.eq(output.ready),
                            ]
                    with m.Default():
                        m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid & self.i.ready):
                    m.d.sync += left.eq(left - 1)
                    with m.If(left == 0):
                        m.next = "Header"
        return m


class ChannelBuffer(wiring.Component):
    """Buffers the bytes of one incoming channel, joins them to words and gives credits.

    A host that never has more than ``BUFFER_BYTES`` bytes without credit on the way finds ``i``
    always ready. Throughput: a word of ``n_bytes`` every ``n_bytes + 1`` cycles.

    Parameters
    ----------
    n_bytes : int
        Bytes of a word, 1 or more; the first byte is the lowest.

    Members
    -------
    i : ``In(stream.Signature(8))``
    o : ``Out(stream.Signature(8 * n_bytes))``
    o_credit : ``Out(stream.Signature(1))``
        A transfer for every ``CREDIT_BYTES`` bytes that left the buffer. The payload is always 1.

    Raises
    ------
    ValueError
        A size out of range.
    """

    def __init__(self, n_bytes: int):
        if not isinstance(n_bytes, int) or n_bytes < 1:
            raise ValueError(f"n_bytes must be an integer of 1 or more, not {n_bytes!r}")
        self._n_bytes = n_bytes
        super().__init__({
            "i": In(stream.Signature(8)),
            "o": Out(stream.Signature(8 * n_bytes)),
            "o_credit": Out(stream.Signature(1)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=8, depth=BUFFER_BYTES)
        wiring.connect(m, wiring.flipped(self.i), fifo.w_stream)

        head = fifo.r_stream
        missing = Signal(range(self._n_bytes), init=self._n_bytes - 1)
        # Not while a word waits, even if it leaves now: the line is slow enough, and the engine's
        # `ready` would reach through to the FIFO.
        m.d.comb += head.ready.eq(~self.o.valid)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        popped = Signal()
        m.d.comb += popped.eq(head.valid & head.ready)
        with m.If(popped):
            m.d.sync += [
                self.o.payload.eq(Cat(self.o.payload, head.payload)[8:]),
                self.o.valid.eq(missing == 0),
                missing.eq(Mux(missing == 0, self._n_bytes - 1, missing - 1)),
            ]

        count = Signal(range(CREDIT_BYTES))
        credits = Signal(range(BUFFER_BYTES // CREDIT_BYTES + 1))
        earned = Signal()
        m.d.sync += count.eq(count + popped)
        m.d.comb += [
            earned.eq(popped & (count == CREDIT_BYTES - 1)),
            self.o_credit.valid.eq(credits != 0),
            self.o_credit.payload.eq(1),
        ]
        m.d.sync += credits.eq(credits + earned - (self.o_credit.valid & self.o_credit.ready))
        return m


class FrameWriter(wiring.Component):
    """Turns outgoing words and credits into frames.

    One frame per transfer. The inputs have turns, one cycle each while no frame is under way, so
    none starves and ``ready`` of each is a function of registers alone.

    Latency: 1 to 4 cycles to the first byte. Throughput: a frame of ``n`` bytes, header included,
    in ``n + 1`` to ``n + 4`` cycles at best, far above any serial line.

    Parameters
    ----------
    act_bits : int
        Width of an activation, at most 16; sent sign-extended in 2 bytes.

    Members
    -------
    i_host : ``In(stream.Signature(32))``
    i_act : ``In(stream.Signature(StructLayout({"data": signed(act_bits), "last": 1})))``
    i_credit_host, i_credit_act : ``In(stream.Signature(1))``
    o : ``Out(stream.Signature(8))``
    """

    def __init__(self, act_bits: int):
        super().__init__({
            "i_host": In(stream.Signature(32)),
            "i_act": In(stream.Signature(data.StructLayout({"data": signed(act_bits),
                                                            "last": 1}))),
            "i_credit_host": In(stream.Signature(1)),
            "i_credit_act": In(stream.Signature(1)),
            "o": Out(stream.Signature(8)),
        })

    def elaborate(self, platform):
        m = Module()
        # Bytes that wait, the next one lowest, and how many follow it.
        frame = Signal(8 * 5)
        left = Signal(range(5))
        m.d.comb += self.o.payload.eq(frame[:8])

        value = Signal(signed(16))
        m.d.comb += value.eq(self.i_act.payload.data)
        act_channel = Mux(self.i_act.payload.last, Channel.ACT_LAST, Channel.ACT)
        sources = [
            (self.i_credit_host, Const(Channel.CREDIT << 6 | Channel.HOST, 8), 0),
            (self.i_credit_act, Const(Channel.CREDIT << 6 | Channel.ACT, 8), 0),
            (self.i_host, Cat(Const(Channel.HOST << 6 | 3, 8), self.i_host.payload), 4),
            (self.i_act, Cat(Const(1, 6), act_channel, value), 2),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += [
                frame.eq(frame >> 8),
                left.eq(left - 1),
                self.o.valid.eq(left != 0),
            ]
        turn = Signal(range(len(sources)))
        with m.If(~self.o.valid):
            m.d.sync += turn.eq(turn + 1)
            with m.Switch(turn):
                for number, (source, content, payload) in enumerate(sources):
                    with m.Case(number):
                        m.d.comb += source.ready.eq(1)
                        m.d.sync += [
                            frame.eq(content), left.eq(payload), self.o.valid.eq(source.valid)]
        return m


class Link(wiring.Component):
    """Carries the four streams of an engine over the byte streams of a serial line.

    Nothing is lost: incoming bytes meet a buffer whose room the host knows from credits, outgoing
    transfers wait for the line. The two incoming channels have buffers of their own, so that one
    never waits for the other.

    Resources: two block RAMs of 18 kbit.

    Parameters
    ----------
    config : EngineConfig
        Gives the widths; activations may have at most 16 bits.

    Members
    -------
    i_uart, o_uart : ``In/Out(stream.Signature(8))``
        Bytes from and to the serial line.
    o_host, i_host : ``Out/In(stream.Signature(32))``
        To the engine's ``i_host``, from its ``o_host``.
    o_act : ``Out(stream.Signature(ArrayLayout(signed(act_bits), input_lanes)))``
        To the engine's ``i_act``.
    i_act : ``In(stream.Signature(StructLayout({"data": signed(act_bits), "last": 1})))``
        From the engine's ``o_act``.

    Raises
    ------
    ValueError
        Activations wider than 16 bits.
    """

    def __init__(self, config: EngineConfig):
        if config.act_bits > 16:
            raise ValueError("the serial link carries activations of at most 16 bits, "
                             f"not {config.act_bits}; lower act_bits")
        self._config = config
        act_beat = data.ArrayLayout(signed(config.act_bits), config.input_lanes)
        act_value = data.StructLayout({"data": signed(config.act_bits), "last": 1})
        super().__init__({
            "i_uart": In(stream.Signature(8)),
            "o_uart": Out(stream.Signature(8)),
            "o_host": Out(stream.Signature(32)),
            "i_host": In(stream.Signature(32)),
            "o_act": Out(stream.Signature(act_beat)),
            "i_act": In(stream.Signature(act_value)),
        })

    def elaborate(self, platform):
        m = Module()
        lanes = self._config.input_lanes
        m.submodules.reader = reader = FrameReader()
        m.submodules.host = host = ChannelBuffer(4)
        m.submodules.act = act = ChannelBuffer(2 * lanes)
        m.submodules.writer = writer = FrameWriter(self._config.act_bits)

        wiring.connect(m, wiring.flipped(self.i_uart), reader.i)
        wiring.connect(m, reader.o_host, host.i)
        wiring.connect(m, reader.o_act, act.i)
        wiring.connect(m, host.o, wiring.flipped(self.o_host))
        wiring.connect(m, host.o_credit, writer.i_credit_host)
        wiring.connect(m, act.o_credit, writer.i_credit_act)
        wiring.connect(m, wiring.flipped(self.i_host), writer.i_host)
        wiring.connect(m, wiring.flipped(self.i_act), writer.i_act)
        wiring.connect(m, writer.o, wiring.flipped(self.o_uart))

        m.d.comb += [self.o_act.valid.eq(act.o.valid), act.o.ready.eq(self.o_act.ready)]
        # A value takes 16 bits on the line whatever the engine's width.
        m.d.comb += [self.o_act.payload[lane].eq(act.o.payload.word_select(lane, 16).as_signed())
                     for lane in range(lanes)]
        return m
