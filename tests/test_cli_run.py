"""Proves `openese run`: a process of its own, through a pseudo-terminal and the serial pins of a
simulated ULX3S, loads the shipped LeNet and recognises digits; an LSTM and a bidirectional GRU go
through a sequence; every output equals the integer reference. What can be wrong with a port, a
board or a model is told in one line."""

import json
import os
import subprocess
import sys
import tty
from pathlib import Path

import numpy as np
import pytest
import serial

import openese
from openese.__main__ import main
from openese.boards.platforms import BOARDS
from openese.boards.protocol import Identification
from openese.boards.simulated import DIVISOR, SimulatedBoard
from openese.model.compile import size_for
from openese.model.config import PRESETS
from openese.model.ese_file import save
from openese.model.mnist import scale_pixels
from openese.model.network import CompressedBidirectional, CompressedNetwork
from openese.model.random_network import RandomLayer, random_network, random_recurrent
from openese.model.reference import run_reference

DATA = Path(openese.__file__).with_name("data")
LENET = str(DATA / "lenet_300_100.ese")

#: Seconds: a simulation on a busy computer is much slower than a board.
TIMEOUT = ("--timeout", "30")

LSTM = random_recurrent(1, 6, [RandomLayer(cell="lstm", size=8, proj=5, peepholes=True),
                               RandomLayer(cell="linear", size=3)])
#: An engine for LSTMs, with room for other recurrent layers.
ENGINE = size_for(LSTM, 2, input_lanes=2).with_(acc_depth=24)

SMALL = random_network(1, [12, 9, 4], 0.5)


@pytest.fixture(scope="module")
def ulx3s():
    """The smallest ULX3S, without a model."""
    board = BOARDS["ulx3s-12f"]
    identification = Identification.of(
        board.config, board=board.name, preset=board.name, divisor=DIVISOR,
        clock_hz=round(board.target_mhz * 1e6))
    with SimulatedBoard(board.config, identification=identification) as board:
        yield board


@pytest.fixture(scope="module")
def sized():
    """A board built for one model: no table lists its engine."""
    with SimulatedBoard(size_for(SMALL, 2, input_lanes=2)) as board:
        yield board


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and inputs."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(1)
    save(folder / "lstm.ese", LSTM)
    gru = random_recurrent(2, 6, [RandomLayer(cell="gru", size=5)]).layers[0]
    back = random_recurrent(3, 6, [RandomLayer(cell="gru", size=5)]).layers[0]
    save(folder / "both.ese", CompressedNetwork([CompressedBidirectional(gru, back)], in_frac=12))
    save(folder / "small.ese", SMALL)
    save(folder / "large.ese", random_network(1, [3000, 900], 0.1))
    np.savez(folder / "steps.npz", x=rng.uniform(-1, 1, (7, 6)).astype(np.float32))
    np.savez(folder / "channel.npz", x=rng.uniform(-1, 1, (7, 1, 6)).astype(np.float32),
             y=np.zeros((7, 1), dtype=int))
    np.savez(folder / "small.npz", x=rng.uniform(-1, 1, (5, 3, 4)).astype(np.float32))
    np.savez(folder / "large.npz", x=np.zeros((1, 3000), dtype=np.float32))
    with np.load(DATA / "mnist_256.npz", allow_pickle=False) as digits:
        np.savez(folder / "digits.npz", x=scale_pixels(digits["images"][:30]),
                 y=digits["labels"][:30])
    return folder


@pytest.fixture
def files(folder, monkeypatch):
    """The same in the current folder."""
    monkeypatch.chdir(folder)


def reads(capsys, *arguments: str) -> dict:
    """What a run that succeeds prints with --json."""
    status = main(["run", *arguments, *TIMEOUT, "--json"])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return json.loads(out)


def fails(capsys, *arguments: str) -> str:
    """The one line of an error, without the command's name."""
    status = main(["run", *arguments])
    out, err = capsys.readouterr()
    assert (status, out) == (1, "")
    (line,) = err.splitlines()
    return line.removeprefix("openese run: error: ")


def test_lenet_on_a_ulx3s(files, ulx3s):
    done = subprocess.run(
        [sys.executable, "-m", "openese", "run", LENET, "digits.npz", "--port", ulx3s.port,
         "--limit", "20", "--check", "--json", *TIMEOUT],
        capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert {key: data[key] for key in (
        "name", "port", "board", "preset", "n_pes", "channels", "clock_hz", "baud", "recurrent",
        "vectors", "outputs", "mismatches", "first_mismatch", "error_percent",
        "float_error_percent")} == {
        "name": "lenet_300_100.ese", "port": ulx3s.port, "board": "ulx3s-12f",
        "preset": "ulx3s-12f", "n_pes": 4, "channels": 1, "clock_hz": 75_000_000,
        "baud": 1_000_000, "recurrent": False, "vectors": 20, "outputs": 200, "mismatches": 0,
        "first_mismatch": None, "error_percent": 0, "float_error_percent": 0}
    for key in ("load_seconds", "seconds", "latency_ms", "vectors_per_second", "stalls"):
        assert data[key] > 0
    assert data["cycles_per_vector"] == data["cycles"] / 20
    assert data["engine_vectors_per_second"] == 75e6 / data["cycles_per_vector"]
    # The line carried 16 bits of every pixel, and of every output and the head before it.
    assert data["link"]["bytes_out"] > 20 * 784 * 2
    assert data["link"]["bytes_in"] > 20 * 10 * 3
    assert not ulx3s.overrun


@pytest.mark.parametrize(("model", "inputs", "steps", "outputs"), [
    ("lstm.ese", "steps.npz", 7, 3), ("lstm.ese", "channel.npz", 1, 3),
    ("both.ese", "steps.npz", 7, 10)])
def test_steps_of_a_sequence(files, capsys, monkeypatch, model, inputs, steps, outputs):
    """With no board at hand; directions of a layer are loaded and run one after the other."""
    monkeypatch.setitem(PRESETS, "lstm", ENGINE)
    data = reads(capsys, model, inputs, "--port", "simulated", "--preset", "lstm", "--check",
                 "--limit", str(steps))
    assert (data["mismatches"], data["outputs"]) == (0, steps * outputs)
    assert (data["recurrent"], data["port"], data["n_pes"]) == (True, "simulated", 2)
    # A simulated board's clock and rate are not those of a board.
    assert (data["engine_vectors_per_second"], data["baud"]) == (None, None)
    assert data["exposed"] > 0
    assert ("error_percent" in data) == (inputs == "channel.npz")


def test_what_a_simulated_board_prints(files, capsys):
    status = main(["run", "small.ese", "small.npz", "--port", "simulated", "--pes", "2"])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert out.startswith("small.ese on a simulated board: 2 PEs\n")
    assert out.endswith("\n  seconds are of the simulation, not of a board\n")


def test_an_engine_of_the_models_own_size(files, capsys, sized):
    """The board tells how many PEs it has; a bitstream built for the model has its sizes."""
    status = main(["run", "small.ese", "small.npz", "--port", sized.port, "--check", *TIMEOUT])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert out.startswith(f"small.ese on simulated at {sized.port}: 2 PEs, 1,000,000 baud\n"
                          "  mismatches        0 of 20 outputs (5 vectors), every bit against the "
                          "integer reference\n  load ")
    for word in ("vectors per second through the link\n", "cycles per vector", "one vector there",
                 "bytes out"):
        assert word in out
    assert "simulation" not in out
    main(["run", "small.ese", "small.npz", "--port", sized.port, "--pes", "2", *TIMEOUT])
    out, _ = capsys.readouterr()
    assert "outputs           20 (5 vectors), not compared (--check does)" in out


def test_a_wrong_output_is_a_failure(files, capsys, monkeypatch, sized):
    """The reference is made to differ in one output: told, and the status says so."""
    def other(network, raw):
        reference = run_reference(network, raw)
        reference.outputs[3, 2] += 1
        return reference

    monkeypatch.setattr("openese.model.reference.run_reference", other)
    status = main(["run", "small.ese", "small.npz", "--port", sized.port, "--check", *TIMEOUT])
    out, _ = capsys.readouterr()
    assert status == 1
    assert "mismatches        1 of 20 outputs" in out
    assert "first mismatch    vector 3, output 2" in out


def test_a_port_that_is_none(files, capsys):
    text = fails(capsys, "small.ese", "small.npz", "--port", "/dev/ttyNONE")
    assert text.startswith("there is no port /dev/ttyNONE; ports of this machine: ")


def test_a_busy_port(files, capsys, sized):
    with serial.Serial(sized.port, exclusive=True):
        text = fails(capsys, "small.ese", "small.npz", "--port", sized.port)
    assert text == f"{sized.port} is in use by another program: close that first"


def test_a_port_without_a_board(files, capsys):
    board, host = os.openpty()
    tty.setraw(host)
    try:
        port = os.ttyname(host)
        text = fails(capsys, "small.ese", "small.npz", "--port", port, "--timeout", "0.1")
    finally:
        os.close(board)
        os.close(host)
    assert text == (f"{port}: the board does not answer; check the cable, the rate (1000000 baud) "
                    "and that the bitstream is loaded")


def test_another_bitstream(files, capsys, sized):
    text = fails(capsys, "small.ese", "small.npz", "--port", sized.port, "--preset", "ulx3s-12f",
                 *TIMEOUT)
    assert text == (f"{sized.port}: the bitstream holds another engine: n_pes is 2, not 4, "
                    "input_lanes is 2, not 4; flash the right bitstream or compile for the engine "
                    "on the board")
    text = fails(capsys, "lstm.ese", "steps.npz", "--port", sized.port, *TIMEOUT)
    assert text.startswith(f"{sized.port}: the bitstream holds another engine: its signature is ")


def test_a_recurrent_model_on_a_board_without_an_element_wise_unit(files, capsys, ulx3s):
    text = fails(capsys, "lstm.ese", "steps.npz", "--port", ulx3s.port, *TIMEOUT)
    assert "recurrent" in text


def test_a_model_that_is_too_large(files, capsys, ulx3s):
    text = fails(capsys, "large.ese", "large.npz", "--port", ulx3s.port, *TIMEOUT)
    assert text.startswith(f"{ulx3s.port}: the model is too large for the board's engine: ")


def test_an_operating_system_without_terminals(files, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "openese.boards.simulated")
    monkeypatch.setitem(sys.modules, "termios", None)
    monkeypatch.delitem(sys.modules, "tty")
    text = fails(capsys, "small.ese", "small.npz", "--port", "simulated")
    assert text == ("a board is simulated behind a pseudo-terminal, which this operating system "
                    "does not have")


@pytest.mark.parametrize(("arguments", "message"), [
    (("--pes", "2", "--preset", "demo"), "give --pes or --preset, not both"),
    (("--preset", "none"), "unknown preset 'none'; presets: "),
    (("--limit", "0"), "--limit must be 1 or more, not 0"),
    (("--timeout", "-1"), "timeout must be positive, not -1.0"),
])
def test_options_are_checked(files, capsys, sized, arguments, message):
    assert fails(capsys, "small.ese", "small.npz", "--port", sized.port, *arguments).startswith(
        message)
