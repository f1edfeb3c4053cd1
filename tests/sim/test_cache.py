"""Compiled objects are reused when nothing changed, and only then; processes do not collide."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from openese.hdl.engine import Engine
from openese.hdl.export import to_rtlil
from openese.hdl.skid import Skid
from openese.model.compile import compile_network
from openese.model.config import EngineConfig
from openese.model.quantise import quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import run_reference
from openese.sim.cache import cache_directory, cached, cached_design
from openese.sim.simulate import run_engine
from openese.sim.simulation import Simulation

from .toys import Lane, Queue


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENESE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def objects(cache):
    return {path.name for path in cache.glob("*.so")}


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENESE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "openese"
    monkeypatch.setenv("OPENESE_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"


def test_made_once_per_key(cache):
    made = []

    def make(directory):
        made.append(directory)
        (directory / "file").write_text(f"{len(made)}")
        return directory / "file"

    first = cached(["a", b"b"], ".txt", make)
    assert cached(["a", b"b"], ".txt", make) == first
    # The parts are told apart, not only their concatenation.
    other = cached(["ab", b""], ".txt", make)
    assert (first.read_text(), other.read_text()) == ("1", "2")
    assert sorted(cache.iterdir()) == sorted([first, other])


def test_a_failure_leaves_nothing(cache):
    def make(directory):
        (directory / "half").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match=r"^stopped$"):
        cached(["a"], ".txt", make)
    assert list(cache.iterdir()) == []


def _make_slowly(directory):
    time.sleep(0.2)
    (directory / "file").write_text("done")
    return directory / "file"


def _ask(_):
    return cached(["same"], ".txt", _make_slowly).read_text()


def test_two_processes_at_once(cache):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(_ask, range(4))) == ["done"] * 4
    assert len(list(cache.iterdir())) == 1


def test_other_contents_of_memories_need_no_compiler(cache):
    def start(weights, bias=0):
        began = time.monotonic()
        with Simulation(Lane(weights, bias), "cxxrtl") as simulation:
            stored = simulation.read_memory("weights").tolist()
        return stored, time.monotonic() - began

    first, slow = start([1, 2, 3])
    assert first == [1, 2, 3, 0, 0, 0, 0, 0]
    one = objects(cache)
    assert len(one) == 1
    second, fast = start([4, -5])
    assert second == [4, 251, 0, 0, 0, 0, 0, 0]
    assert objects(cache) == one
    assert fast < slow / 2
    # Another circuit is another object, as are other options.
    start([1, 2, 3], bias=1)
    two = objects(cache)
    assert len(two) == 2
    assert one < two
    with Simulation(Lane([1]), "cxxrtl", optimise=0):
        assert len(objects(cache)) == 3


def test_another_header_is_another_object(cache, monkeypatch):
    from openese.sim import compiled

    with Simulation(Queue(), "cxxrtl"):
        pass
    monkeypatch.setattr(compiled, "tree_hash", lambda directory: "changed")
    with Simulation(Queue(), "cxxrtl"):
        pass
    assert len(objects(cache)) == 2


SMALL = EngineConfig(n_pes=1, spmat_depth=64, ptr_depth=16, bias_depth=8, act_depth=16, acc_depth=8,
                     codebooks=1, program_depth=4)


def test_an_engine_is_not_elaborated_again_for_another_model(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENESE_CACHE", str(tmp_path))
    made = []

    def make(component):
        made.append(component)
        to_rtlil(component)
        return f"design {len(made)}"

    def image(seed, inputs=6):
        return compile_network(quantise(random_network(seed, [inputs, 4], 0.5), SMALL), SMALL)

    assert [cached_design(Engine(SMALL), "one", make) for _ in range(3)] == ["design 1"] * 3
    assert cached_design(Engine(SMALL), "other", make) == "design 2"
    assert cached_design(Engine(SMALL.with_(acc_depth=9)), "one", make) == "design 3"
    assert cached_design(Engine(SMALL, image(1)), "one", make) == "design 4"
    assert cached_design(Engine(SMALL, image(2)), "one", make) == "design 4"
    # Where the input buffers are is wired.
    assert cached_design(Engine(SMALL, image(1, inputs=5)), "one", make) == "design 5"
    assert cached_design(Skid(8), "one", make) == "design 6"
    assert cached_design(Skid(8), "one", make) == "design 7"
    assert not any(words for engine in made if isinstance(engine, Engine)
                   for words in engine.contents().values())


@pytest.mark.parametrize("backend", ["cxxrtl", "verilator"])
def test_engine_from_the_cache_gives_the_same(backend, tmp_path, monkeypatch):
    """A model loaded over the host stream, into an engine made twice."""
    monkeypatch.setenv("OPENESE_CACHE", str(tmp_path))
    network = random_network(2, [6, 4], 0.5)
    quantised = quantise(network, SMALL)
    image = compile_network(quantised, SMALL)
    raw = random_inputs(2, network, 3)
    reference = run_reference(quantised, raw)
    for _ in range(2):
        report = run_engine(image, raw, reference, backend=backend, load="host")
        assert report.mismatches == 0
