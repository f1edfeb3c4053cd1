"""Small designs with everything a simulator must get right, and some that break the rules."""

from amaranth.hdl import Assert, Cat, Format, Module, Print, Signal, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out


class Queue(wiring.Component):
    """A queue of four bytes, with its level as a status signal."""

    i: In(stream.Signature(8))
    o: Out(stream.Signature(8))
    level: Out(3)

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=8, depth=4)
        m.d.comb += [
            fifo.w_data.eq(self.i.payload), fifo.w_en.eq(self.i.valid),
            self.i.ready.eq(fifo.w_rdy),
            self.o.payload.eq(fifo.r_data), self.o.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.o.ready), self.level.eq(fifo.level),
        ]
        return m


TERM = data.StructLayout({"value": signed(12), "row": 2, "last": 1})


class Lane(wiring.Component):
    """Multiply by a stored weight and add to a row; a `last` term answers with the row's sum."""

    i: In(stream.Signature(TERM))
    o: Out(stream.Signature(data.StructLayout({"sum": signed(30), "row": 2})))

    def __init__(self, weights, bias=0):
        super().__init__()
        self.weights = memory.MemoryData(shape=signed(8), depth=8, init=weights)
        self.sums = memory.MemoryData(shape=signed(30), depth=4, init=[])
        self.bias = bias

    def elaborate(self, platform):
        m = Module()
        m.submodules.weights = weights = memory.Memory(self.weights)
        m.submodules.sums = sums = memory.Memory(self.sums)
        weight, old, new = weights.read_port(), sums.read_port(domain="comb"), sums.write_port()
        go = Signal()
        busy = Signal()
        term = Signal(TERM)
        m.d.comb += [
            go.eq(~self.o.valid | self.o.ready), self.i.ready.eq(go), weight.en.eq(go),
            old.addr.eq(term.row), new.addr.eq(term.row), new.en.eq(busy & go),
            new.data.eq(old.data + term.value * weight.data + self.bias),
            self.o.valid.eq(busy & term.last), self.o.payload.sum.eq(new.data),
            self.o.payload.row.eq(term.row),
        ]
        with m.If(go):
            m.d.sync += [term.eq(self.i.payload), busy.eq(self.i.valid)]
            with m.If(self.i.valid):
                m.d.sync += weight.addr.eq(weight.addr + 1)
        return m


class Lanes(wiring.Component):
    """Lanes that work in step; equal weights make them equal modules."""

    def __init__(self, weights, biases=None):
        self.lanes = [Lane(w, b) for w, b in zip(weights, biases or [0] * len(weights),
                                                 strict=True)]
        super().__init__({
            "i": In(stream.Signature(TERM)),
            "o": Out(stream.Signature(data.ArrayLayout(signed(30), len(self.lanes)))),
            "index": Out(len(self.lanes)),
        })

    def elaborate(self, platform):
        m = Module()
        go = Signal()
        for k, lane in enumerate(self.lanes):
            m.submodules[f"lane_{k}"] = lane
            m.d.comb += [
                lane.i.valid.eq(go), lane.i.payload.eq(self.i.payload),
                lane.o.ready.eq(self.o.ready), self.o.payload[k].eq(lane.o.payload.sum),
                self.index[k].eq(lane.o.payload.row == k),
            ]
        m.d.comb += [
            self.i.ready.eq(Cat(lane.i.ready for lane in self.lanes).all()),
            go.eq(self.i.valid & self.i.ready),
            self.o.valid.eq(self.lanes[0].o.valid),
        ]
        return m


NUMBER = signed(9)


class Pair(wiring.Component):
    """Two inputs that meet, sum and difference to two consumers that need not agree."""

    a: In(stream.Signature(NUMBER))
    b: In(stream.Signature(NUMBER))
    total: Out(stream.Signature(signed(10)))
    difference: Out(stream.Signature(signed(10)))

    def elaborate(self, platform):
        m = Module()
        go = Signal()
        outputs = (self.total, self.a.payload + self.b.payload), \
            (self.difference, self.a.payload - self.b.payload)
        m.d.comb += [
            go.eq(self.a.valid & self.b.valid & ~self.total.valid & ~self.difference.valid),
            self.a.ready.eq(go), self.b.ready.eq(go),
        ]
        for o, value in outputs:
            with m.If(go):
                m.d.sync += [o.payload.eq(value), o.valid.eq(1)]
            with m.Elif(o.ready):
                m.d.sync += o.valid.eq(0)
        return m


class Wide(wiring.Component):
    """100 bits through, exclusive-ored with a setting; wider than any machine word."""

    i: In(stream.Signature(100))
    o: Out(stream.Signature(100, always_ready=True))
    mask: In(70, init=5)
    seen: Out(80)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.i.ready.eq(1)
        m.d.sync += self.o.valid.eq(self.i.valid)
        with m.If(self.i.valid):
            m.d.sync += [self.o.payload.eq(self.i.payload ^ self.mask),
                         self.seen.eq(self.seen | self.i.payload)]
        return m


class Through(wiring.Component):
    """Wires only: two streams in an array, no register anywhere."""

    def __init__(self):
        super().__init__({"i": In(stream.Signature(4)).array(2),
                          "o": Out(stream.Signature(5)).array(2)})

    def elaborate(self, platform):
        m = Module()
        for i, o in zip(self.i, self.o, strict=True):
            m.d.comb += [o.valid.eq(i.valid), i.ready.eq(o.ready), o.payload.eq(i.payload + 1)]
        return m


ACCESS = data.StructLayout({"row": 3, "write": 1, "value": 70})


class Table(wiring.Component):
    """A memory of 5 rows, addressed with 3 bits: rows 5 to 7 do not exist."""

    i: In(stream.Signature(ACCESS))
    o: Out(stream.Signature(70))

    def elaborate(self, platform):
        m = Module()
        m.submodules.rows = rows = memory.Memory(shape=70, depth=5, init=[1 << 69, 2, 3, 4, 5])
        read, write, p = rows.read_port(), rows.write_port(), self.i.payload
        full = Signal()
        m.d.comb += [
            self.i.ready.eq(~full | self.o.ready), self.o.valid.eq(full),
            read.addr.eq(p.row), write.addr.eq(p.row), write.data.eq(p.value),
            read.en.eq(self.i.ready), write.en.eq(self.i.valid & self.i.ready & p.write),
            self.o.payload.eq(read.data),
        ]
        with m.If(self.i.ready):
            m.d.sync += full.eq(self.i.valid)
        return m


class Sum(wiring.Component):
    """Adds a row of a memory that is read without a clock; the memory is in a part without name."""

    i: In(stream.Signature(2))
    o: Out(stream.Signature(9))

    def elaborate(self, platform):
        m, part = Module(), Module()
        part.submodules.rows = rows = memory.Memory(shape=8, depth=4, init=[7])
        m.submodules += part
        read = rows.read_port(domain="comb")
        m.d.comb += [read.addr.eq(self.i.payload), self.o.payload.eq(read.data + 1),
                     self.o.valid.eq(self.i.valid), self.i.ready.eq(self.o.ready)]
        return m


class Unruly(wiring.Component):
    """Offers something every other cycle, or another value every cycle."""

    o: Out(stream.Signature(8))

    def __init__(self, *, drops):
        self.drops = drops
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        count = Signal(8)
        m.d.sync += count.eq(count + 1)
        m.d.comb += [self.o.valid.eq(~count[0] if self.drops else 1),
                     self.o.payload.eq(0 if self.drops else count)]
        return m


class Asserting(wiring.Component):
    """Fails an assertion on payload 3."""

    i: In(stream.Signature(8))

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.i.ready.eq(1)
        with m.If(self.i.valid):
            m.d.sync += Assert(self.i.payload != 3, Format("met {:d}", self.i.payload))
        return m


class Leaf(wiring.Component):
    """Part of a tree whose wires give Amaranth no name for the ports between its modules."""

    i: In(4)
    o: Out(4)

    def __init__(self, step=1):
        self.step = step
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        low = Signal(2)
        high = Signal(2)
        m.d.comb += [low.eq(self.i[:2] + self.step), high.eq(self.i[2:] ^ low)]
        m.d.sync += self.o.eq(Cat(high, low))
        m.d.sync += Print(Format("{:x}", self.o))
        return m


class Tree(wiring.Component):
    """Branches of two leaves, fed with bits gathered from several places."""

    def __init__(self, steps=((1, 1), (1, 1))):
        super().__init__({"i": In(stream.Signature(8)),
                          "o": Out(stream.Signature(4 * len(steps), always_ready=True))})
        self.steps = steps

    def elaborate(self, platform):
        m = Module()
        previous, results = self.i.payload, []
        for b, steps in enumerate(self.steps):
            m.submodules[f"branch_{b}"] = branch = Module()
            leaves = [Leaf(step) for step in steps]
            for k, leaf in enumerate(leaves):
                branch.submodules[f"leaf_{k}"] = leaf
                branch.d.comb += leaf.i.eq(Cat(previous[k], previous[b + 2], previous[5:7]))
            results.append(leaves[0].o ^ leaves[1].o)
            previous = Cat(previous[3:], leaves[1].o[1:])
        m.d.comb += [self.o.payload.eq(Cat(*results)), self.i.ready.eq(1),
                     self.o.valid.eq(self.i.valid)]
        return m
