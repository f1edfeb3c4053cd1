"""Leading-non-zero detection: a tree of 4-input nodes over the PEs (EIE, section IV)."""

from functools import reduce
from operator import or_

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config
from .layouts import scan_layout
from .skid import Skid

__all__ = ["ARITY", "LnzdLeaf", "LnzdNode", "LnzdTree"]

#: Children of a node.
ARITY = 4


def _checked_children(children: int) -> int:
    if not 1 <= children <= ARITY:
        raise ValueError(f"children must be 1 to {ARITY}, not {children!r}")
    return children


def _first(pending: Value) -> Value:
    """The first bit that is set, and no other: one-hot selections are the cheapest."""
    return Cat(bit & ~pending[:k].any() for k, bit in enumerate(pending))


def _select(pick: Value, choices: list) -> Value:
    """The choice that `pick` says, one-hot; 0 if it says none."""
    return reduce(or_, (Mux(chosen, Value.cast(choice).as_unsigned(), 0)
                        for chosen, choice in zip(pick, choices, strict=True)))


class LnzdLeaf(wiring.Component):
    """Takes the rows of up to four PEs and gives their activations one by one, without zeros.

    The PEs scan in step: a row is taken from all of them in one cycle. Whether that is done hangs
    on registers only, for the PEs and their memories are not near.

    Latency: 2 cycles. Throughput: 1 item per cycle; a row takes ``max(1, non-zeros)`` cycles.

    Parameters
    ----------
    config
        Engine configuration.
    children
        1 to 4.

    Members
    -------
    i : ``In(stream.Signature(scan_layout(config, 0))).array(children)``
        All valid in the same cycles.
    o : ``Out(stream.Signature(scan_layout(config, 2)))``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        A number of children out of range.
    """

    def __init__(self, config: EngineConfig, children: int):
        super().__init__({
            "i": In(stream.Signature(scan_layout(checked_config(config), 0))).array(
                _checked_children(children)),
            "o": Out(stream.Signature(scan_layout(config, 2))),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.output = output = Skid(self.o.payload.shape())
        wiring.connect(m, output.o, wiring.flipped(self.o))

        valid = Signal()
        pending = Signal(len(self.i))  # items of the row that are still to be given
        final = Signal()  # not more than one of them
        row = [Signal.like(port.payload.values, reset_less=True, name=f"values_{k}")
               for k, port in enumerate(self.i)]
        pick = _first(pending)
        item = output.i.payload
        m.d.comb += [
            output.i.valid.eq(valid), item.nonzero.eq(pending.any()), item.last.eq(final),
            Value.cast(item.values).eq(_select(pick, row)),
            item.lane.eq(_select(pick, [Const(k, 2) for k in range(len(row))])),
        ]

        advance = ~valid | (final & output.i.ready)
        left = Mux(advance, Cat(port.payload.nonzero for port in self.i), pending & ~pick)
        with m.If(advance | output.i.ready):
            m.d.sync += [pending.eq(left), final.eq((left & ~_first(left)) == 0)]
        with m.If(advance):
            m.d.sync += valid.eq(self.i[0].valid)
            m.d.sync += [word.eq(port.payload.values)
                         for word, port in zip(row, self.i, strict=True)]
        m.d.comb += [port.ready.eq(advance) for port in self.i]
        valids = Cat(port.valid for port in self.i)
        m.d.sync += Assert(valids.all() | ~valids.any(), "PEs are not in step")
        return m


class LnzdNode(wiring.Component):
    """Merges up to four scan streams row by row, dropping zeros.

    Each child gives the items of a row in lane order and marks the final one ``last``; a row
    without non-zero activations is a single item with ``nonzero`` = 0. The node waits until all
    children that still have items in the row have one at hand, and gives the non-zero items in
    lane order, or a single zero item when the whole row is zero. "Non-zero" means not equal to
    zero: negative activations pass.

    The output is registered in both directions. The inputs are not.

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
        super().__init__({
            "i": In(stream.Signature(scan_layout(checked_config(config), lane_bits))).array(
                _checked_children(children)),
            "o": Out(stream.Signature(scan_layout(config, lane_bits + 2))),
        })

    def elaborate(self, platform):
        m = Module()
        count = len(self.i)
        heads = [wiring.flipped(port) for port in self.i]
        m.submodules.output = output = Skid(self.o.payload.shape())
        wiring.connect(m, output.o, wiring.flipped(self.o))

        # Children whose items of this row have all been taken.
        done = Signal(count)
        pending = Signal(count)
        pick = Signal(count)
        last = Signal(count)
        finished = Signal(count)
        item = output.i.payload
        m.d.comb += [
            pending.eq(Cat(head.payload.nonzero for head in heads) & ~done),
            pick.eq(_first(pending)),
            last.eq(Cat(head.payload.last for head in heads)),
            finished.eq(done | ~pending | (pick & last)),
            output.i.valid.eq((Cat(head.valid for head in heads) | done).all()),
            item.nonzero.eq(pending.any()), item.last.eq(finished.all()),
            Value.cast(item.values).eq(_select(pick, [head.payload.values for head in heads])),
            item.lane.eq(_select(pick, [Cat(head.payload.lane, Const(k, 2))
                                        for k, head in enumerate(heads)])),
        ]

        take = output.i.valid & output.i.ready
        for k, head in enumerate(heads):
            # A child's zero row is dropped together with whichever item is taken.
            m.d.comb += head.ready.eq(take & ~done[k] & (pick[k] | ~pending[k]))
        with m.If(take):
            m.d.sync += done.eq(Mux(finished.all(), 0, finished))
        return m


class LnzdTree(wiring.Component):
    """The tree over all leaves: rows of activations in, their non-zero elements out in order.

    Its levels are far apart on a large device: an item has a cycle for nothing but the way there.

    Latency: ``config.lnzd_latency - 2`` cycles: 2 each level, of which the first is in the
    clusters.
    Throughput: a row takes ``max(1, non-zeros)`` cycles.

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
                for j, (head, port) in enumerate(zip(children, node.i, strict=True)):
                    skid = Skid(head.payload.shape())
                    m.submodules[f"input_{level}_{k + j}"] = skid
                    wiring.connect(m, head, skid.i)
                    wiring.connect(m, skid.o, port)
                nodes.append(node)
            heads = [node.o for node in nodes]
        wiring.connect(m, heads[0], wiring.flipped(self.o))
        return m
