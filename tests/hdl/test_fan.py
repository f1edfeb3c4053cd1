# amaranth: UnusedElaboratable=no
"""Proves that broadcast and status trees reach every PE with exactly the latency of the config."""

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from openese.hdl.fan import ARITY, BroadcastTree, Relay, StatusNode, StatusTree
from openese.hdl.layouts import status_layout

from .helpers import SMALL, play, transfers

SIZES = [1, 2, 8, 9, 64, 65]
LEVELS = {1: 1, 2: 1, 8: 1, 9: 2, 64: 2, 65: 3}
WORD = stream.Signature(12, always_ready=True)


def messages(seed: int, length: int) -> list[dict]:
    """Random payloads with random gaps."""
    rng = np.random.default_rng(seed)
    return [{"i.valid": 1, "i.payload": int(rng.integers(1 << 12))} if rng.random() < 0.7 else {}
            for _ in range(length)]


def sent(script: list[dict]) -> list[tuple[int, int]]:
    return [(cycle, step["i.payload"]) for cycle, step in enumerate(script) if step]


def test_relay_is_one_register():
    script = messages(0, 60)
    trace = play(Relay(WORD), script, ["o.valid", "o.payload"], extra=2)
    assert transfers(trace, "o") == [(cycle + 1, word) for cycle, word in sent(script)]


@pytest.mark.parametrize("n_pes", [9, 64, 65])  # up to 8 there are no relays above the cluster's
def test_broadcast_reaches_every_cluster_a_cycle_before_its_pes(n_pes):
    config = SMALL.with_(n_pes=n_pes)
    assert config.fan_levels == LEVELS[n_pes]
    dut = BroadcastTree(config, WORD)
    groups = -(-n_pes // ARITY)
    assert len(dut.o) == groups
    script = messages(n_pes, 40)
    watch = [f"o.{g}.{part}" for g in range(groups) for part in ("valid", "payload")]
    trace = play(dut, script, watch, extra=4)
    expected = [(cycle + config.fan_levels - 1, word) for cycle, word in sent(script)]
    for group in range(groups):
        assert transfers(trace, f"o.{group}") == expected, group


def test_reset_drops_messages_under_way():
    reset = Signal()
    config = SMALL.with_(n_pes=65)
    script = [{"i.valid": 1, "i.payload": 5}, {"i.valid": 1, "i.payload": 6, "reset": 1},
              {"i.valid": 1, "i.payload": 7}]
    trace = play(BroadcastTree(config, WORD), script, ["o.8.valid", "o.8.payload"], extra=6,
                 reset=reset)
    assert transfers(trace, "o.8") == [(1 + config.fan_levels, 7)]


class Status(wiring.Component):
    """The nodes of all clusters and the tree over them."""

    def __init__(self, config):
        self._config = config
        super().__init__({"i": In(status_layout(config, 0)).array(config.n_pes),
                          "o": Out(status_layout(config, config.fan_levels))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.tree = tree = StatusTree(self._config)
        for k, port in enumerate(tree.i):
            children = self.i[ARITY * k:ARITY * (k + 1)]
            m.submodules[f"node_{k}"] = node = StatusNode(self._config, len(children), 0)
            m.d.comb += [own.eq(child) for own, child in zip(node.i, children, strict=True)]
            m.d.comb += port.eq(node.o)
        m.d.comb += self.o.eq(tree.o)
        return m


FLAGS = ("busy", "stall", "fence", "working")


@pytest.mark.parametrize("n_pes", SIZES)
def test_status_of_every_single_pe_arrives_after_fan_levels(n_pes):
    config = SMALL.with_(n_pes=n_pes)
    # Walk one busy PE, one stalled PE and so on over all positions.
    places = {"busy": 0, "stall": 3, "fence": 2, "working": 1, "saturations": 5}
    script = []
    for p in range(n_pes):
        step = {}
        for name, shift in places.items():
            step.setdefault(f"i.{(p + shift) % n_pes}", {})[name] = 1
        script.append(step)
    trace = play(Status(config), script, ["o"], extra=5)
    one, none = dict.fromkeys(places, 1), dict.fromkeys(places, 0)
    levels = config.fan_levels
    assert [step["o"] for step in trace] == (
        [none] * levels + [one] * n_pes + [none] * (5 - levels))


@pytest.mark.parametrize("name", FLAGS)
def test_what_pes_report_is_kept_apart(name):
    config = SMALL.with_(n_pes=9)
    trace = play(Status(config), [{f"i.{p}": {name: 1}} for p in range(9)], ["o"], extra=2)
    seen = {key: int(key == name) for key in (*FLAGS, "saturations")}
    assert [step["o"] for step in trace[2:]] == [seen] * 9


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("n_pes", SIZES)
def test_status_counts_every_saturation(n_pes, channels):
    config = SMALL.with_(n_pes=n_pes, channels=channels)
    rng = np.random.default_rng(n_pes)
    chosen = rng.random((40, n_pes)) < rng.random((40, 1))
    chosen[0] = True  # all PEs in one cycle: the widest sum
    if channels > 1:
        chosen = chosen * rng.integers(1, channels + 1, chosen.shape)
        chosen[0] = channels
    script = [{f"i.{p}": {"saturations": int(count)} for p, count in enumerate(row)}
              for row in chosen]
    trace = play(Status(config), script, ["o"], extra=config.fan_levels)
    counts = [step["o"]["saturations"] for step in trace[config.fan_levels:]]
    assert counts == chosen.sum(axis=1).tolist()
    assert not any(step["o"][flag] for step in trace for flag in FLAGS)


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not 8$"):
        BroadcastTree(8, WORD)
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not None$"):
        StatusTree(None)
    for signature in (stream.Signature(4), stream.Signature(4, always_ready=True,
                                                            always_valid=True), 4):
        text = "signature must be an always-ready stream with a valid signal, not "
        with pytest.raises(TypeError, match=text):
            Relay(signature)
        with pytest.raises(TypeError, match=text):
            BroadcastTree(SMALL, signature)
    for children in (0, 9):
        with pytest.raises(ValueError, match=f"^children must be 1 to 8, not {children}$"):
            StatusNode(SMALL, children, 0)
