"""Additions per second of the trained adder: PyTorch, NumPy, C++ on this CPU, and the accelerator.

Every program computes the network of the compressed file in float32 and must get every sum that
it is timed on right. "One by one" means that an addition starts when the one before is finished,
as on the accelerator; "all at once" gives PyTorch all 65,536 additions as one batch.

The accelerator's cycles are measured in its RTL, from the host's words that zero the state to the
last bit of the sum, and every bit is compared with the reference. Its clock is assumed: 100 MHz,
about that of the routed 16-PE engine for the ULX3S (this engine has not been routed).
"""

import argparse
import ctypes
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from adder import BITS, HIDDEN, Adder, Weights, all_sums, number_of
from numpy.typing import NDArray

from openese.hdl.engine import Engine
from openese.model import host
from openese.model.compile import compile_network, size_for
from openese.model.compress import load_into
from openese.model.ese_file import load
from openese.model.quantise import quantise
from openese.model.reference import run_reference
from openese.sim.compiler import find_compiler
from openese.sim.simulation import Simulation
from openese.sim.streams import pack

HERE = Path(__file__).parent
ROUNDS = 7
MHZ = 100

Program = Callable[[], NDArray]


def torch_one_by_one(model: Adder, x: NDArray, n: int) -> Program:
    inputs = torch.from_numpy(np.ascontiguousarray(x[:, :n].swapaxes(0, 1)))

    @torch.inference_mode()
    def run() -> NDArray:
        return number_of(np.stack([model(one)[:, 0].numpy() > 0 for one in inputs], axis=1))
    return run


def torch_all_at_once(model: Adder, x: NDArray) -> Program:
    inputs = torch.from_numpy(x)

    @torch.inference_mode()
    def run() -> NDArray:
        return number_of(model(inputs)[:, :, 0].numpy() > 0)
    return run


def numpy_one_by_one(weights: Weights, x: NDArray, n: int) -> Program:
    def run() -> NDArray:
        sums = np.zeros(n, dtype=np.int64)
        for k in range(n):
            h = np.zeros(HIDDEN, dtype=np.float32)
            for bit in range(BITS):
                h = np.tanh(weights.w_ih @ x[bit, k] + weights.w_hh @ h + weights.b)
                sums[k] |= int(weights.w_out @ h + weights.b_out[0] > 0) << bit
        return sums
    return run


def cpp_one_by_one(weights: Weights, folder: Path) -> Program:
    """All 65,536 additions, by ``loop.cpp``."""
    compiler = find_compiler()
    library = folder / "loop.so"
    compiler.build([HERE / "loop.cpp"], library, ["-O3", "-march=native", "-ffast-math"])
    add = ctypes.CDLL(str(library)).add
    arrays = [np.ascontiguousarray(array) for array in vars(weights).values()]
    arrays += [part.astype(np.uint8) for part in np.divmod(np.arange(1 << 2 * BITS), 1 << BITS)]

    def run() -> NDArray:
        sums = np.empty(1 << 2 * BITS, dtype=np.uint8)
        add(*(ctypes.c_void_p(array.ctypes.data) for array in (*arrays, sums)),
            ctypes.c_size_t(len(sums)))
        return sums
    return run


def accelerator(path: Path, x: NDArray, expected: NDArray, channels: int) -> float:
    """Cycles of an addition on 8 PEs; `channels` of them go on side by side."""
    network = load(path)
    config = size_for(network, 8, channels=channels)
    quantised = quantise(network, config)
    image = compile_network(quantised, config)
    engine = Engine(config, image)
    shape = engine.i_act.payload.shape()
    first = last = None
    with Simulation(engine, backend="cxxrtl") as simulation:
        for start in range(0, len(expected), channels):
            part = x[:, start:start + channels]
            raw, _ = quantised.quantise_input(part)
            reference = run_reference(quantised, raw)
            begun = simulation.run(
                {"i_host": np.concatenate([host.reset_state(image), host.start()])})
            active = None if channels == 1 else np.ones(part.shape[:2], dtype=bool)
            result = simulation.run(
                {"i_act": pack(shape, host.pack_inputs(raw, config, active))}, {"o_act": BITS})
            got = np.asarray(result.values("o_act")["data"])
            if not np.array_equal(got, reference.outputs[:, :, 0]):
                raise SystemExit("the RTL differs from the reference")
            if not np.array_equal(number_of(got > 0), expected[start:start + channels]):
                raise SystemExit("a sum is wrong")
            first = int(begun.times["i_host"][0]) if first is None else first
            last = int(result.times["o_act"][-1])
    return (last + 1 - first) / len(expected)


def per_second(program: Program, expected: NDArray, rounds: int) -> float:
    """Additions per second: the median of `rounds` runs, after one that is not timed."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        sums = program()
        times.append(time.perf_counter() - start)
        if not np.array_equal(sums, expected):
            raise SystemExit(f"{np.count_nonzero(sums != expected)} sums are wrong")
    return len(expected) / statistics.median(times[1:])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("network", nargs="?", type=Path, default=HERE / "binary_adder.ese")
    parser.add_argument("--additions", type=int, default=2000,
                        help="of a round of PyTorch and NumPy, one by one")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 32],
                        help="additions side by side in the accelerator")
    choice = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = Adder()
    load_into(model, load(choice.network))
    weights = Weights.of(model)
    x, sums = all_sums()
    # Spread over all pairs.
    some = np.linspace(0, len(sums) - 1, choice.additions).astype(np.int64)
    with tempfile.TemporaryDirectory() as folder:
        programs = {
            "PyTorch, one by one": (torch_one_by_one(model, x[:, some], len(some)), sums[some]),
            "PyTorch, all at once": (torch_all_at_once(model, x), sums),
            "NumPy loop, one by one": (numpy_one_by_one(weights, x[:, some], len(some)),
                                       sums[some]),
            "C++ loop, one by one": (cpp_one_by_one(weights, Path(folder)), sums),
        }
        print(f"{platform.machine()}, one thread, PyTorch {torch.__version__}, NumPy "
              f"{np.__version__}, {find_compiler().version}; median of {choice.rounds} rounds\n")
        print("| program | additions a round | additions / s |\n|---|---|---|")
        for name, (program, expected) in programs.items():
            speed = per_second(program, expected, choice.rounds)
            print(f"| {name} | {len(expected):,} | {speed:,.0f} |", flush=True)
    for channels in choice.channels:
        chosen = some[:4 * channels]
        cycles = accelerator(choice.network, x[:, chosen], sums[chosen], channels)
        print(f"| accelerator, 8 PEs, {channels} at a time, {cycles:.1f} cycles each, at {MHZ} MHz "
              f"| {len(chosen)} | {MHZ * 1e6 / cycles:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
