"""Compressed weights of any module: what goes into the file comes back into the module, bit for
bit, for every kind of layer; what cannot be held is refused.
"""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from openese.model.balance import Balance, load_ratio, pe_counts
from openese.model.compress import compress, compress_weights, load_into, share_biases
from openese.model.ese_file import from_bytes, load, save, to_bytes
from openese.model.extract import UnsupportedModuleError
from openese.model.linear_weights import LinearWeights
from openese.model.matrix import CompressedMatrix, FixedMatrix
from openese.model.prune import Masks, layer_weights
from openese.model.report import format_report, network_report
from openese.model.share import SharedWeights
from openese.model.state import CompressedModel, CompressedTensor, DenseTensor

torch.set_num_threads(1)
# PyTorch has no faster implementation of proj_size; nothing to do with openese.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


class Everything(nn.Module):
    """Convolutions, normalisation with statistics, recurrent layers, an embedding, tied weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4),
                                  nn.Conv2d(4, 6, 3, groups=2, bias=False))
        self.lstm = nn.LSTM(6, 10, num_layers=2, bidirectional=True, proj_size=5)
        self.gru = nn.GRU(10, 7, bias=False)
        self.rnn = nn.RNN(7, 3)
        self.embedding = nn.Embedding(11, 8)
        self.out = nn.Linear(8, 11, bias=True)
        self.out.weight = self.embedding.weight
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("scale", torch.tensor(3.0, dtype=torch.float64))

    def forward(self, x):
        x = self.conv(x).flatten(2).permute(2, 0, 1)
        return self.rnn(self.gru(self.lstm(x)[0])[0])[0]


def everything(seed=0):
    torch.manual_seed(seed)
    model = Everything()
    model(torch.randn(4, 1, 8, 8))  # the statistics move
    return model.eval()


def equal_states(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("options", [
    {}, {"density": 0.2}, {"quality": 1.0, "code_bits": 2}, {"fixed_bits": 12, "density": 0.3},
    {"code_bits": {"conv": 5, "*.weight_hh_l*": 3}, "fixed_bits": {"gru.weight_ih_l0": 9}},
    {"density": 0.3, "balance": Balance(4), "bias_bits": 3},
    {"density": {"lstm": 0.0}, "code_bits": 1},
])
def test_any_module_goes_through_a_file_and_back(tmp_path, options):
    model = everything()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compressed = compress_weights(model, meta={"note": "x"}, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [tensor.name for tensor in compressed.tensors] == list(before)
    save(tmp_path / "m.ese", compressed)
    again = load(tmp_path / "m.ese")
    assert isinstance(again, CompressedModel)
    assert again.meta == {"note": "x"}
    restored = everything(seed=1)
    load_into(restored, again)
    for name, array in compressed.state_dict().items():
        value = restored.state_dict()[name].numpy()
        assert value.dtype == array.dtype
        assert value.tobytes() == array.tobytes(), name
    assert restored.out.weight is restored.embedding.weight
    x = torch.randn(2, 1, 8, 8)
    load_into(model, compressed)
    assert torch.equal(model(x), restored(x))
    report = network_report(again)
    assert report["bytes"] == (tmp_path / "m.ese").stat().st_size
    assert "conv.0.weight" in format_report(report)


def test_what_is_compressed_by_default_and_how_often_tied_weights_are_stored():
    model = everything()
    compressed = compress_weights(model, density=0.2)
    kinds = {tensor.name: type(tensor) for tensor in compressed.tensors}
    weights = set(layer_weights(model)) | {"embedding.weight"}
    assert {name for name, kind in kinds.items() if kind is CompressedTensor} == weights
    assert kinds["conv.1.running_mean"] is kinds["flags"] is DenseTensor
    rows = {row["name"]: row for row in network_report(compressed)["rows"]}
    assert rows["embedding.weight"]["stored"] == "shared"
    assert rows["out.weight"]["stored"] == "repeated"
    assert rows["out.weight"]["bytes"] == rows["out.weight"]["original_bytes"] == 0
    assert rows["flags"]["stored"] == "dense"
    assert rows["conv.0.weight"]["shape"] == [4, 1, 3, 3]


def test_a_trained_pruned_and_shared_module_passes_bit_for_bit():
    model = everything()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    Masks.by_density(model, 0.25).hold(optimizer)
    shared = SharedWeights(model, {"*": 3, "conv": 5})
    share_biases(model, 4)
    optimizer = torch.optim.Adam(shared.parameters(), lr=1e-3)
    shared.hold(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 8, 8)).square().mean().backward()
        optimizer.step()
    compressed = from_bytes(to_bytes(compress_weights(model, code_bits={"*": 3, "conv": 5})))
    restored = everything(seed=2)
    load_into(restored, compressed)
    assert equal_states(model, restored)


def test_fixed_point_weights_of_training_pass_bit_for_bit():
    model = everything()
    Masks.by_density(model, 0.3).apply()
    rounded = LinearWeights(model, 6)
    optimizer = torch.optim.SGD(rounded.parameters(), lr=0.5)
    rounded.hold(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 8, 8)).square().mean().backward()
        optimizer.step()
    compressed = compress_weights(model, fixed_bits=6)
    assert isinstance(compressed["gru.weight_hh_l0"].matrix, FixedMatrix)
    restored = everything(seed=2)
    load_into(restored, from_bytes(to_bytes(compressed)))
    assert equal_states(model, restored)


def test_balanced_pruning_reaches_the_file():
    compressed = compress_weights(everything(), density=0.3, balance=Balance(4))
    weight = torch.from_numpy(compressed["lstm.weight_hh_l0"].array())
    assert load_ratio(pe_counts(weight, Balance(4, group=4))) < 1.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_back_into_half_precision(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 7), nn.LayerNorm(7)).to(dtype)
    compressed = from_bytes(to_bytes(compress_weights(model, code_bits=8)))
    restored = nn.Sequential(nn.Linear(9, 7), nn.LayerNorm(7)).to(dtype)
    load_into(restored, compressed)
    assert equal_states(model, restored)


@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_all_zero_and_all_equal_weights(fill):
    model = nn.Linear(6, 5)
    with torch.no_grad():
        model.weight.fill_(fill)
    for options in ({"code_bits": 1}, {"fixed_bits": 2}):
        restored = nn.Linear(6, 5)
        load_into(restored, from_bytes(to_bytes(compress_weights(model, **options))))
        assert equal_states(model, restored)


def test_shared_biases():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 200), nn.LayerNorm(200), nn.Linear(200, 3))
    norm = model[1].bias.detach().clone()
    with torch.no_grad():
        model[0].bias[:50] = 0
    before = model[0].bias.detach().clone()
    share_biases(model, 4)
    assert len(model[0].bias.unique()) == 16
    assert torch.equal(model[0].bias == 0, before == 0)
    assert (model[0].bias - before).abs().max() < 0.1
    assert torch.equal(model[1].bias, norm)
    small, usual = (len(to_bytes(compress(
        nn.Sequential(model[0], nn.ReLU(), model[2]), calibration=torch.randn(9, 3), **options)))
        for options in ({"bias_bits": 2}, {}))
    assert small < usual


def test_networks_load_into_their_modules():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    network = from_bytes(to_bytes(compress(model, calibration=torch.randn(9, 5), density=0.5)))
    load_into(model, network)
    x = torch.randn(7, 5)
    np.testing.assert_allclose(model(x).detach().numpy(), network.forward(x.numpy()), atol=1e-6)
    lone = nn.Linear(5, 4)
    network = compress(lone, calibration=torch.randn(9, 5))
    load_into(lone, network)
    assert np.array_equal(lone.weight.detach().numpy(), network.layers[0].dense())


def test_an_engine_is_never_promised_by_accident():
    with pytest.raises(UnsupportedModuleError, match=r"; for the compressed weights of any module, "
                                                     "which no engine runs, use compress_weights$"):
        compress(nn.LSTMCell(3, 4), calibration=torch.zeros(2, 3))
    assert isinstance(compress_weights(nn.Linear(3, 4)), CompressedModel)


class WithExtraState(nn.Linear):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize(("model", "options", "text"), [
    (nn.Linear(2, 2), {"density": 0.5, "quality": 1.0}, "^give density or quality, not both$"),
    (nn.Linear(2, 2), {"balance": Balance(2)}, "^balance needs a density$"),
    (nn.Linear(2, 2), {"code_bits": 4, "fixed_bits": 8},
     "^'weight': give code_bits or fixed_bits, not both$"),
    (nn.Linear(2, 2), {"code_bits": 9}, "code_bits must be 1 to 8, not 9"),
    (nn.Linear(2, 2), {"fixed_bits": 17}, "'weight': bits must be 2 to 16, not 17"),
    (nn.Linear(2, 2), {"bias_bits": 0}, "^'bias': bias_bits must be 1 to 8, not 0$"),
    (nn.Linear(2, 2).double(), {}, r"^'weight' is torch.float64; supported are torch.float32, .*"
                                   r"\(model.float\(\)\)$"),
    (nn.Linear(2, 2).half(), {"fixed_bits": 8}, "^'weight' is torch.float16; supported are"),
    (nn.LayerNorm(3), {}, "the model has no .* to share"),
    (WithExtraState(2, 2), {}, "^'_extra_state' of the state is no tensor but dict$"),
])
def test_what_cannot_be_compressed_is_named(model, options, text):
    with pytest.raises(ValueError, match=text):
        compress_weights(model, **options)


def test_a_complex_buffer_is_named():
    model = nn.Linear(2, 2)
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"^tensor 'phase': cannot hold complex64; supported are"):
        compress_weights(model)


def test_loading_into_another_module_is_refused_and_changes_nothing():
    model = nn.Linear(3, 2)
    compressed = compress_weights(model)
    for other, text in (
            (nn.Linear(3, 2, bias=False), "^the module has no 'bias': it is not the state"),
            (nn.Sequential(nn.Linear(3, 2)), "^the module has no 'bias'"),
            (nn.Linear(4, 2), r"^'weight': shape \(2, 3\) is not the module's \(2, 4\)$"),
            (nn.Linear(3, 2).half(), "^'weight': torch.float16 does not hold the values; convert "
                                     r"the module first \(module.float\(\)\)$")):
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with pytest.raises(ValueError, match=text):
            load_into(other, compressed)
        assert all(torch.equal(v, before[n]) for n, v in other.state_dict().items())
    with pytest.raises(ValueError, match=r"^the compressed model has no 'bias'"):
        load_into(model, CompressedModel([DenseTensor("weight", np.zeros((2, 3), np.float32))]))


# -- the classes themselves -----------------------------------------------------------------------


def matrix(**changes):
    good = {"rows": 2, "cols": 3, "col_ptr": [0, 1, 1, 2], "row_idx": [0, 1]}
    return good | changes


@pytest.mark.parametrize(("changes", "text"), [
    ({"raw": [1, 0]}, r"raw weights must lie in -8\.\.7 and not be 0"),
    ({"raw": [1, 8]}, r"raw weights must lie in -8\.\.7 and not be 0"),
    ({"raw": [1.5, 1]}, "raw must be integers that fit int32"),
    ({"bits": 17}, "bits must be an integer from 2 to 16, not 17"),
    ({"frac": -101}, "frac must be an integer from -100 to 127, not -101"),
    ({"raw": [1]}, "row_idx and raw must have 2 elements"),
    ({"cols": 0, "col_ptr": [0]}, "sizes must be 1 or more"),
])
def test_fixed_matrices_that_are_none(changes, text):
    with pytest.raises(ValueError, match=f"^fixed-point matrix: {text}$"):
        FixedMatrix(**matrix(raw=[1, -8], bits=4, frac=2) | changes)


def test_shared_matrices_that_are_none():
    with pytest.raises(ValueError, match=r"^matrix: codes must lie in 1\.\.3$"):
        CompressedMatrix(**matrix(code=[1, 4], codebook=[0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"^a matrix has two dimensions, not 1$"):
        CompressedMatrix.from_codes(np.ones(3, int), [0, 1])


def test_models_that_are_none():
    good = CompressedMatrix(**matrix(code=[1, 3], codebook=[0, 1, 2, 3]))
    assert CompressedTensor("k", (2, 1, 3), good).array().shape == (2, 1, 3)
    for shape in ((3, 2), (), (6,)):
        with pytest.raises(ValueError, match=r"^tensor 'k': a matrix of 2 x 3 is none of shape"):
            CompressedTensor("k", shape, good)
    with pytest.raises(ValueError, match=r"^a compressed model needs at least one tensor$"):
        CompressedModel([])
    with pytest.raises(ValueError, match=r"^a compressed model has .* not 'a' twice"):
        CompressedModel([DenseTensor("a", [1.0]), DenseTensor("a", [2])])
    with pytest.raises(KeyError):
        CompressedModel([DenseTensor("a", [1.0])])["b"]


def test_extreme_fixed_point_values_are_exact():
    for frac in (-100, 127):
        fixed = FixedMatrix.from_raw(np.array([[-32768, 32767, 1]]), 16, frac)
        exact = [-(2.0**15) * 2.0**-frac, 32767 * 2.0**-frac, 2.0**-frac]
        assert fixed.dense().astype(np.float64).tolist() == [exact]


def test_three_million_weights_go_to_a_file_and_back_in_seconds(monkeypatch, capsys):
    """The benchmark itself, which also compares the decoded matrix: bars of 5 and 2 s."""
    bench = Path(__file__).parents[2] / "bench" / "coding.py"
    monkeypatch.setattr(sys, "argv", [str(bench), "--json", "--threads", "1"])
    runpy.run_path(str(bench), run_name="__main__")
    ours, loops = json.loads(capsys.readouterr().out)["rows"]
    assert ours["entries"] == loops["entries"] == 325_222
    assert ours["seconds"] < 5
    assert ours["decode"] < 2
    assert ours["rate"] > 35
