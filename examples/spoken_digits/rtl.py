"""Run compressed spoken digits through the RTL, recording by recording, every bit compared.

States are set to zero before a recording. The model is in the engine's memories at power-up, and
one simulation runs all recordings, so what one leaves behind would show in the next.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from speech import named
from tqdm import tqdm

from openese.hdl.engine import Engine
from openese.model.compile import compile_network, size_for
from openese.model.ese_file import load
from openese.model.quantise import quantise
from openese.model.reference import run_reference, zero_state
from openese.model.spoken_digits import load_spoken_digits
from openese.sim.simulate import choose_backend, run_simulation
from openese.sim.simulation import Simulation


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("network", type=Path, help="an .ese file written by train.py")
    parser.add_argument("--pes", type=int, default=8)
    parser.add_argument("--recordings", type=int, help="the first of the split; else all")
    parser.add_argument("--reference", action="store_true",
                        help="run the integer reference alone, without RTL")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--data", help="your own digits.npz; else it is fetched")
    choice = parser.parse_args(arguments)
    network = load(choice.network)
    engine = size_for(network, choice.pes)
    integers = quantise(network, engine)
    for sentence in (line for layer in integers.layers for line in layer.adjustments):
        print(sentence)
    image = compile_network(integers, engine)
    digits = load_spoken_digits("test", choice.data)
    n = choice.recordings or len(digits.labels)
    zero = zero_state(integers)
    start = time.perf_counter()

    def run(simulation: Simulation | None) -> list[tuple]:
        results = []
        for k in tqdm(range(n), desc="recordings"):
            features = digits.features[k, :digits.lengths[k]]
            float_outputs = network.forward(features)
            raw, clipped = integers.quantise_input(features)
            reference = run_reference(integers, raw)
            report = simulation and run_simulation(simulation, image, raw, reference,
                                                   load="memory", state=zero)
            outputs = report.raw if report else reference.outputs
            errors = integers.dequantise_output(outputs) - float_outputs
            results.append((named(float_outputs), named(outputs), clipped, reference.saturations,
                            np.square(float_outputs).sum(), np.square(errors).sum(), report))
        return results

    if choice.reference:
        results = run(None)
    else:
        backend = choose_backend(choice.backend)
        with Simulation(Engine(engine, image), backend=backend) as simulation:
            results = run(simulation)
    in_float, in_integers, clipped, saturated, power, error, reports = map(
        list, zip(*results, strict=True))
    labels = digits.labels[:n]
    frames = int(digits.lengths[:n].sum())
    print(f"{choice.network.name}: {n} recordings, {frames:,} frames; right: float64 of the file "
          f"{100 * np.mean(labels == in_float):.1f} %, integers "
          f"{100 * np.mean(labels == in_integers):.1f} %; "
          f"SNR {10 * np.log10(sum(power) / sum(error)):.1f} dB, {sum(clipped)} inputs clipped, "
          f"{sum(saturated)} values saturated")
    if choice.reference:
        return 0
    mismatches = sum(report.mismatches for report in reports)
    outputs = sum(report.outputs for report in reports)
    cycles = sum(report.cycles for report in reports)
    entries = sum(report.entries for report in reports)
    fillers = sum(report.fillers for report in reports)
    print(f"RTL ({backend}, {choice.pes} PEs): {mismatches} mismatches in {outputs:,} outputs and "
          f"the final states; {cycles / frames:.0f} cycles a frame, {entries / frames:.0f} entries "
          f"of which {fillers / frames:.0f} fillers, utilisation "
          f"{(entries - fillers) / cycles / choice.pes:.1%}; "
          f"{time.perf_counter() - start:.0f} s")
    return 1 if mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
