"""Run a compressed network on the engine's RTL and compare every bit with the reference."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openese.hdl.engine import Engine
from openese.model import host
from openese.model.compile import Image, compile_network, size_for
from openese.model.config import EngineConfig
from openese.model.network import CompressedNetwork
from openese.model.quantise import quantise
from openese.model.reference import Reference, run_reference

from .compiler import NoCompilerError, find_compiler
from .simulation import Simulation
from .streams import pack

__all__ = ["SimulationReport", "choose_backend", "run_engine", "simulate"]


@dataclass
class SimulationReport:
    """What a simulation showed.

    Parameters
    ----------
    name
        The network.
    backend, load, n_pes
        Simulator, how the model got into the engine, and its size.
    vectors, outputs
        Input vectors run and output values compared.
    mismatches
        Output values that differ from the integer reference, plus 1 if the engine's count of
        saturations does.
    cycles
        From the first input beat to the last output beat.
    cycles_per_vector
        Between the last outputs of consecutive vectors, averaged (``cycles`` for one vector).
    entries, fillers
        Matrix entries read by all PEs over the run, and the fillers among them.
    utilisation
        Useful multiplications / (PEs x cycles): neither fillers nor idle cycles are useful.
    saturations
        Activations clipped by write-back.
    input_clipped
        Inputs clipped when they were quantised.
    seconds
        Wall time of the simulation, building the simulator included.
    raw
        int64 ``(vectors, out_features)``: outputs of the RTL.
    first_mismatch
        Vector and output of the first difference, or ``None``.
    """

    name: str
    backend: str
    load: str
    n_pes: int
    vectors: int
    outputs: int
    mismatches: int
    cycles: int
    cycles_per_vector: float
    entries: int
    fillers: int
    utilisation: float
    saturations: int
    input_clipped: int
    seconds: float
    raw: NDArray[np.int64] = field(repr=False)
    first_mismatch: tuple[int, int] | None = None

    def as_dict(self) -> dict:
        """The figures without the outputs, for JSON."""
        return {k: v for k, v in asdict(self).items() if k != "raw"}


def choose_backend(backend: str) -> str:
    """The backend itself, or for ``"auto"`` the fastest one that this machine can run."""
    if backend != "auto":
        return backend
    try:
        find_compiler()
    except NoCompilerError:
        return "amaranth"
    return "cxxrtl"


def simulate(network: CompressedNetwork | str | Path, inputs: ArrayLike, *, n_pes: int = 8,
             config: EngineConfig | None = None, backend: str = "auto", load: str = "memory",
             stalls: dict | None = None, vcd: str | Path | None = None,
             progress: Callable[[int, int], None] | None = None,
             **overrides: int) -> SimulationReport:
    """Run real-valued inputs through the RTL and compare it with the integer reference.

    Parameters
    ----------
    network
        A compressed network or the path of an ``.ese`` file.
    inputs
        ``(n, in_features)``, or ``(n, ...)`` with as many elements; quantised to the network's
        input format.
    n_pes, **overrides
        Without `config`: the smallest engine of this many PEs that fits, and fields to fix.
    config
        The engine to use.
    backend
        ``"amaranth"``, ``"cxxrtl"``, ``"verilator"``, or ``"auto"``: CXXRTL where there is a C++
        compiler, else Amaranth's simulator.
    load
        ``"memory"``: the model is in the memories at power-up; ``"host"``: it is loaded through
        the host stream.
    stalls
        Stall patterns of the ports ``i_act`` and ``o_act``, see `openese.sim.streams`.
    vcd
        Write a waveform here.
    progress
        Called with outputs seen and outputs expected.

    Raises
    ------
    ValueError
        Inputs of another shape, an unknown backend, a network that does not fit (`FitError`) or
        whose file is bad (`EseFileError`).
    """
    if isinstance(network, str | Path):
        from openese.model.ese_file import load as load_file

        name, network = Path(network).name, load_file(network)
    else:
        name = network.layers[0].name
    x = np.asarray(inputs)
    if x.ndim < 2 or x[0].size != network.in_features:
        raise ValueError(
            f"inputs must have shape (n, {network.in_features}), not {x.shape}: give one row "
            f"per vector")
    x = x.reshape(len(x), -1)
    if config is None:
        config = size_for(network, n_pes, **overrides)
    quantised = quantise(network, config)
    raw, clipped = quantised.quantise_input(x)
    image = compile_network(quantised, config)
    report = run_engine(image, raw, run_reference(quantised, raw), backend=backend, load=load,
                        stalls=stalls, vcd=vcd, progress=progress)
    report.name, report.input_clipped = name, clipped
    return report


def run_engine(image: Image, raw: NDArray, reference: Reference, *, backend: str = "auto",
               load: str = "memory", stalls: dict | None = None, vcd: str | Path | None = None,
               progress: Callable[[int, int], None] | None = None) -> SimulationReport:
    """Run raw integer inputs ``(n, in_features)`` through the RTL; see `simulate`."""
    if load not in ("memory", "host"):
        raise ValueError(f'load must be "memory" or "host", not {load!r}')
    began = time.perf_counter()
    config = image.config
    engine = Engine(config, image if load == "memory" else None)
    lanes = engine.i_act.payload.shape()
    backend = choose_backend(backend)
    # No vector takes longer than all its entries in one PE one after the other.
    longest = 20_000 + 4 * image.entries
    with Simulation(engine, backend=backend, vcd=vcd) as simulation:
        def ask(register: host.Register) -> int:
            answer = simulation.run({"i_host": host.read(register)}, {"o_host": 1})
            return int(answer.outputs["o_host"][0])

        if ask(host.Register.SIGNATURE) != config.signature:
            raise RuntimeError("the engine under test has another configuration than the image")
        if load == "host":
            words = np.concatenate([host.load_words(image, config), host.start()])
            simulation.run({"i_host": words}, {})
        result = simulation.run(
            {"i_act": pack(lanes, host.pack_inputs(raw, config))},
            {"o_act": reference.outputs.size}, stalls=stalls, max_idle=longest,
            max_cycles=longest * (len(raw) + 1),
            progress=progress and (lambda _, done, wanted: progress(done, wanted)))
        saturations = ask(host.Register.SATURATIONS)

    beats = result.values("o_act")
    got = np.asarray(beats["data"], dtype=np.int64).reshape(reference.outputs.shape)
    wrong = got != reference.outputs
    # `last` marks exactly the final beat of each vector.
    last = np.asarray(beats["last"]).reshape(reference.outputs.shape)
    wrong |= last != (np.arange(last.shape[1]) == last.shape[1] - 1)
    ends = result.times["o_act"].reshape(reference.outputs.shape)[:, -1]
    cycles = int(ends[-1] - result.times["i_act"][0]) + 1
    entries = fillers = 0
    for table, activations in zip(image.layers, reference.activations, strict=True):
        active = np.count_nonzero(activations, axis=0)
        entries += int(table.lengths.sum(axis=0) @ active)
        fillers += int(table.fillers.sum(axis=0) @ active)
    first = tuple(map(int, np.argwhere(wrong)[0])) if wrong.any() else None
    return SimulationReport(
        name="", backend=backend, load=load, n_pes=config.n_pes, vectors=len(got),
        outputs=got.size, mismatches=int(wrong.sum()) + (saturations != reference.saturations),
        cycles=cycles,
        cycles_per_vector=float(np.diff(ends).mean()) if len(ends) > 1 else float(cycles),
        entries=entries, fillers=fillers,
        utilisation=(entries - fillers) / (config.n_pes * cycles),
        saturations=saturations, input_clipped=0, seconds=time.perf_counter() - began, raw=got,
        first_mismatch=first)
