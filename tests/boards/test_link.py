# amaranth: UnusedElaboratable=no
"""Proves the parts of the serial link against the host's end: checksum, stuffing, records; that
nothing but an intact frame of the session, in its place and with room for it, enters the board's
buffer; windows; and an engine loaded, run and read out through it, equal to the reference."""

import re
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openese.boards.crc import Crc32
from openese.boards.framing import Stuffer, Unstuffer
from openese.boards.host import HostEnd, LinkError, make_frame, pack_beats, split_frames
from openese.boards.link import Link
from openese.boards.protocol import Control, Identification, beat_bytes
from openese.boards.records import RecordReader, RecordWriter
from openese.hdl.layouts import act_out_layout, act_signature
from openese.model.config import EngineConfig
from openese.model.host import pack_inputs
from openese.sim.simulation import Simulation
from openese.sim.streams import pack

from .bench import Model

CONFIG = EngineConfig(n_pes=2, input_lanes=2)
FLAGGED = st.lists(st.sampled_from([0, 0x5D, 0x5E, 0x7D, 0x7E, 0xFF]) | st.integers(0, 255),
                   max_size=40).map(bytes)


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def line(model):
    line = model.line()
    with line.simulation:
        yield line


def same(message):
    return f"^{re.escape(message)}$"


# -- checksum and frames --------------------------------------------------------------------------


def test_crc_is_that_of_zlib():
    """Bytes, then the CRC that is shifted out: equal to zlib's, and the receiver finds it good."""
    rng = np.random.default_rng(1)
    with Simulation(Crc32()) as simulation:
        for size in (0, 1, 2, 30):
            data = rng.bytes(size)
            simulation.run(settings={"clear": 1, "shift": 0}, extra_cycles=1)
            simulation.run({"i": list(data)}, settings={"clear": 0}, extra_cycles=9)
            crc = []
            for _ in range(4):
                seen = simulation.run({}, settings={"shift": 1}, signals=["next"], extra_cycles=1)
                crc.append(int(seen.signals["next"][-1]))
                simulation.run({"i": [crc[-1]]}, extra_cycles=9)
            assert bytes(crc) == zlib.crc32(data).to_bytes(4, "little")
            for wrong in (0, 1 << 13):
                simulation.run(settings={"clear": 1, "shift": 0}, extra_cycles=1)
                sent = (int.from_bytes(crc, "little") ^ wrong).to_bytes(4, "little")
                seen = simulation.run({"i": list(data + sent)}, settings={"clear": 0},
                                      signals=["good"], extra_cycles=10)
                assert seen.signals["good"][-1] == (not wrong)


def test_stuffing_is_that_of_the_host():
    with Simulation(Stuffer()) as stuffer, Simulation(Unstuffer()) as unstuffer:

        @settings(deadline=None, max_examples=40)
        @given(FLAGGED)
        def check(content):
            frame = make_frame(content)
            whole = content + zlib.crc32(content).to_bytes(4, "little")
            items = [0x100, *whole, 0x100]
            seen = stuffer.run({"i": items}, {"o": len(frame)})
            assert bytes(seen.outputs["o"].tolist()) == frame
            # A disturbance before a frame does not reach into it.
            seen = unstuffer.run({"i": [0x7D, *frame]}, {"o": len(items)})
            assert [min(int(item), 0x100) if item >= 0x100 else int(item)
                    for item in seen.outputs["o"]] == items

        check()


@settings(deadline=None, max_examples=100)
@given(st.lists(FLAGGED, max_size=4), FLAGGED)
def test_the_host_finds_its_frames_among_others(contents, noise):
    noise = noise.replace(b"\x7e", b"")
    sent = b"".join(map(make_frame, contents))
    frames, rest = split_frames(noise + sent + noise)
    if not contents:
        assert (frames, rest) == ([], 2 * noise)
    else:
        assert rest == noise
        assert [each for each in frames if each is not None] == contents
        assert len(frames) == len(contents) + bool(noise)


# -- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [
    CONFIG, CONFIG.with_(act_bits=8, input_lanes=1),
    EngineConfig(n_pes=2, input_lanes=2, channels=3, state_depth=4),
    EngineConfig(n_pes=1, channels=9, state_depth=4),
], ids=["two lanes", "8 bits", "3 channels", "9 channels"])
def test_records_both_ways(config):
    rng = np.random.default_rng(2)
    low = -(1 << config.act_bits - 1)
    shape = (300, config.channels, config.n_pes) if config.channels > 1 else (300, config.n_pes)
    inputs = rng.integers(low, -low, shape)
    inputs[0] = low
    active = rng.integers(0, 2, (300, config.channels)).astype(bool) if len(shape) > 2 else None
    beats = pack_inputs(inputs, config, active)
    words = rng.integers(0, 1 << 32, 200).tolist()
    end = HostEnd(1, 0.0)
    end.send_words(words)
    end.send_beats(pack_beats(beats), beat_bytes(config))
    expected = pack(act_signature(config).members["payload"].shape, beats)
    with Simulation(RecordReader(config)) as reader:
        seen = reader.run({"i": list(end._queue)}, {"o_host": 200, "o_act": len(expected)},
                          stalls={"o_host": "110", "o_act": "10"})
    assert seen.outputs["o_host"].tolist() == words
    np.testing.assert_array_equal(seen.outputs["o_act"], expected)

    values = rng.integers(low, -low, (20, config.channels))
    last = rng.integers(0, 2, 20)
    with Simulation(RecordWriter(config)) as writer:
        seen = writer.run(
            {"i_host": words[:20], "i_act": pack(act_out_layout(config), {
                "data": values, "last": last})},
            {"o": 20 * 5 + 20 * (1 + 2 * config.channels)}, stalls={"o": "1101"})
    end.identification = Identification.of(config)
    end._stream += bytes(seen.outputs["o"].tolist())
    end._parse()
    assert list(end.words) == words[:20]
    assert end.activations == [tuple(row) for row in values.tolist()]
    assert end.last == last.astype(bool).tolist()


# -- the board's end ------------------------------------------------------------------------------


def ask(line, *frames):
    """Acknowledged, taken, refused after these frames."""
    answer = line.exchange(b"".join(frames), 6000)
    content = split_frames(answer)[0][-1]
    assert content[0] == line.end.session
    return (*(int.from_bytes(content[k:k + 2], "little") for k in (3, 5)), content[7])


def frame(session, position, payload=b"", control=Control.ANSWER, acked=64):
    return make_frame(bytes([control, session]) + position.to_bytes(2, "little")
                      + acked.to_bytes(2, "little") + payload)


def test_only_what_is_right_enters_the_buffer(line):
    line.open(5)
    stop = bytes([0, 0, 0, 0, 0x30])
    assert ask(line, frame(5, 0)) == (0, 0, 0)
    assert ask(line, frame(5, 0, stop)) == (5, 5, 0)
    # A second time; ahead of its place; of another session; flipped; cut off; too short.
    assert ask(line, frame(5, 0, stop)) == (5, 5, 1)
    assert ask(line, frame(5, 6, stop)) == (5, 5, 2)
    assert ask(line, frame(6, 5, stop), frame(5, 5)) == (5, 5, 2)
    assert ask(line, frame(5, 5, stop).replace(b"\x30", b"\x31")) == (5, 5, 3)
    assert ask(line, frame(5, 5, stop)[:-3] + b"\x7e") == (5, 5, 4)
    assert ask(line, make_frame(b"\x00\x05")) == (5, 5, 5)
    # The CRC of nothing is zeros.
    assert ask(line, b"\x7e\0\0\0\0\x7e") == (5, 5, 6)
    # Zeros behind an intact frame.
    assert ask(line, frame(5, 5, stop)[:-1] + b"\0\x7e") == (5, 5, 7)
    assert ask(line, frame(5, 5, stop)) == (10, 10, 7)
    # A position beyond what was sent, or that goes back, is ignored: nothing is lost.
    assert ask(line, frame(5, 10, acked=65), frame(5, 10, acked=3)) == (10, 10, 7)
    # The same number again is no new session.
    assert ask(line, frame(5, 10, control=Control.OPEN | Control.ANSWER)) == (10, 10, 7)


def test_a_full_buffer_refuses_and_recovers(line, model):
    """An engine without a model takes no activations: they wait in the buffer."""
    line.open(6)
    size = line.end.identification.buffer_bytes
    beats = bytes([0xFF]) + bytes(2 * size)
    sent = refused = 0
    while not refused:
        acked, taken, refused = ask(line, frame(6, sent, beats[sent:sent + 64]))
        sent += 64 * (not refused)
        assert acked == sent
    assert size - 4 - 64 < acked - taken <= size - 4
    assert ask(line, frame(6, sent, bytes(64))) == (sent, taken, 2)
    # Another session finds room.
    line.open(7)
    model.send(line.end)
    model.check(line)


def test_engine_over_the_link(line, model):
    for session in (1, 2):
        line.open(session)
        model.send(line.end, session)
        model.check(line, session)
        assert line.end.untaken < line.end.identification.buffer_bytes // 4
        assert line.end.counters.retries == line.end.counters.bad_in == 0
        assert line.end.overwritten


# -- the host's end -------------------------------------------------------------------------------


def board_frame(end, position=0, acked=0, taken=0, refused=0, payload=b""):
    return make_frame(bytes([end.session]) + b"".join(
        value.to_bytes(2, "little") for value in (position, acked, taken))
        + bytes([refused, 0]) + payload)


def opened(**fields):
    end = HostEnd(9, 0.0, retry=0.25, timeout=2.0)
    end.outgoing(0.0)
    end.incoming(board_frame(end, payload=Identification.of(CONFIG, **fields).pack()), 0.1)
    return end


def test_the_window_is_respected():
    end = opened(buffer_bytes=256)
    end.send_words(range(200))
    contents, _ = split_frames(end.outgoing(0.2))
    assert sum(len(content) - 6 for content in contents) == 252
    assert end.outgoing(0.3) == b""
    end.incoming(board_frame(end, 64, 252, 126), 0.3)
    assert len(split_frames(end.outgoing(0.3))[0][0]) == 6 + 126


def test_overtaken_frames_change_nothing():
    end = opened()
    end.send_words(range(10))
    end.outgoing(0.2)
    end.incoming(board_frame(end, 64, 41, 41), 0.3)
    assert (end.pending, end.untaken) == (0, 0)
    end.incoming(board_frame(end, 64, 20, 10), 0.3)
    end.incoming(board_frame(end, 64, 50, 50), 0.3)
    assert (end.pending, end.untaken) == (0, 0)
    end.incoming(board_frame(end, 64, 41, 41, payload=b"\0\1\0\0\0"), 0.3)
    end.incoming(board_frame(end, 64, 41, 41, payload=b"\0\1\0\0\0"), 0.3)
    assert list(end.words) == [1]


def test_pieces_of_any_size():
    end = opened()
    for value in board_frame(end, 64, payload=b"\0\x04\x03\x02\x01\x80\xff\xff\xc0\x02\x01"):
        end.incoming(bytes([value]), 0.2)
    assert list(end.words) == [0x01020304]
    assert end.activations == [(-1,), (0x0102,)]
    assert end.last == [False, True]


def test_silence_and_nonsense_are_errors():
    end = HostEnd(9, 0.0, retry=0.25, timeout=2.0)
    for tenth in range(20):
        end.outgoing(tenth / 10)
    assert 3 <= end.counters.retries <= 8
    with pytest.raises(LinkError, match=same("the board does not answer")):
        end.outgoing(2.5)
    end = opened()
    end.outgoing(1.0)
    with pytest.raises(LinkError, match=same("the board has fallen silent")):
        end.outgoing(4.0)
    end = opened()
    end.send_words(range(4))
    for second in range(1, 11):
        end.outgoing(second)
        end.incoming(board_frame(end, 64), second)
    with pytest.raises(LinkError, match=same("the line spoils every frame")):
        end.outgoing(11.5)
    end = HostEnd(9, 0.0)
    with pytest.raises(LinkError, match=r"^the board does not identify itself as openese"):
        end.incoming(board_frame(end, payload=bytes(64)), 0.1)
    # A session of the same number goes on: another number is tried.
    end = HostEnd(255, 0.0)
    end.incoming(board_frame(end, 100, 70), 0.1)
    assert end.session == 0
    assert split_frames(end.outgoing(0.2))[0][0][:2] == bytes([
        Control.OPEN | Control.ANSWER, 0])


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Link(CONFIG.with_(act_bits=17)),
     "the serial link carries activations of at most 16 bits, not 17; lower act_bits"),
    (lambda: Link(CONFIG, Identification.of(CONFIG.with_(n_pes=4))),
     "the identification is of another engine: make it with Identification.of(config)"),
    (lambda: Link(CONFIG, sent_bytes=64),
     "sent_bytes must be a power of two from 128 to 8192, not 64"),
])
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=same(message)):
        make()
