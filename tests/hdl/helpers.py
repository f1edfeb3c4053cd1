"""Simulating one block: cycle scripts, stream ends with stalls, and a watchdog on everything."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum

import numpy as np
from amaranth.hdl import ResetInserter, Signal, Value
from amaranth.lib import data
from amaranth.sim import Simulator

from openese.hdl.layouts import Kind, marker_layout, values_layout
from openese.model.config import EngineConfig

#: A small engine with no size a power of two where that is allowed.
SMALL = EngineConfig(
    n_pes=3, queue_depth=3, spmat_depth=200, ptr_depth=60, bias_depth=24, act_depth=30,
    acc_depth=12, codebooks=3, code_bits=4, min_code_bits=2, program_depth=6)

#: More cycles than any of these simulations takes.
LIMIT = 20_000


def plain(value):
    """A sampled payload as numbers and enum members; a dict for a struct, a list for an array."""
    if isinstance(value, Enum):
        return value
    if not isinstance(value, data.Const):
        return int(value)
    layout = value.shape()
    if isinstance(layout, data.ArrayLayout):
        return [plain(value[k]) for k in range(layout.length)]
    return {name: plain(value[name]) for name, _ in layout}


def find(dut, path: str):
    """The port of `dut` that `path` names: ``i.payload``, or ``o.1.valid`` in an array."""
    part = dut
    for name in path.split("."):
        part = part[int(name)] if name.isdigit() else getattr(part, name)
    return part


def simulate(dut, *testbenches: Callable, reset: Signal | None = None, limit: int = LIMIT) -> None:
    """Run all testbenches to their end; ``TimeoutError`` after `limit` cycles."""
    sim = Simulator(dut if reset is None else ResetInserter(reset)(dut))
    sim.add_clock(1e-8)

    async def watchdog(ctx):
        for _ in range(limit):
            await ctx.tick()
        raise TimeoutError(f"the simulation did not end within {limit} cycles")

    for testbench in testbenches:
        sim.add_testbench(testbench)
    sim.add_testbench(watchdog, background=True)
    sim.run()


def play(dut, script: Iterable[Mapping], watch: Sequence[str], *, settings: Mapping | None = None,
         extra: int = 0, reset: Signal | None = None) -> list[dict]:
    """Drive inputs cycle by cycle and record what all `watch` ports show before each edge.

    Every step of `script` maps paths (see `find`) to values for one cycle. A port that a step
    does not name is 0 in that cycle, but a payload holds random bits: nothing may depend on it.
    ``reset`` in a step asserts `reset`. `settings` are set once. After the script the simulation
    goes on for `extra` cycles.
    """
    script = [*script, *({} for _ in range(extra))]
    paths = sorted({path for step in script for path in step} - {"reset"})
    rng = np.random.default_rng(1)
    trace = []

    async def testbench(ctx):
        for path, value in (settings or {}).items():
            ctx.set(find(dut, path), value)
        for step in script:
            if reset is not None:
                ctx.set(reset, step.get("reset", 0))
            for path in paths:
                port = find(dut, path)
                if path in step:
                    ctx.set(port, step[path])
                else:
                    bits = Value.cast(port)
                    junk = int(rng.integers(1 << 30)) if path.endswith("payload") else 0
                    ctx.set(bits.as_unsigned(), junk & ((1 << len(bits)) - 1))
            trace.append({path: plain(ctx.get(find(dut, path))) for path in watch})
            await ctx.tick()

    simulate(dut, testbench, reset=reset, limit=len(script) + 1)
    return trace


def transfers(trace: Iterable[Mapping], port: str) -> list[tuple[int, object]]:
    """Cycle and payload of every transfer of an always-ready stream in a trace."""
    return [(cycle, step[f"{port}.payload"]) for cycle, step in enumerate(trace)
            if step[f"{port}.valid"]]


def sender(port, items: Sequence, *, gaps: float = 0.0, seed: int = 0) -> Callable:
    """A testbench that offers `items`, waiting before each with probability `gaps` per cycle."""
    rng = np.random.default_rng(seed)

    async def testbench(ctx):
        for item in items:
            while rng.random() < gaps:
                await ctx.tick()
            ctx.set(port.payload, item)
            ctx.set(port.valid, 1)
            await ctx.tick().until(port.ready)
            ctx.set(port.valid, 0)

    return testbench


def receiver(port, count: int, into: list, *, stalls: float = 0.0, seed: int = 0,
             extra: int = 10) -> Callable:
    """A testbench that takes `count` items as (cycle, payload) and checks the stream's manners.

    What is offered must stay unchanged until taken, and nothing may come in `extra` more cycles.
    """
    rng = np.random.default_rng(seed)

    async def testbench(ctx):
        cycle, offered, left = 0, None, extra
        while len(into) < count or left:
            ready = int(len(into) >= count or rng.random() >= stalls)
            ctx.set(port.ready, ready)
            _, _, valid, payload = await ctx.tick().sample(port.valid, port.payload)
            payload = plain(payload)
            if offered is not None:
                assert valid, f"cycle {cycle}: withdrawn"
                assert payload == offered, f"cycle {cycle}: changed"
            offered = payload if valid and not ready else None
            if valid and ready:
                assert len(into) < count, f"cycle {cycle}: one item too many, {payload}"
                into.append((cycle, payload))
            left -= len(into) >= count and left > 0
            cycle += 1

    return testbench


def signed(value: int, bits: int) -> int:
    """The signed number whose two's complement of `bits` is `value`."""
    value &= (1 << bits) - 1
    return value - (value >> (bits - 1) << bits)


def unsigned(value: int, bits: int) -> int:
    """The two's complement of `bits` of `value`."""
    return value & ((1 << bits) - 1)


def column_words(rows: Sequence[int], codes: Sequence[int], code_bits: int,
                 index_bits: int) -> list[int]:
    """A column of a PE as entry words, written entry by entry as EIE describes the format.

    The flag above the index marks the entry two places before the last.
    """
    words, at = [], 0
    for row, code in zip(rows, codes, strict=True):
        while row - at >= 1 << index_bits:
            words.append(((1 << index_bits) - 1) << code_bits)
            at += 1 << index_bits
        words.append((row - at) << code_bits | code)
        at = row + 1
    if len(words) >= 3:
        words[-3] |= 1 << (code_bits + index_bits)
    return words


def sequential_words(columns: Sequence[Sequence[tuple[int, int]]], height: int, code_bits: int,
                     index_bits: int) -> tuple[list[int], list[list[tuple[int, int]]]]:
    """A matrix of a PE without pointers, written entry by entry: skips go on over column ends.

    Of columns of (row, code), all `height` rows high. Returns the words, and the (row, code) of
    the entries in every column, fillers included; the last word is in none.
    """
    places = [(height * number + row, code)
              for number, column in enumerate(columns) for row, code in column]
    words, entries, at = [], [[] for _ in columns], 0
    longest = (1 << index_bits) - 1
    for place, code in [*places, (height * len(columns), 0)]:
        while place - at > longest:
            words.append(longest << code_bits)
            entries[(at + longest) // height].append(((at + longest) % height, 0))
            at += longest + 1
        words.append((place - at) << code_bits | code)
        if len(entries) * height > place:
            entries[place // height].append((place % height, code))
        at = place + 1
    return words, entries


def recurrent(config: EngineConfig = SMALL, **changes) -> EngineConfig:
    """`config` with an element-wise unit."""
    return config.with_(**{"state_depth": 20, "peephole_depth": 20, **changes})


def act_message(ptr: int, *values: int) -> dict:
    """A broadcast of a column, an activation for each channel, as the value of a payload."""
    return {"kind": Kind.ACT, "args": {"act": {"ptr": ptr, "values": list(values)}}}


def scan_message(**fields: int) -> dict:
    """A broadcast that starts a scan."""
    return {"kind": Kind.SCAN, "args": {"scan": fields}}


async def scan_in_turn(ctx, dut, regions, sizes, got: Sequence) -> None:
    """Have the memory `dut` scan each region (act, rows, rem), in the cycle after the last of the
    items of the one before, of which there are as many as `sizes` says, was taken into `got`."""
    count = 0
    for (act, rows, rem), size in zip(regions, sizes, strict=True):
        ctx.set(dut.i.payload, scan_message(act=act, rows=rows, rem=rem))
        ctx.set(dut.i.valid, 1)
        await ctx.tick()
        ctx.set(dut.i.valid, 0)
        count += size
        while len(got) < count:
            await ctx.tick()


def marker_parts(config: EngineConfig, **fields: int) -> list[int]:
    """A marker as the parts it is sent in, lowest first; what is not named is 0."""
    layout = marker_layout(config)
    names = {name for name, _ in layout}
    marker = {name: value for name, value in fields.items() if name in names}
    route = {name: value for name, value in fields.items() if name not in names}
    bits = layout.const({**marker, "route": route}).as_bits()
    width = config.channels * config.act_bits
    return [bits >> width * k & ((1 << width) - 1) for k in range(config.marker_parts)]


def mark_messages(config: EngineConfig, **fields: int) -> list[dict]:
    """The broadcasts of a marker, as the sequencer sends them."""
    parts = marker_parts(config, **fields)
    return [{"kind": Kind.MARK, "args": {"mark": {"part": part, "last": int(part_left == 1)}}}
            for part, part_left in zip(parts, range(len(parts), 0, -1), strict=True)]


def part_values(config: EngineConfig, part: int) -> list[int]:
    """A part of a marker as it lies in the place of activations."""
    return plain(values_layout(config).from_bits(part))


def write_message(kind: Kind = Kind.WRITE, **fields: int) -> dict:
    """A broadcast that writes an accumulator of every PE back, or prepares the drain of a cell."""
    return {"kind": kind, "args": {"write": fields}}


def write_messages(rows: int, *, acc: int = 0, act: int = 0, bias: int = 0,
                   **fields: int) -> list[dict]:
    """The broadcasts of a WRITE of `rows` accumulators, as the sequencer sends them."""
    return [write_message(acc=acc + k, act=act + k, bias=bias + k, **fields) for k in range(rows)]


def load_message(kind: Kind, pe: int, addr: int, word: int, **fields: int) -> dict:
    """A broadcast that writes one word of a memory."""
    return {"kind": kind, "args": {"load": {"pe": pe, "addr": addr, "data": word, **fields}}}
