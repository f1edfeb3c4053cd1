"""The command that talks to a board: `openese run`. See `openese.commands`."""

import time
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .commands import (
    Result,
    _engine,
    _error_percent,
    _load_network,
    _Progress,
    _read_inputs,
)

__all__ = ["SIMULATED", "TIMEOUT", "run"]

#: The port that is none: a board is simulated for the run.
SIMULATED = "simulated"

#: Seconds of silence of a board, and of one that is simulated, perhaps on a busy computer.
TIMEOUT, SLOW = 2.0, 30.0


def run(options: Namespace) -> Result:
    """A model on a board."""
    from openese.boards.device import Device

    network = _load_network(options.model)
    x, y = _read_inputs(Path(options.inputs), options.limit, network)
    if not network.recurrent:
        x = x.reshape(len(x), -1)
    asked = _asked_for(network, options, x)
    with ExitStack() as stack:
        port, timeout = options.port, options.timeout
        if port == SIMULATED:
            port = stack.enter_context(_simulated(network, options, asked, x)).port
            timeout = SLOW if timeout is None else timeout
        device = stack.enter_context(
            Device(port, baud=options.baud, timeout=TIMEOUT if timeout is None else timeout))
        board = device.identification
        config = asked or _config_of(board, network)
        session = _Session(device, config, options.check)
        raw = session.infer(network, x)
    data = {
        "name": Path(options.model).name, "port": options.port, "board": board.board or None,
        "preset": board.preset or None, "n_pes": board.n_pes, "channels": board.channels,
        "clock_hz": board.clock_hz or None,
        "baud": None if options.port == SIMULATED else options.baud,
        "recurrent": network.recurrent, "vectors": len(x), "outputs": raw.size,
        **session.figures(len(x), board.clock_hz),
    }
    if y is not None:
        data |= {"error_percent": _error_percent(network, raw, y),
                 "float_error_percent": _error_percent(network, network.forward(x), y)}
    return Result(data, _text(data), not data.get("mismatches"))


def _asked_for(network, options: Namespace, x: NDArray):
    """The engine that the options name, if they do: that of a board, a preset, or a size."""
    from openese.boards.platforms import BOARDS

    if options.preset in BOARDS and options.pes is None:
        return BOARDS[options.preset].config
    if options.preset is None and options.pes is None:
        return None
    engine = _engine(options)
    return engine.get("config") or _sized_for_all(network, x, engine)


def _sized_for_all(network, x: NDArray, engine: dict):
    """The smallest engine for a network, all runs of bidirectional layers included."""
    from openese.model.compile import size_for
    from openese.model.config import EngineConfig
    from openese.model.stages import split_stages

    if network.recurrent and x.ndim == 3:
        engine = {"channels": x.shape[1]} | engine
    sizes = [size_for(run, **engine) for stage in split_stages(network) for run in stage.networks]
    return EngineConfig(**{each.name: max(getattr(size, each.name) for size in sizes)
                           for each in fields(EngineConfig)})


def _config_of(board, network):
    """The engine of a board: one that is known, else what `openese build --pes` makes for the
    model."""
    from openese.boards.platforms import BOARDS
    from openese.model.config import PRESETS

    known = [*PRESETS.values(), *(each.config for each in BOARDS.values())]
    return next((config for config in known if config.signature == board.signature), None) or (
        _sized_for_all(network, np.empty(0), {
            "n_pes": board.n_pes, "input_lanes": board.input_lanes, "channels": board.channels}))


def _simulated(network, options: Namespace, asked, x: NDArray):
    """A board in a simulator, and the name of the one whose engine it has."""
    from openese.boards.platforms import BOARDS
    from openese.boards.protocol import Identification

    try:
        from openese.boards.simulated import DIVISOR, SimulatedBoard
    except ImportError:
        raise ValueError("a board is simulated behind a pseudo-terminal, which this operating "
                         "system does not have") from None
    config = asked or _sized_for_all(network, x, _engine(options))
    board = BOARDS.get(options.preset)
    known = {} if board is None else {
        "preset": board.name, "clock_hz": round(board.target_mhz * 1e6)}
    return SimulatedBoard(config, identification=Identification.of(
        config, board="simulated", divisor=DIVISOR, **known))


class _Session:
    """Runs of a network on a device: what they gave, and what they took."""

    def __init__(self, device, config, check: bool):
        self._device, self._config, self._check = device, config, check
        self._load_seconds, self._clipped = 0.0, 0
        self._firsts, self._others = [], []
        self._wrong, self._miscounted = [], 0

    def infer(self, network, x: NDArray) -> NDArray:
        """Raw outputs for real inputs. A bidirectional layer is loaded and run twice."""
        from openese.model.stages import split_stages
        from openese.sim.simulate import quantise_alike

        raw, frac = None, network.in_frac
        for stage in split_stages(network):
            if raw is not None:
                stage = stage.with_in_frac(frac)
            runs, frac = quantise_alike(stage, self._config)
            if raw is None:
                raw, self._clipped = runs[0][0].quantise_input(x)
            raw = stage.joined([
                self._run(stage.networks[k], quantised, stage.directed(k, raw))
                for k, (quantised, _) in enumerate(runs)])
        return raw

    def _run(self, network, quantised, raw: NDArray) -> NDArray:
        from openese.model.reference import run_reference

        began = time.perf_counter()
        with _Progress("loading", "B") as progress:
            self._device.load(network, config=self._config, progress=progress)
        self._load_seconds += time.perf_counter() - began
        # The first one alone, for the latency; a sequence goes on with the second.
        results = [self._device.run(raw[:1])]
        self._firsts += results
        if len(raw) > 1:
            with _Progress(f"running {len(raw)} {_units(network.recurrent)}") as progress:
                results.append(self._device.run(raw[1:], progress=progress))
            self._others += results[1:]
        # A single channel may or may not have a dimension of its own.
        outputs = np.concatenate([result.outputs for result in results]).reshape(
            *raw.shape[:-1], -1)
        if self._check:
            reference = run_reference(quantised, raw)
            self._wrong += np.argwhere(outputs != reference.outputs).tolist()
            self._miscounted += _gain(results, "saturations") != reference.saturations
        return outputs

    def figures(self, vectors: int, clock_hz: int) -> dict:
        """What the runs took, for JSON; rates of the engine only if its clock is known."""
        results = self._firsts + self._others
        cycles = _gain(results, "cycles")
        latency = sum(result.seconds for result in self._firsts)
        # Behind the first one, they follow each other without a gap.
        many = sum(result.seconds for result in self._others)
        link = results[-1].after.link
        data = {
            "load_seconds": self._load_seconds, "seconds": latency + many,
            "latency_ms": 1e3 * latency,
            "vectors_per_second": (vectors - 1) / many if many else 1 / latency,
            "cycles": cycles, "cycles_per_vector": cycles / vectors,
            "engine_vectors_per_second": clock_hz * vectors / cycles if clock_hz else None,
            **{name: _gain(results, name) for name in ("saturations", "stalls", "exposed")},
            "input_clipped": self._clipped, "link": asdict(link),
        }
        if self._check:
            data |= {"mismatches": len(self._wrong) + self._miscounted,
                     "first_mismatch": self._wrong[0] if self._wrong else None}
        return data


def _gain(results: list, counter: str) -> int:
    """How much a 32-bit counter of the engine rose over runs."""
    return sum((getattr(result.after, counter) - getattr(result.before, counter)) & 0xFFFF_FFFF
               for result in results)


def _units(recurrent: bool) -> str:
    return "steps" if recurrent else "vectors"


def _text(data: dict) -> str:
    many = _units(data["recurrent"])
    one = many[:-1]
    where = f"{data['board'] or 'a board'} at {data['port']}"
    if data["port"] == SIMULATED:
        where = "a simulated board"
    clock = f", {data['clock_hz'] / 1e6:g} MHz" if data["clock_hz"] else ""
    baud = f", {data['baud']:,} baud" if data["baud"] else ""
    lines = [f"{data['name']} on {where}: {data['n_pes']} PEs{clock}{baud}"]
    if "mismatches" in data:
        lines.append(
            f"  mismatches        {data['mismatches']:,} of {data['outputs']:,} outputs "
            f"({data['vectors']:,} {many}), every bit against the integer reference")
        if data["first_mismatch"]:
            place = dict(zip([one, *["channel"][:data["channels"] > 1], "output"],
                             data["first_mismatch"], strict=True))
            lines.append("  first mismatch    " + ", ".join(f"{k} {v}" for k, v in place.items()))
    else:
        lines.append(f"  outputs           {data['outputs']:,} ({data['vectors']:,} {many}), not "
                     f"compared (--check does)")
    if "error_percent" in data:
        lines.append(
            f"  accuracy          board {100 - data['error_percent']:.2f} %, float "
            f"{100 - data['float_error_percent']:.2f} % (compressed network)")
    engine = data["engine_vectors_per_second"]
    link = data["link"]
    lines += [
        f"  load              {data['load_seconds']:.2f} s",
        f"  throughput        {data['vectors_per_second']:,.1f} {many} per second through the link"
        + (f", engine alone {engine:,.0f}" if engine else ""),
        f"  latency           {data['latency_ms']:.2f} ms, one {one} there and its outputs back",
        f"  engine            {data['cycles_per_vector']:,.1f} cycles per {one}, "
        f"{data['saturations']:,} saturations ({data['input_clipped']:,} inputs clipped)",
        f"  link              {link['bytes_out']:,} bytes out, {link['bytes_in']:,} in; broken "
        f"frames {link['bad_out']:,} out, {link['bad_in']:,} in; sent again {link['retries']:,} "
        f"out, {link['rewinds']:,} in",
    ]
    if data["port"] == SIMULATED:
        lines.append("  seconds are of the simulation, not of a board")
    return "\n".join(lines)
