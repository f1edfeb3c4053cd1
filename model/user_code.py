"""What the user names by an import path: models, data, functions; and weights without code.

An import path is ``module:name`` or ``file.py:name``. Importing runs the user's own code, which is
the point of it; nothing else that is read here can run any.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["import_model", "import_object", "load_weights"]


def import_object(spec: str, folder: Path | None = None) -> Any:
    """What ``module:name`` or ``file.py:name`` names.

    A file is taken relative to `folder` (default: the current one) and runs once, however often it
    is named; the files beside it can be imported from it, and a module from the current folder.

    Raises
    ------
    ValueError
        Not such a path, no such file, a module that is not found, or no such name in it.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier():
        raise ValueError(f"{spec}: name it as module:name or file.py:name")
    if place.endswith(".py"):
        module = _import_file(place, folder)
    else:
        try:
            with _importable_from(Path.cwd()):
                module = importlib.import_module(place)
        except ImportError as error:
            raise ValueError(f"{place}: cannot be imported ({error})") from None
    if not hasattr(module, name):
        raise ValueError(f"{place} has no {name!r}")
    return getattr(module, name)


def _import_file(place: str, folder: Path | None) -> Any:
    path = (Path(folder or ".") / place).resolve()
    if not path.is_file():
        raise ValueError(f"{place}: no such file")
    # Registered, as dataclasses in the file ask for; under a name that no module has.
    name = f"openese_user_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            with _importable_from(path.parent):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


@contextmanager
def _importable_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def import_model(spec: str, folder: Path | None = None) -> nn.Module:
    """The model that an import path names: a ``torch.nn.Module``, or what returns one.

    Raises ``ValueError`` as `import_object`, and where it is neither.
    """
    model = import_object(spec, folder)
    if not isinstance(model, nn.Module):
        model = model() if callable(model) else model
    if not isinstance(model, nn.Module):
        raise ValueError(f"{spec} must be a torch.nn.Module or return one, not {type(model)}")
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a ``state_dict`` from ``.npz`` or ``.safetensors``, which cannot run code.

    Raises ``ValueError`` for another kind of file or a state that is not the model's.
    """
    if path.suffix not in (".safetensors", ".npz"):
        raise ValueError(
            f"{path}: weights must be .safetensors or .npz: pickled files (.pt, .pth) can run "
            f"code when they are loaded; convert with safetensors.torch.save_file("
            f"model.state_dict(), 'net.safetensors')")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        arrays = load_file(path)
    else:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
    try:
        model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in arrays.items()})
    except RuntimeError as error:
        raise ValueError(f"{path}: does not match the model: {error}") from None
