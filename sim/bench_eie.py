"""EIE's nine benchmark layers on the engine's RTL, beside the paper's own times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from openese.hdl.engine import Engine
from openese.model import host
from openese.model.compile import Image, compile_network, size_for
from openese.model.config import EngineConfig
from openese.model.program import instruction_bits
from openese.model.quantise import quantise
from openese.model.random_network import random_inputs, random_network
from openese.model.reference import run_reference

from .cycle_model import predict_cycles
from .simulation import Simulation
from .streams import pack

__all__ = ["EIE_MHZ", "LAYERS", "PaperLayer", "bench_eie"]

#: Clock of EIE in 45 nm (ISCA 2016, section VI).
EIE_MHZ = 800


@dataclass(frozen=True)
class PaperLayer:
    """A row of EIE's Table III and its batch-1 times on 64 PEs from Table IV.

    Parameters
    ----------
    inputs, outputs
        Size of the matrix.
    weight_percent, act_percent
        Density of weights and of activations.
    theoretical_us, actual_us
        The paper's times.
    """

    inputs: int
    outputs: int
    weight_percent: float
    act_percent: float
    theoretical_us: float
    actual_us: float


LAYERS = {
    "Alex-6": PaperLayer(9216, 4096, 9, 35.1, 28.1, 30.3),
    "Alex-7": PaperLayer(4096, 4096, 9, 35.3, 11.7, 12.2),
    "Alex-8": PaperLayer(4096, 1000, 25, 37.5, 8.9, 9.9),
    "VGG-6": PaperLayer(25088, 4096, 4, 18.3, 28.1, 34.4),
    "VGG-7": PaperLayer(4096, 4096, 4, 37.5, 7.9, 8.7),
    "VGG-8": PaperLayer(4096, 1000, 23, 41.1, 7.3, 8.4),
    "NT-We": PaperLayer(4096, 600, 10, 100, 5.2, 8.0),
    "NT-Wd": PaperLayer(600, 8791, 11, 100, 13.0, 13.9),
    "NT-LSTM": PaperLayer(1201, 2400, 10, 100, 6.5, 7.5),
}


def bench_eie(names: Sequence[str] = (), *, n_pes: int = 64, entry_bits: int = 10,
              queue_depth: int = 16, backend: str = "cxxrtl", seed: int = 1,
              progress: Callable[[str], None] = lambda name: None) -> list[dict]:
    """Run EIE's layers through the RTL: random matrices of the paper's sizes and densities.

    One engine holds the largest layer, so it is compiled once. Cycles are those of the layer
    itself, activations in the PEs before and after, as in the paper: scan, matrix, write-back.

    Returns
    -------
    One dict a layer: ``name``, ``entries``, ``fillers``, ``useful``, ``cycles`` (measured in RTL),
    ``predicted_cycles`` (cycle model), ``utilisation``, ``us`` at 800 MHz, the paper's
    ``eie_theoretical_us`` and ``eie_us``, ``eie_utilisation`` (useful / (PEs x 800 MHz x its
    time)), ``speedup``, ``outputs`` compared and ``mismatches``.

    Raises
    ------
    ValueError
        An unknown layer.
    """
    unknown = [name for name in names if name not in LAYERS]
    if unknown:
        raise ValueError(f"unknown layer {unknown[0]!r}; layers: {', '.join(LAYERS)}")
    chosen = {name: LAYERS[name] for name in names or LAYERS}
    networks, quantised, sizes = {}, {}, []
    for name, layer in chosen.items():
        networks[name] = random_network(
            seed, [layer.inputs, layer.outputs], layer.weight_percent / 100)
        config = size_for(networks[name], n_pes, entry_bits=entry_bits, queue_depth=queue_depth)
        quantised[name] = quantise(networks[name], config)
        sizes.append(config)
    config = sizes[0].with_(**{
        field: max(getattr(size, field) for size in sizes)
        for field in ("spmat_depth", "ptr_depth", "bias_depth", "act_depth", "acc_depth")})

    rows: list[dict] = []
    engine = Engine(config)
    lanes = engine.i_act.payload.shape()
    with Simulation(engine, backend=backend) as simulation:
        for name, layer in chosen.items():
            progress(name)
            inputs = random_inputs(seed, networks[name], 1, layer.act_percent / 100)
            image = compile_network(quantised[name], config)
            reference = run_reference(quantised[name], inputs)
            simulation.reset()
            _fill(simulation, image)
            result = simulation.run(
                {"i_act": pack(lanes, host.pack_inputs(inputs, config))},
                {"o_act": layer.outputs}, max_idle=1_000_000)
            start = int(result.times["i_act"][-1]) + 1
            cycles = int(result.times["o_act"][0]) - start - config.scan_latency
            predicted = predict_cycles(image, reference).layers[0][0]
            rows.append(_row(name, layer, config, cycles, predicted, int(np.count_nonzero(
                result.values("o_act")["data"][:, 0] != reference.outputs[0]))))
    return rows


def _fill(simulation: Simulation, image: Image) -> None:
    """Put a model into the memories; through the host stream the large ones would take minutes."""
    config = image.config
    for pe in range(config.n_pes):
        simulation.write_memory(f"cluster_{pe // 8}.pe_{pe % 8}.spmat_read.words", image.spmat[pe])
        simulation.write_memory(f"cluster_{pe // 8}.pe_{pe % 8}.ptr_read.words", image.ptr[pe])
        simulation.write_memory(f"cluster_{pe // 8}.pe_{pe % 8}.write_back.biases", image.bias[pe])
    simulation.run({"i_host": np.concatenate([
        host.load(host.Target.CODEBOOK, image.codebook, config.weight_bits),
        host.load(host.Target.PROGRAM, image.program, instruction_bits(config)),
        host.load(host.Target.REGISTER, [image.in_rows, *image.in_base], 32),
        host.start(),
    ])})


def _row(name: str, layer: PaperLayer, config: EngineConfig, cycles: int, predicted,
         mismatches: int) -> dict:
    us = cycles / EIE_MHZ
    return {
        "name": name, "entries": predicted.entries, "fillers": predicted.fillers,
        "useful": predicted.useful, "cycles": cycles, "predicted_cycles": predicted.cycles,
        "utilisation": predicted.useful / (config.n_pes * cycles), "us": us,
        "eie_theoretical_us": layer.theoretical_us, "eie_us": layer.actual_us,
        "eie_utilisation": predicted.useful / (config.n_pes * EIE_MHZ * layer.actual_us),
        "speedup": layer.actual_us / us, "outputs": layer.outputs, "mismatches": mismatches,
    }
