"""The command line with recurrent networks: sequences of every shape, what fits where, the
benchmark of ESE's layer, and errors of one line.
"""

import json

import numpy as np
import pytest

from openese.__main__ import main
from openese.model.config import PRESETS
from openese.model.ese_file import load, save
from openese.model.matrix import CompressedMatrix, FixedMatrix
from openese.model.network import (
    CompressedBidirectional,
    CompressedLinear,
    CompressedNetwork,
    CompressedRecurrent,
)
from openese.sim.bench_ese import ese_layer


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def reads(capsys, *arguments: str) -> dict:
    """What a command that succeeds prints with --json."""
    status, out, _ = run(capsys, *arguments, "--json")
    assert status == 0
    return json.loads(out)


def fails(capsys, *arguments: str) -> str:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    (line,) = err.splitlines()
    return line.removeprefix(f"openese {arguments[0]}: error: ")


def matrix(rng, rows, cols, kind="shared"):
    """Half of the weights, of every PE's rows."""
    keep = rng.random((rows, cols)) < 0.5
    if kind == "fixed":
        return FixedMatrix.from_raw(rng.integers(1, 2000, (rows, cols)) * keep, 12, 12)
    codebook = np.concatenate([[0], rng.uniform(-0.5, 0.5, 15)]).astype(np.float32)
    return CompressedMatrix.from_codes(rng.integers(1, 16, (rows, cols)) * keep, codebook)


def gru(rng, name, inputs, units, kind="shared"):
    return CompressedRecurrent(
        name, "gru", inputs, units, matrix(rng, 3 * units, inputs, kind),
        matrix(rng, 3 * units, units, kind), bias=rng.normal(0, 0.3, 4 * units))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Models and inputs in the current folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    codes = np.where(rng.random((3, 6)) < 0.5, rng.integers(1, 16, (3, 6)), 0)
    last = CompressedLinear.from_codes("fc", codes, np.linspace(0, 1, 16), None, relu=False,
                                       out_frac=12)
    save("gru.ese", CompressedNetwork([gru(rng, "gru", 4, 6), last], in_frac=12))
    save("last.ese", CompressedNetwork([gru(rng, "gru", 4, 6), last], in_frac=12,
                                       meta={"output": "last"}))
    save("fixed.ese", CompressedNetwork([gru(rng, "gru", 4, 6, "fixed")], in_frac=12))
    save("both.ese", CompressedNetwork([
        CompressedBidirectional(gru(rng, "g.l0", 4, 5), gru(rng, "g.l0_reverse", 4, 5))],
        in_frac=12))
    np.save("x.npy", rng.uniform(-1, 1, (5, 4)))
    np.savez("x.npz", x=np.load("x.npy", allow_pickle=False))
    return rng


@pytest.mark.parametrize("model", ["gru.ese", "fixed.ese", "both.ese"])
@pytest.mark.parametrize("options", [["x.npy"], ["x.npz", "--no-pointers", "--load", "host"]])
def test_a_sequence(files, capsys, model, options):
    data = reads(capsys, "simulate", model, *options, "--pes", "3", "--backend", "amaranth")
    network = load(model)
    assert {key: data[key] for key in (
        "mismatches", "vectors", "outputs", "channels", "n_pes", "recurrent", "queue_depth")} == {
        "mismatches": 0, "vectors": 5, "outputs": 5 * network.out_features, "channels": 1,
        "n_pes": 3, "recurrent": True, "queue_depth": 8}
    for key in ("cycles", "entries", "fillers", "utilisation", "saturations", "seconds"):
        assert data[key] >= 0
    assert data["snr_db"] > 40


def test_text_speaks_of_steps(files, capsys):
    status, out, _ = run(capsys, "simulate", "gru.ese", "x.npy", "--backend", "amaranth", "--limit",
                         "2")
    assert status == 0
    assert "0 of 6 outputs (2 steps), every bit against the integer reference" in out
    assert " per step, " in out
    assert "vector" not in out


def test_labels_of_steps_and_of_sequences(files, capsys):
    x = np.load("x.npy", allow_pickle=False)
    for model, shape in (("gru.ese", (5,)), ("last.ese", ())):
        guesses = load(model).forward(x).argmax(axis=-1)
        np.savez("y.npz", x=x, y=guesses if shape else guesses[-1])
        data = reads(capsys, "simulate", model, "y.npz", "--pes", "2", "--backend", "amaranth")
        assert data["error_percent"] == data["float_error_percent"] == 0
        np.savez("y.npz", x=x, y=np.zeros(3))
        text = fails(capsys, "simulate", model, "y.npz")
        what = "step" if shape else "sequence"
        assert text == f"y.npz: y must have one label per {what}, shape {shape}, not shape (3,)"


def test_inspect_tells_matrices_and_memories(files, capsys):
    data = reads(capsys, "inspect", "gru.ese", "--pes", "2", "--channels", "2")
    (engine,) = data["engines"]
    network = load("gru.ese")
    assert [row["name"] for row in data["rows"]] == [
        "gru.weight_ih", "gru.weight_hh", "gru.bias", "fc"]
    assert [row["name"] for row in engine["rows"]] == ["gru.weight_ih", "gru.weight_hh", "fc"]
    w_ih = network.layers[0].w_ih.dense()
    # All gates of a unit are in PE unit mod 2.
    held = [np.count_nonzero(w_ih.reshape(3, 6, 4)[:, pe::2]) for pe in range(2)]
    row = engine["rows"][0]
    assert (row["rows"], row["columns"], row["nnz"]) == (18, 4, sum(held))
    assert row["density"] == sum(held) / (18 * 4)
    assert row["fullest_pe"] == max(held)
    assert row["balance"] == max(held) / (sum(held) / 2)
    assert (engine["pes"], engine["channels"], engine["fits"]) == (2, 2, True)
    memories = {memory["name"]: memory for memory in engine["memories"]}
    assert memories["cell states"]["bits"] == 6 * 16 * 2
    assert engine["bits"] == sum(memory["bits"] for memory in engine["memories"])
    assert engine["brams"] == sum(memory["brams"] for memory in engine["memories"])
    for row in data["presets"]:
        if not PRESETS[row["name"]].recurrent:
            assert "recurrent" in row["reason"]


def test_inspect_a_bidirectional_network(files, capsys):
    data = reads(capsys, "inspect", "both.ese", "--pes", "2", "--no-pointers")
    assert [engine["name"] for engine in data["engines"]] == ["g.l0", "g.l0_reverse"]
    for engine in data["engines"]:
        assert not engine["pointers"]
        assert "column pointers" not in [memory["name"] for memory in engine["memories"]]
    status, out, _ = run(capsys, "inspect", "both.ese")
    assert status == 0
    assert "run of g.l0_reverse:" in out


def test_inspect_the_layer_of_ese(files, capsys):
    """4-bit codes on 64 PEs: every number that decides whether LFE5U-85F holds it."""
    save("ese.ese", ese_layer(weights="shared", density=0.10))
    (engine,) = reads(capsys, "inspect", "ese.ese", "--pes", "64", "--no-pointers")["engines"]
    memories = {memory["name"]: memory for memory in engine["memories"]}
    words = memories["matrix words"]
    assert (words["count"], words["width"]) == (64, 9)
    # An entry behind each matrix ends it.
    assert words["words"] == sum(row["fullest_pe"] + 1 for row in engine["rows"])
    assert engine["entries"] - engine["fillers"] == sum(row["nnz"] for row in engine["rows"])
    assert memories["cell states"]["words"] == 1024
    assert memories["peepholes"]["bits"] == 1024 * 48
    assert engine["brams_available"] == 208
    assert engine["fits"] == (engine["brams"] <= 208)
    _, out, _ = run(capsys, "inspect", "ese.ese", "--pes", "64", "--no-pointers")
    verdict = "fits" if engine["fits"] else "does not fit"
    assert f"LFE5U-85F: {engine['brams']} of 208 block RAMs: {verdict}" in out


def test_verilog_of_channels(files, capsys):
    data = reads(capsys, "verilog", "gru.ese", "--pes", "2", "--channels", "2", "-o", "v.v")
    assert data["pes"] == 2


def test_bench_ese(capsys):
    status, out, err = run(capsys, "bench", "ese", "--pes", "8", "--steps", "1", "--weight-kind",
                           "shared")
    assert status == 0
    assert err == "simulating 8 PEs, 1 channel\n"
    assert "8 PEs, 1 channel" in out
    assert "16,540" in out
    assert "0.690" in out
    assert "0 mismatches over 1,536 outputs" in out


@pytest.mark.parametrize(("arguments", "text"), [
    (["simulate", "gru.ese", "none.npy"], "none.npy: no such file"),
    (["simulate", "gru.ese", "wide.npy"],
     "inputs must have shape (steps, 4), or (steps, channels, 4), not (5, 3)"),
    (["simulate", "gru.ese", "flat.npy"], "flat.npy: x must be numbers (n, ...), not float64 (5,)"),
    (["simulate", "gru.ese", "text.npy"], "text.npy: not a readable .npz or .npy file"),
    (["simulate", "none.ese", "x.npy"], "none.ese: cannot be read (No such file or directory)"),
    (["simulate", "gru.ese", "x.npy", "--preset", "demo"],
     "layer 'gru' is recurrent, the engine has no element-wise unit"),
    (["simulate", "both.ese", "x.npy", "--vcd", "w.vcd"], "a waveform of a network with bidirec"),
    (["inspect", "gru.ese", "--channels", "40"], "channels must be an integer from 1 to "),
    (["verilog", "both.ese", "-o", "v.v"], "layer 'g.l0' is bidirectional"),
    (["build", "gru.ese", "--board", "ulx3s-85f"], "layer 'gru' is recurrent, the engine has no"),
])
def test_mistakes_are_one_line(files, capsys, arguments, text):
    np.save("wide.npy", np.zeros((5, 3)))
    np.save("flat.npy", np.zeros(5))
    with open("text.npy", "w") as file:
        file.write("hello")
    assert fails(capsys, *arguments).startswith(text)


def test_numbers_in_a_list(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "ese", "--pes", "a,b"])
    assert "argument --pes: 'a,b' is no list of numbers like 32,64" in capsys.readouterr().err
