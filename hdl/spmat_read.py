# amaranth: UnusedElaboratable=no
# Contents that an SPRAM cannot have are refused while the unit is being elaborated.
"""Sparse-matrix read: the entries of a column, one per cycle (EIE, section IV)."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config, checked_contents
from .decode import split_entry
from .layouts import (
    Kind,
    Tag,
    broadcast_signature,
    entry_layout,
    marker_layout,
    slot_layout,
    values_layout,
)
from .skid import Skid
from .spram import Spram, uses_spram

__all__ = ["SpMatRead", "SpMatStream"]


class SpMatRead(wiring.Component):
    """Reads the entries of column after column without a bubble between them, by their pointers.

    An entry read now is seen two cycles later, when two more addresses have gone out. So the
    end of a column is announced two entries ahead: columns of one or two entries by their
    pointer's length class, longer ones by the flag of the entry two before the last.

    Latency: ``SPMAT_READ_LATENCY`` = 3 cycles from a column being taken to its first entry.
    Throughput: 1 entry per cycle; a part of a marker, and a fence, takes a cycle.

    Parameters
    ----------
    config
        Engine configuration.
    init
        Entry words the memory starts with.

    Members
    -------
    id : ``In(pe_bits)``
    load : ``In(broadcast_signature(config))``
    i : ``In(stream.Signature(slot_layout(config)))``
    hold : ``In(1)``
        Stand still in this cycle and give nothing.
    o : ``Out(stream.Signature(entry_layout(config), always_ready=True))``
    fence : ``Out(1)``
        In place of an entry: all entries of the columns before this fence have been given.
    busy : ``Out(1)``
        An entry, a marker or a fence is inside.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        More words than the memory holds, or a word that is not an unsigned integer of its width.
    """

    def __init__(self, config: EngineConfig, init=()):
        self._config = checked_config(config)
        self.words = memory.MemoryData(
            shape=config.spmat_word_bits, depth=config.spmat_depth,
            init=checked_contents("spmat", init, config.spmat_depth, config.spmat_word_bits))
        super().__init__({
            "id": In(config.pe_bits),
            "load": In(broadcast_signature(config)),
            "i": In(stream.Signature(slot_layout(config))),
            "hold": In(1), "fence": Out(1),
            "o": Out(stream.Signature(entry_layout(config), always_ready=True)),
            "busy": Out(1),
        })

    def _matrix(self, m: Module, platform: object) -> memory.ReadPort | wiring.PureInterface:
        """The memory, filled by load messages; returns where it is read."""
        if uses_spram(platform, self.words.depth):
            m.submodules.words = words = Spram(self.words)
            write, read = words.write, words.read
        else:
            m.submodules.words = words = memory.Memory(self.words)
            write, read = words.write_port(), words.read_port()
        args = self.load.payload.args.load
        load = self.load.valid & (self.load.payload.kind == Kind.LOAD_SPMAT) & (args.pe == self.id)
        m.d.comb += [write.en.eq(load), write.addr.eq(args.addr), write.data.eq(args.data)]
        return read

    def _marked(self, m: Module, part: Value, taken: Value) -> tuple[data.View, data.View]:
        """The marker whose parts have been taken, and what it is with this part.

        Entries behind it go by its route. While it comes part by part, no entry does.
        """
        config = self._config
        layout = marker_layout(config)
        assert Shape.cast(layout).width == config.marker_bits
        parts = Signal(config.marker_parts * len(part), reset_less=True, name="marker")
        after = Cat(parts, part)[len(part):]
        with m.If(taken):
            m.d.sync += parts.eq(after)
        marker, with_part = (
            data.View(layout, bits[:config.marker_bits]) for bits in (parts, after))
        m.d.comb += self.o.payload.route.eq(marker.route)
        return marker, with_part

    def _marked_by_message(self, m: Module) -> tuple[data.View, data.View, Value]:
        """Marker of an engine that drains between matrices, and whether its last part comes."""
        message, mark = self.load.payload, self.load.payload.args.mark
        taken = self.load.valid & (message.kind == Kind.MARK)
        return *self._marked(m, mark.part, taken), taken & mark.last

    def elaborate(self, platform):
        m = Module()
        read = self._matrix(m, platform)

        # Stage 0 holds the address that is being read, stage 1 waits for the memory, stage 2
        # holds the entry.
        config, column = self._config, self.i.payload
        along = {"values": values_layout(config), "first": 1}
        if config.recurrent:
            along["tag"] = Tag
        valid = [Signal(name=f"valid_{k}") for k in range(3)]
        mark = [Signal(name=f"mark_{k}") for k in range(3)]  # or a fence
        with_it = [Signal(data.StructLayout(along), reset_less=True, name=f"with_{k}")
                   for k in range(3)]
        addr = Signal(config.spmat_addr_bits, reset_less=True)
        left = Signal(2, reset_less=True)  # entries left: 1, 2, or 3 for "not known yet"
        word = Signal(config.spmat_word_bits, reset_less=True)

        flag = valid[2] & word[config.entry_bits]
        is_last = (left == 1) | flag
        next_one = Signal()
        go = ~self.hold
        m.d.comb += [
            read.addr.eq(addr), read.en.eq(go), next_one.eq(~valid[0] | is_last),
            self.i.ready.eq(next_one & go),
        ]
        with m.If(go):
            with m.If(next_one):
                is_column = column.tag == Tag.COLUMN if config.recurrent else Const(1)
                m.d.sync += [
                    valid[0].eq(self.i.valid & is_column), mark[0].eq(self.i.valid & ~is_column),
                    with_it[0].first.eq(1), with_it[0].values.eq(column.values),
                    addr.eq(column.ptr.start), left.eq(column.ptr.length),
                ]
                if config.recurrent:
                    m.d.sync += with_it[0].tag.eq(column.tag)
            with m.Else():
                m.d.sync += [with_it[0].first.eq(0), addr.eq(addr + 1)]
                with m.If(left == 2):
                    m.d.sync += left.eq(1)
            for k in (1, 2):
                m.d.sync += [valid[k].eq(valid[k - 1]), mark[k].eq(mark[k - 1]),
                             with_it[k].eq(with_it[k - 1])]
            m.d.sync += word.eq(read.data)
        if config.recurrent:
            is_fence = with_it[2].tag == Tag.FENCE
            self._marked(m, with_it[2].values.as_value(), mark[2] & go & ~is_fence)
            m.d.comb += self.fence.eq(mark[2] & go & is_fence)
        else:
            self._marked_by_message(m)
        m.d.comb += [
            self.o.valid.eq(valid[2] & go),
            self.o.payload.entry.eq(word),
            self.o.payload.values.eq(with_it[2].values),
            self.o.payload.first.eq(with_it[2].first),
            self.busy.eq(Cat(valid, mark).any()),
        ]
        return m


class SpMatStream(SpMatRead):
    """Reads the entries of a matrix in the order they are stored: no column has a pointer.

    The memory is read ahead of the columns, since its addresses depend on nothing but the marker
    of the matrix. An entry's index counts on from the entry before, over the ends of columns, and
    tells by itself whether the entry is in the slot at the head of the queue, in which of two
    columns there, or in a later slot. The entry behind the last column waits there until the next
    marker discards it.

    Latency: 0 cycles from a column at the head of the queue to its first entry, but no sooner than
    `EngineConfig.marker_latency` = 4 or 5 after the last part of a marker.
    Throughput: 1 entry per cycle; a slot without entries takes a cycle. Parameters, members and
    errors are those of `SpMatRead`.
    """

    def elaborate(self, platform):
        m = Module()
        read = self._matrix(m, platform)

        config, column = self._config, self.i.payload
        go = ~self.hold
        is_column = Const(1)
        if config.recurrent:
            is_column = column.tag == Tag.COLUMN
            mark = self.i.valid & go & ~is_column & (column.tag != Tag.FENCE)
            jump = mark & (column.tag == Tag.MARK)
            marker, with_part = self._marked(m, column.values.as_value(), mark)
            m.d.comb += self.fence.eq(self.i.valid & (column.tag == Tag.FENCE) & go)
        else:
            marker, with_part, jump = self._marked_by_message(m)
        drop = marker.drop

        # Stage 0 has the address that is being read, stage 1 waits for the memory, stage 2 holds
        # its word, stage 3 the entry that is next; and in paired engines one more before it.
        addr = Signal(config.spmat_addr_bits, reset_less=True)
        word = Signal(config.spmat_word_bits, reset_less=True)
        valid_1, valid_2, valid_3 = (Signal(name=f"valid_{k}") for k in range(1, 4))
        load = Signal()
        code, index = split_entry(m, config, word, self.o.payload.route.code_sel)
        next_code = Signal.like(code, reset_less=True)
        if config.paired:
            # Or it would hang on the queue whether the memory, which is slow and not near in an
            # engine of this size, is read. Small devices have no cells for it.
            m.submodules.ahead = ahead = ResetInserter(jump)(Skid(len(code) + len(index)))
            m.d.comb += [ahead.i.valid.eq(valid_2), ahead.i.payload.eq(Cat(code, index)),
                         ahead.o.ready.eq(load)]
            code, index = ahead.o.payload[:len(code)], ahead.o.payload[len(code):]
            leaves_2, there = ahead.i.ready, ahead.o.valid
        else:
            leaves_2, there = load, valid_2
        # Rows are counted back from the ends of the columns at the head: one that is not negative
        # is in a later column.
        two = column.two if config.paired else Const(0)
        width = max(config.acc_addr_bits, len(index)) + 1 + config.paired
        rows = [Signal(signed(width), reset_less=True, name=f"row_{k}")
                for k in range(1 + config.paired)]
        opened = Signal()  # the slot at the head has been

        def ahead_of(rows):
            """Whether an entry with these rows is in a later slot."""
            return ~rows[0][-1] & ~(two & rows[-1][-1])

        take, pass_by, moves, crosses = (Signal() for _ in range(4))
        # To the next entry, or when passing by to the next slot only. All entries but the first
        # count from the row behind their predecessor: a carry.
        later = ahead_of(rows) & opened
        within = [Signal.like(row, name=f"within_{k}") for k, row in enumerate(rows)]
        # From the last column at the head to the last one of the next slot, whichever it is.
        ends = [Signal.like(rows[0], name=f"end_{k}") for k in range(2 + config.paired)]
        ready_2 = ~valid_2 | leaves_2
        ready_1 = ~valid_1 | ready_2
        here = self.i.valid & is_column & valid_3 & go
        m.d.comb += [
            *(inside.eq((Cat(opened, row) + Cat(opened, index))[1:])
              for inside, row in zip(within, rows, strict=True)),
            ends[0].eq(Mux(later, rows[-1], within[-1])),
            *(end.eq(ends[0] + (drop << k)) for k, end in enumerate(ends[1:])),
            crosses.eq(~opened | later | ahead_of(within)),
            take.eq(here & ~later), pass_by.eq(here & later),
            load.eq(there & (take | ~valid_3)), moves.eq(load | pass_by),
            self.i.ready.eq((go & ~is_column) | (moves & crosses & opened)),
            read.addr.eq(addr), read.en.eq(ready_1),
        ]
        with m.If(ready_1):
            m.d.sync += [valid_1.eq(1), addr.eq(addr + 1)]
        with m.If(ready_2):
            m.d.sync += [valid_2.eq(valid_1), word.eq(read.data)]
        with m.If(take | ~valid_3):
            m.d.sync += [valid_3.eq(there), next_code.eq(code)]
        # The first entry crosses from a slot that ends at row 0.
        for k, row in enumerate(rows):
            beyond = Mux(two | ~opened, ends[k + 1], ends[k]) if config.paired else ends[1]
            with m.If(moves):
                m.d.sync += row.eq(Mux(crosses, beyond, within[k]))
            with m.If(jump):
                m.d.sync += row.eq(0)
        with m.If(load):
            m.d.sync += opened.eq(1)
        with m.If(jump):
            m.d.sync += [addr.eq(with_part.spmat), opened.eq(0),
                         valid_1.eq(0), valid_2.eq(0), valid_3.eq(0)]
        m.d.comb += [
            self.o.valid.eq(take),
            self.o.payload.code.eq(next_code), self.o.payload.row.eq(rows[0]),
            self.o.payload.values.eq(column.values),
        ]
        if config.paired:
            with m.If(~rows[0][-1]):
                m.d.comb += [self.o.payload.row.eq(rows[1]),
                             self.o.payload.values.eq(column.second)]
        return m
