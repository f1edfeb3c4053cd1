# amaranth: UnusedElaboratable=no
"""The four streams of an engine over one serial line, whatever the line does to the bytes.

``docs/host-protocol.md`` is the specification. From the line to the engine: `FrameReader`,
`ReceiveBuffer`, `RecordReader`; from the engine to the line: `RecordWriter`, `SendBuffer`,
`FrameWriter`.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.hdl.layouts import act_out_layout, act_signature
from openese.model.config import EngineConfig
from openese.model.host import HostOp, Target

from .protocol import IDENTIFICATION_BYTES, SENT_BYTES, Identification
from .receive import FrameReader, ReceiveBuffer
from .records import RecordReader, RecordWriter
from .send import FrameWriter, SendBuffer
from .stage import Stage

__all__ = ["HOLD_CYCLES", "Link"]

#: Cycles in which the link takes nothing while it starts afresh. The engine is reset in the first
#: half of them, so that nothing it offered before is taken. Less than a byte on the line.
HOLD_CYCLES = 31


class Link(wiring.Component):
    """Carries the four streams of an engine over the byte streams of a serial line.

    What the host sends is buffered and enters the engine once its frame has been checked, in order
    and exactly once. What the engine gives is kept until the host has acknowledged it. The link
    does nothing of its own accord but send; whether to try again is for the host to decide, so
    there are no timers.

    Resources, on ECP5 with four input lanes: 536 LUT4, 79 carry cells, 396 registers and two block
    RAMs of 18 kbit. With both buffers of 256 bytes, two block RAMs of 4 kbit are enough.

    Parameters
    ----------
    config : EngineConfig
        Gives the widths; activations may have at most 16 bits.
    identification : Identification or None
        What the board says about itself, and the size of its buffer; ``None``: the engine only.
    sent_bytes : int
        Bytes kept until they are acknowledged, a power of two from 128 to 8192.

    Members
    -------
    i_uart, o_uart : ``In/Out(stream.Signature(8))``
        Bytes from and to the serial line. ``i_uart`` is always ready within 40 cycles.
    i_break : ``In(1)``
        The line is in a break: the session ends.
    reset : ``In(1)``
        What is reset by it is reset by a session's start as well, but for the reader of frames: two
        conditions for the many registers of the rest would meet in a gate in front of each.
    restart : ``Out(1)``
        Reset the engine, because a session ends or begins. High for 16 cycles or more.
    o_host, i_host : ``Out/In(stream.Signature(32))``
        To the engine's ``i_host``, from its ``o_host``.
    o_act : ``Out(act_signature(config))``
        To the engine's ``i_act``.
    i_act : ``In(stream.Signature(act_out_layout(config)))``
        From the engine's ``o_act``.

    Raises
    ------
    ValueError
        Activations wider than 16 bits, a size out of range, or an identification of another
        engine.
    """

    def __init__(self, config: EngineConfig, identification: Identification | None = None, *,
                 sent_bytes: int = SENT_BYTES):
        if identification is None:
            identification = Identification.of(config)
        if identification.signature != config.signature:
            raise ValueError("the identification is of another engine: make it with "
                             "Identification.of(config)")
        if (not isinstance(sent_bytes, int) or sent_bytes.bit_count() != 1
                or not 2 * IDENTIFICATION_BYTES <= sent_bytes <= 8192):
            raise ValueError(f"sent_bytes must be a power of two from {2 * IDENTIFICATION_BYTES} "
                             f"to 8192, not {sent_bytes!r}")
        self._received = ReceiveBuffer(identification.buffer_bytes)
        self._records_in = RecordReader(config)
        self._records_out = RecordWriter(config)
        self._sent = SendBuffer(identification, sent_bytes)
        self._quarter = identification.buffer_bytes // 4
        super().__init__({
            "i_uart": In(stream.Signature(8)),
            "o_uart": Out(stream.Signature(8)),
            "i_break": In(1), "reset": In(1),
            "restart": Out(1),
            "o_host": Out(stream.Signature(32)),
            "i_host": In(stream.Signature(32)),
            "o_act": Out(act_signature(config)),
            "i_act": In(stream.Signature(act_out_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        reader = FrameReader()
        m.submodules.reader = ResetInserter(self.reset)(reader)
        afresh = Signal(init=1)
        rest = ResetInserter(afresh)
        received, sent, writer = self._received, self._sent, FrameWriter()
        m.submodules.received, m.submodules.sent = rest(received), rest(sent)
        m.submodules.writer = rest(writer)
        m.submodules.records_in = rest(self._records_in)
        m.submodules.records_out = rest(self._records_out)

        wiring.connect(m, wiring.flipped(self.i_uart), reader.i)
        wiring.connect(m, received.o, self._records_in.i)
        # Whether the engine takes something hangs on much already.
        words, beats = Stage(32), Stage(self.o_act.payload.shape())
        m.submodules.words, m.submodules.beats = rest(words), rest(beats)
        for given, stage, out in ((self._records_in.o_host, words, self.o_host),
                                  (self._records_in.o_act, beats, self.o_act)):
            wiring.connect(m, given, stage.i)
            wiring.connect(m, stage.o, wiring.flipped(out))
        wiring.connect(m, wiring.flipped(self.i_host), self._records_out.i_host)
        wiring.connect(m, wiring.flipped(self.i_act), self._records_out.i_act)
        wiring.connect(m, self._records_out.o, sent.i)
        wiring.connect(m, writer.o, wiring.flipped(self.o_uart))
        m.d.comb += [
            received.data.eq(reader.data), received.write.eq(reader.write),
            received.accept.eq(reader.accept), received.discard.eq(reader.discard),
            reader.accepted.eq(received.accepted), reader.full.eq(received.full),
            sent.ack.eq(reader.ack), sent.acked.eq(reader.acked),
            sent.next.eq(writer.next), sent.rewind.eq(writer.rewind),
            writer.sent.eq(sent.sent), writer.more.eq(sent.more), writer.data.eq(sent.data),
            writer.again.eq(reader.again),
            writer.answer.eq(reader.answer), writer.accepted.eq(received.accepted),
            writer.taken.eq(received.taken), writer.refused.eq(reader.refused),
            # The host hears of room in the buffer with every quarter of it that falls free.
            writer.window.eq((received.taken & self._quarter) != 0),
            writer.is_open.eq(reader.is_open & ~reader.hold),
            writer.session.eq(reader.session),
        ]

        # A LOAD of a memory, or an item that looks like one. States do not count: running changes
        # them all the time, and every model is loaded with its own.
        overwritten = Signal(reset_less=True)
        op, target = self.o_host.payload[28:], self.o_host.payload[24:28]
        with m.If(self.o_host.valid & (op == HostOp.LOAD)
                  & ((target < Target.REGISTER) | (target == Target.PEEPHOLE))):
            m.d.sync += overwritten.eq(1)
        m.d.comb += writer.status.eq(overwritten)

        left = Signal(range(HOLD_CYCLES + 1), init=HOLD_CYCLES)
        with m.If(reader.opened | self.i_break | self.reset):
            m.d.sync += left.eq(HOLD_CYCLES)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        m.d.sync += [
            afresh.eq(left != 0),
            self.restart.eq(left > HOLD_CYCLES // 2),
        ]
        m.d.comb += [
            reader.hold.eq((left != 0) | reader.opened | afresh),
            reader.close.eq(self.i_break),
        ]
        return m
