"""The sensitivity scan measures what it says, leaves the model alone, and can be saved."""

import csv
import sys

import pytest
import torch
from torch import nn

from openese.model.balance import Balance, load_ratio, pe_counts
from openese.model.prune import Masks
from openese.model.sensitivity import Sensitivity, scan_sensitivity

torch.set_num_threads(1)


def make_model():
    torch.manual_seed(0)
    return nn.ModuleDict({"rnn": nn.LSTM(6, 5), "out": nn.Linear(5, 2)})


def magnitude(model):
    """A score that falls exactly as weights go."""
    return float(sum(p.detach().abs().sum() for p in model.parameters() if p.ndim > 1))


def scan(model, **options):
    return scan_sensitivity(model, magnitude, progress=False, **options)


def test_each_matrix_is_pruned_alone():
    model = make_model()
    result = scan(model, densities=(0.5, 0.2))
    assert result.names == ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "out.weight"]
    assert result.baseline == magnitude(model)
    for row in result.rows:
        pruned = make_model()
        Masks.by_density(pruned, {row["name"]: row["density"]}).apply()
        assert row["score"] == magnitude(pruned)
        weight = pruned.get_parameter(row["name"])
        assert row["nonzeros"] == int((weight != 0).sum()) == round(row["density"]
                                                                    * weight.numel())


def test_the_model_is_left_alone_even_when_measuring_fails():
    model = make_model()
    model["out"](torch.ones(1, 5)).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    gradient = model["out"].weight.grad.clone()
    scan(model, densities=(0.1,), weights=["*hh*", "out"])
    calls = []

    def fails(model):
        calls.append(magnitude(model))
        if len(calls) == 3:
            raise RuntimeError("no more")
        return calls[-1]

    with pytest.raises(RuntimeError, match="no more"):
        scan_sensitivity(model, fails, densities=(0.5, 0.1), progress=False)
    assert calls[2] < calls[1] < calls[0]
    for ours, theirs in zip(model.parameters(), before, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(model["out"].weight.grad, gradient)


def test_scan_with_balance():
    ratios = []

    def measure(model):
        ratios.append(load_ratio(pe_counts(model["rnn"].weight_hh_l0, Balance(5, group=4))))
        return 1.0

    scan_sensitivity(make_model(), measure, densities=(0.5, 0.2), weights=["*hh*"],
                     balance=Balance(5), progress=False)
    assert ratios == [1.0, 1.0, 1.0]


def result():
    rows = [{"name": name, "density": density, "nonzeros": round(100 * density), "score": score}
            for name, scores in (("a", (0.9, 0.89, 0.5)), ("b", (0.7, 0.9, 0.9)))
            for density, score in zip((1.0, 0.5, 0.1), scores, strict=True)]
    return Sensitivity(0.9, rows)


def test_lowest_densities_within_a_loss():
    assert result().densities(0.02) == {"a": 0.5, "b": 1.0}
    assert result().densities(0.5) == {"a": 0.1, "b": 0.1}
    assert result().densities(0.0) == {"a": 1.0, "b": 1.0}
    nan = Sensitivity(0.9, [{"name": "a", "density": 0.5, "nonzeros": 1, "score": float("nan")}])
    assert nan.densities(1.0) == {"a": 1.0}


def test_table():
    assert result().table().splitlines() == [
        "weight    1   0.5  0.1",
        "a       0.9  0.89  0.5",
        "b       0.7   0.9  0.9",
    ]


def test_files(tmp_path):
    result().save_table(tmp_path / "scan.csv")
    with open(tmp_path / "scan.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert rows[1] == {"name": "a", "density": "0.5", "nonzeros": "50", "score": "0.89"}
    result().save_plot(tmp_path / "scan.svg", score="accuracy")
    drawn = (tmp_path / "scan.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {text} -->" in drawn for text in ("a", "b", "density", "accuracy"))
    result().save_plot(tmp_path / "scan.png")
    assert (tmp_path / "scan.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'openese\[plot\]'"):
        result().save_plot(tmp_path / "scan.png")


@pytest.mark.parametrize(("options", "text"), [
    ({"densities": ()}, "at least one density"),
    ({"densities": (2,)}, "'rnn.weight_ih_l0': density must be 0 to 1, not 2"),
    ({"weights": ["fc"]}, "no weight 'fc'"),
])
def test_wrong_arguments_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        scan(make_model(), **options)
    with pytest.raises(ValueError, match="loss must be 0 or more, not -1"):
        result().densities(-1)
