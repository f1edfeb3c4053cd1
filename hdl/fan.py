"""Registered trees that carry messages to all PEs and their status back."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config
from .layouts import status_layout

__all__ = ["ARITY", "BroadcastTree", "Relay", "StatusNode", "StatusTree"]

#: Children of a tree node.
ARITY = 8


def _always_ready(signature: stream.Signature) -> stream.Signature:
    """`signature` itself, or ``TypeError``: a tree has no way to pass backpressure on."""
    if (not isinstance(signature, stream.Signature) or not signature.always_ready
            or signature.always_valid):
        raise TypeError(f"signature must be an always-ready stream with a valid signal, "
                        f"not {signature!r}")
    return signature


class Relay(wiring.Component):
    """One register stage of an always-ready stream.

    A module of its own so that synthesis can be told to keep it: merging the copies of a
    broadcast register would make one net cross the whole chip.

    Latency: 1 cycle. Throughput: 1 per cycle.

    Parameters
    ----------
    signature
        An always-ready ``stream.Signature``.

    Members
    -------
    i : ``In(signature)``
    o : ``Out(signature)``

    Raises
    ------
    TypeError
        ``signature`` is no always-ready stream.
    """

    def __init__(self, signature: stream.Signature):
        _always_ready(signature)
        super().__init__({"i": In(signature), "o": Out(signature)})

    def elaborate(self, platform):
        m = Module()
        payload = Signal.like(self.i.payload, reset_less=True)
        m.d.sync += [self.o.valid.eq(self.i.valid), payload.eq(self.i.payload)]
        m.d.comb += self.o.payload.eq(payload)
        return m


class BroadcastTree(wiring.Component):
    """Copies an always-ready stream to all clusters, whose own `Relay` is the last level.

    Latency: ``config.fan_levels - 1`` cycles. Throughput: 1 per cycle.

    Parameters
    ----------
    config
        Engine configuration.
    signature
        An always-ready ``stream.Signature``.

    Members
    -------
    i : ``In(signature)``
    o : ``Out(signature)`` array
        One for each cluster of 8 PEs.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`, or ``signature`` is no always-ready stream.
    """

    def __init__(self, config: EngineConfig, signature: stream.Signature):
        self._levels = checked_config(config).fan_levels - 1
        self._clusters = -(-config.n_pes // ARITY)
        self._signature = _always_ready(signature)
        super().__init__({"i": In(signature), "o": Out(signature).array(self._clusters)})

    def elaborate(self, platform):
        m = Module()
        heads = [self.i]
        for level in range(self._levels):
            count = -(-self._clusters // ARITY ** (self._levels - level))
            relays = [Relay(self._signature) for _ in range(count)]
            for k, relay in enumerate(relays):
                m.submodules[f"relay_{level}_{k}"] = relay
                head = heads[k // ARITY]
                m.d.comb += [relay.i.valid.eq(head.valid), relay.i.payload.eq(head.payload)]
            heads = [relay.o for relay in relays]
        for k, out in enumerate(self.o):
            head = heads[k // ARITY]
            m.d.comb += [out.valid.eq(head.valid), out.payload.eq(head.payload)]
        return m


class StatusNode(wiring.Component):
    """Registered OR and sum over up to 8 children.

    Latency: 1 cycle.

    Parameters
    ----------
    config
        Engine configuration.
    children
        Number of children, 1 to 8.
    level
        Level of the children; PEs are level 0.

    Members
    -------
    i : ``In(status_layout(config, level))`` array
    o : ``Out(status_layout(config, level + 1))``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    ValueError
        A number of children out of range.
    """

    def __init__(self, config: EngineConfig, children: int, level: int):
        checked_config(config)
        if not 1 <= children <= ARITY:
            raise ValueError(f"children must be 1 to {ARITY}, not {children!r}")
        super().__init__({"i": In(status_layout(config, level)).array(children),
                          "o": Out(status_layout(config, level + 1))})

    def elaborate(self, platform):
        m = Module()
        # A sum as a balanced tree grows by one bit per level, not per addend.
        terms = [child.saturations for child in self.i]
        while len(terms) > 1:
            terms = [sum(terms[k:k + 2]) for k in range(0, len(terms), 2)]
        m.d.sync += self.o.saturations.eq(terms[0])
        for name in ("busy", "stall", "fence", "working"):
            m.d.sync += self.o[name].eq(Cat(child[name] for child in self.i).any())
        return m


class StatusTree(wiring.Component):
    """Gathers what all clusters report; their own `StatusNode` is the first level.

    Latency: ``config.fan_levels - 1`` cycles.

    Parameters
    ----------
    config
        Engine configuration.

    Members
    -------
    i : ``In(status_layout(config, 1))`` array
        One of each cluster of 8 PEs.
    o : ``Out(status_layout(config, fan_levels))``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        clusters = -(-config.n_pes // ARITY)
        super().__init__({"i": In(status_layout(config, 1)).array(clusters),
                          "o": Out(status_layout(config, config.fan_levels))})

    def elaborate(self, platform):
        m = Module()
        heads = list(self.i)
        for level in range(1, self._config.fan_levels):
            nodes = []
            for k in range(0, len(heads), ARITY):
                children = heads[k:k + ARITY]
                node = StatusNode(self._config, len(children), level)
                m.submodules[f"node_{level}_{k // ARITY}"] = node
                m.d.comb += [port.eq(child) for port, child in zip(node.i, children, strict=True)]
                nodes.append(node)
            heads = [node.o for node in nodes]
        m.d.comb += self.o.eq(heads[0])
        return m
