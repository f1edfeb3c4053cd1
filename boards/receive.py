"""What comes from the host: frames are checked, and their payload passed on in order."""

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .crc import Crc32
from .framing import Unstuffer
from .protocol import BUFFER_BYTES, CRC_BYTES, HOST_HEADER, Control
from .stage import Stage

__all__ = ["FrameReader", "ReceiveBuffer"]


class ReceiveBuffer(wiring.Component):
    """Keeps bytes that are accepted, and bytes that may yet be rejected behind them.

    Positions count the bytes of a session modulo 65536.

    Throughput: a byte out every 2 cycles.

    Parameters
    ----------
    depth : int
        Bytes, a power of two.

    Members
    -------
    data : ``In(8)``, write : ``In(1)``
        Append a byte on trial. Nothing happens while ``full``.
    full : ``Out(1)``
    accept : ``In(1)``
        All bytes on trial but the last four, a CRC, are accepted.
    discard : ``In(1)``
        Forget bytes on trial that are not accepted in this cycle.
    accepted : ``Out(16)``
        Position of the next byte.
    taken : ``Out(16)``
        Bytes that have left through ``o``.
    o : ``Out(stream.Signature(8))``
        Accepted bytes.
    """

    def __init__(self, depth: int = BUFFER_BYTES):
        self._depth = depth
        super().__init__({
            "data": In(8), "write": In(1), "full": Out(1), "accept": In(1), "discard": In(1),
            "accepted": Out(16), "taken": Out(16), "o": Out(stream.Signature(8)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.storage = storage = memory.Memory(shape=8, depth=self._depth, init=[])
        write_port, read_port = storage.write_port(), storage.read_port()
        bits = len(write_port.addr)

        # A byte enters the memory a cycle late: it is decided late in a cycle, and block RAM may be
        # far. It is not read before a CRC has followed it.
        trial, put = Signal(16), Signal()
        m.d.comb += [
            self.full.eq((trial[:bits] == self.taken[:bits]) & (trial[bits] != self.taken[bits])),
            put.eq(self.write & ~self.full),
        ]
        m.d.sync += [write_port.en.eq(put), write_port.addr.eq(trial),
                     write_port.data.eq(self.data)]
        with m.If(put):
            m.d.sync += trial.eq(trial + 1)
        end = Signal(16)
        m.d.comb += end.eq(trial - CRC_BYTES)
        with m.If(self.accept):
            m.d.sync += [self.accepted.eq(end), trial.eq(end)]
        with m.Elif(self.discard):
            m.d.sync += trial.eq(self.accepted)

        m.d.comb += [
            read_port.addr.eq(self.taken), self.o.payload.eq(read_port.data),
            read_port.en.eq(~self.o.valid & (self.taken[:bits + 1] != self.accepted[:bits + 1])),
        ]
        m.d.sync += self.o.valid.eq(read_port.en)
        with m.If(self.o.valid):
            m.d.sync += self.o.valid.eq(~self.o.ready)
            with m.If(self.o.ready):
                m.d.sync += self.taken.eq(self.taken + 1)
        return m


class FrameReader(wiring.Component):
    """Takes frames from the line apart and checks them.

    Of a frame that is broken, of another session or out of place nothing enters the buffer.

    Members
    -------
    i : ``In(stream.Signature(8))``
        From the line. Taken 10 cycles after the byte before at the latest, but not in ``hold``.
    hold : ``In(1)``
        Take nothing.
    close : ``In(1)``
        End the session.
    is_open : ``Out(1)``, session : ``Out(8)``
        Whether there is a session, and its number.
    opened : ``Out(1)``
        Pulse: a new session begins; everything else starts afresh.
    accepted : ``In(16)``, full : ``In(1)``
        From the buffer.
    data : ``Out(8)``, write : ``Out(1)``, accept : ``Out(1)``, discard : ``Out(1)``
        To the buffer.
    ack : ``Out(16)``, acked : ``Out(1)``
        The host's position in what it receives, and a pulse when it is known to be right.
    again : ``Out(1)``, answer : ``Out(1)``
        Pulses: the host asks for everything behind `ack` again; it is to be sent a frame.
    refused : ``Out(8)``
        Frames that were broken or out of place, modulo 256.
    """

    i: In(stream.Signature(8))
    hold: In(1)
    close: In(1)
    is_open: Out(1)
    session: Out(8)
    opened: Out(1)
    accepted: In(16)
    full: In(1)
    data: Out(8)
    write: Out(1)
    accept: Out(1)
    discard: Out(1)
    ack: Out(16)
    acked: Out(1)
    again: Out(1)
    answer: Out(1)
    refused: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.submodules.unstuff = unstuff = Unstuffer()
        m.submodules.crc = crc = Crc32()
        wiring.connect(m, wiring.flipped(self.i), unstuff.i)
        # What a byte decides reaches far.
        m.submodules.stage = stage = Stage(unstuff.o.payload.shape())
        wiring.connect(m, unstuff.o, stage.i)
        item, taken = stage.o.payload, Signal()
        m.d.comb += [
            stage.o.ready.eq(crc.i.ready & ~self.hold),
            taken.eq(stage.o.valid & stage.o.ready),
            crc.i.payload.eq(item.data),
            crc.i.valid.eq(taken & ~item.flag),
            crc.clear.eq(taken & item.flag),
            self.data.eq(item.data),
        ]
        # Bytes of the frame so far, counted up to the first one of a payload.
        complete, with_payload = HOST_HEADER + CRC_BYTES, HOST_HEADER + CRC_BYTES + 1
        count = Signal(range(with_payload + 1))
        control = Signal(3)
        session = Signal(8)
        # The frame begins where the one accepted last ended, and had room so far.
        in_place = Signal(init=1)
        fits = Signal(init=1)
        with m.If(taken & ~item.flag):
            with m.If(count != with_payload):
                m.d.sync += count.eq(count + 1)
            with m.Switch(count):
                with m.Case(0):
                    m.d.sync += control.eq(item.data)
                with m.Case(1):
                    m.d.sync += session.eq(item.data)
                for byte in range(2):
                    with m.Case(2 + byte), m.If(item.data != self.accepted.word_select(byte, 8)):
                        m.d.sync += in_place.eq(0)
                    with m.Case(4 + byte):
                        m.d.sync += self.ack.word_select(byte, 8).eq(item.data)
                with m.Default():
                    m.d.comb += self.write.eq(in_place)
                    with m.If(self.full):
                        m.d.sync += fits.eq(0)

        m.d.sync += [signal.eq(0) for signal in (
            self.acked, self.again, self.answer, self.opened)]
        refused = Signal()
        with m.If(taken & item.flag):
            m.d.sync += [count.eq(0), in_place.eq(1), fits.eq(1)]
            m.d.comb += self.discard.eq(1)
            with m.If((count >= complete) & crc.good):
                with m.If(self.is_open & (session == self.session)):
                    m.d.comb += [
                        self.accept.eq(in_place & fits & (count == with_payload)),
                        refused.eq(~in_place | (~fits & (count == with_payload))),
                    ]
                    m.d.sync += [
                        self.acked.eq(1),
                        self.again.eq((control & Control.REWIND) != 0),
                        self.answer.eq(refused | (count == with_payload)
                                       | ((control & Control.ANSWER) != 0)),
                    ]
                with m.Elif((control & Control.OPEN) != 0):
                    m.d.sync += [
                        self.is_open.eq(1), self.session.eq(session), self.opened.eq(1),
                        self.refused.eq(0),
                    ]
            with m.Elif(count != 0):
                m.d.comb += refused.eq(self.is_open)
                m.d.sync += self.answer.eq(self.is_open)
        with m.If(refused):
            m.d.sync += self.refused.eq(self.refused + 1)
        with m.If(self.close):
            m.d.sync += [self.is_open.eq(0), count.eq(0), in_place.eq(1), fits.eq(1)]
            m.d.comb += self.discard.eq(1)
        return m
