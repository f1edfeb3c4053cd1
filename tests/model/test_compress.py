"""A compressed network is the masked and shared PyTorch model, bit for bit.

Also: the training loop, the shipped model, and that the example which made it runs.
"""

import io
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from openese.model.calibrate import calibrate, count_clipped
from openese.model.compress import compress
from openese.model.ese_file import load
from openese.model.extract import UnsupportedModuleError
from openese.model.mnist import scale_pixels
from openese.model.prune import Masks
from openese.model.share import SharedWeights
from openese.model.train import error_percent, train

# On a busy machine threads that wait for each other cost far more than these sizes gain.
torch.set_num_threads(1)


def make_model(seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 20, bias=bias), nn.ReLU(), nn.Dropout(),
                         nn.Linear(20, 7, bias=bias))


class WithUnusedHead(nn.Module):
    """A chain of two layers beside a third that forward does not use."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU())
        self.last = nn.Linear(20, 7)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.body(x))


def data(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 4, generator=generator)


def bits(array):
    return np.asarray(array, dtype=np.float32).view(np.uint32)


def assert_same(network, model):
    for layer in network.layers:
        module = model.get_submodule(layer.name)
        assert np.array_equal(bits(layer.dense()), bits(module.weight.detach()))
        if module.bias is not None:
            assert np.array_equal(bits(layer.bias), bits(module.bias.detach()))


def labelled(n=512):
    """A task that can be learnt: the nearest of seven fixed points."""
    x = data(n, seed=5)
    points = data(7, seed=6).flatten(1)
    return x, torch.cdist(x.flatten(1), points).argmin(dim=1)


def test_a_model_pruned_and_shared_in_training_passes_bit_for_bit():
    model = make_model()
    x, y = labelled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = Masks.by_density(model, {"1": 0.3, "4": 0.5})
    masks.hold(optimizer)
    train(model, optimizer, x, y, epochs=2, progress=False)
    shared = SharedWeights(model, 3)
    optimizer = torch.optim.Adam(shared.parameters(), lr=1e-3)
    shared.hold(optimizer)
    train(model, optimizer, x, y, epochs=2, progress=False)

    network = compress(model, calibration=x, code_bits=3)
    assert [layer.nnz for layer in network.layers] == [72, 70]
    assert [layer.code_bits for layer in network.layers] == [3, 3]
    assert [layer.name for layer in network.layers] == ["1", "4"]
    assert [layer.relu for layer in network.layers] == [True, False]
    assert_same(network, model)
    with torch.no_grad():
        expected = model.double()(x.double()).numpy()
    np.testing.assert_allclose(network.forward(x.flatten(1).numpy()), expected, rtol=1e-12,
                               atol=1e-12)


def test_one_call_prunes_shares_calibrates_and_leaves_the_model_alone():
    model = make_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    network = compress(model, density=0.25, calibration=data(), meta={"dataset": "noise"})
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert model.training
    assert [layer.nnz for layer in network.layers] == [60, 35]
    assert network.meta == {"dataset": "noise"}

    by_hand = make_model()
    Masks.by_density(by_hand, 0.25).apply()
    SharedWeights(by_hand, 4)
    assert_same(network, by_hand)
    again = calibrate(network, data().numpy())
    assert [layer.out_frac for layer in again.layers] == [
        layer.out_frac for layer in network.layers]
    assert network.in_frac == again.in_frac > 0


def test_options_per_layer():
    network = compress(make_model(), density={"1": 0.1}, code_bits={"1": 2, "4.weight": 6},
                       calibration=data())
    assert [layer.nnz for layer in network.layers] == [24, 140]
    assert [layer.code_bits for layer in network.layers] == [2, 6]


def test_quality():
    model = make_model()
    network = compress(model, quality=1.0, calibration=data())
    weight = model[1].weight.detach()
    expected = int((weight.abs() > weight.double().std(unbiased=False)).sum())
    assert network.layers[0].nnz == expected


def test_pruned_enough_already_stays_as_it_is():
    model = make_model()
    Masks.by_density(model, 0.2).apply()
    first = compress(model, calibration=data())
    second = compress(model, density=0.9, calibration=data())
    for a, b in zip(first.layers, second.layers, strict=True):
        assert np.array_equal(bits(a.dense()), bits(b.dense()))


@pytest.mark.parametrize("init", ["linear", "density", "random"])
def test_equal_seeds_give_equal_networks(init):
    first, second = (compress(make_model(), density=0.5, calibration=data(), init=init, seed=3)
                     for _ in range(2))
    for a, b in zip(first.layers, second.layers, strict=True):
        assert np.array_equal(bits(a.codebook), bits(b.codebook))
        assert np.array_equal(a.code, b.code)


def test_without_bias():
    network = compress(make_model(bias=False), density=0.5, calibration=data())
    assert [layer.bias for layer in network.layers] == [None, None]


@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_all_zero_and_all_equal_layers(fill):
    model = make_model()
    with torch.no_grad():
        model[1].weight.fill_(fill)
    network = compress(model, calibration=data())
    assert network.layers[0].nnz == (240 if fill else 0)
    assert np.array_equal(bits(network.layers[0].dense()), bits(model[1].weight.detach()))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_a_lone_linear_of_any_size(shape):
    torch.manual_seed(0)
    model = nn.Linear(*shape)
    network = compress(model, calibration=torch.randn(4, shape[0]))
    assert [layer.name for layer in network.layers] == ["0"]
    assert network.layers[0].nnz == 9 if 9 in shape else 1


@pytest.mark.parametrize(("options", "text"), [
    ({"density": 0.5, "quality": 1.0}, "density or quality, not both"),
    ({"density": 2}, "'body.1.weight': density must be 0 to 1, not 2"),
    ({"density": {"5": 0.5}}, "density: the model has no weight '5'"),
    ({"quality": {"head": 1}}, "quality: 'head' is no layer of the chain; its layers: body.1"),
    ({"code_bits": {"body.1": 4}}, "code_bits must name every layer; missing: last"),
    ({"code_bits": 9}, "'body.1.weight': code_bits must be 1 to 8, not 9"),
    ({"init": "best"}, "'body.1.weight': init must be one of linear, density, random"),
    ({"calibration": torch.zeros(2, 5)}, r"inputs must have shape \(n, 12\)"),
    ({"calibration": torch.full((2, 12), torch.inf)}, "inputs must be finite"),
    ({"headroom": 0}, "headroom must be finite and above 0"),
])
def test_wrong_options_are_named(options, text):
    model = WithUnusedHead()
    with pytest.raises(ValueError, match=text):
        compress(model, **{"calibration": data(), **options})


def test_an_unsupported_module_is_refused_before_anything():
    with pytest.raises(UnsupportedModuleError, match=r"module '1' \(Tanh\)"):
        compress(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), calibration=data())


def test_training_learns_repeats_and_restores():
    x, y = labelled()

    def run(seed):
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        state = torch.random.get_rng_state()
        calls = []
        losses = train(model, optimizer, x, y, epochs=5, batch_size=100, seed=seed,
                       after_step=lambda: calls.append(optimizer.param_groups[0]["lr"]),
                       progress=False)
        assert torch.equal(state, torch.random.get_rng_state())
        assert not model.training
        assert len(calls) == 5 * 6
        assert calls[0] == optimizer.param_groups[0]["lr"] == 0.01
        assert calls[-1] < 0.001
        return losses, error_percent(model, x, y)

    losses, error = run(0)
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    assert 0 <= error < 60
    assert run(0) == (losses, error)
    assert run(1)[0] != losses


def test_training_shows_progress_on_standard_error(capsys):
    x, y = labelled(64)
    model = make_model()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, epochs=1, label="dense")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "dense" in captured.err


@pytest.mark.parametrize(("options", "text"), [
    ({"labels": torch.zeros(3, dtype=torch.int64)}, "as many labels as inputs"),
    ({"epochs": -1}, "epochs must be 0 or more"),
    ({"batch_size": 0}, "batch_size 1 or more"),
])
def test_wrong_training_arguments_are_named(options, text):
    x, y = labelled(64)
    model = make_model()
    arguments = {"inputs": x, "labels": y, "epochs": 1, "progress": False, **options}
    with pytest.raises(ValueError, match=text):
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), **arguments)


def test_a_diverging_loss_is_reported():
    x, y = labelled(64)
    model = make_model()
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in epoch \d+; lower the learning"):
        train(model, torch.optim.SGD(model.parameters(), lr=1e30), x, y, epochs=9, progress=False)


def test_error_percent():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    assert error_percent(model, x, torch.tensor([0, 1, 0, 0])) == 25
    assert model.training
    with pytest.raises(ValueError, match="as many labels as inputs"):
        error_percent(model, x, torch.tensor([0]))


# -- the shipped model and the example that makes it ----------------------------------------------


def shipped_digits():
    data = (resources.files("openese") / "data" / "mnist_256.npz").read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as digits:
        return digits["images"], digits["labels"]


def test_the_shipped_model_is_what_it_says():
    network = load(resources.files("openese") / "data" / "lenet_300_100.ese")
    assert [(layer.name, layer.in_features, layer.out_features, layer.relu)
            for layer in network.layers] == [
        ("ip1", 784, 300, True), ("ip2", 300, 100, True), ("ip3", 100, 10, False)]
    assert [layer.code_bits for layer in network.layers] == [4, 4, 4]
    weights = sum(layer.in_features * layer.out_features for layer in network.layers)
    assert sum(layer.nnz for layer in network.layers) <= 0.08 * weights
    meta = network.meta
    assert meta["error_percent"] <= meta["dense_error_percent"] + 0.2
    images, labels = shipped_digits()
    wrong = network.forward(scale_pixels(images)).argmax(axis=1) != labels
    assert 100 * wrong.mean() < 2
    assert not any(count_clipped(network, scale_pixels(images)).values())


def test_the_lenet_example_runs(tmp_path):
    """On the shipped digits, for one epoch each: the tables come and the file loads."""
    images, labels = shipped_digits()
    for prefix in ("train", "t10k"):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(
            bytes.fromhex("00000803000001000000001c0000001c") + images.tobytes())
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(
            bytes.fromhex("0000080100000100") + labels.tobytes())
    script = Path(__file__).parents[2] / "examples" / "lenet_300_100" / "reproduce.py"
    done = subprocess.run(
        [sys.executable, str(script), "--mnist", str(tmp_path), "--epochs", "2", "--step-epochs",
         "2", "--retrain-epochs", "4", "--centroid-epochs", "1", "-o", str(tmp_path / "a.ese")],
        capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for text in ("threshold", "dense (before pruning)", "pruned, ip1 at 7.7%",
                 "retrained, ip1 at 7.7%", "shared, 15 centroids", "ip3.bias", "within 0.2 points"):
        assert text in done.stdout
    network = load(tmp_path / "a.ese")
    assert [layer.nnz for layer in network.layers] == [18110, 2700, 260]
    assert network.meta["dataset"] == "MNIST, pixels / 255"
