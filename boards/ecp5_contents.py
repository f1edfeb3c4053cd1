"""Memory contents of a routed ECP5 design: put in after place and route, within seconds.

A design is routed with a pattern in its memories. The pattern shows, in the routed configuration,
which bit of which memory lies where; nothing is inserted unless every bit of the pattern is found
where the rules below expect it. One routed design so serves every model for the same engine.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from openese.hdl.export import MemoryContents, take_memories

__all__ = ["ContentsError", "Place", "insert", "locate", "take_contents", "unplaced"]

#: Width of a block RAM's words to their number.
_BLOCK_WORDS = {1: 16384, 2: 8192, 4: 4096, 9: 2048, 18: 1024, 36: 512}
#: 9-bit words of a block RAM in the configuration.
_BLOCK_ROWS = 2048
#: Words and width of a LUT RAM.
_LUT_WORDS, _LUT_WIDTH = 16, 4
#: Word that bit k of a LUT stands for: nextpnr has the lowest and the highest bit of the address at
#: each other's input of the LUT.
_LUT_ORDER = [k & 0b0110 | k >> 3 & 1 | (k & 1) << 3 for k in range(_LUT_WORDS)]

_MEMORY_MODULE = re.compile(r"^module \\(\S+)\n(.*?)^end\n", re.M | re.S)
_WRITTEN = re.compile(r'^  cell \$memwr_v2 \S+\n    parameter \\MEMID "\\\\(\S+)"', re.M)
_CONTENTS = re.compile(
    r'^(  cell \$meminit_v2 \S+\n    parameter \\MEMID "\\\\(\S+)"\n(?:    [^\n]*\n)*?'
    r"    connect \\DATA )\d+'[01]+\n", re.M)
_MEMORY = re.compile(r"^  memory width (\d+) size (\d+) \\(\S+)$", re.M)
_TILE = re.compile(r"^\.tile (\S+)\n(.*?)^\n", re.M | re.S)
_BLOCK = re.compile(r"^\.bram_init (\d+)\n((?:[0-9a-f]{3}[ \n])+)", re.M)


class ContentsError(RuntimeError):
    """The pattern is not where it should be; the text names the memory."""


@dataclass(frozen=True)
class Place:
    """Where a part of a memory is in a routed configuration.

    Parameters
    ----------
    memory
        Path of the memory.
    part
        Number of the part.
    width
        Width of the block RAM's words; 0 for a LUT RAM.
    block
        Number of the block RAM's contents in the configuration, or -1.
    tile, words
        Tile of a LUT RAM, and the names of the four words that hold a bit of the LUT RAM's words
        each, lowest first.
    """

    memory: str
    part: int
    width: int
    block: int = -1
    tile: str = ""
    words: tuple[str, ...] = ()


def take_contents(rtlil: str) -> tuple[str, list[MemoryContents]]:
    """Replace what memories hold by a pattern that depends on their sizes only.

    Memories are left alone that nothing writes, since synthesis may make logic of them, and those
    that hold zeros in every place with the same name (its last two parts, without digits).

    Returns
    -------
    str, list
        RTLIL for place and route, and what the memories held that were replaced.
    """
    written = {name: set(_WRITTEN.findall(body)) for name, body in _MEMORY_MODULE.findall(rtlil)}
    _, memories = take_memories(rtlil)
    used = {_kind(f"top.{memory.path}") for memory in memories if any(memory.rows)}

    def patterned(match: re.Match) -> str:
        name, body = match[1], match[2]
        sizes = {memory: (int(width), int(depth))
                 for width, depth, memory in _MEMORY.findall(body)}

        def change(cell: re.Match) -> str:
            memory = cell[2]
            if memory not in written[name] or _kind(f"{name}.{memory}") not in used:
                return cell[0]
            width, depth = sizes[memory]
            bits = "".join(f"{row:0{width}b}" for row in reversed(_pattern(width, depth)))
            return f"{cell[1]}{len(bits)}'{bits}\n"

        return f"module \\{name}\n{_CONTENTS.sub(change, body)}end\n"

    structure = _MEMORY_MODULE.sub(patterned, rtlil)
    _, after = take_memories(structure)
    replaced = {memory.path for memory in after
                if memory.rows == _pattern(memory.width, memory.depth)}
    return structure, [memory for memory in memories if memory.path in replaced]


def _kind(path: str) -> str:
    """What equal memories of different PEs have in common."""
    return re.sub(r"\d+", "", ".".join(path.split(".")[-2:]))


def _pattern(width: int, depth: int) -> tuple[int, ...]:
    draw = random.Random(f"{width} x {depth}")
    return tuple(draw.getrandbits(width) for _ in range(depth))


def unplaced(netlist: str, memories: Iterable[MemoryContents]) -> list[str]:
    """Paths of memories that synthesis put elsewhere than into block RAM or LUT RAM.

    Parameters
    ----------
    netlist
        What Yosys wrote for nextpnr, as JSON.
    memories
        What `take_contents` gave.
    """
    placed = {path.rsplit(".", 2)[0] for path, kind in _cells(json.loads(netlist)["modules"])
              if kind in ("DP16KD", "TRELLIS_DPR16X4")}
    return sorted({memory.path for memory in memories} - placed)


def _cells(modules: Mapping[str, dict], name: str = "top", path: str = ""
           ) -> Iterator[tuple[str, str]]:
    """Path and type of every cell below a module."""
    for cell, content in modules[name]["cells"].items():
        kind = content["type"]
        if kind in modules and "blackbox" not in modules[kind]["attributes"]:
            yield from _cells(modules, kind, f"{path}{cell}.")
        else:
            yield path + cell, kind


def locate(routed: str, configuration: str, memories: Iterable[MemoryContents]) -> list[dict]:
    """Find the pattern in a routed design.

    Parameters
    ----------
    routed
        What nextpnr's ``--write`` wrote, as JSON.
    configuration
        What its ``--textcfg`` wrote.
    memories
        What `take_contents` gave; only their sizes matter.

    Returns
    -------
    list of dict
        For `insert`: a `Place` each, as JSON takes it.

    Raises
    ------
    ContentsError
        A bit of the pattern is not where the rules expect it.
    """
    places = _places(json.loads(routed)["modules"]["top"]["cells"])
    blocks, luts = _read(configuration)
    found = []
    for memory in memories:
        parts = places.get(memory.path, [])
        known = replace(memory, rows=_pattern(memory.width, memory.depth))
        if not parts or not all(np.array_equal(_part(known, place), _at(place, blocks, luts))
                                for place in parts):
            raise ContentsError(
                f"the contents of memory {memory.path} ({memory.depth} x {memory.width} bits) "
                "cannot be told in the routed design")
        found += map(asdict, parts)
    return found


def insert(configuration: str, places: Iterable[Mapping], memories: Iterable[MemoryContents]
           ) -> str:
    """Put contents into a routed configuration.

    Parameters
    ----------
    configuration
        What nextpnr's ``--textcfg`` wrote.
    places
        What `locate` gave.
    memories
        Contents of every memory that `places` names.
    """
    contents = {memory.path: memory for memory in memories}
    blocks: dict[int, NDArray] = {}
    tiles: dict[str, dict[str, str]] = {}
    for entry in places:
        place = Place(**{**entry, "words": tuple(entry["words"])})
        part = _part(contents[place.memory], place)
        if place.width:
            blocks[place.block] = part
        else:
            for word, bits in zip(place.words, part, strict=True):
                tiles.setdefault(place.tile, {})[word] = "".join(map(str, bits[::-1]))

    def block(match: re.Match) -> str:
        if int(match[1]) not in blocks:
            return match[0]
        rows = blocks[int(match[1])]
        words = [f"{word:03x}" for word in rows @ (1 << np.arange(9))]
        lines = "".join(" ".join(words[k:k + 8]) + "\n" for k in range(0, len(words), 8))
        return f".bram_init {match[1]}\n{lines}"

    def tile(match: re.Match) -> str:
        if match[1] not in tiles:
            return match[0]
        body = match[2]
        for word, bits in tiles[match[1]].items():
            body = re.sub(rf"^word: {re.escape(word)} [01]+$", f"word: {word} {bits}", body,
                          flags=re.M)
        return f".tile {match[1]}\n{body}\n"

    return _TILE.sub(tile, _BLOCK.sub(block, configuration))


def _places(cells: Mapping[str, dict]) -> dict[str, list[Place]]:
    """Places by the path of their memory, in the order of their numbers."""
    found: dict[str, list[Place]] = {}
    luts: dict[str, dict[int, str]] = {}
    for name, cell in cells.items():
        bel = cell["attributes"].get("NEXTPNR_BEL", "")
        if cell["type"] == "DP16KD":
            memory, _, part = _split(name)
            width = max(int(cell["parameters"][f"DATA_WIDTH_{port}"], 2) for port in "AB")
            found.setdefault(memory, []).append(
                Place(memory, part, width, int(cell["attributes"]["WID"], 2)))
        elif match := re.fullmatch(r"(.*)\$DPRAM_COMB(\d)", name):
            luts.setdefault(match[1], {})[int(match[2])] = bel
    for name, bels in luts.items():
        memory, _, part = _split(name)
        # X5/Y28/SLICEA.K0 is word SLICEA.K0.INIT of tile R28C5.
        column, row, _ = bels[0].split("/")
        words = tuple(f"{bels[bit].split('/')[2]}.INIT" for bit in range(_LUT_WIDTH))
        found.setdefault(memory, []).append(
            Place(memory, part, 0, tile=f"R{row[1:]}C{column[1:]}:PLC2", words=words))
    return {memory: sorted(parts, key=lambda place: place.part)
            for memory, parts in found.items()}


def _split(name: str) -> tuple[str, int, int]:
    """A cell's memory, the copy for its read port, and its part."""
    memory, copy, part = name.rsplit(".", 2)
    return memory, int(copy), int(part)


def _read(configuration: str) -> tuple[dict[int, NDArray], dict[tuple[str, str], NDArray]]:
    """Block RAMs as arrays of 2048 x 9 bits, words of LUTs as arrays of 16 bits."""
    blocks = {}
    for number, text in _BLOCK.findall(configuration):
        rows = np.array([int(word, 16) for word in text.split()], dtype=np.int64)
        blocks[int(number)] = (rows[:, None] >> np.arange(9) & 1).astype(np.uint8)
    luts = {}
    for tile, body in _TILE.findall(configuration):
        for word, bits in re.findall(r"^word: (\S+\.INIT) ([01]{16})$", body, re.M):
            luts[tile, word] = np.array([int(bit) for bit in bits[::-1]], dtype=np.uint8)
    return blocks, luts


def _at(place: Place, blocks: Mapping[int, NDArray], luts: Mapping) -> NDArray | None:
    """What a configuration holds at a place, in the shape of `_part`."""
    if place.width:
        return blocks.get(place.block)
    bits = [luts.get((place.tile, word)) for word in place.words]
    return None if any(b is None for b in bits) else np.array(bits)


def _part(memory: MemoryContents, place: Place) -> NDArray:
    """What a part of a memory holds: 2048 x 9 bits of a block RAM, 4 x 16 bits of a LUT RAM."""
    depth, width = ((_BLOCK_WORDS[place.width], place.width) if place.width
                    else (_LUT_WORDS, _LUT_WIDTH))
    bits = _bits(memory)
    across, along = ceil(memory.width / width), ceil(memory.depth / depth)
    bits = np.pad(bits, ((0, along * depth - memory.depth), (0, across * width - memory.width)))
    # The parts of a word follow each other, then come those of the next words.
    row, column = divmod(place.part, across)
    if row >= along:
        return np.empty(0, dtype=np.uint8)
    words = bits[row * depth:(row + 1) * depth, column * width:(column + 1) * width]
    if not place.width:
        return words[_LUT_ORDER].T
    if width < 9:
        # Narrow words leave the ninth bit of their row unused.
        return np.pad(words.reshape(_BLOCK_ROWS, 8), ((0, 0), (0, 1)))
    return words.reshape(_BLOCK_ROWS, 9)


def _bits(memory: MemoryContents) -> NDArray[np.uint8]:
    """Contents as an array of words x bits, the lowest bit first."""
    rows = np.zeros((memory.depth, memory.width), dtype=np.uint8)
    for number, row in enumerate(memory.rows):
        rows[number] = [row >> bit & 1 for bit in range(memory.width)]
    return rows
