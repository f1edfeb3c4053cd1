"""ESE's LSTM layer on the engine's RTL, beside the paper's table."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from openese.hdl.engine import Engine
from openese.model import host
from openese.model.compile import compile_network, size_for
from openese.model.config import EngineConfig
from openese.model.matrix import CompressedMatrix, FixedMatrix
from openese.model.network import CompressedNetwork, CompressedRecurrent
from openese.model.quantise import quantise
from openese.model.reference import run_reference

from .simulation import Simulation
from .streams import pack

__all__ = ["ESE_CYCLES", "ESE_MHZ", "ESE_PES", "bench_ese", "ese_layer",
           "ese_machine", "ese_on_chip"]

#: Clock, PEs of a channel, and cycles of a step of 32 channels (FPGA 2017, 82.7 us).
ESE_MHZ, ESE_PES, ESE_CYCLES = 200, 32, 16540

#: Inputs, cells and outputs of the layer, and the stored weights of its matrices, in percent: the
#: paper's table, whose entries include padding.
INPUTS, CELLS, OUTPUTS = 153, 1024, 512
DENSITY = {"w_ih": 11.675, "w_hh": 11.375, "w_hr": 10.0}


def ese_layer(seed: int = 1, *, weights: str = "linear", density: float | None = None,
              balanced_for: int = 64) -> CompressedNetwork:
    """The layer with random weights, as load-balance-aware pruning leaves them.

    Parameters
    ----------
    seed
        Equal arguments give equal layers.
    weights
        ``"linear"``: 12-bit integers; ``"shared"``: a codebook of 16 values.
    density
        Of all matrices, 0 to 1. ``None``: the paper's, matrix by matrix.
    balanced_for
        PEs among which each matrix has equally many weights; also balances any divisor. 0: not
        balanced, every weight is kept with equal probability.

    Raises
    ------
    ValueError
        Unknown `weights`.
    """
    if weights not in ("linear", "shared"):
        raise ValueError(f'weights must be "linear" or "shared", not {weights!r}')
    rng = np.random.default_rng(seed)

    def matrix(name: str, rows: int, cols: int, units: int):
        share = DENSITY[name] / 100 if density is None else density
        keep = _kept(rng, rows, cols, units, share, balanced_for)
        scale = 1 / np.sqrt(share * cols)
        if weights == "linear":
            raw = rng.integers(1, 2048, (rows, cols)) * rng.choice([-1, 1], (rows, cols))
            frac = int(np.floor(np.log2(2047 / (2 * scale))))
            return FixedMatrix.from_raw(raw * keep, 12, frac)
        codebook = np.concatenate([[0], rng.uniform(0.2, 1.5, 15) * rng.choice([-1, 1], 15)])
        codes = rng.integers(1, 16, (rows, cols)) * keep
        return CompressedMatrix.from_codes(codes, (codebook * scale).astype(np.float32))

    layer = CompressedRecurrent(
        "lstm.l0", "lstm", INPUTS, CELLS, matrix("w_ih", 4 * CELLS, INPUTS, CELLS),
        matrix("w_hh", 4 * CELLS, OUTPUTS, CELLS), matrix("w_hr", OUTPUTS, CELLS, OUTPUTS),
        bias=rng.normal(0, 0.3, 4 * CELLS), peephole=rng.normal(0, 0.2, (3, CELLS)),
        out_frac=14, cell_frac=11)
    return CompressedNetwork([layer], in_frac=13, meta={"seed": seed})


def ese_on_chip(n_pes: int = 64, seed: int = 1, **fields) -> tuple[CompressedNetwork, EngineConfig]:
    """The layer as an FPGA can hold it, and the engine that does: 10 % of the weights, codes of 4
    bits, codebooks of 12, no pointers, 9 bits an entry. 64 PEs are those of preset ``ese-85f``.

    Parameters
    ----------
    n_pes, **fields
        Of the engine.
    seed
        Of the weights.
    """
    network = ese_layer(seed, weights="shared", density=0.10, balanced_for=n_pes)
    fields = {"entry_bits": 9, "queue_depth": 10, "pointers": False, "weight_bits": 12,
              "acc_bits": 28, "shift_bits": 2} | fields
    return network, size_for(network, n_pes, **fields)


def ese_machine(n_pes: int = ESE_PES, channels: int = 32) -> EngineConfig:
    """ESE's own engine by our blocks: 32 PEs for each of 32 voice streams, weights of 12 bits
    beside an index of 5, memories for the whole layer.

    Parameters
    ----------
    n_pes, channels
        Of the engine. ESE's 1,024 PEs are those of all channels.
    """
    return size_for(ese_layer(balanced_for=n_pes), n_pes, channels=channels, entry_bits=17)


def _kept(rng: np.random.Generator, rows: int, cols: int, units: int, share: float,
          balanced_for: int) -> NDArray[np.bool_]:
    """Which weights are stored; row ``r`` belongs to unit ``r % units``."""
    score = rng.random((rows, cols))
    if not balanced_for:
        return score < share
    keep = np.zeros((rows, cols), dtype=bool)
    for pe in range(balanced_for):
        own = np.flatnonzero(np.arange(rows) % units % balanced_for == pe)
        part = score[own]
        bound = np.partition(part.ravel(), round(share * part.size))[round(share * part.size)]
        keep[own] = part < bound
    return keep


def bench_ese(pes: tuple[int, ...] = (32, 64), channels: tuple[int, ...] = (1,), *,
              steps: int = 20, entry_bits: int = 17, pointers: bool = True,
              weights: str = "linear", balanced: bool = True, queue_depth: int = 56,
              backend: str = "cxxrtl", seed: int = 1,
              progress: Callable[[str], None] = lambda name: None) -> list[dict]:
    """Run ESE's layer through the RTL in steady state, 12-bit weights beside a 5-bit index.

    Inputs are random and none is zero. The first step fills the pipeline, and in the last there is
    no next input to run ahead with: neither is counted.

    Returns
    -------
    One dict for every number of PEs and channels: ``name``, ``entries`` and ``fillers`` of a step,
    ``cycles`` of a step (measured between outputs), ``ratio`` (cycles / (entries / PEs)),
    ``utilisation`` (useful multiplies / (PEs x cycles)), ``exposed`` (cycles of a step in which
    only the element-wise unit worked, in percent), ``us`` at ESE's clock, ``ese_cycles``,
    ``speedup`` (ESE's cycles for 32 PEs / ours x 32 / PEs: at equal PEs), ``outputs``,
    ``mismatches`` and ``seconds``.
    """
    rows = []
    for n_pes in pes:
        for count in channels:
            name = f"{n_pes} PEs, {count} channel{'s' if count > 1 else ''}"
            progress(name)
            network = ese_layer(seed, weights=weights, balanced_for=max(pes) if balanced else 0)
            rows.append({"name": name} | _run(
                network, n_pes, count, steps, backend, seed, entry_bits=entry_bits,
                pointers=pointers, queue_depth=queue_depth))
    return rows


def _run(network: CompressedNetwork, n_pes: int, channels: int, steps: int, backend: str,
         seed: int, **fields) -> dict:
    config = size_for(network, n_pes, channels=channels, **fields)
    quantised = quantise(network, config)
    image = compile_network(quantised, config)
    rng = np.random.default_rng(seed)
    raw = rng.integers(1, 1 << (config.act_bits - 2), (steps + 2, channels, INPUTS))
    raw *= rng.choice([-1, 1], raw.shape)
    reference = run_reference(quantised, raw)
    began = time.perf_counter()
    engine = Engine(config, image)
    with Simulation(engine, backend=backend) as simulation:
        result = simulation.run(
            {"i_act": pack(engine.i_act.payload.shape(), host.pack_inputs(raw, config))},
            {"o_act": OUTPUTS * (steps + 2)}, max_idle=1_000_000)
        exposed = simulation.run({"i_host": host.read(host.Register.EXPOSED)}, {"o_host": 1})
    seconds = time.perf_counter() - began
    got = np.asarray(result.values("o_act")["data"]).reshape(steps + 2, OUTPUTS, channels)
    mismatches = int(np.count_nonzero(got.transpose(0, 2, 1) != reference.outputs))
    ends = result.times["o_act"].reshape(steps + 2, OUTPUTS)[:, -1]
    cycles = float(ends[-2] - ends[0]) / steps
    entries = fillers = 0.0
    for table, activations in zip(image.layers, reference.activations, strict=True):
        broadcast = (activations[1:-1] != 0).any(axis=1) | (not config.pointers)
        columns = np.count_nonzero(broadcast, axis=0) / steps
        entries += float(table.lengths.sum(axis=0) @ columns)
        fillers += float(table.fillers.sum(axis=0) @ columns)
    return {
        "n_pes": n_pes, "channels": channels, "entries": round(entries), "fillers": round(fillers),
        "cycles": cycles, "ratio": cycles * n_pes / entries,
        "utilisation": (entries - fillers) / (n_pes * cycles),
        "exposed": 100 * int(exposed.outputs["o_host"][0]) / (steps + 2) / cycles,
        "us": cycles / ESE_MHZ, "ese_cycles": ESE_CYCLES,
        "speedup": ESE_CYCLES * ESE_PES / (cycles * n_pes), "outputs": got.size,
        "mismatches": mismatches, "seconds": seconds,
    }
