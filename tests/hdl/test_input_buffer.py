# amaranth: UnusedElaboratable=no
"""Proves double buffering of input vectors: places, order, full and release, hold and flush.

With several channels, also which of them have a step.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
from amaranth.hdl import Signal

from openese.hdl.input_buffer import InputBuffer
from openese.model.config import EngineConfig
from openese.model.host import pack_inputs

from .helpers import SMALL, plain, play, simulate

SHAPES = [(1, 1, 1), (1, 1, 4), (3, 1, 2), (3, 3, 2), (4, 1, 3), (4, 2, 1), (6, 2, 4), (8, 4, 5)]
BASES = (0, 17)


@dataclass
class Model:
    """What the buffer must do, told as counts of beats taken and vectors released."""

    config: EngineConfig
    rows: int
    taken: int = 0
    released: int = 0
    places: list = field(default_factory=list)  # (group, address) of every beat taken
    active: list = field(default_factory=list)  # of the last beat of every complete vector

    @property
    def waiting(self) -> int:
        """Complete vectors not released yet."""
        return self.taken // self.beats - self.released

    @property
    def beats(self) -> int:
        return self.rows * self.config.n_pes // self.config.input_lanes

    def place(self) -> tuple[int, int]:
        """Group and address of the next beat."""
        vector, beat = divmod(self.taken, self.beats)
        row, group = divmod(beat, self.config.n_pes // self.config.input_lanes)
        return group, BASES[vector % 2] + row


def drive(config: EngineConfig, rows: int, beats, *, offer: float, hold: float, release: float,
          flush_at=(), cycles: int | None = None, seed: int = 0) -> tuple[Model, int]:
    """Offer `beats` against the model, checking all outputs in every cycle.

    The probabilities are per cycle. Ends when all beats are taken, or after `cycles`; returns the
    model and the number of cycles.
    """
    dut = InputBuffer(config)
    model = Model(config, rows)
    rng = np.random.default_rng(seed)
    used = []

    async def testbench(ctx):
        ctx.set(dut.rows, rows)
        for k, base in enumerate(BASES):
            ctx.set(dut.act[k], base)
        position, offering, cycle = 0, False, 0
        while position < len(beats) and (cycles is None or cycle < cycles):
            offering = offering or rng.random() < offer
            holding, flushing = rng.random() < hold, cycle in flush_at
            releasing = model.waiting > 0 and rng.random() < release
            ctx.set(dut.i.valid, int(offering))
            ctx.set(dut.i.payload, beats[position])
            ctx.set(dut.hold, int(holding))
            ctx.set(dut.flush, int(flushing))
            ctx.set(dut.release, int(releasing))

            ready = model.waiting < 2 and not holding and not flushing
            take = ready and offering
            assert ctx.get(dut.i.ready) == ready, cycle
            assert ctx.get(dut.o.valid) == take, cycle
            assert ctx.get(dut.full) == (model.waiting > 0), cycle
            if model.waiting:
                assert ctx.get(dut.full_act) == BASES[model.released % 2], cycle
                assert ctx.get(dut.full_active) == model.active[model.released], cycle
            if take:
                beat = plain(ctx.get(dut.o.payload))
                assert (beat["group"], beat["act"]) == model.place(), cycle
                assert beat["values"] == values_of(beats[position]), cycle
                model.places.append(model.place())
                model.taken += 1
                if model.taken % model.beats == 0:
                    model.active.append(
                        beats[position]["active"] if config.channels > 1 else 1)
                position, offering = position + 1, False
            model.released += releasing
            if flushing:
                model.taken = model.released = 0
                model.active.clear()
            await ctx.tick()
            cycle += 1
        used.append(cycle)

    simulate(dut, testbench)
    return model, used[0]


def values_of(beat) -> list[list[int]]:
    """The activations of all channels in each lane of a beat."""
    return beat["values"] if isinstance(beat, dict) else [[value] for value in beat]


def vectors(config: EngineConfig, rows: int, count: int) -> list:
    """Beats of `count` random vectors; every beat names other channels active."""
    lanes = config.input_lanes
    rng = np.random.default_rng(rows)
    beats = count * rows * config.n_pes // lanes
    if config.channels == 1:
        return rng.integers(-32768, 32768, (beats, lanes)).tolist()
    values = rng.integers(-32768, 32768, (beats, lanes, config.channels)).tolist()
    active = rng.integers(1 << config.channels, size=beats).tolist()
    return [{"values": value, "active": mask} for value, mask in zip(values, active, strict=True)]


@pytest.mark.parametrize(("n_pes", "lanes", "rows"), SHAPES)
@pytest.mark.parametrize(("offer", "hold", "release"),
                         [(1.0, 0.0, 0.1), (0.4, 0.0, 1.0), (0.7, 0.4, 0.2), (1.0, 0.7, 1.0)])
def test_random_traffic(n_pes, lanes, rows, offer, hold, release):
    config = SMALL.with_(n_pes=n_pes, input_lanes=lanes, act_depth=40)
    model, _ = drive(config, rows, vectors(config, rows, 7), offer=offer, hold=hold,
                     release=release, seed=n_pes)
    assert model.taken == 7 * model.beats


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize(("n_pes", "lanes", "rows"), SHAPES)
def test_the_last_beat_says_which_channels_have_a_step(n_pes, lanes, rows, channels):
    """Of the vector that is oldest, while the next ones arrive."""
    config = SMALL.with_(n_pes=n_pes, input_lanes=lanes, act_depth=40, channels=channels)
    model, _ = drive(config, rows, vectors(config, rows, 12), offer=0.7, hold=0.1, release=0.1,
                     seed=channels)
    assert model.released > 3
    assert len(set(model.active)) > 2
    # A flush forgets masks as well.
    model, _ = drive(config, rows, vectors(config, rows, 12), offer=1.0, hold=0.0, release=0.3,
                     flush_at=(2, model.beats + 1, 3 * model.beats), seed=channels)
    assert model.released > 0


@pytest.mark.parametrize(("n_pes", "lanes", "rows"), SHAPES)
def test_one_beat_per_cycle(n_pes, lanes, rows):
    config = SMALL.with_(n_pes=n_pes, input_lanes=lanes, act_depth=40)
    beats = vectors(config, rows, 5)
    _, cycles = drive(config, rows, beats, offer=1.0, hold=0.0, release=1.0)
    assert cycles == len(beats)


def test_two_vectors_wait_and_no_more():
    config = SMALL.with_(n_pes=4, input_lanes=2, act_depth=40)
    model, _ = drive(config, 3, vectors(config, 3, 5), offer=1.0, hold=0.0, release=0.0, cycles=60)
    assert model.taken == 2 * model.beats


@pytest.mark.parametrize("at", [(5,), (6,), (11,), (12,), (13,), (30,), (3, 9, 40)])
def test_flush_starts_again_with_buffer_0(at):
    """In the middle of a vector, at its end, with one and with two vectors waiting."""
    config = SMALL.with_(n_pes=4, input_lanes=2, act_depth=40)
    model, _ = drive(config, 3, vectors(config, 3, 8), offer=1.0, hold=0.0, release=0.05,
                     flush_at=at, cycles=120, seed=2)
    assert model.released > 0


@pytest.mark.parametrize(("n_pes", "lanes", "features"),
                         [(1, 1, 5), (3, 1, 7), (4, 2, 9), (4, 4, 3), (8, 4, 8), (6, 3, 13)])
def test_activation_i_reaches_pe_i_mod_n_at_i_div_n(n_pes, lanes, features):
    config = SMALL.with_(n_pes=n_pes, input_lanes=lanes, act_depth=40)
    inputs = np.arange(1, 2 * features + 1).reshape(2, features)
    beats = pack_inputs(inputs, config).tolist()
    model, _ = drive(config, config.rows(features), beats, offer=1.0, hold=0.0, release=0.0)
    memory = {}
    for (group, act), values in zip(model.places, beats, strict=True):
        memory |= {(group * lanes + lane, act): value for lane, value in enumerate(values)}
    for vector, base in zip(inputs, BASES, strict=True):
        padded = dict.fromkeys(range(config.rows(features) * n_pes), 0)
        padded |= dict(enumerate(vector.tolist()))
        for i, value in padded.items():
            assert memory.pop((i % n_pes, base + i // n_pes)) == value
    assert memory == {}


def test_nothing_is_taken_without_a_descriptor():
    script = [{"i.valid": 1, "i.payload": [3]}] * 5
    trace = play(InputBuffer(SMALL), script, ["i.ready", "o.valid", "full"])
    assert trace == [{"i.ready": 0, "o.valid": 0, "full": 0}] * 5


def test_reset_forgets_everything():
    config = SMALL.with_(n_pes=1)
    offer = {"i.valid": 1, "i.payload": [3]}
    script = [offer] * 4 + [{"reset": 1}, {}, *[offer] * 4]
    trace = play(InputBuffer(config), script, ["i.ready", "full", "full_act", "o.payload"],
                 settings={"rows": 1, "act.0": 2, "act.1": 9}, reset=Signal())
    assert [step["i.ready"] for step in trace] == [1, 1, 0, 0, 0, 1, 1, 1, 0, 0]
    assert [step["full"] for step in trace] == [0, 1, 1, 1, 1, 0, 0, 1, 1, 1]
    assert [step["o.payload"]["act"] for step in trace[6:8]] == [2, 9]


def test_constructor_errors():
    with pytest.raises(TypeError, match=r"^config must be an EngineConfig, not \(\)$"):
        InputBuffer(())
