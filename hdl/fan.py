"""Registered trees that carry messages to all PEs and their status back."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.model.config import EngineConfig

from .checks import checked_config

__all__ = ["ARITY", "BroadcastTree", "Relay", "StatusNode", "StatusTree", "saturation_bits"]

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
    """Copies an always-ready stream to many leaves through `levels` register stages.

    Latency: ``config.fan_levels`` cycles to every leaf. Throughput: 1 per cycle.

    Parameters
    ----------
    config
        Engine configuration; its PEs are the leaves.
    signature
        An always-ready ``stream.Signature``.

    Members
    -------
    i : ``In(signature)``
    o : ``Out(signature).array(n_groups)``
        One copy per group of 8 leaves; leaf ``p`` listens to copy ``p // 8``.

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`, or ``signature`` is no always-ready stream.
    """

    def __init__(self, config: EngineConfig, signature: stream.Signature):
        self._levels = checked_config(config).fan_levels
        self._groups = -(-config.n_pes // ARITY)
        self._signature = _always_ready(signature)
        super().__init__({"i": In(signature), "o": Out(signature).array(self._groups)})

    def elaborate(self, platform):
        m = Module()
        heads = [self.i]
        for level in range(self._levels):
            count = -(-self._groups // ARITY ** (self._levels - 1 - level))
            relays = [Relay(self._signature) for _ in range(count)]
            for k, relay in enumerate(relays):
                m.submodules[f"relay_{level}_{k}"] = relay
                head = heads[k // ARITY]
                m.d.comb += [relay.i.valid.eq(head.valid), relay.i.payload.eq(head.payload)]
            heads = [relay.o for relay in relays]
        for out, head in zip(self.o, heads, strict=True):
            m.d.comb += [out.valid.eq(head.valid), out.payload.eq(head.payload)]
        return m


class StatusNode(wiring.Component):
    """Registered OR and sum over up to 8 children.

    Latency: 1 cycle.

    Parameters
    ----------
    children
        Number of children, 1 to 8.
    count_bits
        Width of a child's saturation count.

    Members
    -------
    busy, stall, fence, working : ``In(children)``
    saturations : ``In(count_bits).array(children)``
    any_busy, any_stall, any_fence, any_working : ``Out(1)``
    total : ``Out(count_bits + 3)``

    Raises
    ------
    ValueError
        A number of children out of range.
    """

    def __init__(self, children: int, count_bits: int):
        if not 1 <= children <= ARITY:
            raise ValueError(f"children must be 1 to {ARITY}, not {children!r}")
        self._children = children
        super().__init__({
            "busy": In(children), "stall": In(children), "fence": In(children),
            "working": In(children),
            "saturations": In(count_bits).array(children),
            "any_busy": Out(1), "any_stall": Out(1), "any_fence": Out(1),
            "any_working": Out(1), "total": Out(count_bits + 3),
        })

    def elaborate(self, platform):
        m = Module()
        # A sum as a balanced tree grows by one bit per level, not per addend.
        terms = [self.saturations[k] for k in range(self._children)]
        while len(terms) > 1:
            terms = [sum(terms[k:k + 2]) for k in range(0, len(terms), 2)]
        m.d.sync += [
            self.any_busy.eq(self.busy.any()),
            self.any_stall.eq(self.stall.any()),
            self.any_fence.eq(self.fence.any()), self.any_working.eq(self.working.any()),
            self.total.eq(terms[0]),
        ]
        return m


def saturation_bits(config: EngineConfig) -> int:
    """Width of the number of saturations in a cycle."""
    return Shape.cast(range(config.channels + 1)).width + 3 * config.fan_levels


class StatusTree(wiring.Component):
    """Gathers what all PEs report: busy, stall, fences, work, and the saturations in a cycle.

    Latency: ``config.fan_levels`` cycles.

    Parameters
    ----------
    config
        Engine configuration.

    Members
    -------
    busy, stall, fence, working : ``In(n_pes)``
        One bit per PE.
    saturated : ``In(range(channels + 1)).array(n_pes)``
    any_busy, any_stall, any_fence, any_working : ``Out(1)``
    saturations : ``Out(saturation_bits(config))``

    Raises
    ------
    TypeError
        ``config`` is no `EngineConfig`.
    """

    def __init__(self, config: EngineConfig):
        self._config = checked_config(config)
        super().__init__({
            "busy": In(config.n_pes), "stall": In(config.n_pes), "fence": In(config.n_pes),
            "working": In(config.n_pes),
            "saturated": In(range(config.channels + 1)).array(config.n_pes),
            "any_busy": Out(1), "any_stall": Out(1), "any_fence": Out(1), "any_working": Out(1),
            "saturations": Out(saturation_bits(config)),
        })

    def elaborate(self, platform):
        m = Module()
        busy, stall, fence = list(self.busy), list(self.stall), list(self.fence)
        working = list(self.working)
        counts = list(self.saturated)
        count_bits = Shape.cast(range(self._config.channels + 1)).width
        for level in range(self._config.fan_levels):
            nodes = []
            for k in range(0, len(busy), ARITY):
                children = len(busy[k:k + ARITY])
                node = StatusNode(children, count_bits + 3 * level)
                m.submodules[f"node_{level}_{k // ARITY}"] = node
                m.d.comb += [
                    node.busy.eq(Cat(busy[k:k + ARITY])),
                    node.stall.eq(Cat(stall[k:k + ARITY])),
                    node.fence.eq(Cat(fence[k:k + ARITY])),
                    node.working.eq(Cat(working[k:k + ARITY])),
                ]
                m.d.comb += [node.saturations[c].eq(counts[k + c]) for c in range(children)]
                nodes.append(node)
            busy = [node.any_busy for node in nodes]
            stall = [node.any_stall for node in nodes]
            fence = [node.any_fence for node in nodes]
            working = [node.any_working for node in nodes]
            counts = [node.total for node in nodes]
        m.d.comb += [
            self.any_busy.eq(busy[0]), self.any_stall.eq(stall[0]), self.any_fence.eq(fence[0]),
            self.any_working.eq(working[0]),
            self.saturations.eq(counts[0]),
        ]
        return m
