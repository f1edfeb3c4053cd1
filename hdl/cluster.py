# amaranth: UnusedElaboratable=no
# The PEs of a cluster are unused exactly when the cluster is, which Amaranth reports by itself.
"""A cluster: up to eight PEs and the leaves of all trees that end at them."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .act_memory import lane_layout
from .checks import checked_config
from .fan import ARITY, Relay, StatusNode
from .gather import sum_layout
from .layouts import broadcast_signature, scan_layout, status_layout, values_layout
from .lnzd import ARITY as LNZD_ARITY
from .lnzd import LnzdLeaf
from .pe import ProcessingElement

__all__ = ["Cluster", "cluster_lanes", "cluster_sizes", "spread_signature"]


def cluster_sizes(config: EngineConfig) -> list[int]:
    """PEs of each cluster: eight, but for the last."""
    return [min(ARITY, config.n_pes - first) for first in range(0, config.n_pes, ARITY)]


def cluster_lanes(config: EngineConfig) -> int:
    """Activations of an input beat that a cluster gets; PE ``k`` of it has lane ``k`` modulo
    this."""
    return config.input_lanes if ARITY % config.input_lanes == 0 else ARITY


def spread_signature(config: EngineConfig) -> stream.Signature:
    """A beat of input as a cluster gets it."""
    return stream.Signature(data.StructLayout({
        "group": lane_layout(config)["group"].shape, "act": config.act_addr_bits,
        "values": data.ArrayLayout(values_layout(config), cluster_lanes(config)),
    }), always_ready=True)


class Cluster(wiring.Component):
    """Neighbouring PEs with the last level of the broadcast trees and the first of those that
    gather status and activations; without what is for activations where these are central.

    All full clusters are one module, whatever their place, and stay together on the device. Reset
    comes through a register of the cluster's own: one net to all registers of an engine would be
    its slowest.

    Latency: 1 cycle each for what goes through a tree, of a scan 2.

    Parameters
    ----------
    config
        Engine configuration.
    contents
        For every PE, what its memories start with: arguments of `ProcessingElement`.

    Members
    -------
    first : ``In(pe_bits)``
        Number of the first PE.
    groups : ``In`` array
        Group of input lanes of every PE.
    reset : ``In(1)``
    i : ``In(broadcast_signature(config))``
    i_input : ``In(spread_signature(config))``
    o : ``Out(stream.Signature(scan_layout(config, 2)))`` array
        One for every four PEs; as `groups` and `i_input`, not with ``central_acts``.
    gate : ``Out(sum_layout(config))`` array
    i_token, o_token : ``In(1)`` array, ``Out(1)`` array
        Of every PE.
    status : ``Out(status_layout(config, 1))``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        No PE or more than eight, or contents that `ProcessingElement` refuses.
    """

    def __init__(self, config: EngineConfig, contents: list[dict]):
        self._config = checked_config(config)
        size = len(contents)
        if not 1 <= size <= ARITY:
            raise ValueError(f"a cluster has 1 to {ARITY} PEs, not {size}")
        self.pes = [ProcessingElement(config, **memories) for memories in contents]
        acts = {} if config.central_acts else {
            "groups": In(lane_layout(config)["group"].shape).array(size),
            "i_input": In(spread_signature(config)),
            "o": Out(stream.Signature(scan_layout(config, 2))).array(-(-size // LNZD_ARITY)),
        }
        super().__init__(acts | {
            "first": In(config.pe_bits),
            "reset": In(1),
            "i": In(broadcast_signature(config)),
            "gate": Out(sum_layout(config)).array(size),
            "i_token": In(1).array(size), "o_token": Out(1).array(size),
            "status": Out(status_layout(config, 1)),
        })

    def elaborate(self, platform):
        m = Module()
        config, size = self._config, len(self.pes)
        reset = Signal(reset_less=True)
        m.d.sync += reset.eq(self.reset)

        def place(name: str, part):
            m.submodules[name] = ResetInserter(reset)(part)
            return part

        relay = place("relay", Relay(broadcast_signature(config)))
        status = place("status", StatusNode(config, size, 0))
        wiring.connect(m, wiring.flipped(self.i), relay.i)
        m.d.comb += self.status.eq(status.o)

        for k, pe in enumerate(self.pes):
            place(f"pe_{k}", pe)
            m.d.comb += [
                # An expression, or Amaranth would move the constant part into the PE, which then
                # were a module of its own.
                pe.id.eq(self.first | k),
                pe.i.valid.eq(relay.o.valid), pe.i.payload.eq(relay.o.payload),
                self.gate[k].eq(pe.gate), pe.i_token.eq(self.i_token[k]),
                self.o_token[k].eq(pe.o_token),
                status.i[k].busy.eq(pe.busy), status.i[k].stall.eq(pe.almost_full),
                status.i[k].fence.eq(pe.fence), status.i[k].working.eq(pe.working),
                status.i[k].saturations.eq(pe.saturated),
            ]
        if not config.central_acts:
            self._place_acts(m, place)
        return m

    def _place_acts(self, m: Module, place) -> None:
        """What leads to the activation memories and from them."""
        config, size = self._config, len(self.pes)
        beat = place("input_relay", Relay(spread_signature(config)))
        wiring.connect(m, wiring.flipped(self.i_input), beat.i)
        leaves = [place(f"lnzd_{k}", LnzdLeaf(config, min(LNZD_ARITY, size - LNZD_ARITY * k)))
                  for k in range(len(self.o))]
        for k, pe in enumerate(self.pes):
            m.d.comb += [
                pe.group.eq(self.groups[k]), pe.i_input.valid.eq(beat.o.valid),
                pe.i_input.payload.group.eq(beat.o.payload.group),
                pe.i_input.payload.act.eq(beat.o.payload.act),
                pe.i_input.payload.values.eq(beat.o.payload.values[k % cluster_lanes(config)]),
            ]
            wiring.connect(m, pe.o, leaves[k // LNZD_ARITY].i[k % LNZD_ARITY])
        for leaf, port in zip(leaves, self.o, strict=True):
            wiring.connect(m, leaf.o, wiring.flipped(port))
