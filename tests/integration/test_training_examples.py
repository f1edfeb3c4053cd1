"""The training examples run from start to end, on a few made-up digits instead of the real data."""

import importlib
import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from openese.model.compress import load_into
from openese.model.ese_file import load
from openese.model.mnist import scale_pixels

torch.set_num_threads(1)

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script, *arguments):
    done = subprocess.run([sys.executable, str(EXAMPLES / script), *map(str, arguments)],
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """Folder with 240 + 60 digits in MNIST's format: noise, brighter in a row of its own."""
    folder = tmp_path_factory.mktemp("mnist")
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 240), ("t10k", 60)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = rng.integers(0, 100, size=(n, 28, 28), dtype=np.uint8)
        images[np.arange(n), 2 * labels + 4] += 150
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(
                size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return folder


def test_dsd_on_spoken_digits(tmp_path):
    rng = np.random.default_rng(0)
    labels, lengths = np.repeat(np.arange(10), 12), rng.integers(2, 6, size=120)
    frames = rng.normal(size=(lengths.sum(), 13)).astype(np.float32)
    np.savez(tmp_path / "digits.npz", X=frames, y=labels, lengths=lengths)
    output = run("dsd/run.py", "--task", "digits", "--data", tmp_path / "digits.npz",
                 "--seeds", 2, "--epochs", 1, 2, 1, "--out", tmp_path / "out")
    assert [line.split(" | ")[0] for line in output.splitlines() if line.startswith("| d")] == [
        "| dense phase", "| dense baseline", "| dsd 30%", "| dsd 50%"]
    log, baseline = ([json.loads(line) for line in
                      (tmp_path / "out" / f"{arm}-1.jsonl").read_text().splitlines()]
                     for arm in ("dsd 50%", "dense baseline"))
    assert [(r["phase"], r["density"]) for r in log] == [
        ("sparse", pytest.approx(0.5, abs=1e-3))] * 2 + [("redense", 1)]
    # Baseline and DSD differ in the mask alone: with the same rates in the same epochs.
    assert [r["rate"] for r in log] == [r["rate"] for r in baseline]
    assert [r["density"] for r in baseline] == [1, 1, 1]
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["seed"], row["arm"]) for row in rows] == [
        (seed, arm) for seed in (0, 1)
        for arm in ("dense phase", "dense baseline", "dsd 30%", "dsd 50%")]


def test_dsd_on_mnist(mnist):
    output = run("dsd/run.py", "--task", "mnist", "--data", mnist, "--seeds", 1,
                 "--epochs", 1, 1, 1, "--sparsity", 0.3)
    assert "| dsd 30% |" in output


@pytest.mark.parametrize(("script", "epochs", "total"), [
    ("lenet_300_100/small.py", (1, 1, 1, 1), 1_066_440),
    ("lenet_5/reproduce.py", (1, 1, 1), 1_724_320),
])
def test_small_lenets(tmp_path, mnist, script, epochs, total):
    output = run(script, "--mnist", mnist, "--epochs", *epochs, "--copies", 1,
                 "--dense", tmp_path / "dense.safetensors", "-o", tmp_path / "net.ese")
    size = (tmp_path / "net.ese").stat().st_size
    assert (tmp_path / "dense.safetensors").is_file()
    assert re.search(rf"^net.ese: {size:,} bytes, {total / size:.1f}x less than {total:,}; "
                     r"decoded equal; test error ", output, re.MULTILINE)


@pytest.fixture
def lenets(monkeypatch):
    """The module that both LeNets share."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("lenets")


@pytest.mark.parametrize(("file", "network", "size", "wrong"), [
    ("lenet_300_100/lenet_300_100_small.ese", "small.student", 7785, 1),
    ("lenet_5/lenet_5.ese", "lenets.lenet_5", 9533, 0),
])
def test_recorded_files_hold_the_networks(lenets, monkeypatch, file, network, size, wrong):
    monkeypatch.syspath_prepend(str(EXAMPLES / "lenet_300_100"))
    assert (EXAMPLES / file).stat().st_size == size
    module, function = network.split(".")
    model = getattr(importlib.import_module(module), function)()
    load_into(model, load(EXAMPLES / file))
    with np.load(resources.files("openese") / "data" / "mnist_256.npz",
                 allow_pickle=False) as data:
        x, labels = torch.from_numpy(scale_pixels(data["images"])), data["labels"]
    with torch.no_grad():
        assert int(np.sum(model.eval()(x).argmax(dim=1).numpy() != labels)) == wrong


def test_sorting_hidden_units_changes_no_output(lenets, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "lenet_300_100"))
    small = importlib.import_module("small")
    torch.manual_seed(0)
    model = small.student()
    with torch.no_grad():
        for layer in (model.ip1, model.ip2):
            layer.weight *= torch.rand_like(layer.weight) < torch.rand(len(layer.weight), 1)
    x = torch.rand(20, 784)
    before = model(x)
    small.sort_units(model)
    for layer in (model.ip1, model.ip2):
        assert ((layer.weight != 0).sum(dim=1).diff() <= 0).all()
    assert torch.allclose(model(x), before, atol=1e-5)


def test_weights_are_pruned_by_what_they_contribute(lenets):
    """Weights of dark pixels and of unused units go first, and nothing returns in retraining."""
    torch.manual_seed(0)
    x = torch.rand(400, 20)
    x[:, :5] = 0
    targets = torch.nn.functional.one_hot(x[:, 5:15].argmax(dim=1), 10).float()
    model = torch.nn.Sequential()
    model.a, model.relu, model.b = (torch.nn.Linear(20, 30, bias=False), torch.nn.ReLU(),
                                    torch.nn.Linear(30, 10))
    scales = lenets.input_scales(model, ["a", "b"], x)
    assert torch.allclose(scales["a"], x.square().mean(dim=0).sqrt())
    assert torch.allclose(scales["b"], model.a(x).relu().square().mean(dim=0).sqrt())
    masks = lenets.prune(model, (x, targets), {"a": 0.3, "b": 0.1}, rounds=4, epochs=2,
                         retrain_epochs=2, batch_size=50, weight_decay=0.01, seed=0)
    a, b = masks["a.weight"], masks["b.weight"]
    assert 50 < int(a.sum()) <= 180
    assert int(b.sum()) == 30
    assert not a[:, :5].any()
    assert not a[~b.any(dim=0)].any()
    assert torch.equal(model.a.weight != 0, a)
    # No mask is left on the model.
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    model.a.weight.grad = torch.ones_like(model.a.weight)
    optimizer.step()
    assert (model.a.weight[~a] == -1).all()


def test_distortion_moves_digits_a_little_and_repeats_by_seed(lenets):
    image = torch.zeros(50, 28, 28)
    image[:, 12:16, 12:16] = 1
    digits = image.view(50, 784)
    distorted = lenets.distort(digits, 3)
    assert torch.equal(distorted, lenets.distort(digits, 3))
    assert not torch.equal(distorted, lenets.distort(digits, 4))
    assert 0 <= distorted.min() < distorted.max() <= 1
    assert not distorted.view(50, 28, 28)[:, :5].any()
    at = torch.arange(28.0)
    centre = (distorted.view(50, 28, 28) * at).sum((1, 2)) / distorted.sum(1)
    assert 0.3 < (centre - 13.5).abs().max() < 5
