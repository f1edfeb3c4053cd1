"""The training examples run from start to end, on a few made-up digits instead of the real data."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
