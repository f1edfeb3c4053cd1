"""`openese compress` and `openese inspect`: by options, by recipe, and the examples of a user's own
model, which must stay as short as they promise to be.
"""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from openese.__main__ import main
from openese.model.compress import load_into
from openese.model.ese_file import load
from openese.model.network import CompressedNetwork
from openese.model.state import CompressedModel

torch.set_num_threads(1)
EXAMPLES = Path(__file__).parents[1] / "examples" / "your_own_model"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a model file, weights and calibration inputs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def chain():\n    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))\n"
        "def lstm():\n    return nn.LSTM(6, 8)\n")
    torch.manual_seed(0)
    state = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4)).state_dict()
    np.savez("w.npz", **{name: value.numpy() for name, value in state.items()})
    np.savez("x.npz", x=np.random.default_rng(0).normal(size=(30, 20)))
    return tmp_path


def run(capsys, *arguments):
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def test_a_network_by_options(folder, capsys):
    status, out, _ = run(capsys, "compress", "net.py:chain", "--weights", "w.npz", "--calibration",
                         "x.npz", "--density", "0.25", "--code-bits", "3", "--bias-bits", "2",
                         "--init", "optimal", "-o", "n.ese")
    assert status == 0
    assert "written: n.ese" in out
    network = load("n.ese")
    assert isinstance(network, CompressedNetwork)
    assert [layer.nnz for layer in network.layers] == [80, 16]
    assert [layer.code_bits for layer in network.layers] == [3, 3]
    assert all(len(np.unique(layer.bias)) <= 4 for layer in network.layers)
    status, out, _ = run(capsys, "inspect", "n.ese", "--json")
    data = json.loads(out)
    assert (status, data["kind"], data["bytes"]) == (0, "network", Path("n.ese").stat().st_size)
    assert data["presets"]
    assert [row["name"] for row in data["rows"]] == ["0", "2"]


def test_weights_of_any_module_by_options(folder, capsys):
    status, out, _ = run(capsys, "compress", "net.py:lstm", "--weights-only", "--quality", "1",
                         "-o", "m.ese", "--json")
    assert status == 0
    assert json.loads(out)["rate"] > 1
    model = load("m.ese")
    assert isinstance(model, CompressedModel)
    load_into(nn.LSTM(6, 8), model)
    status, out, _ = run(capsys, "inspect", "m.ese")
    assert status == 0
    assert "weight_ih_l0" in out
    assert "the state of a model: no engine runs it; openese.load_into" in out
    status, out, _ = run(capsys, "inspect", "m.ese", "--json")
    data = json.loads(out)
    assert (data["kind"], data["presets"]) == ("weights", [])


@pytest.mark.parametrize(("arguments", "text"), [
    ([], "needs a model and -o and --calibration (or --weights-only), or a --recipe"),
    (["net.py:chain", "-o", "n.ese"], "needs --calibration (or --weights-only), or a --recipe"),
    (["net.py:chain", "-o", "n.ese", "--weights-only", "--calibration", "x.npz"],
     "--weights-only makes no network for an engine and needs no --calibration"),
    (["net.py:chain", "--recipe", "r.toml", "--code-bits", "0"],
     "--recipe says everything but -o; leave out model, code-bits"),
    (["--recipe", "r.toml", "--weight-kind", "linear"],
     "--recipe says everything but -o; leave out weight-kind"),
    (["net.py:chain", "-o", "n.ese", "--calibration", "x.npz", "--weight-kind", "linear"],
     "weights='linear' needs a recurrent layer; the model has none"),
    (["net.py:lstm", "-o", "n.ese", "--calibration", "x.npz"],
     "calibration must have shape (steps, n, 6) or (steps, 6), as the model takes it, "
     "not (30, 20)"),
    (["net.py:lstm", "-o", "n.ese", "--weights-only", "--weight-kind", "linear", "--code-bits",
      "1"], "'weight_ih_l0': bits must be 2 to 16, not 1"),
    (["--recipe", "r.toml"], "r.toml: cannot be read (No such file or directory); check the path"),
    (["net.py:chain", "-o", "n.ese", "--weights-only", "--code-bits", "0"],
     "'0.weight': code_bits must be 1 to 8, not 0"),
    (["net.py:none", "-o", "n.ese", "--weights-only"], "net.py has no 'none'"),
])
def test_mistakes_are_one_line(folder, capsys, arguments, text):
    status, out, err = run(capsys, "compress", *arguments)
    assert (status, out, err) == (1, "", f"openese compress: error: {text}\n")
    assert not Path("n.ese").exists()


@pytest.mark.parametrize(("kind", "stored", "bits"), [("shared", "shared", 4),
                                                      ("linear", "fixed", 12)])
def test_a_recurrent_model_becomes_a_network_that_simulates(folder, capsys, kind, stored, bits):
    x = np.random.default_rng(1).normal(size=(5, 3, 6))
    np.savez("x.npz", x=x)
    status, out, _ = run(capsys, "compress", "net.py:lstm", "--calibration", "x.npz", "--density",
                         "0.5", "--weight-kind", kind, "-o", "n.ese", "--json")
    assert status == 0
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert [rows[f"0.{name}"]["shape"] for name in ("weight_ih", "weight_hh")] == [[32, 6], [32, 8]]
    for name in ("0.weight_ih", "0.weight_hh"):
        assert (rows[name]["stored"], rows[name]["code_bits"]) == (stored, bits)
        assert rows[name]["density"] == 0.5
    np.savez("x.npz", x=x[:, 0])
    status, out, _ = run(capsys, "simulate", "n.ese", "x.npz", "--pes", "3", "--backend",
                         "amaranth", "--json")
    data = json.loads(out)
    assert status == 0
    assert (data["mismatches"], data["outputs"], data["vectors"]) == (0, 40, 5)
    assert data["snr_db"] > 40


def test_linear_weights_without_an_engine(folder, capsys):
    status, _, _ = run(capsys, "compress", "net.py:lstm", "--weights-only", "--weight-kind",
                       "linear", "-o", "m.ese")
    assert status == 0
    matrices = [tensor.matrix for tensor in load("m.ese").tensors if "weight" in tensor.name]
    assert [type(matrix).__name__ for matrix in matrices] == ["FixedMatrix"] * 2
    assert {matrix.code_bits for matrix in matrices} == {12}


@pytest.mark.parametrize("command", [["simulate", "m.ese", "x.npz"], ["verilog", "m.ese", "-o",
                                                                      "v.v"],
                                     ["build", "m.ese", "--board", "ulx3s-85f"]])
def test_commands_of_an_engine_refuse_weights(folder, capsys, command):
    run(capsys, "compress", "net.py:lstm", "--weights-only", "-o", "m.ese")
    status, _, err = run(capsys, *command)
    assert status == 1
    assert "m.ese: holds the compressed weights of a model, which no engine runs" in err


# -- examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "kind"), [("mlp.py", CompressedNetwork),
                                              ("lstm.py", CompressedModel)])
def test_scripts_of_at_most_fifteen_lines(tmp_path, monkeypatch, capsys, script, kind):
    monkeypatch.chdir(tmp_path)
    path = EXAMPLES / script
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 15
    names = runpy.run_path(str(path), run_name="__main__")
    rate = float(capsys.readouterr().out.rstrip("x\n"))
    (file,) = tmp_path.glob("*.ese")
    compressed = load(file)
    assert isinstance(compressed, kind)
    model = names["model"]
    size = 4 * sum(p.numel() for p in model.parameters())
    assert rate == pytest.approx(size / file.stat().st_size, abs=0.06)
    assert rate > 15
    # The model of the script computes what the file says.
    arrays = (compressed.state_dict() if kind is CompressedModel else
              {f"{layer.name}.weight": layer.dense() for layer in compressed.layers})
    for name, array in arrays.items():
        assert np.array_equal(model.state_dict()[name].numpy(), array)


def test_the_example_recipe(tmp_path, monkeypatch, capsys):
    for name in ("digits.py", "digits.toml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "compress", "--recipe", "digits.toml", "--json")
    data = json.loads(out)
    assert status == 0
    assert data["rate"] > 40
    assert data["decoded"]["error_percent"] < 30
    assert max(data["balance"].values()) < 1.01
    assert len(data["plots"]) == 3
    assert [row["name"] for row in data["stages"]] == ["start", "1 train", "2 prune", "3 share"]
    status, out, _ = run(capsys, "inspect", "digits.ese")
    assert status == 0
    assert "about: seed 0, error_percent" in out
