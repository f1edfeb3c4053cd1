"""EIE's layers and ESE's at batch 1: the CPU at hand beside the engine's cycles at its clock."""

from collections.abc import Callable, Sequence

import numpy as np

from openese.model.compile import compile_network, size_for
from openese.model.config import EngineConfig
from openese.model.network import CompressedNetwork
from openese.model.quantise import quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import run_reference

from .bench_eie import LAYERS
from .bench_ese import INPUTS, ese_on_chip
from .cycle_model import predict_cycles
from .machine import usable_cores

__all__ = ["CPU_LAYERS", "ENGINE_MHZ", "bench_cpu"]

#: Clock of the engine in MHz where none is given: a round figure that 64 PEs reach on an LFE5U-85F
#: (102 MHz, the median of three seeds, docs/boards/ulx3s.md).
ENGINE_MHZ = 100

#: ESE's layer as it fits on chip, and EIE's layers.
CPU_LAYERS = ("ESE", *LAYERS)

#: Steps of ESE's layer: the first fills the pipeline, the last has no successor.
STEPS = 6


def bench_cpu(names: Sequence[str] = (), *, n_pes: int = 64, mhz: float = ENGINE_MHZ,
              threads: Sequence[int] | None = None, seconds: float = 0.4, seed: int = 1,
              progress: Callable[[str], None] = lambda name: None) -> list[dict]:
    """Time layers on the CPU, and predict their cycles on the engine by the cycle model, which is
    equal to the RTL in every cycle.

    ``"ESE"`` is a step of ESE's LSTM layer in steady state, as `ese_on_chip` has it. The others
    are EIE's layers with their densities of weights and activations; the CPU multiplies by zero
    activations as well.

    Parameters
    ----------
    names
        Of `CPU_LAYERS`; all by default.
    n_pes, mhz
        The engine.
    threads
        Of PyTorch: by default 1 and all cores.
    seconds
        Time for each way, see `openese.model.cpu_speed.cpu_times`.

    Returns
    -------
    One dict a layer: ``name``, ``weights`` (all), ``stored`` (not pruned), ``cpu`` (what
    `cpu_times` gives), ``cpu_us`` and ``cpu_best`` (the fastest of them and its name),
    ``cycles``, ``us`` (cycles / mhz) and ``speedup`` (cpu_us / us).

    Raises
    ------
    ValueError
        An unknown layer, or a clock or a number of threads that is not positive.
    """
    from openese.model.cpu_speed import cpu_times

    unknown = [name for name in names if name not in CPU_LAYERS]
    if unknown:
        raise ValueError(f"unknown layer {unknown[0]!r}; layers: {', '.join(CPU_LAYERS)}")
    if not mhz > 0:
        raise ValueError(f"the clock must be more than 0 MHz, not {mhz!r}")
    if threads is None:
        threads = (1, usable_cores())
    if min(threads) < 1:
        raise ValueError(f"threads must be 1 or more, not {min(threads)}")
    rows = []
    for name in names or CPU_LAYERS:
        progress(name)
        network, raw, cycles = _on_engine(name, n_pes, seed)
        (layer,) = network.layers
        x = np.ravel(raw)[:network.in_features] * 2.0 ** -network.in_frac
        measured = cpu_times(layer, x, threads=tuple(dict.fromkeys(threads)), seconds=seconds)
        best = min(measured, key=lambda way: way["us"])
        matrices = [layer] if name != "ESE" else list(layer.matrices.values())
        us = cycles / mhz
        rows.append({
            "name": name, "weights": sum(matrix.rows * matrix.cols for matrix in matrices),
            "stored": sum(matrix.nnz for matrix in matrices), "cpu": measured,
            "cpu_us": best["us"], "cpu_best": best["name"], "cycles": cycles, "us": us,
            "speedup": best["us"] / us})
        # Gone before the next layer is made: the largest takes gigabytes while it is.
        del network, layer, matrices
    return rows


def _on_engine(name: str, n_pes: int, seed: int) -> tuple[CompressedNetwork, np.ndarray, float]:
    """A layer, raw inputs for it, and the cycles of one."""
    if name != "ESE":
        paper = LAYERS[name]
        network = random_network(seed, [paper.inputs, paper.outputs], paper.weight_percent / 100)
        raw = random_inputs(seed, network, 1, paper.act_percent / 100)
        config = size_for(network, n_pes, entry_bits=10, queue_depth=16)
        return network, raw, _predict(network, config, raw).layers[0][0].cycles
    network, config = ese_on_chip(n_pes, seed)
    raw = np.random.default_rng(seed).integers(1, 1 << 14, (STEPS, INPUTS))
    return network, raw, float(_predict(network, config, raw).cycles[1:-1].mean())


def _predict(network: CompressedNetwork, config: EngineConfig, raw: np.ndarray):
    quantised = quantise(network, config)
    return predict_cycles(compile_network(quantised, config), run_reference(quantised, raw))
