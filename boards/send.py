"""What goes to the host: bytes are kept and sent, in frames, until it has acknowledged them."""

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .crc import Crc32
from .framing import Stuffer
from .protocol import (
    BOARD_HEADER,
    CRC_BYTES,
    IDENTIFICATION_BYTES,
    MAX_PAYLOAD,
    SENT_BYTES,
    Identification,
)
from .stage import Stage

__all__ = ["FrameWriter", "SendBuffer"]


class SendBuffer(wiring.Component):
    """Keeps bytes until they are acknowledged. The first ones are the identification.

    Positions count the bytes of a session modulo 65536.

    Throughput: a byte every 2 cycles.

    Parameters
    ----------
    identification : Identification
        What every session begins with. It has memory of its own, so that it outlives them.
    depth : int
        Bytes, a power of two.

    Members
    -------
    i : ``In(stream.Signature(8))``
        Bytes to be sent.
    sent : ``Out(16)``
        Position of the next byte to be sent.
    more : ``Out(1)``
        There is one. May be a cycle late.
    data : ``Out(8)``
        It, if there was ``more``. Valid three cycles after ``next`` or ``rewind``.
    next : ``In(1)``
        It has been sent.
    rewind : ``In(1)``
        Go on behind the last acknowledged byte.
    ack : ``In(16)``, acked : ``In(1)``
        Position of the next byte that the host wants; ``acked`` is a pulse, ``ack`` is constant
        from the cycle before to the cycle after. Positions of bytes that were not kept are
        ignored.
    """

    def __init__(self, identification: Identification, depth: int = SENT_BYTES):
        self._identification = identification
        self._depth = depth
        super().__init__({
            "i": In(stream.Signature(8)), "sent": Out(16), "more": Out(1), "data": Out(8),
            "next": In(1), "rewind": In(1), "ack": In(16), "acked": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.storage = storage = memory.Memory(
            shape=8, depth=self._depth + IDENTIFICATION_BYTES,
            init=[0] * self._depth + list(self._identification.pack()))
        write_port, read_port = storage.write_port(), storage.read_port()
        bits = (self._depth - 1).bit_length()

        head = Signal(16, init=IDENTIFICATION_BYTES)
        oldest = Signal(16)
        full = Signal()
        m.d.comb += [
            full.eq((head[:bits] == oldest[:bits]) & (head[bits] != oldest[bits])),
            write_port.addr.eq(head[:bits]), write_port.data.eq(self.i.payload),
            write_port.en.eq(self.i.valid & self.i.ready),
        ]
        # From a register, which does not know yet of a byte that comes now.
        m.d.sync += self.i.ready.eq(~full & ~write_port.en)
        with m.If(write_port.en):
            m.d.sync += head.eq(head + 1)

        # Until it has been acknowledged as a whole.
        identifying = Signal(init=1)
        first = Signal()
        m.d.comb += [
            first.eq(identifying & (self.sent < IDENTIFICATION_BYTES)),
            read_port.addr.eq(Cat(self.sent[:bits], first)),
        ]
        # Block RAM answers late in a cycle, and there are at least eight for a byte.
        data = Signal.like(self.data, reset_less=True)
        m.d.sync += data.eq(read_port.data)
        m.d.comb += self.data.eq(data)
        with m.If(oldest >= IDENTIFICATION_BYTES):
            m.d.sync += identifying.eq(0)

        kept = Signal(bits + 1)
        new = Signal(16)
        known = Signal()
        acked = Signal()
        m.d.comb += [kept.eq(head - oldest), new.eq(self.ack - oldest)]
        m.d.sync += [
            known.eq((new[:bits + 1] <= kept) & (new[bits + 1:] == 0)),
            self.more.eq(self.sent != head),
            acked.eq(self.acked),
        ]
        with m.If(acked & known):
            # Beyond `sent`, if that was rewound in vain. What is sent until it has caught up has a
            # position that the host is past, so it does not matter what is read.
            m.d.sync += oldest.eq(self.ack)
        with m.If(self.rewind):
            m.d.sync += self.sent.eq(oldest)
        with m.Elif(self.next):
            m.d.sync += self.sent.eq(self.sent + 1)
        return m


class FrameWriter(wiring.Component):
    """Makes frames of what is to be sent, and of answers.

    Throughput: a byte of a frame every 9 cycles at best.

    Members
    -------
    is_open : ``In(1)``, session : ``In(8)``
        Nothing is sent while there is no session.
    sent : ``In(16)``, more : ``In(1)``, data : ``In(8)``
        From the buffer.
    next : ``Out(1)``, rewind : ``Out(1)``
        To the buffer.
    accepted, taken : ``In(16)``, refused : ``In(8)``, status : ``In(1)``
        In every frame.
    again : ``In(1)``, answer : ``In(1)``
        Pulses: go on behind the last acknowledged byte; send a frame even if there is no byte.
    window : ``In(1)``
        Send a frame whenever this has changed.
    o : ``Out(stream.Signature(8))``
        To the line.
    """

    is_open: In(1)
    session: In(8)
    sent: In(16)
    more: In(1)
    data: In(8)
    next: Out(1)
    rewind: Out(1)
    accepted: In(16)
    taken: In(16)
    refused: In(8)
    status: In(1)
    again: In(1)
    answer: In(1)
    window: In(1)
    o: Out(stream.Signature(8))

    def elaborate(self, platform):
        m = Module()
        m.submodules.stuff = stuff = Stuffer()
        m.submodules.crc = crc = Crc32()
        wiring.connect(m, stuff.o, wiring.flipped(self.o))
        # A byte is chosen from many, and how it is stuffed decides much.
        m.submodules.stage = stage = Stage(stuff.i.payload.shape())
        wiring.connect(m, stage.o, stuff.i)
        item = stage.i.payload
        put = Signal()
        passed = Signal()
        m.d.comb += [
            stage.i.valid.eq(put & crc.i.ready),
            passed.eq(stage.i.valid & stage.i.ready),
            crc.i.payload.eq(item.data),
            crc.i.valid.eq(passed & ~item.flag),
        ]

        answer, again, window = Signal(), Signal(), Signal()
        # The acknowledgement that comes with it arrives in the buffer two cycles later.
        asked = Signal()
        m.d.sync += asked.eq(self.again)
        # Upper byte of the number whose lower byte was sent: the two must be of one moment.
        upper = Signal(8)
        step = Signal(range(max(BOARD_HEADER, CRC_BYTES)))
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += crc.clear.eq(1)
                with m.If(again):
                    m.d.comb += self.rewind.eq(1)
                    m.d.sync += again.eq(0)
                with m.Elif(self.is_open & (self.more | answer | (window != self.window))):
                    m.d.sync += answer.eq(0)
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.comb += [put.eq(1), item.flag.eq(1)]
                m.d.sync += step.eq(0)
                with m.If(passed):
                    m.next = "HEADER"
            with m.State("HEADER"):
                m.d.comb += put.eq(1)
                with m.Switch(step):
                    with m.Case(0):
                        m.d.comb += item.data.eq(self.session)
                    for number, value in enumerate((self.sent, self.accepted, self.taken)):
                        with m.Case(1 + 2 * number):
                            m.d.comb += item.data.eq(value[:8])
                            with m.If(passed):
                                m.d.sync += upper.eq(value[8:])
                    with m.Case(2, 4, 6):
                        m.d.comb += item.data.eq(upper)
                    with m.Case(7):
                        m.d.comb += item.data.eq(self.refused)
                    with m.Case(8):
                        m.d.comb += item.data.eq(self.status)
                with m.If(passed):
                    m.d.sync += step.eq(step + 1)
                    with m.If(step == 5):
                        m.d.sync += window.eq(self.window)
                    with m.If(step == BOARD_HEADER - 1):
                        m.next = "PAYLOAD"
            with m.State("PAYLOAD"):
                m.d.comb += [put.eq(self.more), item.data.eq(self.data), self.next.eq(passed)]
                m.d.sync += step.eq(0)
                with m.If((crc.i.ready & ~self.more)
                          | (passed & (self.sent[:8] == MAX_PAYLOAD - 1))):
                    m.next = "CRC"
            with m.State("CRC"):
                m.d.comb += [put.eq(1), crc.shift.eq(1), item.data.eq(crc.next)]
                with m.If(passed):
                    m.d.sync += step.eq(step + 1)
                    with m.If(step == CRC_BYTES - 1):
                        m.next = "END"
            with m.State("END"):
                m.d.comb += [put.eq(1), item.flag.eq(1)]
                with m.If(passed):
                    m.next = "IDLE"
        # Whatever is asked for while a frame is being made is asked for after it.
        with m.If(self.answer):
            m.d.sync += answer.eq(1)
        with m.If(asked):
            m.d.sync += again.eq(1)
        return m
