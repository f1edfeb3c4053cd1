"""What the commands do. Each takes parsed options and returns a `Result`."""

import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

__all__ = ["Result", "bench_eie", "bench_ese", "compress", "demo", "inspect", "simulate", "verilog"]

#: What ships with the package.
DATA = Path(__file__).with_name("data")

#: Share of cycles in which ESE's multipliers work, by its cycles and entries (FPGA 2017, table 4).
ESE_UTILISATION = 0.69

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
           "bias_bits": options.bias_bits}
    kind, code_bits = options.weight_kind or "shared", options.code_bits
    if options.weights_only:
        if kind == "linear":
            how["fixed_bits"] = 12 if code_bits is None else code_bits
        else:
            how["code_bits"] = code_bits
        network = compress_weights(model, **how)
    else:
        x, _ = _read_inputs(Path(options.calibration), None)
        network = run(model, calibration=x.astype(np.float32), weights=kind, code_bits=code_bits,
                      **how)
    save(options.output, network)
    report = network_report(network)
    return Result({"output": options.output, **report},
                  f"{format_report(report)}\n\nwritten: {options.output}")


def _compress_by_recipe(options: Namespace) -> Result:
    from openese.model.recipe import read_recipe, run_recipe

    others = ("model", "weights", "calibration", "density", "quality", "code_bits", "bias_bits",
              "init", "weights_only", "weight_kind")
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
    from openese.model.compile import compile_network
    from openese.model.ese_file import load
    from openese.model.quantise import ModelError, quantise
    from openese.model.report import format_report, network_report
    from openese.model.resources import engine_report, format_engine_report
    from openese.model.stages import split_stages
    from openese.model.state import CompressedModel

    network = load(options.model)
    report = network_report(network)
    lines = [format_report(report), ""]
    fits, engines = [], []
    if isinstance(network, CompressedModel):
        lines.append("the state of a model: no engine runs it; openese.load_into puts it into its "
                     "PyTorch module")
    else:
        runs = [run for stage in split_stages(network) for run in stage.networks]
        fits = _preset_rows(runs)
        lines += ["engine presets:", *map(_preset_line, fits)]
        for run in runs:
            name, engine = run.layers[0].name, _engine(options)
            if len(runs) > 1:
                lines += ["", f"run of {name}:"]
            try:
                config = _sized(run, engine)
                placed = engine_report(compile_network(quantise(run, config), config))
            except ModelError as error:
                engines.append({"name": name, "pes": engine["n_pes"], "fits": False,
                                "reason": str(error)})
                lines += ["", str(error)]
            else:
                engines.append({"name": name} | placed)
                lines += ["", format_engine_report(placed)]
    meta = {str(k): v for k, v in network.meta.items()}
    if meta:
        lines += ["", "about: " + ", ".join(f"{k} {v}" for k, v in meta.items())]
    kind = "weights" if isinstance(network, CompressedModel) else "network"
    return Result({"model": options.model, "kind": kind, "meta": meta, **report, "presets": fits,
                   "engines": engines}, "\n".join(lines))


def _preset_rows(runs: list) -> list[dict]:
    """What the runs of a network take of every preset, or why they do not fit."""
    from openese.model.compile import compile_network
    from openese.model.config import PRESETS
    from openese.model.quantise import ModelError, quantise
    from openese.model.resources import engine_report

    fits = []
    for name, config in PRESETS.items():
        row = {"name": name, "pes": config.n_pes, "fits": True}
        try:
            reports = [engine_report(compile_network(quantise(run, config), config))
                       for run in runs]
        except ModelError as error:
            row |= {"fits": False, "reason": str(error)}
        else:
            row |= {"entries": sum(report["entries"] for report in reports),
                    "fillers": sum(report["fillers"] for report in reports),
                    "fullest_pe": max(report["fullest_pe"] for report in reports),
                    "balance": max(report["balance"] for report in reports)}
            row |= {key: reports[0][key] for key in (
                "bits", "brams", "lut_rams", "device", "brams_available")}
        fits.append(row)
    return fits


def _preset_line(row: dict) -> str:
    text = f"  {row['name']:<12}{row['pes']:>4} PEs  "
    if not row["fits"]:
        return text + row["reason"]
    return text + (
        f"fits: {row['entries']:,} entries, {row['fillers']:,} of them fillers; fullest PE "
        f"{row['fullest_pe']:,}, {row['balance']:.2f} x mean; memories of {row['bits']:,} bits, "
        f"{row['brams']:,} block RAMs ({row['device']} has {row['brams_available']})")


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
        x, y = _read_inputs(Path(options.inputs), options.limit, network)
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
    config = _sized(network, _engine(options))
    image = compile_network(quantise(network, config), config)
    text = to_verilog(Engine(config, None if options.empty else image), name="openese")
    _write_whole(Path(options.output), text.encode())
    data = {"output": options.output, "pes": config.n_pes, "bytes": len(text.encode()),
            "lines": text.count("\n")}
    return Result(data, f"{data['output']}: {data['lines']:,} lines, {config.n_pes} PEs")


def bench_eie(options: Namespace) -> Result:
    """EIE's layers beside the paper."""
    from openese.sim.bench_eie import bench_eie as run

    rows = run(options.layers, n_pes=options.pes, entry_bits=options.entry_bits,
               queue_depth=options.queue_depth, progress=_announce)
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


def bench_ese(options: Namespace) -> Result:
    """ESE's LSTM layer beside the paper."""
    from openese.sim.bench_ese import ESE_CYCLES, ESE_MHZ, ESE_PES
    from openese.sim.bench_ese import bench_ese as run

    entry_bits = options.entry_bits
    if entry_bits is None:
        entry_bits = 17 if options.weight_kind == "linear" else 8
    if options.steps < 1:
        raise ValueError(f"--steps must be 1 or more, not {options.steps}")
    rows = run(options.pes, options.channels, steps=options.steps, entry_bits=entry_bits,
               pointers=options.pointers, weights=options.weight_kind,
               balanced=options.balanced, queue_depth=options.queue_depth, progress=_announce)
    head = ("engine", "entries", "fillers", "cycles", "x ideal", "util.", "exposed", "us",
            "speed-up")
    table = [head, *(
        (r["name"], f"{r['entries']:,}", f"{r['fillers']:,}", f"{r['cycles']:,.1f}",
         f"{r['ratio']:.3f}", f"{r['utilisation']:.3f}", f"{r['exposed']:.2f} %", f"{r['us']:.1f}",
         f"{r['speedup']:.2f}") for r in rows)]
    table.append((f"ESE, {ESE_PES} PEs", "", "", f"{ESE_CYCLES:,}", "", f"{ESE_UTILISATION:.3f}",
                  "", f"{ESE_CYCLES / ESE_MHZ:.1f}", ""))
    lines = [f"{row[0]:<21}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in table]
    mismatches = sum(row["mismatches"] for row in rows)
    lines.append(
        f"{mismatches} mismatches over {sum(row['outputs'] for row in rows):,} outputs; a step of "
        f"the layer, mean of {options.steps}; ideal: entries / PEs; exposed: only the element-wise "
        f"unit works; us at ESE's {ESE_MHZ} MHz; speed-up at equal PEs")
    return Result({"rows": rows, "mismatches": mismatches, "ese_cycles": ESE_CYCLES,
                   "ese_utilisation": ESE_UTILISATION}, "\n".join(lines), mismatches == 0)


def _announce(name: str) -> None:
    print(f"simulating {name}", file=sys.stderr)


# -- helpers --------------------------------------------------------------------------------------


def _simulate(network, name: str, x: NDArray, y: NDArray | None, options: Namespace,
              backend: str, *, load: str = "memory", vcd: str | None = None) -> Result:
    from openese.model.config import EngineConfig
    from openese.model.reference import output_snr_db
    from openese.sim.simulate import simulate as run

    engine = _engine(options)
    n_pes = engine["config"].n_pes if "config" in engine else engine["n_pes"]
    unit = "steps" if network.recurrent else "vectors"
    with _Progress(f"simulating {len(x)} {unit} on {n_pes} PEs ({backend})") as progress:
        report = run(network, x, backend=backend, load=load, vcd=vcd, progress=progress, **engine)
    if not network.recurrent:
        x = x.reshape(len(x), -1)
    expected = network.forward(x)
    channels = x.shape[1] if x.ndim == 3 else 1
    data = report.as_dict() | {
        "name": name, "recurrent": network.recurrent, "channels": channels, "queue_depth":
        engine.get("queue_depth", engine.get("config", EngineConfig).queue_depth)}
    scale = 2.0 ** -_out_frac(network, engine | {"channels": channels})
    snr = output_snr_db(expected, report.raw.astype(np.float64) * scale)
    data["snr_db"] = snr if np.isfinite(snr) else None
    if y is not None:
        data |= {"error_percent": _error_percent(network, report.raw, y),
                 "float_error_percent": _error_percent(network, expected, y)}
    return Result(data, _simulation_text(data), report.mismatches == 0)


def _simulation_text(data: dict) -> str:
    one, many = ("step", "steps") if data["recurrent"] else ("vector", "vectors")
    channels = f", {data['channels']} channels" if data["channels"] > 1 else ""
    lines = [
        f"{data['name']} on {data['n_pes']} PEs, {data['backend']} simulation of the RTL",
        f"  mismatches        {data['mismatches']:,} of {data['outputs']:,} outputs "
        f"({data['vectors']:,} {many}{channels}), every bit against the integer reference",
    ]
    if data["first_mismatch"]:
        place = dict(zip([one, *["channel"][:channels > ""], "output"], data["first_mismatch"],
                         strict=False))
        lines.append("  first mismatch    " + ", ".join(f"{k} {v}" for k, v in place.items()))
    if "error_percent" in data:
        lines.append(
            f"  accuracy          integer {100 - data['error_percent']:.2f} %, float "
            f"{100 - data['float_error_percent']:.2f} % (compressed network)")
    snr = "exact" if data["snr_db"] is None else f"{data['snr_db']:.1f} dB"
    lines += [
        f"  output SNR        {snr} against the float compressed network",
        f"  cycles            {data['cycles_per_vector']:,.1f} per {one}, {data['cycles']:,} in "
        f"all",
        f"  entries           {data['entries'] / data['vectors']:,.1f} per {one}, of these "
        f"{data['fillers'] / data['vectors']:,.1f} fillers",
        f"  PE utilisation    {data['utilisation']:.1%} (useful multiplications / (PEs x cycles))",
        f"  saturations       {data['saturations']:,} ({data['input_clipped']:,} inputs clipped)",
        f"  wall time         {data['seconds']:.1f} s",
    ]
    return "\n".join(lines)


class _Progress:
    """A progress bar on standard error that appears with the first call."""

    def __init__(self, text: str, unit: str = "out"):
        self._text, self._unit, self._bar = text, unit, None

    def __enter__(self):
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._text, unit=self._unit, leave=False,
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


def _engine(options: Namespace) -> dict:
    """The engine asked for, as arguments of `simulate`: a configuration, or how to size one."""
    fields = {name: getattr(options, name, None)
              for name in ("queue_depth", "entry_bits", "pointers", "channels")}
    fields = {name: value for name, value in fields.items() if value is not None}
    preset = getattr(options, "preset", None)
    if preset is None:
        n_pes = 8 if options.pes is None else options.pes
        return {"n_pes": n_pes, "input_lanes": _lanes(n_pes), **fields}
    return {"config": preset_engine(options).with_(**fields)}


def preset_engine(options: Namespace):
    """The engine of ``--preset``."""
    from openese.model.config import PRESETS

    if options.pes is not None:
        raise ValueError("give --pes or --preset, not both")
    if options.preset not in PRESETS:
        raise ValueError(f"unknown preset {options.preset!r}; presets: {', '.join(PRESETS)}")
    return PRESETS[options.preset]


def _sized(network, engine: dict):
    """The configuration for a network that `engine` of `_engine` means."""
    from openese.model.compile import size_for

    return engine.get("config") or size_for(network, **engine)


def _out_frac(network, engine: dict) -> int:
    """Binary point of what the engine gives, after all runs of a network."""
    from openese.model.quantise import quantise
    from openese.model.stages import split_stages

    frac = network.in_frac
    for stage in split_stages(network):
        frac = min(quantise(run, _sized(run, engine)).out_frac
                   for run in stage.with_in_frac(frac).networks)
    return frac


def _error_percent(network, outputs: NDArray, y: NDArray) -> float:
    """How often the largest output is not that of the label."""
    guesses = outputs.argmax(axis=-1)
    if network.meta.get("output") == "last":
        guesses = guesses[-1]
    return float(100 * np.mean(guesses != y))


def _checked_limit(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be 1 or more, not {limit}")
    return limit


def _read_inputs(path: Path, limit: int | None, network=None
                 ) -> tuple[NDArray, NDArray | None]:
    """Inputs, and labels if the file has them: for a network one for each of its outputs."""
    limit = _checked_limit(limit)
    try:
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            found = {"x": arrays}
        else:
            with arrays:
                found = {k: arrays[k] for k in arrays.files}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npz or .npy file of plain arrays "
                         f"({error})") from None
    if "x" not in found:
        raise ValueError(
            f"{path}: needs an array named x (inputs), has {sorted(found)}; write it with "
            f"numpy.savez(file, x=..., y=...)")
    x, y = found["x"][:limit], found.get("y")
    if not np.issubdtype(x.dtype, np.number) or x.ndim < 2 or not len(x):
        raise ValueError(f"{path}: x must be numbers (n, ...), not {x.dtype} {x.shape}")
    if y is None:
        return x, None
    if network is None or not network.recurrent:
        y, shape, what = y[:limit], x.shape[:1], "input"
    elif network.meta.get("output") == "last":
        shape, what = x.shape[1:-1], "sequence"
    else:
        y, shape, what = y[:limit], x.shape[:-1], "step"
    if y.shape != shape:
        raise ValueError(f"{path}: y must have one label per {what}, shape {shape}, not shape "
                         f"{y.shape}")
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
