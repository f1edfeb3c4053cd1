"""The wheel holds `openese/` and its metadata and nothing else, and works where it is installed.

Also who may import whom at run time: the model without Amaranth, the accelerator without PyTorch.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Import name of a package and the directory its files come from.
PACKAGES = {"openese": "openese", "openese.model": "model", "openese.hdl": "hdl",
            "openese.sim": "sim", "openese.boards": "boards"}
OTHERS = ("tests", "docs", "examples", "bench")
FILES = ("pyproject.toml", "README.md", "LICENSE")

#: The modules that start from PyTorch.
TORCH = {"balance", "compress", "cpu_speed", "dsd", "extract", "linear_weights", "peephole",
         "prune", "recipe", "schedule", "sensitivity", "share", "train", "user_code"}


def package_files() -> set[str]:
    """Every file of the packages, under the name it must have in the wheel."""
    return {"/".join((*package.split("."), *path.relative_to(ROOT / directory).parts))
            for package, directory in PACKAGES.items()
            for path in (ROOT / directory).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}


def modules(package: str) -> list[str]:
    return sorted(f"{package}.{path.stem}" for path in (ROOT / PACKAGES[package]).glob("*.py")
                  if path.stem != "__init__")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """A wheel built from a copy, so that the checkout stays as it is."""
    copy = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES.values(), *OTHERS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"],
        cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "would be ignored" not in done.stdout + done.stderr
    found = list((copy / "dist").iterdir())
    assert len(found) == 1
    return found[0]


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert {name.split("/")[0] for name in metadata} == {"openese-0.1.0.dist-info"}
    assert names - metadata == package_files()


def test_wheel_holds_what_is_no_python(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        licence = archive.read("openese-0.1.0.dist-info/licenses/LICENSE").decode()
        scripts = archive.read("openese-0.1.0.dist-info/entry_points.txt").decode()
    assert "Apache License" in licence
    assert "openese = openese.__main__:main" in scripts
    for wanted in ("openese/py.typed", "openese/sim/harness.h", "openese/boards/ecp5_sim.v",
                   "openese/data/mnist_256.npz", "openese/data/lenet_300_100.ese"):
        assert wanted in names


def run_python(code: str, path: Path | None = None, cwd: Path | None = None) -> str:
    """Run code in a fresh interpreter, `path` searched first; returns what it prints."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=cwd, env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_wheel_works(wheel, tmp_path):
    target = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--disable-pip-version-check", "--target", str(target), str(wheel)],
                   check=True)
    top = {path.name for path in target.iterdir()} - {"bin"}
    assert top == {"openese", "openese-0.1.0.dist-info"}
    places = run_python(
        "import importlib, openese\n"
        f"for name in {list(PACKAGES)}: print(importlib.import_module(name).__file__)\n"
        "print(openese.Engine(openese.EngineConfig(n_pes=1)).config.n_pes)\n"
        "from importlib import resources\n"
        "print((resources.files('openese') / 'data' / 'README.md').is_file())\n",
        path=target, cwd=tmp_path).split()
    assert all(Path(place).is_relative_to(target) for place in places[:len(PACKAGES)])
    assert places[len(PACKAGES):] == ["1", "True"]


def imported(names: list[str]) -> set[str]:
    """Top-level modules that importing `names` loads."""
    out = run_python(f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
                     "print(*{name.partition('.')[0] for name in sys.modules})")
    return set(out.split())


def test_model_does_not_import_amaranth():
    assert "amaranth" not in imported(["openese", *modules("openese.model")])


def test_model_without_pytorch():
    names = [name for name in modules("openese.model") if name.rpartition(".")[2] not in TORCH]
    assert "openese.model.reference" in names
    assert not {"torch", "amaranth"} & imported(["openese", *names])


@pytest.mark.parametrize("package", ["openese", "openese.hdl", "openese.sim", "openese.boards"])
def test_the_rest_does_not_import_pytorch(package):
    assert "torch" not in imported(modules(package))
