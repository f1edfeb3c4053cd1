"""Files that take long to make, kept by the content of what they were made from."""

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from amaranth.lib import wiring

from openese.hdl.engine import Engine

__all__ = ["cache_directory", "cached", "cached_design"]


def cache_directory() -> Path:
    """``OPENESE_CACHE`` if set, else ``openese`` under ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if os.environ.get("OPENESE_CACHE"):
        return Path(os.environ["OPENESE_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "openese"


def cached(key: Iterable[str | bytes], suffix: str, make: Callable[[Path], Path]) -> Path:
    """The file made from `key`, made now unless it exists.

    Safe when several processes ask at once: each works in a directory of its own and moves the
    finished file into place, which is atomic.

    Parameters
    ----------
    key
        Everything that the file depends on.
    suffix
        End of the file's name.
    make
        Called with an empty directory; returns the path of the finished file in it.
    """
    digest = hashlib.sha256()
    for part in key:
        data = part if isinstance(part, bytes) else part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    path = cache_directory() / (digest.hexdigest()[:40] + suffix)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="making-", dir=path.parent))
        try:
            os.replace(make(work), path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return path


def cached_design(component: wiring.Component, what: str,
                  make: Callable[[wiring.Component], str]) -> str:
    """``make(component)``, of an engine ``make(component.blank())``, which is kept.

    An engine with empty memories is decided by its configuration, the numbers of a model that are
    wired, and the program text of this package. Of 64 PEs it takes ten seconds to elaborate, which
    nothing else needs when the simulator is compiled.

    Parameters
    ----------
    component
        Elaborated by `make`, or not at all.
    what
        Name of what is made.
    make
        Makes it, as text.
    """
    if type(component) is not Engine:
        return make(component)
    # Amaranth warns of components that nobody elaborates, which is no mistake here.
    component._MustUse__used = True

    def write(directory: Path) -> Path:
        path = directory / "text"
        path.write_text(make(component.blank()))
        return path

    image = component.image
    wired = None if image is None else (image.in_rows, image.in_base)
    key = [what, version("amaranth"), *_program_text(), repr(wired),
           repr(sorted(asdict(component.config).items()))]
    return cached(key, ".design", write).read_text()


@functools.cache
def _program_text() -> tuple[str, ...]:
    """Everything that can decide what an engine looks like."""
    return tuple(path.read_text(encoding="utf-8") for package in ("openese.hdl", "openese.model")
                 for path in sorted(files(package).iterdir(), key=str)
                 if path.name.endswith(".py"))
