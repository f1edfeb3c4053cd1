"""Run a compressed network on the engine's RTL and compare every bit with the reference."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openese.hdl.engine import Engine
from openese.hdl.layouts import act_signature
from openese.model import host
from openese.model.compile import Image, compile_network, size_for
from openese.model.config import EngineConfig
from openese.model.network import CompressedNetwork
from openese.model.quantise import QuantisedNetwork, quantise
from openese.model.reference import Reference, State, run_reference
from openese.model.stages import Stage, split_stages

from .compiler import NoCompilerError, find_compiler
from .simulation import Simulation
from .streams import pack

__all__ = ["SimulationReport", "choose_backend", "quantise_alike", "run_engine", "run_simulation",
           "simulate"]


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
        int64 ``(vectors, out_features)``, or ``(vectors, channels, out_features)``: outputs of the
        RTL.
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
        input format. For a network with recurrent layers, the steps of one sequence, or
        ``(steps, channels, in_features)`` for several side by side; states start at 0.
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
    if network.recurrent:
        if x.ndim not in (2, 3) or x.shape[-1] != network.in_features:
            raise ValueError(
                f"inputs must have shape (steps, {network.in_features}), or (steps, channels, "
                f"{network.in_features}), not {x.shape}")
    else:
        if x.ndim < 2 or x[0].size != network.in_features:
            raise ValueError(
                f"inputs must have shape (n, {network.in_features}), not {x.shape}: give one row "
                f"per vector")
        x = x.reshape(len(x), -1)
    stages = split_stages(network)
    if network.recurrent and x.ndim == 3:
        overrides.setdefault("channels", x.shape[1])
    if vcd is not None and (len(stages) > 1 or len(stages[0].networks) > 1):
        raise ValueError("a waveform of a network with bidirectional layers would be several: "
                         "simulate its directions one by one")
    reports, raw, clipped, frac = [], None, 0, network.in_frac
    for stage in stages:
        if raw is not None:
            stage = stage.with_in_frac(frac)
        runs, frac = quantise_alike(stage, config, n_pes, **overrides)
        if raw is None:
            raw, clipped = runs[0][0].quantise_input(x)
        outputs = []
        for run, (quantised, engine) in enumerate(runs):
            steps = stage.directed(run, raw)
            report = run_engine(
                compile_network(quantised, engine), steps, run_reference(quantised, steps),
                backend=backend, load=load, stalls=stalls, vcd=vcd, progress=progress)
            outputs.append(report.raw)
            reports.append(report)
        raw = stage.joined(outputs)
    report = _joined(reports, raw)
    report.name, report.input_clipped = name, clipped
    return report


def quantise_alike(stage: Stage, config: EngineConfig | None, n_pes: int = 8, **overrides: int
                   ) -> tuple[list[tuple[QuantisedNetwork, EngineConfig]], int]:
    """The networks of a stage, quantised to one output format, with the engines that run them.

    Output formats of the stage's networks are lowered where they differ. Also returns the binary
    point of the outputs. `config`, `n_pes`, `overrides`: as of `simulate`.
    """
    networks = list(stage.networks)
    while True:
        engines = [config or size_for(network, n_pes, **overrides) for network in networks]
        runs = [(quantise(network, engine), engine)
                for network, engine in zip(networks, engines, strict=True)]
        frac = min(quantised.out_frac for quantised, _ in runs)
        if all(quantised.out_frac == frac for quantised, _ in runs):
            return runs, frac
        # Quantising can only have lowered one of them; the other follows.
        for network in networks:
            network.layers[-1] = replace(network.layers[-1], out_frac=frac)


def _joined(reports: list[SimulationReport], raw: NDArray) -> SimulationReport:
    """The report of runs one after the other."""
    if len(reports) == 1:
        return reports[0]
    total = {field_: sum(getattr(report, field_) for report in reports) for field_ in (
        "outputs", "mismatches", "cycles", "cycles_per_vector", "entries", "fillers",
        "saturations", "seconds")}
    last = reports[-1]
    return replace(last, **total, raw=raw, utilisation=(
        (total["entries"] - total["fillers"]) / (last.n_pes * total["cycles"])))


def run_engine(image: Image, raw: NDArray, reference: Reference, *, backend: str = "auto",
               load: str = "memory", stalls: dict | None = None, vcd: str | Path | None = None,
               state: State | None = None, active: NDArray | None = None,
               progress: Callable[[int, int], None] | None = None) -> SimulationReport:
    """Run raw integer inputs through the RTL; see `simulate`.

    Parameters
    ----------
    raw
        ``(n, in_features)``, or ``(n, channels, in_features)`` for an engine with channels; the
        steps of a sequence where layers are recurrent.
    reference
        Of the same inputs, state and active channels. The state that recurrent layers end with is
        read back and compared as well.
    state, active
        As of `run_reference`.
    """
    if load not in ("memory", "host"):
        raise ValueError(f'load must be "memory" or "host", not {load!r}')
    backend = choose_backend(backend)
    began = time.perf_counter()
    engine = Engine(image.config, image if load == "memory" else None)
    with Simulation(engine, backend=backend, vcd=vcd) as simulation:
        report = run_simulation(simulation, image, raw, reference, load=load, stalls=stalls,
                                state=state, active=active, progress=progress)
    report.backend, report.seconds = backend, time.perf_counter() - began
    return report


def run_simulation(simulation: Simulation, image: Image, raw: NDArray, reference: Reference, *,
                   load: str = "host", stalls: dict | None = None, state: State | None = None,
                   active: NDArray | None = None,
                   progress: Callable[[int, int], None] | None = None) -> SimulationReport:
    """Run a model on an engine that is being simulated already; see `run_engine`.

    With `load` = ``"host"`` whatever the engine did before does not matter.
    """
    began = time.perf_counter()
    config = image.config
    lanes = act_signature(config).members["payload"].shape
    # No vector takes longer than all its entries in one PE one after the other.
    longest = 20_000 + 4 * image.entries

    def ask(register: host.Register) -> int:
        answer = simulation.run({"i_host": host.read(register)}, {"o_host": 1})
        return int(answer.outputs["o_host"][0])

    if ask(host.Register.SIGNATURE) != config.signature:
        raise RuntimeError("the engine under test has another configuration than the image")
    before = [host.load_words(image, config)] if load == "host" else []
    if state is not None:
        before.append(host.load_state(image, state))
    if before:
        simulation.run({"i_host": np.concatenate([*before, host.start()])}, {},
                       max_idle=longest)
    earlier = ask(host.Register.SATURATIONS)
    result = simulation.run(
        {"i_act": pack(lanes, host.pack_inputs(raw, config, active))},
        {"o_act": reference.outputs.size // config.channels}, stalls=stalls, max_idle=longest,
        max_cycles=longest * (len(raw) + 1),
        progress=progress and (lambda _, done, wanted: progress(done, wanted)))
    saturations = ask(host.Register.SATURATIONS) - earlier
    state_wrong = 0
    if image.dump is not None:
        expected = host.dumped(image, reference.state)
        words = np.concatenate([host.stop(), host.call(image.dump)])
        dump = simulation.run({"i_host": words}, {"o_act": len(expected)}, max_idle=longest)
        state_wrong = int(np.count_nonzero(dump.values("o_act")["data"] != expected))

    beats = result.values("o_act")
    # A beat has an output of every channel.
    got = np.asarray(beats["data"], dtype=np.int64).reshape(len(raw), -1, config.channels)
    got = got.transpose(0, 2, 1).reshape(reference.outputs.shape)
    wrong = got != reference.outputs
    # `last` marks exactly the final beat of each vector.
    last = np.asarray(beats["last"]).reshape(len(raw), -1)
    last_wrong = last != (np.arange(last.shape[1]) == last.shape[1] - 1)
    wrong |= last_wrong if wrong.ndim == 2 else last_wrong[:, None]
    ends = result.times["o_act"].reshape(last.shape)[:, -1]
    cycles = int(ends[-1] - result.times["i_act"][0]) + 1
    entries = fillers = 0
    for table, activations in zip(image.layers, reference.activations, strict=True):
        # A column is read once for all channels, and without pointers whatever its activations.
        broadcast = (activations != 0).any(axis=1) | (not config.pointers)
        columns = np.count_nonzero(broadcast, axis=0)
        entries += int(table.lengths.sum(axis=0) @ columns)
        fillers += int(table.fillers.sum(axis=0) @ columns)
    first = tuple(map(int, np.argwhere(wrong)[0])) if wrong.any() else None
    return SimulationReport(
        name="", backend="", load=load, n_pes=config.n_pes, vectors=len(got),
        outputs=got.size, mismatches=int(wrong.sum()) + state_wrong + (
            saturations != reference.saturations),
        cycles=cycles,
        cycles_per_vector=float(np.diff(ends).mean()) if len(ends) > 1 else float(cycles),
        entries=entries, fillers=fillers,
        utilisation=(entries - fillers) / (config.n_pes * cycles),
        saturations=saturations, input_clipped=0, seconds=time.perf_counter() - began, raw=got,
        first_mismatch=first)
