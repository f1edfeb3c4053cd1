"""The C++ compiler of the compiled simulators: the system's, or the ``ziglang`` wheel."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Compiler", "CompilerError", "NoCompilerError", "find_compiler"]


class NoCompilerError(RuntimeError):
    """No C++ compiler was found; the text says what to install."""


class CompilerError(RuntimeError):
    """The C++ compiler failed; the text holds the end of what it wrote."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler.

    Parameters
    ----------
    command
        The words of its command line.
    version
        What it answers to ``--version``; part of the key of compiled objects.
    """

    command: tuple[str, ...]
    version: str

    def build(self, sources: Sequence[Path], output: Path, flags: Sequence[str] = ()) -> None:
        """Compile C++17 sources to a shared object, or with the flag ``-c`` one to an object.

        Raises
        ------
        CompilerError
            The compiler failed.
        """
        # Zig instruments for undefined behaviour unless told otherwise, several times slower.
        kind = ["-shared"] if "-c" not in flags else []
        command = [*self.command, "-std=gnu++17", *kind, "-fPIC", "-fvisibility=hidden",
                   "-fno-sanitize=undefined", "-w", *flags, *map(str, sources), "-o", str(output)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
        if done.returncode:
            tail = "\n".join(done.stdout.splitlines()[-15:])
            raise CompilerError(f"{' '.join(self.command)} failed with status {done.returncode}. "
                                f"End of its output:\n{tail}")


def _version(command: Sequence[str]) -> str | None:
    """First line of ``--version``, or None if the command does not run."""
    try:
        done = subprocess.run([*command, "--version"], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="replace", check=False)
    except OSError:
        return None
    return done.stdout.partition("\n")[0] if done.returncode == 0 else None


def find_compiler() -> Compiler:
    """The command of the environment variable ``CXX``, else c++, g++, clang++, else ziglang.

    Raises
    ------
    NoCompilerError
        None of them runs, or ``CXX`` is set to a command that does not.
    """
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])
        version = _version(command)
        if version is None:
            raise NoCompilerError(f"CXX is set to {os.environ['CXX']!r}, which does not run: "
                                  f"unset it or set it to a C++ compiler")
        return Compiler(tuple(command), version)
    for name in ("c++", "g++", "clang++"):
        path = shutil.which(name)
        version = path and _version([path])
        if version:
            return Compiler((path,), version)
    if importlib.util.find_spec("ziglang") is not None:
        command = (sys.executable, "-m", "ziglang", "c++")
        version = _version(command)
        if version:
            return Compiler(command, version)
    raise NoCompilerError("No C++ compiler found for the compiled simulator: "
                          "pip install openese[compiler], or install g++ or clang++, "
                          "or set CXX, or use backend=\"amaranth\", which needs none")
