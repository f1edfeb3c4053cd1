# amaranth: UnusedElaboratable=no

"""The compiler is found where there is one, and what is missing is said where there is none."""

import os
import sys

import pytest

from openese.sim.compiler import Compiler, CompilerError, NoCompilerError, find_compiler
from openese.sim.simulation import run

from .toys import Queue


def test_cxx_comes_first(monkeypatch):
    system = find_compiler()
    monkeypatch.setenv("CXX", f"{system.command[0]} -DOPENESE_SOMETHING")
    assert find_compiler() == Compiler((system.command[0], "-DOPENESE_SOMETHING"), system.version)


def test_a_wrong_cxx_is_no_silent_fallback(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O9")
    with pytest.raises(NoCompilerError, match=r"^CXX is set to 'no-such-compiler -O9', which does "
                                              "not run: unset it or set it to a C.. compiler$"):
        find_compiler()


def test_no_compiler_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("OPENESE_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(NoCompilerError, match=(
            r"^No C\+\+ compiler found for the compiled simulator: pip install openese\[compiler\],"
            r" or install g\+\+ or clang\+\+, or set CXX, or use backend=\"amaranth\", which needs "
            r"none$")):
        run(Queue(), backend="cxxrtl")


def test_a_compiler_that_fails_shows_its_output(tmp_path):
    source = tmp_path / "wrong.cpp"
    source.write_text("#error this is wrong\n")
    with pytest.raises(CompilerError, match=r"(?s)failed with status 1\. End of its output:.*"
                                            "this is wrong"):
        find_compiler().build([source], tmp_path / "wrong.so")


@pytest.mark.slow
def test_the_zig_wheel_compiles_and_runs(monkeypatch, tmp_path):
    """Slow: on its first use Zig compiles a C++ library, about a minute."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("OPENESE_CACHE", str(tmp_path / "cache"))
    assert find_compiler().command == (sys.executable, "-m", "ziglang", "c++")
    result = run(Queue(), {"i": [1, 2, 3]}, {"o": 3}, backend="cxxrtl")
    assert result.outputs["o"].tolist() == [1, 2, 3]
    assert os.listdir(tmp_path / "cache")
