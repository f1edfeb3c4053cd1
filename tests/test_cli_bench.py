"""The commands that measure: what they print, that what they compare is equal, bad options."""

import json
import os

import pytest

from openese.__main__ import main
from openese.sim.bench_cpu import CPU_LAYERS, ENGINE_MHZ
from openese.sim.bench_sim import bench_ese_step, bench_sim
from openese.sim.machine import describe_machine, machine_text


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(["bench", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_cpu(capsys):
    status, out, err = run(capsys, "cpu", "--layers", "NT-We", "ESE", "--seconds", "0.001",
                           "--threads", "1", "--pes", "32", "--mhz", "50", "--json")
    assert status == 0
    assert err.splitlines() == ["measuring NT-We", "measuring ESE"]
    result = json.loads(out)
    assert (result["n_pes"], result["mhz"]) == (32, 50)
    assert result["error"] < 1e-5
    assert result["machine"]["versions"].keys() == {"openese", "torch", "numpy", "scipy"}
    linear, ese = result["rows"]
    assert (linear["name"], linear["weights"]) == ("NT-We", 4096 * 600)
    assert (ese["name"], ese["weights"]) == ("ESE", 3_248_128)
    for row in result["rows"]:
        assert 0.09 < row["stored"] / row["weights"] < 0.11
        ways = {way["name"]: way["us"] for way in row["cpu"]}
        assert list(ways) == ["pytorch dense", "pytorch csr", "scipy csr"]
        assert row["cpu_us"] == ways[row["cpu_best"]] == min(ways.values())
        assert row["us"] == row["cycles"] / 50
        assert row["speedup"] == row["cpu_us"] / row["us"]
        assert row["cycles"] > row["stored"] / 32


def test_cpu_table(capsys):
    status, out, _ = run(capsys, "cpu", "--layers", "NT-We", "--seconds", "0.001", "--threads",
                         "1,2")
    assert status == 0
    head, row, *_ = out.splitlines()
    assert head.split() == ["layer", "weights", "stored", "dense", "1", "dense", "2", "csr", "1",
                            "csr", "2", "scipy", "csr", "1", "cycles", "us", "speed-up"]
    assert row.startswith("NT-We        2,457,600")
    assert f"at {ENGINE_MHZ} MHz" in out
    assert "largest error of a CPU result: " in out


@pytest.mark.slow
def test_a_step_of_eses_layer():
    """Loaded by the host stream, compiled and from the cache."""
    row = bench_ese_step(8, backend="cxxrtl")
    assert (row["name"], row["n_pes"], row["outputs"], row["mismatches"]) == ("cxxrtl", 8, 512, 0)
    assert 0 < row["seconds"] < row["cold_seconds"]
    # 10 % of 3,248,128 weights in 8 PEs, and once more those of W_hh: before the first step they
    # meet a state of zeros.
    assert 1.5 * 324_813 / 8 < row["cycles"] < 1.8 * 324_813 / 8


def test_sim(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENESE_CACHE", str(tmp_path))
    status, out, err = run(capsys, "sim", "--pes", "1", "--simulators", "amaranth", "cxxrtl",
                           "model", "--seconds", "0.05", "--json")
    assert status == 0
    assert err.splitlines() == [f"measuring {name}, 1 PEs"
                                for name in ("amaranth", "cxxrtl", "model")]
    assert os.environ["OPENESE_CACHE"] == str(tmp_path)
    assert not list(tmp_path.iterdir())  # measured with an empty cache, not the user's
    result = json.loads(out)
    assert result["mismatches"] == 0
    assert "C++ compiler" in result["machine"]["versions"]
    amaranth, cxxrtl, model = result["rows"]
    assert result["outputs"] == amaranth["outputs"] + cxxrtl["outputs"] >= 9 * 256
    assert amaranth["ratio"] == 1
    assert cxxrtl["ratio"] == cxxrtl["rate"] / amaranth["rate"] > 10
    assert 0 < cxxrtl["warm_seconds"] < cxxrtl["cold_seconds"]
    assert amaranth["warm_seconds"] == amaranth["cold_seconds"] > 0
    assert model["cold_seconds"] is None
    for row in result["rows"]:
        assert row["rate"] == row["cycles"] / row["seconds"]
    # A vector has 6,554 entries or so of which half are multiplied.
    assert 3000 < amaranth["cycles"] < 7000


def test_sim_table(capsys):
    status, out, _ = run(capsys, "sim", "--pes", "1", "--simulators", "model")
    assert status == 0
    head, row, *_ = out.splitlines()
    assert head.split() == ["PEs", "simulator", "first", "cycle", "from", "cache", "cycles",
                            "seconds", "cycles/s", "x", "amaranth"]
    assert row.split()[:2] == ["1", "model"]
    assert "0 mismatches over 0 outputs" in out


@pytest.mark.parametrize(("arguments", "message"), [
    (["cpu", "--layers", "Alex-9"], f"unknown layer 'Alex-9'; layers: {', '.join(CPU_LAYERS)}"),
    (["cpu", "--mhz", "0"], "the clock must be more than 0 MHz, not 0.0"),
    (["cpu", "--threads", "1,0"], "threads must be 1 or more, not 0"),
    (["sim", "--simulators", "ghdl"], "unknown simulator 'ghdl'; simulators: amaranth, cxxrtl, "
                                      "verilator, cxxrtl-flat, model"),
    (["sim", "--seconds", "0"], "the time of a run must be more than 0 s, not 0.0"),
])
def test_bad_options(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert (status, out, err) == (1, "", f"openese bench: error: {message}\n")


def test_a_size_that_is_none():
    with pytest.raises(ValueError, match=r"^n_pes must be an integer from 1 to 256, not 0$"):
        bench_sim((0,), ["model"])


def test_machine_leaves_out_what_is_not_installed():
    assert describe_machine(("numpy", "no-such-package"))["versions"].keys() == {"openese", "numpy"}


def test_a_busy_machine_is_told_of():
    machine = describe_machine() | {"cores": 4}
    assert machine["load"] >= 0
    assert "busy" not in machine_text(machine | {"load": 1.5})
    assert "busy" not in machine_text(machine | {"load": None})
    assert machine_text(machine | {"load": 2.5}).splitlines()[1] == (
        "the machine was busy with other work (load 2.5): times are too long")
