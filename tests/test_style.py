"""Rules of the repository that a machine can check and ruff does not know."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("openese", "model", "hdl", "sim", "boards")
CODE = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
SCRIPTS = sorted(path for name in ("bench", "examples") for path in (ROOT / name).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

#: Import name of a package to the packages of the project that it may import.
MAY_IMPORT = {
    "model": {"model"},
    "hdl": {"model", "hdl"},
    "sim": {"model", "hdl", "sim"},
    "boards": {"model", "hdl", "sim", "boards"},
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> set[str]:
    """Absolute names that a file imports, anywhere in it: ``a.b`` and ``a.b.c`` for
    ``from a.b import c``."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an attribute or name, else an empty string."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    return [(dotted(node.func), node) for node in ast.walk(tree(path))
            if isinstance(node, ast.Call)]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_dependencies_point_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("openese.")}
        assert used <= MAY_IMPORT[package], name_of(path)
        assert "openese" not in imports(path), f"{name_of(path)} imports the façade"


def test_model_knows_no_amaranth_and_the_hardware_no_pytorch():
    for path in CODE:
        foreign = {"model": {"amaranth", "amaranth_boards"}, "hdl": {"torch"}, "sim": {"torch"},
                   "boards": {"torch"}}.get(path.relative_to(ROOT).parts[0], set())
        assert not foreign & {name.partition(".")[0] for name in imports(path)}, name_of(path)


def test_no_deprecated_amaranth():
    gone = {"amaranth.hdl.Memory", "amaranth.hdl.Record", "amaranth.hdl.mem", "amaranth.hdl.rec",
            "amaranth.lib.coding", "amaranth.sim.Settle", "amaranth.sim.Passive",
            "amaranth.compat", "nmigen"}
    for path in CODE + TESTS + SCRIPTS:
        assert not gone & imports(path), name_of(path)
        for name, call in calls(path):
            # From `amaranth.lib` they are called memory.Memory and fifo.SyncFIFO.
            assert name not in ("Memory", "Record"), f"{name_of(path)}:{call.lineno}"
            assert not name.endswith("add_sync_process"), f"{name_of(path)}:{call.lineno}"


def test_no_pickle():
    """Nothing of a user's is ever read in a way that can run code."""
    for path in CODE + SCRIPTS + TESTS:
        modules = {name.partition(".")[0] for name in imports(path)}
        assert not modules & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}, (
            name_of(path))
        for name, call in calls(path):
            where = f"{name_of(path)}:{call.lineno}"
            options = {key.arg: key.value for key in call.keywords}
            if name == "torch.load":
                assert path in TESTS, where
                assert ast.unparse(options["weights_only"]) == "True", where
            if name in ("np.load", "numpy.load"):
                assert ast.unparse(options["allow_pickle"]) == "False", where


def test_public_names_are_documented():
    missing = []
    for path in CODE:
        module = tree(path)
        if module.body and ast.get_docstring(module) is None:
            missing.append(name_of(path))
        missing += [f"{name_of(path)}: {node.name}" for node in module.body
                    if isinstance(node, ast.ClassDef | ast.FunctionDef)
                    and not node.name.startswith("_") and ast.get_docstring(node) is None]
    assert not missing


def test_every_module_names_what_is_public():
    for path in CODE:
        module = tree(path)
        if module.body and path.name != "__init__.py":
            assert any(isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__"
                       for node in module.body), name_of(path)


def test_device_primitives_sit_behind_components():
    """Amaranth's simulator ignores an Instance, so each needs a portable twin beside it."""
    for path in CODE:
        if (name_of(path) not in ("hdl/multiply.py", "hdl/spram.py")
                and path.parent != ROOT / "boards"):
            assert not [call for name, call in calls(path) if name.endswith("Instance")], (
                name_of(path))


def text_files() -> list[Path]:
    folders = (*PACKAGES, "tests", "docs", "bench", "examples", ".ci")
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    return sorted(path for path in files if "__pycache__" not in path.parts
                  and path.suffix not in (".npz", ".ese", ".png", ".vcd"))


def test_no_paths_of_one_machine():
    folders = "|".join(("home", "root", "work", "tmp", "Users", "mnt"))
    pattern = re.compile(rf"(?<![\w.~)}}-])/(?:{folders})/|\b[A-Z]:\\\\?Users")
    files = text_files()
    assert ROOT / "pyproject.toml" in files
    found = []
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # not text
        found += [f"{name_of(path)}:{number}: {line.strip()}"
                  for number, line in enumerate(lines, 1) if pattern.search(line)]
    assert not found
