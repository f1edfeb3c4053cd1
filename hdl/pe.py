# amaranth: UnusedElaboratable=no
# The blocks of a PE are unused exactly when the PE is, which Amaranth reports by itself.
"""A processing element: EIE's pipeline from the broadcast to the accumulators and back."""

from itertools import pairwise

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import MULTIPLY_LATENCY, EngineConfig

from .accumulate import Accumulate
from .act_memory import ActMemory, lane_layout
from .act_queue import ActQueue
from .checks import checked_config
from .decode import Decode
from .drain import Drain
from .fan import Relay
from .gather import sum_layout
from .layouts import Kind, broadcast_signature, scan_layout
from .multiply import Multiplier
from .ptr_read import PtrRead
from .spmat_read import SpMatRead, SpMatStream
from .write_back import WriteBack

__all__ = ["ProcessingElement"]


class ProcessingElement(wiring.Component):
    """One PE: every ``n_pes``-th row of each matrix, and every ``n_pes``-th activation.

    broadcast -> PtrRead -> ActQueue -> SpMatRead -> Decode -> Multiplier -> Accumulate ->
    WriteBack -> ActMemory -> scan items for the LNZD tree. A PE of a recurrent engine has a Drain
    in the place of WriteBack, which gives its sums to the element-wise unit. Draining takes a cycle
    of the matrix read for every accumulator, so that both can go on at once. With ``central_acts``
    it has no activation memory.

    Nothing in a PE depends on its number but the values of `id` and `group`, so that one module
    serves all.

    Throughput: one entry per cycle without bubbles between columns. Latency from broadcast to
    accumulator: see `EngineConfig`.

    Parameters
    ----------
    config
        Engine configuration.
    spmat, ptr, bias, codebook
        Contents the memories start with, from `openese.model.compile`.

    Members
    -------
    id : ``In(pe_bits)``
    group : ``In``
    i : ``In(broadcast_signature(config))``
    i_input : ``In(stream.Signature(lane_layout(config), always_ready=True))``
    o : ``Out(stream.Signature(scan_layout(config, 0)))``
        As `group` and `i_input`, not with ``central_acts``.
    gate : ``Out(sum_layout(config))``
        Sums for the element-wise unit.
    i_token, o_token : ``In(1)``, ``Out(1)``
        See `Drain`.
    busy, almost_full, fence, working : ``Out(1)``
        Registered. `fence` is high from a CELL message until everything before it has been
        accumulated, `working` after every entry.
    saturated : ``Out(range(channels + 1))``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        More words than the memory holds, or a word that is not an unsigned integer of its width.
    """

    def __init__(self, config: EngineConfig, *, spmat=(), ptr=(), bias=(), codebook=()):
        self._config = checked_config(config)
        self.ptr_read = PtrRead(config, init=ptr)
        self.act_queue = ActQueue(config)
        self.spmat_read = (SpMatRead if config.pointers else SpMatStream)(config, init=spmat)
        self.decode = Decode(config, init=codebook)
        self.multipliers = [Multiplier(config.weight_bits, config.act_bits)
                            for _ in range(config.channels)]
        self.accumulates = [Accumulate(config) for _ in range(config.channels)]
        self.drain = Drain(config) if config.recurrent else WriteBack(config, init=bias)
        self.act_memory = None if config.central_acts else ActMemory(config)
        assert Multiplier.LATENCY == MULTIPLY_LATENCY
        acts = {} if config.central_acts else {
            "group": In(lane_layout(config)["group"].shape),
            "i_input": In(stream.Signature(lane_layout(config), always_ready=True)),
            "o": Out(stream.Signature(scan_layout(config, 0))),
        }
        super().__init__(acts | {
            "id": In(config.pe_bits),
            "i": In(broadcast_signature(config)),
            "gate": Out(sum_layout(config)), "i_token": In(1), "o_token": Out(1),
            "busy": Out(1), "almost_full": Out(1), "fence": Out(1), "working": Out(1),
            "saturated": Out(range(config.channels + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        message = self.i
        if not self._config.serial_cells:
            m.submodules.i_relay = relay = Relay(broadcast_signature(self._config))
            wiring.connect(m, wiring.flipped(self.i), relay.i)
            message = relay.o
        m.submodules.ptr_read = ptr_read = self.ptr_read
        m.submodules.act_queue = act_queue = self.act_queue
        m.submodules.spmat_read = spmat_read = self.spmat_read
        m.submodules.decode = decode = self.decode
        for c, (multiplier, accumulate) in enumerate(
                zip(self.multipliers, self.accumulates, strict=True)):
            suffix = f"_{c}" if c else ""
            m.submodules[f"multiplier{suffix}"] = multiplier
            m.submodules[f"accumulate{suffix}"] = accumulate
        drain = self.drain
        m.submodules["drain" if self._config.recurrent else "write_back"] = drain
        act_memory = self.act_memory

        for port in (ptr_read.i, spmat_read.load, decode.i_broadcast, drain.i):
            m.d.comb += [port.valid.eq(message.valid), port.payload.eq(message.payload)]
        wiring.connect(m, ptr_read.o, act_queue.i)
        wiring.connect(m, act_queue.o, spmat_read.i)
        wiring.connect(m, spmat_read.o, decode.i)
        m.d.comb += [ptr_read.id.eq(self.id), spmat_read.id.eq(self.id),
                     spmat_read.hold.eq(drain.drain)]
        if act_memory is not None:
            m.submodules.act_memory = act_memory
            wiring.connect(m, wiring.flipped(self.i_input), act_memory.i_input)
            wiring.connect(m, act_memory.o, wiring.flipped(self.o))
            m.d.comb += [
                act_memory.i.valid.eq(message.valid), act_memory.i.payload.eq(message.payload),
                act_memory.id.eq(self.id), act_memory.group.eq(self.group),
            ]
        drained = [accumulate.drained for accumulate in self.accumulates]
        if self._config.recurrent:
            m.d.comb += [
                drain.i_token.eq(self.i_token), self.o_token.eq(drain.o_token),
                self.gate.valid.eq(drain.valid),
                *(port.eq(value) for port, value in zip(self.gate.values, drained, strict=True)),
            ]
        else:
            wiring.connect(m, drain.o, act_memory.i_result)
            m.d.comb += [
                drain.id.eq(self.id), self.saturated.eq(drain.saturated),
                *(port.eq(value) for port, value in zip(drain.drained, drained, strict=True)),
            ]

        # The decoder gives the row with the multiplier's operands, and the accumulator wants it one
        # cycle before the product. A drain goes the same way, in the gap that its hold has left.
        drain_row = Signal.like(drain.row, reset_less=True)
        draining = Signal()
        m.d.sync += [draining.eq(drain.drain), drain_row.eq(drain.row)]
        rows = [Mux(draining, drain_row, decode.row)]
        valids, clears = [decode.valid | draining], [draining]
        for k in range(MULTIPLY_LATENCY - 1):
            row = Signal.like(decode.row, reset_less=True, name=f"row_{k}")
            valid, clear = Signal(name=f"valid_{k}"), Signal(name=f"clear_{k}")
            m.d.sync += [row.eq(rows[-1]), valid.eq(valids[-1]), clear.eq(clears[-1])]
            rows.append(row)
            valids.append(valid)
            clears.append(clear)
        for c, (multiplier, accumulate) in enumerate(
                zip(self.multipliers, self.accumulates, strict=True)):
            m.d.comb += [
                multiplier.a.eq(decode.weight), multiplier.b.eq(decode.values[c]),
                accumulate.product.eq(multiplier.p),
                accumulate.row.eq(rows[-1]), accumulate.valid.eq(valids[-1]),
                accumulate.clear.eq(clears[-1]),
            ]

        kind = message.payload.kind
        arriving = message.valid & ((kind == Kind.ACT) | (kind == Kind.WRITE))
        m.d.sync += [
            self.busy.eq(
                arriving | ptr_read.busy | act_queue.waiting | spmat_read.busy
                | Cat(valids).any() | self.accumulates[0].busy | drain.busy),
            self.almost_full.eq(act_queue.almost_full), self.working.eq(spmat_read.o.valid),
        ]
        if self._config.recurrent:
            # The fence has passed when the entry before it has been added.
            passing = [spmat_read.fence] + [
                Signal(name=f"fence_{k}") for k in range(MULTIPLY_LATENCY + 1)]
            m.d.sync += [after.eq(before) for before, after in pairwise(passing)]
            with m.If(passing[-1]):
                m.d.sync += self.fence.eq(0)
            with m.If(message.valid & (kind == Kind.CELL)):
                m.d.sync += self.fence.eq(1)
        return m
