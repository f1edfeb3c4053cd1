"""The command line: what it prints, its exit status, and that bad input writes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import openese
from openese.__main__ import main
from openese.model.ese_file import load, save
from openese.model.random_network import random_network

DATA = Path(openese.__file__).with_name("data")
SHIPPED = str(DATA / "lenet_300_100.ese")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def fails(capsys, *arguments: str) -> str:
    """The one line of an error, without the command's name."""
    status, out, err = run(capsys, *arguments)
    assert status == 1
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    prefix = f"openese {arguments[0]}: error: "
    assert lines[0].startswith(prefix)
    return lines[0].removeprefix(prefix)


@pytest.fixture
def small(tmp_path):
    """A small model file and inputs for it."""
    network = random_network(1, [12, 9, 4], 0.5)
    model, inputs = tmp_path / "net work.ese", tmp_path / "in.npz"
    save(model, network)
    rng = np.random.default_rng(1)
    np.savez(inputs, x=rng.uniform(-1, 1, (3, 3, 4)).astype(np.float32), y=np.array([0, 1, 2]))
    return str(model), str(inputs)


def test_demo_on_amaranths_simulator(capsys):
    """What a machine without a C++ compiler runs."""
    status, out, _ = run(capsys, "demo", "--backend", "amaranth", "--limit", "2", "--pes", "16",
                         "--json")
    result = json.loads(out)
    assert status == 0
    assert result["mismatches"] == 0
    assert result["outputs"] == 20
    assert result["n_pes"] == 16
    assert result["error_percent"] == result["float_error_percent"] == 0


def test_demo_runs_all_shipped_digits_compiled(capsys):
    status, out, _ = run(capsys, "demo", "--backend", "cxxrtl")
    assert status == 0
    assert "0 of 2,560 outputs (256 vectors)" in out
    for word in ("accuracy", "cycles", "PE utilisation"):
        assert word in out


def test_simulate_json(capsys, small):
    model, inputs = small
    status, out, err = run(capsys, "simulate", model, inputs, "--pes", "2", "--backend",
                           "amaranth", "--json", "--load", "host")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert {k: result[k] for k in ("mismatches", "outputs", "vectors", "n_pes", "backend", "load")
            } == {"mismatches": 0, "outputs": 12, "vectors": 3, "n_pes": 2,
                  "backend": "amaranth", "load": "host"}
    for key in ("cycles", "entries", "fillers", "utilisation", "saturations", "seconds",
                "error_percent", "snr_db"):
        assert result[key] >= 0


def test_simulate_writes_a_waveform(capsys, small, tmp_path):
    wave = tmp_path / "w.vcd"
    status, _, _ = run(capsys, "simulate", *small, "--backend", "amaranth", "--limit", "1", "--vcd",
                       str(wave))
    assert status == 0
    assert "$enddefinitions" in wave.read_text()


def test_inspect_tells_what_fits(capsys, small):
    status, out, _ = run(capsys, "inspect", SHIPPED, "--json")
    result = json.loads(out)
    assert status == 0
    assert result["bytes"] == Path(SHIPPED).stat().st_size
    assert [row["name"] for row in result["rows"]] == ["ip1", "ip2", "ip3"]
    assert {row["name"]: row["fits"] for row in result["presets"]}["ulx3s-85f"]
    (engine,) = result["engines"]
    assert (engine["name"], engine["pes"], engine["fits"]) == ("ip1", 8, True)
    assert [row["name"] for row in engine["rows"]] == ["ip1", "ip2", "ip3"]
    assert sum(row["entries"] for row in engine["rows"]) == engine["entries"]


def test_inspect_a_network_no_engine_of_so_few_pes_holds(capsys, tmp_path):
    model = tmp_path / "big.ese"
    save(model, random_network(1, [3000, 900], 0.1))
    status, out, _ = run(capsys, "inspect", str(model), "--pes", "1", "--json")
    assert status == 0
    (engine,) = json.loads(out)["engines"]
    assert not engine["fits"]
    assert engine["reason"].startswith("no engine of 1 PEs fits: spmat_depth must be an integer")
    assert engine["reason"] in run(capsys, "inspect", str(model), "--pes", "1")[1]


def test_verilog_has_stable_ports(capsys, small, tmp_path):
    target = tmp_path / "engine.v"
    status, out, _ = run(capsys, "verilog", small[0], "--pes", "3", "-o", str(target), "--json")
    assert status == 0
    assert json.loads(out)["bytes"] == target.stat().st_size
    text = target.read_text()
    head = text[text.index("module openese("):]
    head = head[:head.index(";")]
    names = {name.strip() for name in head[head.index("(") + 1:head.index(")")].split(",")}
    assert names == {"clk", "rst", "reset", *(f"{port}_{part}" for port in (
        "i_host", "o_host", "i_act", "o_act") for part in ("payload", "valid", "ready"))}


# -- errors ---------------------------------------------------------------------------------------


def test_wrong_input_shape(capsys, small, tmp_path):
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, x=np.zeros((2, 5)))
    text = fails(capsys, "simulate", small[0], str(wrong), "--vcd", str(tmp_path / "w.vcd"))
    assert text == ("inputs must have shape (n, 12), not (2, 5): give one row per vector")
    assert not (tmp_path / "w.vcd").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing"])
def test_bad_model_file(capsys, tmp_path, damage):
    bad, target = tmp_path / "bad.ese", tmp_path / "engine.v"
    data = bytearray(Path(SHIPPED).read_bytes())
    if damage == "truncated":
        data = data[:len(data) // 2]
    elif damage == "flipped":
        data[1000] ^= 4
    elif damage == "empty":
        data = b""
    if damage != "missing":
        bad.write_bytes(data)
    text = fails(capsys, "verilog", str(bad), "-o", str(target))
    assert text.startswith(str(bad))
    assert not target.exists()


def test_model_too_large_for_the_preset(capsys, tmp_path):
    model, target = tmp_path / "big.ese", tmp_path / "engine.v"
    save(model, random_network(1, [3000, 900, 10], 0.2))
    text = fails(capsys, "verilog", str(model), "--preset", "demo", "-o", str(target))
    assert "spmat_depth" in text
    assert "the engine has 4096" in text
    assert not target.exists()
    assert "spmat_depth" in fails(capsys, "build", str(model), "--board", "ulx3s-85f", "-o",
                                  str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "text"), [
    (["simulate", SHIPPED], "give either INPUTS.npz or --mnist-test"),
    (["simulate", SHIPPED, "nowhere.npz"], "nowhere.npz: no such file"),
    (["demo", "--limit", "0"], "--limit must be 1 or more, not 0"),
    (["demo", "--pes", "0"], "n_pes must be an integer from 1 to 256, not 0"),
    (["simulate", SHIPPED, "--mnist-test", "--mnist-root", "nowhere"], "nowhere"),
    (["verilog", SHIPPED, "-o", "nowhere/x.v"], "nowhere/x.v: folder"),
    (["verilog", SHIPPED, "-o", "x.v", "--preset", "none"], "unknown preset 'none'; presets: "),
    (["verilog", SHIPPED, "-o", "x.v", "--preset", "demo", "--pes", "4"],
     "give --pes or --preset, not both"),
    (["inspect", SHIPPED, "--pes", "0"], "n_pes must be an integer from 1 to 256, not 0"),
    (["inspect", SHIPPED, "--entry-bits", "4"],
     "entry_bits must be larger than code_bits (4) to leave an index, not 4"),
    (["bench", "ese", "--steps", "0"], "--steps must be 1 or more, not 0"),
    (["build", "--empty", "--board", "ulx3s-85f", "--preset", "none"],
     "unknown preset 'none'; presets: "),
    (["build", SHIPPED, "--board", "ulx3s-85f", "--preset", "demo", "--pes", "2"],
     "give --pes or --preset, not both"),
    (["build", "--empty", "--board", "ulx3s-85f", "--pes", "2"], "--pes needs MODEL.ese: "),
    # Whatever is built is the preset's engine.
    (["build", SHIPPED, "--board", "ulx3s-85f", "--preset", "eie-85f"],
     "needs codebooks 3, the engine has 2: "),
    (["build", SHIPPED, "--board", "none"], "no board is called 'none'; there are: ulx3s-12f, "),
])
def test_wrong_options(capsys, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    assert text in fails(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_are_no_arrays(capsys, small, tmp_path):
    text_file, other, pickled = (tmp_path / name for name in ("a.npz", "b.npz", "c.npz"))
    text_file.write_text("hello")
    np.savez(other, z=np.zeros(3))
    np.savez(pickled, x=np.array([{}], dtype=object))
    assert "not a readable .npz or .npy file" in fails(capsys, "simulate", small[0], str(text_file))
    assert "needs an array named x" in fails(capsys, "simulate", small[0], str(other))
    assert "not a readable .npz or .npy file" in fails(capsys, "simulate", small[0], str(pickled))


def test_a_reader_that_stops_early_is_no_error():
    with subprocess.Popen([sys.executable, "-m", "openese", "inspect", SHIPPED],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_api_in_three_calls(small):
    report = openese.simulate(openese.load(small[0]), np.zeros((1, 12)), n_pes=3,
                              backend="amaranth")
    assert report.mismatches == 0
    assert load(small[0]).in_features == 12
