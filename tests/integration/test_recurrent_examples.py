"""The adder and the spoken digits: the recorded files do what their READMEs say, scripts run."""

import importlib
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from openese.model.compile import size_for
from openese.model.compress import load_into
from openese.model.ese_file import load
from openese.model.quantise import quantise
from openese.model.reference import run_reference

torch.set_num_threads(1)

EXAMPLES = Path(__file__).parents[2] / "examples"
SHIPPED = resources.files("openese") / "data" / "spoken_digits.ese"


def run(script, *arguments):
    done = subprocess.run([sys.executable, str(EXAMPLES / script), *map(str, arguments)],
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def adder(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "binary_adder"))
    return importlib.import_module("adder")


@pytest.fixture
def speech(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "spoken_digits"))
    return importlib.import_module("speech")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A file of 120 made-up recordings: each digit has a coefficient of its own that is large."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 10
    lengths = rng.integers(3, 9, 120)
    frames = rng.normal(size=(int(lengths.sum()), 13)).astype(np.float32)
    frames[np.arange(len(frames)), np.repeat(labels, lengths)] += 6
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, X=frames, y=labels, lengths=lengths)
    return path


def test_bits_and_numbers(adder):
    numbers = np.array([0, 1, 6, 255])
    assert adder.bits_of(numbers)[:3].tolist() == [[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert adder.number_of(adder.bits_of(numbers)).tolist() == numbers.tolist()


def test_the_recorded_adder_gets_every_sum_right(adder):
    """In float32 and in the engine's integers."""
    network = load(EXAMPLES / "binary_adder" / "binary_adder.ese")
    model = adder.Adder()
    load_into(model, network)
    assert adder.wrong_sums(model) == 0
    x, sums = adder.all_sums()
    integers = quantise(network, size_for(network, n_pes=8))
    raw = integers.quantise_input(x.reshape(-1, 2))[0].reshape(x.shape)
    outputs = run_reference(integers, raw).outputs[:, :, 0]
    assert np.array_equal(adder.number_of(outputs > 0), sums)


def test_the_adder_trains(tmp_path):
    output = run("binary_adder/train.py", "--seed", 1, "--output", tmp_path / "a.ese")
    assert output.startswith("0 of 65,536 sums wrong")
    assert "integers of the engine 0 sums wrong" in output


def test_all_programs_of_the_adder_add(tmp_path):
    """`speed.py` ends with an error where a sum is wrong."""
    output = run("binary_adder/speed.py", "--additions", 50, "--rounds", 1,
                 "--channels", 2)
    for name in ("PyTorch, one by one", "PyTorch, all at once", "NumPy loop", "C++ loop",
                 "accelerator"):
        assert f"| {name}" in output


def test_means_are_taken_over_the_frames_of_each_recording(speech):
    outputs = torch.tensor([[[1.0], [3.0], [99.0]], [[1.0], [2.0], [6.0]]])
    means = speech.mean_over_frames(outputs, torch.tensor([2, 3]))
    assert means.tolist() == [[2.0], [3.0]]
    assert speech.named(np.array([[0, 5, 0], [0, 0, 6], [0, 0, 1]])) == 2


def test_the_shipped_spoken_digits_are_sparse_balanced_and_small(speech):
    network = load(SHIPPED)
    assert len(SHIPPED.read_bytes()) * 20 < 196_648
    lstm = network.layers[0]
    assert (lstm.cell, lstm.input_size, lstm.hidden_size) == ("lstm", 13, 128)
    assert lstm.out_features == 64
    assert lstm.peephole is not None
    for matrix in (lstm.w_ih, lstm.w_hh, lstm.w_hr):
        rows = matrix.row_idx[matrix.code != 0]
        counts = np.bincount(rows % 128 % 8 if matrix is not lstm.w_hr else rows % 8, minlength=8)
        assert counts.max() - counts.min() <= 1
    load_into(speech.Speech(), network)


def test_spoken_digits_from_training_to_rtl(tmp_path, digits):
    output = run("spoken_digits/train.py", "--data", digits, "--hidden", 16, "--projection", 8,
                 "--epochs", 20, 2, 4, 2, "--out", tmp_path)
    for stage in ("float", "pruned, step 4", "shared, 4 bits", "linear, 12 bits"):
        assert f"| {stage} | " in output
    for name in ("spoken_digits.ese", "spoken_digits_12_bit.ese"):
        assert f"{name}: {(tmp_path / name).stat().st_size:,} bytes" in output
        output_rtl = run("spoken_digits/rtl.py", tmp_path / name, "--data", digits,
                         "--recordings", 2, "--pes", 3,
                         *(["--reference"] if "12" not in name else []))
        assert "2 recordings" in output_rtl
    assert ": 0 mismatches in " in output_rtl
