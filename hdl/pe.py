# amaranth: UnusedElaboratable=no
# The blocks of a PE are unused exactly when the PE is, which Amaranth reports by itself.
"""A processing element: EIE's pipeline from the broadcast to the accumulators and back."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import MULTIPLY_LATENCY, EngineConfig

from .accumulate import Accumulate
from .act_memory import ActMemory, lane_layout
from .act_queue import ActQueue
from .checks import checked_config
from .decode import Decode
from .fan import Relay
from .layouts import Kind, broadcast_signature, scan_layout
from .multiply import Multiplier
from .ptr_read import PtrRead
from .spmat_read import SpMatRead
from .write_back import WriteBack

__all__ = ["ProcessingElement"]


class ProcessingElement(wiring.Component):
    """One PE: every ``n_pes``-th row of each matrix, and every ``n_pes``-th activation.

    broadcast -> PtrRead -> ActQueue -> SpMatRead -> Decode -> Multiplier -> Accumulate ->
    WriteBack -> ActMemory -> scan items for the LNZD tree.

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
    busy, almost_full, saturated : ``Out(1)``
        Registered.

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
        self.spmat_read = SpMatRead(config, init=spmat)
        self.decode = Decode(config, init=codebook)
        self.multiplier = Multiplier(config.weight_bits, config.act_bits)
        self.accumulate = Accumulate(config)
        self.write_back = WriteBack(config, init=bias)
        self.act_memory = ActMemory(config)
        assert Multiplier.LATENCY == MULTIPLY_LATENCY
        super().__init__({
            "id": In(config.pe_bits),
            "group": In(lane_layout(config)["group"].shape),
            "i": In(broadcast_signature(config)),
            "i_input": In(stream.Signature(lane_layout(config), always_ready=True)),
            "o": Out(stream.Signature(scan_layout(config, 0))),
            "busy": Out(1), "almost_full": Out(1), "saturated": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.i_relay = relay = Relay(broadcast_signature(self._config))
        m.submodules.ptr_read = ptr_read = self.ptr_read
        m.submodules.act_queue = act_queue = self.act_queue
        m.submodules.spmat_read = spmat_read = self.spmat_read
        m.submodules.decode = decode = self.decode
        m.submodules.multiplier = multiplier = self.multiplier
        m.submodules.accumulate = accumulate = self.accumulate
        m.submodules.write_back = write_back = self.write_back
        m.submodules.act_memory = act_memory = self.act_memory

        wiring.connect(m, wiring.flipped(self.i), relay.i)
        for port in (ptr_read.i, spmat_read.load, decode.i_broadcast, write_back.i, act_memory.i):
            m.d.comb += [port.valid.eq(relay.o.valid), port.payload.eq(relay.o.payload)]
        wiring.connect(m, ptr_read.o, act_queue.i)
        wiring.connect(m, act_queue.o, spmat_read.i)
        wiring.connect(m, spmat_read.o, decode.i)
        wiring.connect(m, write_back.o, act_memory.i_result)
        wiring.connect(m, wiring.flipped(self.i_input), act_memory.i_input)
        wiring.connect(m, act_memory.o, wiring.flipped(self.o))
        m.d.comb += [
            part.id.eq(self.id) for part in (ptr_read, spmat_read, write_back, act_memory)]
        m.d.comb += [
            act_memory.group.eq(self.group),
            multiplier.a.eq(decode.weight), multiplier.b.eq(decode.value),
            accumulate.product.eq(multiplier.p), write_back.drained.eq(accumulate.drained),
        ]

        # The decoder gives the row with the multiplier's operands, and the accumulator wants it one
        # cycle before the product.
        rows, valids = [decode.row], [decode.valid]
        for k in range(MULTIPLY_LATENCY - 1):
            row = Signal.like(decode.row, reset_less=True, name=f"row_{k}")
            valid = Signal(name=f"valid_{k}")
            m.d.sync += [row.eq(rows[-1]), valid.eq(valids[-1])]
            rows.append(row)
            valids.append(valid)
        m.d.comb += [
            accumulate.row.eq(Mux(write_back.drain, write_back.row, rows[-1])),
            accumulate.valid.eq(write_back.drain | valids[-1]),
            accumulate.clear.eq(write_back.drain),
        ]

        kind = relay.o.payload.kind
        arriving = relay.o.valid & ((kind == Kind.ACT) | (kind == Kind.WRITE))
        m.d.sync += [
            self.busy.eq(
                arriving | ptr_read.busy | act_queue.o.valid | spmat_read.busy
                | Cat(valids).any() | accumulate.busy | write_back.busy),
            self.almost_full.eq(act_queue.almost_full),
        ]
        m.d.comb += self.saturated.eq(write_back.saturated)
        return m
