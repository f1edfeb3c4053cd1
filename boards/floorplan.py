"""Where the PEs of a large engine are on an LFE5U-85F: sites for their block RAMs and multipliers.

Left to itself, nextpnr puts the memories and the multiplier of one PE far apart once the engine
fills the device. Here every PE has its block RAMs side by side, its multiplier in the next row of
those, and the PEs of a cluster as neighbours. Logic follows what it is wired to.
"""

import json
import re
from collections.abc import Mapping

from openese.hdl.cluster import cluster_sizes
from openese.model.config import EngineConfig
from openese.model.resources import engine_memories

from .family import BuildError

__all__ = ["BLOCK_RAMS", "MULTIPLIERS", "Sites", "allot", "bels", "floorplan", "place"]

#: Primitive to the sites (BELs of nextpnr) that the cells of one PE have.
Sites = dict[str, tuple[str, ...]]

#: Columns of the block RAMs of a row.
_COLUMNS = (4, 6, 8, 10, 13, 15, 17, 19, 22, 24, 26, 28, 31, 33, 35, 37, 40, 42, 44, 46, 49, 51, 53,
            55, 58, 60, 62, 64, 69, 71, 73, 75, 78, 80, 82, 84, 87, 89, 91, 93, 96, 98, 100, 102,
            105, 107, 109, 111, 114, 116, 118, 120)
#: The block RAMs of the device, from left to right, by row.
BLOCK_RAMS = {y: tuple(f"X{x}/Y{y}/EBR{k % 4}" for k, x in enumerate(_COLUMNS))
              for y in (22, 46, 70, 82)}
#: The multipliers in the same way. Four start where four block RAMs do.
MULTIPLIERS = {y: tuple(f"X{x + k}/Y{y}/MULT18_{k}" for x in _COLUMNS[::4] for k in (0, 1, 4, 5))
               for y in (10, 34, 58)}
#: Row of block RAMs to the nearest row of multipliers.
_NEAREST = {22: 10, 46: 34, 70: 58, 82: 58}

#: Devices of this die.
_DEVICES = ("LFE5U-85F", "LFE5UM-85F", "LFE5UM5G-85F")
#: Engines of fewer PEs, or whose PEs have no more than this share of the block RAMs, are left to
#: nextpnr.
MIN_PES = 16
MIN_SHARE = 1 / 2
#: Block RAMs that are left for what is not of a PE: fewer than this are kept together.
MIN_SPARE = 32

_PE = re.compile(r"(?:^|\.)(cluster_\d+\.pe_\d+)\.")


def allot(n_pes: int, block_rams: int, multipliers: int) -> list[Sites] | None:
    """Sites for the PEs of an engine.

    The PEs are dealt over the rows of block RAMs in order, as many to each, the last row taking
    what is left, and are spread evenly over their row. If few block RAMs are left for everything
    else, that would scatter them over the device: then the outer rows take as many PEs as they can,
    and what is left of every row is its middle. The multipliers of two rows that share a row of
    multipliers take turns.

    Parameters
    ----------
    n_pes
        Number of PEs.
    block_rams, multipliers
        Of the PE that has most.

    Returns
    -------
    list of Sites or None
        ``DP16KD`` and ``MULT18X18D`` of every PE; ``None`` where a row has not enough of them.

    Raises
    ------
    ValueError
        No PE, or a negative number.
    """
    if n_pes < 1 or block_rams < 0 or multipliers < 0:
        raise ValueError("a floorplan is for 1 PE or more with 0 or more block RAMs and "
                         f"multipliers, not {n_pes} PEs with {block_rams} and {multipliers}")
    length = len(_COLUMNS)
    spare = len(BLOCK_RAMS) * length - n_pes * block_rams
    rows = (_together if 0 <= spare < MIN_SPARE else _spread)(n_pes, block_rams)
    memories: dict[int, tuple[str, ...]] = {}
    # Row of multipliers to where, along the row, which PE is.
    shared: dict[int, list[tuple[int, int]]] = {y: [] for y in MULTIPLIERS}
    for (y, names), pes in zip(BLOCK_RAMS.items(), rows, strict=True):
        if len(pes) * block_rams > length:
            return None
        for pe, start in pes.items():
            memories[pe] = names[start:start + block_rams]
            shared[_NEAREST[y]].append((start, pe))
    products: dict[int, tuple[str, ...]] = {}
    for y, pes in shared.items():
        names = MULTIPLIERS[y]
        if len(pes) * multipliers > len(names):
            return None
        for k, (_, pe) in enumerate(sorted(pes)):
            start = k * len(names) // len(pes)
            products[pe] = names[start:start + multipliers]
    return [{"DP16KD": memories[pe], "MULT18X18D": products[pe]} for pe in range(n_pes)]


def _spread(n_pes: int, block_rams: int) -> list[dict[int, int]]:
    """Of every row its PEs, and where each begins: as many in each row, over the whole of it."""
    per_row = -(-n_pes // len(BLOCK_RAMS))
    rows = [range(n_pes)[row * per_row:(row + 1) * per_row] for row in range(len(BLOCK_RAMS))]
    return [{pe: k * len(_COLUMNS) // len(pes) for k, pe in enumerate(pes)} for pes in rows]


def _together(n_pes: int, block_rams: int) -> list[dict[int, int]]:
    """The same, with the sites that are left in the middle, most of them of the two inner rows.

    Every other row is walked backwards, so that neighbours stay together from row to row.
    """
    length = len(_COLUMNS)
    outer = min(length // block_rams, -(-n_pes // 2))
    first = (n_pes - 2 * outer + 1) // 2
    counts = (outer, first, n_pes - 2 * outer - first, outer)
    rows, pe = [], 0
    for row, count in enumerate(counts):
        left = -(-count // 2)
        starts = [k * block_rams if k < left else length - (count - k) * block_rams
                  for k in range(count)]
        if row % 2:
            starts.reverse()
        rows.append(dict(zip(range(pe, pe + count), starts, strict=True)))
        pe += count
    return rows


def floorplan(device: str, config: EngineConfig) -> dict[str, Sites]:
    """Sites for the PEs of an engine on a device, if it is to have a floorplan.

    It has one on an 85F if it has 16 PEs or more, their block RAMs are more than half of the
    device's, and `allot` finds a site for everything.

    Parameters
    ----------
    device
        As Amaranth calls it: ``LFE5U-85F``.
    config
        Engine configuration.

    Returns
    -------
    dict
        Name of the PE (``cluster_0.pe_3``) to its sites; empty where nextpnr is left alone.
    """
    if device not in _DEVICES or config.n_pes < MIN_PES:
        return {}
    # What is counted by PEs is in them. More sites than a PE has cells do no harm.
    block_rams = sum(memory.brams for memory in engine_memories(config)
                     if memory.count % config.n_pes == 0) // config.n_pes
    if config.n_pes * block_rams <= MIN_SHARE * sum(map(len, BLOCK_RAMS.values())):
        return {}
    names = [f"cluster_{cluster}.pe_{pe}" for cluster, size in enumerate(cluster_sizes(config))
             for pe in range(size)]
    sites = allot(config.n_pes, block_rams, config.channels)
    return dict(zip(names, sites, strict=True)) if sites else {}


def bels(cells: Mapping[str, str], sites: Mapping[str, Sites]) -> dict[str, str]:
    """Sites of the cells of PEs.

    Parameters
    ----------
    cells
        Path of every cell of a flat netlist to its primitive.
    sites
        What `floorplan` gave.

    Returns
    -------
    dict
        Path to site, of the cells that have one. The cells of a PE take its sites in the order of
        their paths; more cells than sites are left to nextpnr, like everything outside of PEs.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for path, kind in cells.items():
        pe = _PE.search(path)
        if pe and kind in sites.get(pe[1], {}):
            found.setdefault((pe[1], kind), []).append(path)
    return {path: site for (pe, kind), paths in found.items()
            for path, site in zip(sorted(paths), sites[pe][kind], strict=False)}


def place(netlist: str, sites: Mapping[str, Sites]) -> str:
    """Give the cells of PEs their sites in a netlist.

    Parameters
    ----------
    netlist
        Flat, as Yosys writes it as JSON.
    sites
        What `floorplan` gave.

    Returns
    -------
    str
        The netlist with attribute ``BEL`` for nextpnr at these cells.

    Raises
    ------
    BuildError
        A PE has none of the cells that it has sites for.
    """
    design = json.loads(netlist)
    cells = design["modules"]["top"]["cells"]
    placed = bels({path: cell["type"] for path, cell in cells.items()}, sites)
    known = {_PE.search(path)[1] for path in placed}
    for pe in sites:
        if pe not in known:
            raise BuildError(f"the netlist has no block RAM and no multiplier of {pe}, for which "
                             "the floorplan has sites: this version of Yosys does not work")
    for path, site in placed.items():
        cells[path]["attributes"]["BEL"] = site
    # Netlists of large engines are tens of megabytes, a third of it the blanks that Yosys writes.
    return json.dumps(design, separators=(",", ":"))
