# amaranth: UnusedElaboratable=no
"""Proves that broadcast and status trees reach every PE with exactly the latency of the config."""

import numpy as np
import pytest
from amaranth.hdl import Signal
from amaranth.lib import stream

from openese.hdl.fan import ARITY, BroadcastTree, Relay, StatusNode, StatusTree, saturation_bits

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


@pytest.mark.parametrize("n_pes", SIZES)
def test_broadcast_reaches_every_group_after_fan_levels(n_pes):
    config = SMALL.with_(n_pes=n_pes)
    assert config.fan_levels == LEVELS[n_pes]
    dut = BroadcastTree(config, WORD)
    groups = -(-n_pes // ARITY)
    assert len(dut.o) == groups
    script = messages(n_pes, 40)
    watch = [f"o.{g}.{part}" for g in range(groups) for part in ("valid", "payload")]
    trace = play(dut, script, watch, extra=4)
    expected = [(cycle + config.fan_levels, word) for cycle, word in sent(script)]
    for group in range(groups):
        assert transfers(trace, f"o.{group}") == expected, group


def test_reset_drops_messages_under_way():
    reset = Signal()
    config = SMALL.with_(n_pes=65)
    script = [{"i.valid": 1, "i.payload": 5}, {"i.valid": 1, "i.payload": 6, "reset": 1},
              {"i.valid": 1, "i.payload": 7}]
    trace = play(BroadcastTree(config, WORD), script, ["o.8.valid", "o.8.payload"], extra=6,
                 reset=reset)
    assert transfers(trace, "o.8") == [(2 + config.fan_levels, 7)]


@pytest.mark.parametrize("n_pes", SIZES)
def test_status_of_every_single_pe_arrives_after_fan_levels(n_pes):
    config = SMALL.with_(n_pes=n_pes)
    # Walk one busy PE, one stalled PE and so on over all positions.
    script = [{"busy": 1 << p, "stall": 1 << (n_pes - 1 - p), "fence": 1 << (p + 2) % n_pes,
               "working": 1 << (p + 1) % n_pes, f"saturated.{p}": 1} for p in range(n_pes)]
    watch = ["any_busy", "any_stall", "any_fence", "any_working", "saturations"]
    trace = play(StatusTree(config), script, watch, extra=5)
    one, none = dict.fromkeys(watch, 1), dict.fromkeys(watch, 0)
    levels = config.fan_levels
    assert trace == [none] * levels + [one] * n_pes + [none] * (5 - levels)


@pytest.mark.parametrize("name", ["busy", "stall", "fence", "working"])
def test_what_pes_report_is_kept_apart(name):
    config = SMALL.with_(n_pes=9)
    watch = ["any_busy", "any_stall", "any_fence", "any_working", "saturations"]
    trace = play(StatusTree(config), [{name: 1 << p} for p in range(9)], watch, extra=2)
    assert trace[2:] == [{key: int(key == f"any_{name}") for key in watch}] * 9


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
    script = [{f"saturated.{p}": int(row[p]) for p in range(n_pes)} for row in chosen]
    dut = StatusTree(config)
    flags = ["any_busy", "any_stall", "any_fence", "any_working"]
    assert n_pes * channels < 1 << saturation_bits(config)
    trace = play(dut, script, [*flags, "saturations"], extra=config.fan_levels)
    counts = [step["saturations"] for step in trace[config.fan_levels:]]
    assert counts == chosen.sum(axis=1).tolist()
    assert not any(step[flag] for step in trace for flag in flags)


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
            StatusNode(children, 1)
