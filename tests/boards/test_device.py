# amaranth: UnusedElaboratable=no
"""Proves `Device` against the compiled link and engine: what it says about the board, loading,
running, states and counters; models that are built in; and that whatever is wrong is one clear
line."""

import os
import re
import tty

import numpy as np
import pytest
import serial

from openese.boards.device import Device, DeviceError, LinkError, MismatchError, PortError
from openese.boards.protocol import IDENTIFICATION_BYTES, Identification
from openese.model.compile import size_for
from openese.model.config import PRESETS
from openese.model.quantise import quantise
from openese.model.random_network import (
    RandomLayer,
    random_inputs,
    random_network,
    random_recurrent,
)
from openese.model.reference import run_reference

from .bench import Line, LinkBench, Model

#: Seconds: a simulation on a busy computer is much slower than a board.
TIMEOUT = 20.0


class Port:
    """What a serial port is to `Device`, in front of a simulated board."""

    def __init__(self, line):
        self._line = line
        self._out, self._in = b"", b""
        self.unplugged = False

    @property
    def in_waiting(self):
        return len(self._in)

    def write(self, data):
        if self.unplugged:
            raise OSError("device disconnected")
        self._out += data

    def read(self, count):
        if self._out or not self._in:
            self._in += self._line.exchange(self._out)
            self._out = b""
        data, self._in = self._in[:count], self._in[count:]
        return data

    def close(self):
        self.closed = True


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


def test_load_and_run(line, model):
    seen = []
    with Device(Port(line), timeout=TIMEOUT) as device:
        assert device.identification == Identification.of(
            model.config, board="bench", clock_hz=10**6, buffer_bytes=512)
        assert device.quantised is None
        device.load(model.network, config=model.config,
                    progress=lambda done, total: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1] > 500
        for seed in (1, 2):
            inputs, expected = model.vectors(seed, 5)
            result = device.run(inputs, progress=lambda done, total: seen.append((done, total)))
            assert np.array_equal(result.outputs, expected.outputs)
            assert seen[-1] == (60, 60)
            assert result.after.passes - result.before.passes == 5
            assert result.after.cycles > result.before.cycles
            assert (result.after.saturations - result.before.saturations
                    == expected.saturations)
            assert result.bytes_out > 2 * inputs.size
            assert result.bytes_in > 2 * expected.outputs.size
            assert result.seconds > 0
        device.reset_state()
        assert device.read_state() == []
        assert device.counters().link.bad_in == 0
        assert device.quantised is not None


def test_states_go_on_and_are_reset():
    network = random_recurrent(5, 6, [RandomLayer(cell="lstm", size=8),
                                      RandomLayer(cell="linear", size=4)])
    config = size_for(network, 2)
    quantised = quantise(network, config)
    inputs = random_inputs(6, network, 7)
    expected = run_reference(quantised, inputs)
    line = Line(LinkBench(config))
    with line.simulation, Device(Port(line), timeout=TIMEOUT) as device:
        device.load(network, config=config)
        for _ in range(2):
            parts = [device.run(inputs[:3]).outputs, device.run(inputs[3:]).outputs]
            assert np.array_equal(np.concatenate(parts), expected.outputs)
            for layer, wanted in zip(device.read_state(), expected.state, strict=True):
                assert np.array_equal(layer.h, wanted.h)
                assert np.array_equal(layer.c, wanted.c)
            device.reset_state()


def test_a_model_that_is_built_in(model):
    """Is only started, unless it has been overwritten."""
    line = Line(LinkBench(model.config, model.image,
                          identification=Identification.of(model.config, model.image)))
    inputs, expected = model.vectors(1)
    other = Model(4)
    with line.simulation:
        for network, spent in ((model.network, 100), (other.network, None), (model.network, None)):
            if network is other.network:
                wanted = run_reference(quantise(network, model.config), inputs)
            else:
                wanted = expected
            with Device(Port(line), timeout=TIMEOUT) as device:
                device.load(network, config=model.config)
                bytes_out = device.counters().link.bytes_out
                assert bytes_out < spent if spent else bytes_out > 1000
                assert np.array_equal(device.run(inputs).outputs, wanted.outputs)


def test_wrong_models(line, model):
    with Device(Port(line), timeout=TIMEOUT) as device:
        with pytest.raises(MismatchError, match=same(
                "the port: the bitstream holds another engine: n_pes is 4, not 8, input_lanes is "
                "2, not 4; flash the right bitstream or compile for the engine on the board")):
            device.load(model.network, config=PRESETS["demo"])
        with pytest.raises(MismatchError, match=(
                r"^the port: the bitstream holds another engine: its signature is 0x[0-9a-f]{8}; "
                r"its sizes of memories or words differ; ")):
            device.load(model.network, config=model.config.with_(spmat_depth=4096))
        with pytest.raises(MismatchError, match=(
                r"^the port: the board's engine \(signature 0x[0-9a-f]{8}, 4 PEs\) is no preset of "
                r"this version: give its configuration$")):
            device.load(model.network)
        with pytest.raises(MismatchError, match=(
                r"^the port: the model is too large for the board's engine: the network does not "
                r"fit: ")):
            device.load(random_network(3, [200, 160, 120], 0.4), config=model.config)
        with pytest.raises(DeviceError, match=same(
                "the port: no model is loaded: call load() first")):
            device.run(np.zeros((1, 24), dtype=int))
        device.load(model.network, config=model.config)
        with pytest.raises(ValueError, match=same(
                "inputs must have shape (n, 24), not (1, 23)")):
            device.run(np.zeros((1, 23), dtype=int))


def test_a_board_of_a_known_engine_names_what_differs(line, model):
    """As a board with the preset's engine would identify itself; none is simulated for this."""
    config = PRESETS["ulx3s-85f"]
    with Device(Port(line), timeout=TIMEOUT) as device:
        device._end.identification = Identification.of(config, board="ulx3s-85f")
        with pytest.raises(MismatchError, match=same(
                "the port: the bitstream holds another engine: n_pes is 16, not 8; flash the "
                "right bitstream or compile for the engine on the board")):
            device.load(model.network, config=config.with_(n_pes=8))


def test_an_interrupted_run_is_not_mixed_with_the_next(line, model):
    inputs, expected = model.vectors(1)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with Device(Port(line), timeout=TIMEOUT) as device:
        device.load(model.network, config=model.config)
        with pytest.raises(KeyboardInterrupt):
            device.run(inputs, progress=interrupt)
        with pytest.raises(DeviceError, match=same(
                "the port: an operation was interrupted, so the engine was reset: load the model "
                "again")):
            device.run(inputs)
        device.load(model.network, config=model.config)
        assert np.array_equal(device.run(inputs).outputs, expected.outputs)


def test_a_port_that_goes_away(line, model):
    port = Port(line)
    with Device(port, timeout=TIMEOUT) as device:
        port.unplugged = True
        with pytest.raises(PortError, match=same(
                "the port: the port has gone away (device disconnected): plug the board in and "
                "open it again")):
            device.counters()
    assert port.closed


def test_ports_that_cannot_be_opened(tmp_path):
    with pytest.raises(PortError, match=r"^there is no port /dev/ttyNONE; ports of this machine: "):
        Device("/dev/ttyNONE")
    with pytest.raises(PortError, match=rf"^cannot open {tmp_path}: "):
        Device(tmp_path)
    with pytest.raises(ValueError, match=same("timeout must be positive, not 0")):
        Device("/dev/ttyNONE", timeout=0)


@pytest.fixture
def terminal():
    """A pseudo-terminal without a board behind it."""
    ends = os.openpty()
    tty.setraw(ends[1])
    yield os.ttyname(ends[1])
    for end in ends:
        os.close(end)


def test_a_silent_port_and_a_busy_one(terminal):
    with pytest.raises(LinkError, match=same(
            f"{terminal}: the board does not answer; check the cable, the rate (1000000 baud) and "
            "that the bitstream is loaded")):
        Device(terminal, timeout=0.3)
    with serial.Serial(terminal, exclusive=True), pytest.raises(PortError, match=same(
            f"{terminal} is in use by another program: close that first")):
        Device(terminal)


def test_identification():
    known = Identification(
        signature=0x89ABCDEF, n_pes=256, input_lanes=16, channels=32, board="ulx3s-85f",
        preset="sixteen letters.", clock_hz=90_000_000, build=0xFFFFFFFF, model=1, has_model=True,
        divisor=90, buffer_bytes=256)
    record = known.pack()
    assert len(record) == IDENTIFICATION_BYTES
    assert Identification.unpack(record) == known
    with pytest.raises(ValueError, match=same(
            "the board speaks version 9 of the serial protocol, this program version 1")):
        Identification.unpack(record[:4] + b"\x09" + record[5:])
    with pytest.raises(ValueError, match=same(
            "the board does not identify itself as openese (b'abcd')")):
        Identification.unpack(b"abcd" + record[4:])


@pytest.mark.parametrize(("fields", "message"), [
    ({"board": "seventeen letters"},
     "board must be at most 16 characters of ASCII, not 'seventeen letters'"),
    ({"preset": "é"}, "preset must be at most 16 characters of ASCII, not 'é'"),
    ({"clock_hz": 1 << 32}, "clock_hz must be an integer from 0 to 4294967295, not 4294967296"),
    ({"build": -1}, "build must be an integer from 0 to 4294967295, not -1"),
    ({"n_pes": 1.0}, "n_pes must be an integer from 0 to 65535, not 1.0"),
    ({"buffer_bytes": 300}, "buffer_bytes must be a power of two from 128 to 8192, not 300"),
])
def test_fields_are_checked(fields, message):
    with pytest.raises(ValueError, match=same(message)):
        Identification(**{"signature": 0, "n_pes": 1, **fields})
