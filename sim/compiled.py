"""Simulators that run as compiled C++: the shared object, its cache, and calling it.

The loop over the cycles is in harness.h; a backend adds the design and a few lines of glue.
"""

import ctypes
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from openese.sim.cache import cached
from openese.sim.compiler import find_compiler
from openese.sim.driver import UNBOUNDED, Driver, Job, MemoryShape, Outcome, Status
from openese.sim.streams import Interface, to_words

__all__ = ["CompiledDriver", "build_model", "build_object", "tree_hash"]

_WORDS, _BYTES = ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_uint8)
_FUNCTIONS = {
    "create": (ctypes.c_void_p, []),
    "destroy": (None, [ctypes.c_void_p]),
    "reset": (ctypes.c_int, [ctypes.c_void_p]),
    "open_vcd": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
    "set_plain": (None, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]),
    "begin": (None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]),
    "lane": (None, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64,
                    ctypes.c_void_p, ctypes.c_uint64]),
    "run": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]),
    "extra": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64]),
    "cycle": (ctypes.c_int64, [ctypes.c_void_p]),
    "count": (ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_uint64]),
    "handshake": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64]),
    "cycles": (ctypes.POINTER(ctypes.c_int64), [ctypes.c_void_p, ctypes.c_uint64]),
    "received": (_WORDS, [ctypes.c_void_p, ctypes.c_uint64]),
    "samples": (_WORDS, [ctypes.c_void_p, ctypes.c_uint64]),
    "culprit": (ctypes.c_int, [ctypes.c_void_p]),
    "error": (ctypes.c_char_p, [ctypes.c_void_p]),
    "memory": (ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_char_p,
                                 ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(_BYTES)]),
}

#: Seconds between two calls of a progress function, and the longest wait for Ctrl-C.
_CHUNK_SECONDS = 0.2


def tree_hash(directory: Path) -> str:
    """Hash of the names and contents of all files below a directory of headers."""
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(directory)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def build_object(source: Path, includes: Sequence[Path], flags: Sequence[str]) -> Path:
    """Compile a file of a simulator's runtime to an object for `build_model`, cached."""
    compiler = find_compiler()
    key = ["object", *compiler.command, compiler.version, *flags, source.read_bytes(),
           *map(tree_hash, includes)]

    def make(directory: Path) -> Path:
        compiler.build([source], directory / "runtime.o",
                       ["-c", *flags, *(f"-I{path}" for path in includes)])
        return directory / "runtime.o"

    return cached(key, ".o", make)


def build_model(generated: Mapping[str, str], objects: Sequence[Path], includes: Sequence[Path],
                flags: Sequence[str],
                unit_flags: Mapping[str, Sequence[str]] = MappingProxyType({})) -> Path:
    """Compile generated C++ together with the harness, several units at once; the result is
    cached by content.

    Parameters
    ----------
    generated
        File name to text; those ending in ``.cpp`` are compiled, the others are headers.
    objects
        Objects from `build_object`.
    includes
        Directories of headers.
    flags
        Flags of the compiler.
    unit_flags
        Further flags for some of the files.

    Raises
    ------
    openese.sim.compiler.NoCompilerError, openese.sim.compiler.CompilerError
        No compiler, or it failed.
    """
    compiler = find_compiler()
    own = {p.name: p.read_text() for p in files("openese.sim").iterdir() if p.name.endswith(".h")}
    texts = {**own, **generated}
    key = [*compiler.command, compiler.version, *flags, *map(tree_hash, includes),
           *(path.name for path in objects),
           *(part for item in sorted(texts.items()) for part in item),
           *(part for name, more in sorted(unit_flags.items()) for part in (name, *more))]

    def make(directory: Path) -> Path:
        for name, text in texts.items():
            (directory / name).write_text(text)
        paths = [f"-I{path}" for path in (directory, *includes)]

        def build(name: str) -> Path:
            made = directory / f"{name}.o"
            compiler.build([directory / name], made,
                           ["-c", *flags, *unit_flags.get(name, ()), *paths])
            return made

        units = [name for name in generated if name.endswith(".cpp")]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = list(pool.map(build, units))
        compiler.build([*made, *objects], directory / "model.so", flags)
        return directory / "model.so"

    return cached(key, ".so", make)


class CompiledDriver(Driver):
    """A compiled design.

    Parameters
    ----------
    name
        Of the backend, for error texts.
    path
        The shared object.
    interface
        Ports, in the order in which the glue registers them.
    memories
        What can be read and written.
    vcd
        Waveform file, or None.
    """

    def __init__(self, name: str, path: Path, interface: Interface,
                 memories: Mapping[str, MemoryShape], vcd: Path | None = None) -> None:
        self.name, self.interface, self.memories = name, interface, memories
        self._handle = None
        self._library = ctypes.CDLL(str(path))
        for function, (result, arguments) in _FUNCTIONS.items():
            entry = getattr(self._library, f"openese_{function}")
            entry.restype, entry.argtypes = result, arguments
        self._handle = self._call("create")
        self._plain = {port: k for k, port in enumerate(interface.plain)}
        for port in interface.plain.values():
            if port.is_input:
                raw = port.init & ((1 << port.width) - 1)
                self._set(port.name, to_words(np.array([raw], object), port.width, port.name))
        if vcd is not None and not self._call("open_vcd", str(vcd).encode()):
            raise OSError(f"Cannot write waveforms to {vcd}")

    def _call(self, function: str, *arguments: object) -> object:
        handle = () if self._handle is None else (self._handle,)
        return getattr(self._library, f"openese_{function}")(*handle, *arguments)

    def _set(self, name: str, words: NDArray[np.uint32]) -> None:
        self._call("set_plain", self._plain[name], np.ascontiguousarray(words).ctypes.data)

    def reset(self) -> None:
        if self._call("reset") == Status.FAILED:
            raise AssertionError(self._call("error").decode())

    def run(self, job: Job) -> Outcome:
        for name, words in job.settings.items():
            self._set(name, words)
        watched = np.array([self._plain[name] for name in job.watched], np.uint64)
        self._call("begin", watched.ctypes.data, len(watched))
        ports = list(self.interface.streams.values())
        # The buffers must outlive the run: this list keeps them.
        buffers = [np.ascontiguousarray(words) for words in job.items]
        for k, (buffer, pattern) in enumerate(zip(buffers, job.patterns, strict=True)):
            where = (pattern.ctypes.data, len(pattern)) if pattern is not None else (None, 0)
            self._call("lane", k, buffer.ctypes.data, job.wanted[k], *where)

        start = self._call("cycle")
        status = self._advance(job, start)
        if status == Status.DONE and job.extra_cycles:
            status = self._call("extra", job.extra_cycles)
        cycle = self._call("cycle")
        shakes = [self._call("handshake", k) for k in range(len(ports))]
        times, received = [], []
        for k, port in enumerate(ports):
            count = self._call("count", k)
            times.append(self._copy("cycles", k, (count,), np.int64))
            shape = (0 if port.is_input else count, -(-port.width // 32))
            received.append(self._copy("received", k, shape, np.uint32))
        samples = [
            self._copy("samples", k,
                       (cycle - start, -(-self.interface.plain[name].width // 32)), np.uint32)
            for k, name in enumerate(job.watched)
        ]
        return Outcome(status, times, received, samples, cycle,
                       [(bool(shake & 1), bool(shake & 2)) for shake in shakes],
                       self._call("culprit"), self._call("error").decode())

    def _advance(self, job: Job, start: int) -> int:
        """Run in chunks, so that Ctrl-C works and progress is seen."""
        left, chunk = job.max_cycles, 10_000
        counted = [k for k, count in enumerate(job.wanted) if count != UNBOUNDED]
        total = sum(job.wanted[k] for k in counted)
        while True:
            budget = min(chunk, left)
            began = time.monotonic()
            status = self._call("run", budget, job.max_idle)
            took = time.monotonic() - began
            left -= budget
            if job.progress is not None:
                job.progress(self._call("cycle") - start,
                             sum(self._call("count", k) for k in counted), total)
            if status != Status.MORE or not left:
                return status
            if took < _CHUNK_SECONDS / 2:
                chunk *= 2
            elif took > _CHUNK_SECONDS * 2:
                chunk = max(1, chunk // 2)

    def _copy(self, function: str, index: int, shape: tuple[int, ...], dtype: type) -> NDArray:
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.ctypeslib.as_array(self._call(function, index), shape).astype(dtype)

    def _memory(self, path: str) -> NDArray[np.uint8]:
        """The bytes of every row, where they are: fewer or more than the words of a row."""
        depth, rows = ctypes.c_uint64(), _BYTES()
        row = self._call("memory", path.replace(".", " ").encode(), ctypes.byref(depth),
                         ctypes.byref(rows))
        if depth.value != self.memories[path].depth:
            raise RuntimeError(f"{self.name} does not know the memory {path!r}: report this")
        return np.ctypeslib.as_array(rows, (depth.value, row))

    def read_memory(self, path: str) -> NDArray[np.uint32]:
        stored = self._memory(path)
        rows = np.zeros((len(stored), -(-self.memories[path].width // 32) * 4), np.uint8)
        shared = min(rows.shape[1], stored.shape[1])
        rows[:, :shared] = stored[:, :shared]
        return rows.view(np.uint32)

    def write_memory(self, path: str, first: int, rows: NDArray[np.uint32]) -> None:
        stored, given = self._memory(path), np.ascontiguousarray(rows).view(np.uint8)
        shared = min(given.shape[1], stored.shape[1])
        stored[first:first + len(rows), :shared] = given[:, :shared]

    def fill(self, contents: Mapping[str, Sequence[int]]) -> None:
        """Write what memories start with: path to the first rows, as unsigned numbers."""
        for path, rows in contents.items():
            self.write_memory(path, 0, to_words(np.array(rows, object),
                                                self.memories[path].width, path))

    def close(self) -> None:
        if self._handle is not None:
            self._call("destroy")
            self._handle = None
