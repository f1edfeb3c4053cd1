"""openese: compress PyTorch networks and run them on an open sparse accelerator.

The names below load their modules on first use, so that importing the package is quick.
"""

from importlib import import_module
from typing import Any

__all__ = [
    "PRESETS", "CompressedModel", "CompressedNetwork", "Engine", "EngineConfig", "compress",
    "compress_weights", "load", "load_into", "save", "simulate",
]

_HOMES = {
    "PRESETS": "openese.model.config",
    "EngineConfig": "openese.model.config",
    "CompressedModel": "openese.model.state",
    "CompressedNetwork": "openese.model.network",
    "Engine": "openese.hdl.engine",
    "compress": "openese.model.compress",
    "compress_weights": "openese.model.compress",
    "load": "openese.model.ese_file",
    "load_into": "openese.model.compress",
    "save": "openese.model.ese_file",
    "simulate": "openese.sim.simulate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
