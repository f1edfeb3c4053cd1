"""What a measurement ran on: the machine, the versions of the tools, and the date."""

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from openese.sim.compiler import NoCompilerError, find_compiler

__all__ = ["describe_machine", "machine_text", "usable_cores"]


def describe_machine(packages: Sequence[str] = (), *, compiler: bool = False) -> dict:
    """The surroundings of a measurement, for its JSON.

    Parameters
    ----------
    packages
        Whose versions matter; those that are not installed are left out.
    compiler
        Whether the C++ compiler matters.

    Returns
    -------
    ``date`` (ISO), ``cpu``, ``cores`` (that this process may use), ``load`` (programs that want a
    core, mean of the last minute; ``None`` where the system does not tell), ``system``, ``python``
    and ``versions`` (package or ``"C++ compiler"`` to version, openese first).
    """
    versions = {}
    for name in ("openese", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    if compiler:
        with suppress(NoCompilerError):
            versions["C++ compiler"] = find_compiler().version
    return {"date": date.today().isoformat(), "cpu": _cpu(), "cores": usable_cores(),
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            "system": platform.system(), "python": platform.python_version(),
            "versions": versions}


def machine_text(machine: dict) -> str:
    """One line of what `describe_machine` gives, and a second one if it was busy."""
    versions = ", ".join(f"{name} {text}" for name, text in machine["versions"].items())
    busy = (machine["load"] or 0) > machine["cores"] / 2
    return (f"{machine['date']}, {machine['cpu']}, {machine['cores']} cores, Python "
            f"{machine['python']}, {versions}"
            + (f"\nthe machine was busy with other work (load {machine['load']}): times are too "
               "long" if busy else ""))


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    """The processor's name, as far as the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
