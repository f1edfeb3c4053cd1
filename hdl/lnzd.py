"""Leading-non-zero detection: a tree of 4-input nodes over the PEs (EIE, section IV)."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config
from .layouts import scan_layout
from .skid import Skid

__all__ = ["ARITY", "LnzdNode", "LnzdTree"]

#: Children of a node.
ARITY = 4


class LnzdNode(wiring.Component):
    """Merges up to four scan streams row by row, dropping zeros.

    Each child gives the items of a row in lane order and marks the final one ``last``; a row
    without non-zero activations is a single item with ``nonzero`` = 0. The node waits until all
    children that still have items in the row have one at hand, and gives the non-zero items in
    lane order, or a single zero item when the whole row is zero. "Non-zero" means not equal to
    zero: negative activations pass.

    Latency: 1 cycle. Throughput: 1 item per cycle; a row takes ``max(1, non-zeros)`` cycles.

    Parameters
    ----------
    config
        Engine configuration.
    children
        1 to 4.
    lane_bits
        Width of the lane of a child's items.

    Members
    -------
    i : ``In(stream.Signature(scan_layout(config, lane_bits))).array(children)``
    o : ``Out(stream.Signature(scan_layout(config, lane_bits + 2)))``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        A number of children out of range.
    """

    def __init__(self, config: EngineConfig, children: int, lane_bits: int):
        checked_config(config)
        if not 1 <= children <= ARITY:
            raise ValueError(f"children must be 1 to {ARITY}, not {children!r}")
        self._children = children
        self._lane_bits = lane_bits
        super().__init__({
            "i": In(stream.Signature(scan_layout(config, lane_bits))).array(children),
            "o": Out(stream.Signature(scan_layout(config, lane_bits + 2))),
        })

    def elaborate(self, platform):
        m = Module()
        count = self._children
        heads = []
        for k, port in enumerate(self.i):
            m.submodules[f"input_{k}"] = skid = Skid(port.payload.shape())
            wiring.connect(m, wiring.flipped(port), skid.i)
            heads.append(skid.o)

        # Children whose items of this row have all been taken.
        done = Signal(count)
        pending = Signal(count)
        pick = Signal(range(ARITY))
        m.d.comb += pending.eq(Cat(head.payload.nonzero for head in heads) & ~done)
        for k in reversed(range(count)):
            with m.If(pending[k]):
                m.d.comb += pick.eq(k)

        item = self.o.payload
        last = Signal(count)
        finished = Signal(count)
        m.d.comb += [
            last.eq(Cat(head.payload.last for head in heads)),
            finished.eq(done | ~pending | (Cat(pick == k for k in range(count)) & last)),
            self.o.valid.eq((Cat(head.valid for head in heads) | done).all()),
            item.nonzero.eq(pending.any()), item.last.eq(finished.all()),
        ]
        with m.Switch(pick):
            for k, head in enumerate(heads):
                with m.Case(k):
                    m.d.comb += item.values.eq(head.payload.values)
                    m.d.comb += item.lane.eq(
                        Cat(head.payload.lane, Const(k, 2)) if self._lane_bits else k)

        take = self.o.valid & self.o.ready
        for k, head in enumerate(heads):
            # A child's zero row is dropped together with whichever item is taken.
            m.d.comb += head.ready.eq(take & ~done[k] & ((pick == k) | ~pending[k]))
        with m.If(take):
            m.d.sync += done.eq(Mux(finished.all(), 0, finished))
        return m


class LnzdTree(wiring.Component):
    """The tree over all leaves: rows of activations in, their non-zero elements out in order.

    Latency: ``config.lnzd_levels`` cycles: a level is 1, the first one is in the clusters, and
    the root's items come from a buffer. Throughput: a row takes ``max(1, non-zeros)``
    cycles.

    Parameters
    ----------
    config
        Engine configuration.

    Members
    -------
    i : ``In(stream.Signature(scan_layout(config, 2)))`` array
        One of every node over PEs.
    o : ``Out(stream.Signature(scan_layout(config, 2 * lnzd_levels)))``
        ``lane`` is the PE.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        super().__init__({
            "i": In(stream.Signature(scan_layout(config, 2))).array(-(-config.n_pes // ARITY)),
            "o": Out(stream.Signature(scan_layout(config, 2 * config.lnzd_levels))),
        })

    def elaborate(self, platform):
        m = Module()
        heads = [wiring.flipped(port) for port in self.i]
        for level in range(1, self._config.lnzd_levels):
            nodes = []
            for k in range(0, len(heads), ARITY):
                children = heads[k:k + ARITY]
                node = LnzdNode(self._config, len(children), 2 * level)
                m.submodules[f"node_{level}_{k // ARITY}"] = node
                for head, port in zip(children, node.i, strict=True):
                    wiring.connect(m, head, port)
                nodes.append(node)
            heads = [node.o for node in nodes]
        m.submodules.root = root = Skid(self.o.payload.shape())
        wiring.connect(m, heads[0], root.i)
        wiring.connect(m, root.o, wiring.flipped(self.o))
        return m
