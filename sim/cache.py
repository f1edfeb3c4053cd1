"""Files that take long to make, kept by the content of what they were made from."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["cache_directory", "cached"]


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
