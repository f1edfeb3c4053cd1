"""What the commands do. Each takes parsed options and returns a `Result`."""

import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

__all__ = ["Result", "bench", "build", "compress", "demo", "inspect", "simulate", "verilog"]

#: What ships with the package.
DATA = Path(__file__).with_name("data")

#: Digits that the demonstration runs on Amaranth's own simulator: some 1,200 cycles per second.
SLOW_DEMO_DIGITS = 4


@dataclass
class Result:
    """Outcome of a command: one JSON object, its text, and whether the promise held."""

    data: dict
    text: str
    held: bool = True


def demo(options: Namespace) -> Result:
    """Shipped model, shipped digits, bit for bit."""
    from openese.model.ese_file import load
    from openese.model.mnist import scale_pixels
    from openese.sim.simulate import choose_backend

    backend = choose_backend(options.backend)
    limit = _checked_limit(options.limit)
    if limit is None and backend == "amaranth":
        limit = SLOW_DEMO_DIGITS
    with np.load(DATA / "mnist_256.npz", allow_pickle=False) as digits:
        x, y = digits["images"][:limit], digits["labels"][:limit]
    network = load(DATA / "lenet_300_100.ese")
    result = _simulate(network, "lenet_300_100.ese", scale_pixels(x), y, options, backend)
    if backend == "amaranth":
        result.text += (
            "\n\nThis was Amaranth's own simulator. With a C++ compiler (a system one, or `pip "
            "install ziglang`) the compiled simulator runs all digits in seconds.")
    return result


def compress(options: Namespace) -> Result:
    """From a trained model, or by a recipe, to an `.ese` file."""
    from openese.model.compress import compress as run
    from openese.model.compress import compress_weights
    from openese.model.ese_file import save
    from openese.model.report import format_report, network_report
    from openese.model.user_code import import_model, load_weights

    if options.recipe:
        return _compress_by_recipe(options)
    missing = [text for text, value in (
        ("a model", options.model), ("-o", options.output),
        ("--calibration (or --weights-only)", options.calibration or options.weights_only))
        if not value]
    if missing:
        raise ValueError(f"needs {' and '.join(missing)}, or a --recipe")
    if options.weights_only and options.calibration:
        raise ValueError("--weights-only makes no network for an engine and needs no --calibration")
    _check_folder(options.output)
    model = import_model(options.model)
    if options.weights:
        load_weights(model, Path(options.weights))
    how = {"density": options.density, "quality": options.quality, "init": options.init or "linear",
           "code_bits": 4 if options.code_bits is None else options.code_bits,
           "bias_bits": options.bias_bits}
    if options.weights_only:
        network = compress_weights(model, **how)
    else:
        x, _ = _read_inputs(Path(options.calibration), None)
        network = run(model, calibration=x.astype(np.float32), **how)
    save(options.output, network)
    report = network_report(network)
    return Result({"output": options.output, **report},
                  f"{format_report(report)}\n\nwritten: {options.output}")


def _compress_by_recipe(options: Namespace) -> Result:
    from openese.model.recipe import read_recipe, run_recipe

    others = ("model", "weights", "calibration", "density", "quality", "code_bits", "bias_bits",
              "init", "weights_only")
    # 0 is a value given, and equal to False.
    given = [name for name in others if not any(getattr(options, name) is unset
                                                for unset in (None, False))]
    if given:
        raise ValueError(f"--recipe says everything but -o; leave out "
                         f"{', '.join(name.replace('_', '-') for name in given)}")
    result = run_recipe(read_recipe(options.recipe), output=options.output)
    return Result(result.data, result.text)


def inspect(options: Namespace) -> Result:
    """The papers' table, and what fits where."""
    from openese.model.ese_file import load
    from openese.model.report import format_report, network_report
    from openese.model.state import CompressedModel

    network = load(options.model)
    report = network_report(network)
    lines = [format_report(report), ""]
    if isinstance(network, CompressedModel):
        fits = []
        lines.append("the state of a model: no engine runs it; openese.load_into puts it into its "
                     "PyTorch module")
    else:
        fits = _preset_rows(network)
        lines.append("engine presets:")
    for row in fits:
        lines.append(f"  {row['name']:<12}{row['pes']:>4} PEs  " + (
            f"fits: {row['entries']:,} entries, {row['fillers']:,} of them fillers; fullest PE "
            f"{row['fullest_pe']:,}, {row['balance']:.2f} x mean" if row["fits"]
            else row["reason"]))
    meta = {str(k): v for k, v in network.meta.items()}
    if meta:
        lines += ["", "about: " + ", ".join(f"{k} {v}" for k, v in meta.items())]
    kind = "weights" if isinstance(network, CompressedModel) else "network"
    return Result({"model": options.model, "kind": kind, "meta": meta, **report, "presets": fits},
                  "\n".join(lines))


def _preset_rows(network) -> list[dict]:
    """What a network takes of every preset, or why it does not fit."""
    from openese.model.compile import compile_network
    from openese.model.config import PRESETS
    from openese.model.quantise import ModelError, quantise

    fits = []
    for name, config in PRESETS.items():
        row = {"name": name, "pes": config.n_pes, "fits": True}
        try:
            image = compile_network(quantise(network, config), config)
        except ModelError as error:
            row |= {"fits": False, "reason": str(error)}
        else:
            per_pe = np.array([len(words) for words in image.spmat])
            row |= {"entries": image.entries, "fillers": image.fillers,
                    "fullest_pe": int(per_pe.max()),
                    "balance": float(per_pe.max() / per_pe.mean()) if image.entries else 1.0}
        fits.append(row)
    return fits


def simulate(options: Namespace) -> Result:
    """RTL against the reference."""
    from openese.model.mnist import load_mnist, scale_pixels
    from openese.sim.simulate import choose_backend

    if options.mnist_test == (options.inputs is not None):
        raise ValueError("give either INPUTS.npz or --mnist-test")
    network = _load_network(options.model)
    if options.mnist_test:
        images, y = load_mnist("test", options.mnist_root)
        limit = _checked_limit(options.limit)
        x, y = scale_pixels(images[:limit]), y[:limit]
    else:
        x, y = _read_inputs(Path(options.inputs), options.limit)
    return _simulate(network, Path(options.model).name, x, y, options,
                     choose_backend(options.backend), load=options.load, vcd=options.vcd)


def verilog(options: Namespace) -> Result:
    """The engine as Verilog, with or without contents."""
    from openese.hdl.engine import Engine
    from openese.hdl.export import to_verilog
    from openese.model.compile import compile_network
    from openese.model.quantise import quantise

    _check_folder(options.output)
    network = _load_network(options.model)
    config = _engine_config(network, options)
    image = compile_network(quantise(network, config), config)
    text = to_verilog(Engine(config, None if options.empty else image), name="openese")
    _write_whole(Path(options.output), text.encode())
    data = {"output": options.output, "pes": config.n_pes, "bytes": len(text.encode()),
            "lines": text.count("\n")}
    return Result(data, f"{data['output']}: {data['lines']:,} lines, {config.n_pes} PEs")


def bench(options: Namespace) -> Result:
    """EIE's layers beside the paper."""
    from openese.sim.bench_eie import bench_eie

    rows = bench_eie(options.layers, n_pes=options.pes, entry_bits=options.entry_bits,
                     queue_depth=options.queue_depth,
                     progress=lambda name: print(f"simulating {name}", file=sys.stderr))
    mean = {key: float(np.exp(np.mean([np.log(row[key]) for row in rows])))
            for key in ("utilisation", "eie_utilisation", "speedup")}
    lines = [f"{'layer':<9}{'entries':>10}{'fillers':>9}{'useful':>10}{'cycles':>8}{'util.':>7}"
             f"{'EIE':>7}{'us':>7}{'EIE us':>8}{'speed-up':>9}"]
    lines += [f"{r['name']:<9}{r['entries']:>10,}{r['fillers']:>9,}{r['useful']:>10,}"
              f"{r['cycles']:>8,}{r['utilisation']:>7.3f}{r['eie_utilisation']:>7.3f}"
              f"{r['us']:>7.2f}{r['eie_us']:>8.1f}{r['speedup']:>9.2f}" for r in rows]
    mismatches = sum(row["mismatches"] for row in rows)
    lines += [
        f"{'geometric mean':<46}{mean['utilisation']:>7.3f}{mean['eie_utilisation']:>7.3f}"
        f"{'':>15}{mean['speedup']:>9.2f}",
        f"{mismatches} mismatches over {sum(row['outputs'] for row in rows):,} outputs; "
        f"{options.pes} PEs, times at EIE's 800 MHz; EIE: the paper's actual times",
    ]
    return Result({"rows": rows, "mismatches": mismatches, **mean}, "\n".join(lines),
                  mismatches == 0)


def build(options: Namespace) -> Result:
    """A routed bitstream."""
    from openese.boards.build import build as run
    from openese.boards.build import find_board
    from openese.model.compile import compile_network, size_for
    from openese.model.config import PRESETS
    from openese.model.quantise import quantise

    board = find_board(options.board)
    network = _load_network(options.model)
    config = PRESETS[board.preset]
    if options.pes is not None:
        config = size_for(network, options.pes, input_lanes=_lanes(options.pes))
    image = compile_network(quantise(network, config), config)
    report = run(image, options.board, seed=options.seed, target_mhz=options.target_mhz,
                 out_dir=Path(options.output), allow_timing_miss=options.allow_timing_miss)
    return Result(report.to_json(), _build_text(report))


def _build_text(report) -> str:
    lines = [
        f"{report.name}: {report.fmax_mhz:.1f} MHz routed, {report.constraint_mhz:.1f} MHz asked "
        f"for{'' if report.met else ': MISSED'}",
        f"  LUTs {report.luts:,}, registers {report.ffs:,}, block RAMs {report.brams}, "
        f"multipliers {report.multipliers}",
        f"  critical path  {report.critical_path}",
        f"  bitstream      {report.bitstream}",
        f"  tools          {report.seconds:.0f} s" + (" (from the cache)" if report.cached else ""),
    ]
    return "\n".join(lines)


# -- helpers --------------------------------------------------------------------------------------


def _simulate(network, name: str, x: NDArray, y: NDArray | None, options: Namespace,
              backend: str, *, load: str = "memory", vcd: str | None = None) -> Result:
    from openese.model.quantise import quantise
    from openese.model.reference import output_snr_db
    from openese.sim.simulate import simulate as run

    config = _engine_config(network, options)
    with _Progress(f"simulating {len(x)} vectors on {config.n_pes} PEs ({backend})") as progress:
        report = run(network, x, config=config, backend=backend, load=load, vcd=vcd,
                     progress=progress)
    data = report.as_dict() | {"name": name, "queue_depth": config.queue_depth}
    expected = network.forward(x.reshape(len(x), -1))
    snr = output_snr_db(expected, quantise(network, config).dequantise_output(report.raw))
    data["snr_db"] = snr if np.isfinite(snr) else None
    if y is not None:
        data["error_percent"] = float(100 * np.mean(report.raw.argmax(axis=1) != y))
        data["float_error_percent"] = float(100 * np.mean(expected.argmax(axis=1) != y))
    return Result(data, _simulation_text(data), report.mismatches == 0)


def _simulation_text(data: dict) -> str:
    lines = [
        f"{data['name']} on {data['n_pes']} PEs, {data['backend']} simulation of the RTL",
        f"  mismatches        {data['mismatches']:,} of {data['outputs']:,} outputs "
        f"({data['vectors']:,} vectors), every bit against the integer reference",
    ]
    if data["first_mismatch"]:
        vector, output = data["first_mismatch"]
        lines.append(f"  first mismatch    vector {vector}, output {output}")
    if "error_percent" in data:
        lines.append(
            f"  accuracy          integer {100 - data['error_percent']:.2f} %, float "
            f"{100 - data['float_error_percent']:.2f} % (compressed network)")
    snr = "exact" if data["snr_db"] is None else f"{data['snr_db']:.1f} dB"
    lines += [
        f"  output SNR        {snr} against the float compressed network",
        f"  cycles            {data['cycles_per_vector']:,.1f} per vector, {data['cycles']:,} in "
        f"all",
        f"  entries           {data['entries'] / data['vectors']:,.1f} per vector, of these "
        f"{data['fillers'] / data['vectors']:,.1f} fillers",
        f"  PE utilisation    {data['utilisation']:.1%} (useful multiplications / (PEs x cycles))",
        f"  saturations       {data['saturations']:,} ({data['input_clipped']:,} inputs clipped)",
        f"  wall time         {data['seconds']:.1f} s",
    ]
    return "\n".join(lines)


class _Progress:
    """A progress bar on standard error that appears with the first call."""

    def __init__(self, text: str):
        self._text, self._bar = text, None

    def __enter__(self):
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._text, unit="out", leave=False,
                             file=sys.stderr, disable=None)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()


def _load_network(path: str):
    """A network from a file, for the commands that need an engine."""
    from openese.model.ese_file import load
    from openese.model.state import CompressedModel

    network = load(path)
    if isinstance(network, CompressedModel):
        raise ValueError(f"{path}: holds the compressed weights of a model, which no engine runs; "
                         "this needs a network, as `openese compress --calibration` makes")
    return network


def _lanes(n_pes: int) -> int:
    """Input lanes that keep the input stream from being the bottleneck: 4 where they divide."""
    return next(lanes for lanes in (4, 3, 2, 1) if n_pes % lanes == 0)


def _engine_config(network, options: Namespace):
    from openese.model.compile import size_for
    from openese.model.config import PRESETS

    overrides = {k: v for k, v in (("queue_depth", options.queue_depth),
                                   ("entry_bits", options.entry_bits)) if v is not None}
    preset = getattr(options, "preset", None)
    if preset is not None:
        if options.pes is not None:
            raise ValueError("give --pes or --preset, not both")
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; presets: {', '.join(PRESETS)}")
        return PRESETS[preset].with_(**overrides)
    n_pes = 8 if options.pes is None else options.pes
    return size_for(network, n_pes, input_lanes=_lanes(n_pes), **overrides)


def _checked_limit(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be 1 or more, not {limit}")
    return limit


def _read_inputs(path: Path, limit: int | None) -> tuple[NDArray, NDArray | None]:
    limit = _checked_limit(limit)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {k: arrays[k] for k in arrays.files} if hasattr(arrays, "files") else None
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npz file of plain arrays ({error})") from None
    if found is None or "x" not in found:
        raise ValueError(
            f"{path}: needs an array named x (inputs), has {sorted(found or [])}; write it with "
            f"numpy.savez(file, x=..., y=...)")
    x, y = found["x"][:limit], found.get("y")
    if not np.issubdtype(x.dtype, np.number) or x.ndim < 2 or not len(x):
        raise ValueError(f"{path}: x must be numbers (n, ...), not {x.dtype} {x.shape}")
    if y is not None:
        y = y[:limit]
        if y.shape != (len(x),):
            raise ValueError(f"{path}: y must have one label per input, not shape {y.shape}")
    return x, y


def _check_folder(path: str) -> None:
    """Fail before the work, not after it."""
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise ValueError(f"{path}: folder {folder} does not exist; create it first")


def _write_whole(path: Path, data: bytes) -> None:
    """The file appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
