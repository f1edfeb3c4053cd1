"""Proves the simulated board: the real host program, through a pseudo-terminal and serial pins,
loads a network and gets the reference's outputs, on both kinds of simulator, with a line that
spoils bytes both ways, after a break; the board sleeps while nothing is asked of it, outlives its
hosts, and tells what goes wrong inside."""

import os
import threading
import time

import numpy as np
import pytest
import serial

from openese.boards.device import Device
from openese.boards.host import HostEnd, make_frame
from openese.boards.protocol import Control, Identification
from openese.boards.simulated import SimulatedBoard
from openese.model.compile import compile_network, size_for
from openese.model.host import MAGIC, Register, read
from openese.model.quantise import quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import run_reference

NETWORK = random_network(1, [12, 9, 4], 0.5)
CONFIG = size_for(NETWORK, 2, input_lanes=2)
QUANTISED = quantise(NETWORK, CONFIG)
IMAGE = compile_network(QUANTISED, CONFIG)
INPUTS = random_inputs(2, NETWORK, 40)
OUTPUTS = run_reference(QUANTISED, INPUTS).outputs

#: Seconds: a simulation on a busy computer is much slower than a board.
TIMEOUT = 16.0


@pytest.fixture(scope="module")
def board():
    with SimulatedBoard(CONFIG) as board:
        yield board


def wait_until(condition, seconds=TIMEOUT):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_hosts_one_after_the_other(board):
    """Each starts the engine afresh; what is in its memories stays."""
    for _ in range(2):
        with Device(board.port, timeout=TIMEOUT) as device:
            known = device.identification
            assert (known.signature, known.n_pes, known.board) == (CONFIG.signature, 2, "simulated")
            assert device.counters().passes == 0
            device.load(NETWORK, config=CONFIG)
            result = device.run(INPUTS)
            np.testing.assert_array_equal(result.outputs, OUTPUTS)
            assert result.after.passes == len(INPUTS)
    assert not board.overrun


def test_bytes_are_counted_where_they_pass(board):
    before = board.bytes_in, board.bytes_out, board.cycles
    with Device(board.port, timeout=TIMEOUT) as device:
        link = device.counters().link
    assert link.retries == 0
    assert board.bytes_in - before[0] == link.bytes_out
    assert board.bytes_out - before[1] == link.bytes_in
    # Both ways at once; a byte is ten bits of four cycles.
    assert board.cycles - before[2] >= 40 * max(link.bytes_out, link.bytes_in)


def test_sleeps_while_nothing_is_asked(board):
    wait_until(lambda: still(board))
    cycles = board.cycles
    with Device(board.port, timeout=TIMEOUT) as device:
        assert device.counters().passes == 0
    assert board.cycles > cycles


def still(board, seconds=0.3):
    """Whether no cycle passes in a while."""
    cycles = board.cycles
    time.sleep(seconds)
    return board.cycles == cycles


def test_a_break_ends_the_session(board):
    with serial.Serial(board.port, timeout=0.01, exclusive=True) as port:
        def until(host, done, seconds=TIMEOUT):
            end = time.monotonic() + seconds
            while not done() and time.monotonic() < end:
                port.write(host.outgoing(time.monotonic()))
                host.incoming(port.read(256), time.monotonic())
            return done()

        first = HostEnd(1, time.monotonic(), retry=TIMEOUT, timeout=4 * TIMEOUT)
        first.send_words(read(Register.MAGIC))
        assert until(first, lambda: list(first.words) == [MAGIC])
        board.restart()
        first.send_words(read(Register.MAGIC))
        assert not until(first, lambda: len(first.words) == 2, 1.0)
        second = HostEnd(2, time.monotonic(), retry=TIMEOUT, timeout=4 * TIMEOUT)
        second.send_words(read(Register.MAGIC))
        assert until(second, lambda: list(second.words) == [MAGIC])


def test_a_line_that_spoils_bytes():
    """Every so often a bit turns over, a byte is lost or one comes that was not sent."""
    # Gaps of any length, or a frame of the wrong one would never come through.
    rng = {"to_board": np.random.default_rng(3), "to_host": np.random.default_rng(4)}
    left = dict.fromkeys(rng, 100)
    spoilt = dict.fromkeys(rng, 0)

    def fault(data: bytes, direction: str) -> bytes:
        line = bytearray()
        for byte in data:
            line.append(byte)
            left[direction] -= 1
            if left[direction] == 0:
                left[direction] = int(rng[direction].integers(1, 500))
                kind = spoilt[direction] % 3
                spoilt[direction] += 1
                line[-1:] = (bytes([byte ^ 1 << spoilt[direction] % 8]), b"",
                             bytes([byte, 0x55]))[kind]
        return bytes(line)

    with SimulatedBoard(CONFIG, fault=fault) as board, Device(board.port, timeout=4.0) as device:
        device.load(NETWORK, config=CONFIG)
        result = device.run(INPUTS[:16])
        np.testing.assert_array_equal(result.outputs, OUTPUTS[:16])
        link = device.counters().link
    assert min(spoilt.values()) >= 3
    assert link.bad_out > 0
    assert link.bad_in > 0
    assert link.retries > 0


def test_a_model_from_power_up_on_amaranths_simulator():
    """What a machine without a C++ compiler runs, with a name of its own."""
    identification = Identification.of(CONFIG, IMAGE, board="my board", clock_hz=50_000_000)
    with (SimulatedBoard(IMAGE, identification=identification, backend="amaranth") as board,
          Device(board.port, timeout=10 * TIMEOUT) as device):
        assert device.identification == identification
        device.load(NETWORK, config=CONFIG)
        result = device.run(INPUTS[:1])
    np.testing.assert_array_equal(result.outputs, OUTPUTS[:1])
    # The model was not sent.
    assert result.after.link.bytes_out < 300


def test_a_host_that_does_not_read(board):
    """The board goes on, and what it said to that host does not confuse the next one."""
    sent = b"".join(make_frame(bytes([Control.OPEN | Control.ANSWER, session % 256, 0, 0, 0, 0]))
                    for session in range(600))
    before = board.bytes_in, board.bytes_out
    end = os.open(board.port, os.O_RDWR | os.O_NOCTTY)
    try:
        os.write(end, sent[:4000])
        wait_until(lambda: board.bytes_in - before[0] == 4000)
        os.write(end, sent[4000:])
        wait_until(lambda: board.bytes_in - before[0] == len(sent))
    finally:
        os.close(end)
    # More than a terminal holds.
    wait_until(lambda: board.bytes_out - before[1] > 4096)
    with Device(board.port, timeout=TIMEOUT) as device:
        assert device.counters().passes == 0


def test_errors_inside_are_told():
    cut = threading.Event()

    def fault(data, direction):
        cut.set()
        raise ZeroDivisionError("the line is cut")

    board = SimulatedBoard(CONFIG, fault=fault)
    with serial.Serial(board.port) as port:
        port.write(b"x")
        assert cut.wait(TIMEOUT)
    with pytest.raises(RuntimeError, match="the simulated board has stopped"):
        board.restart()
    with pytest.raises(ZeroDivisionError, match="the line is cut"):
        board.close()
    board.close()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"divisor": 3}, "divisor must be an integer of 4 or more, not 3"),
    ({"backend": "paper"}, "backend must be one of amaranth, cxxrtl, verilator, not 'paper'"),
])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SimulatedBoard(CONFIG, **arguments)
