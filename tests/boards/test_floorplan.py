# amaranth: UnusedElaboratable=no
"""Proves of the floorplan of large engines: every site exists and is used once, PEs are where they
should be, only large engines have one and the netlists of others stay as they are, the cells of a
real netlist get their sites, and contents are still found in the routed design."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from openese.boards import floorplan as floorplan_module
from openese.boards.build import KEEP, _key, build
from openese.boards.ecp5 import ECP5
from openese.boards.family import BuildError
from openese.boards.floorplan import BLOCK_RAMS, MULTIPLIERS, allot, bels, floorplan, place
from openese.boards.platforms import BOARDS
from openese.boards.top import Top
from openese.hdl.export import dedupe, run_yosys
from openese.model.compile import compile_network
from openese.model.config import PRESETS, EngineConfig
from openese.model.quantise import quantise
from openese.model.random_network import random_network

#: Few PEs with 4 block RAMs each, which the tools place and route in half a minute.
SMALL = EngineConfig(n_pes=3, spmat_depth=2048, ptr_depth=2048, bias_depth=16, act_depth=256,
                     acc_depth=16, codebooks=2, program_depth=8)
#: As in EIE: 64 PEs; 3 block RAMs each.
EIE = EngineConfig(n_pes=64, spmat_depth=2048, ptr_depth=1024, bias_depth=64, act_depth=256,
                   acc_depth=32)


def plan_of(config):
    board = BOARDS["ulx3s-85f"]
    return ECP5.plan(board.platform(), Top(config, board, board.target_mhz), 1)


@pytest.fixture
def any_size(monkeypatch):
    """Lets small engines have a floorplan."""
    monkeypatch.setattr(floorplan_module, "MIN_PES", 1)
    monkeypatch.setattr(floorplan_module, "MIN_SHARE", 0)


def cells_of(netlist):
    return {path: cell for path, cell in json.loads(netlist)["modules"]["top"]["cells"].items()
            if cell["type"] in ("DP16KD", "MULT18X18D")}


def test_device():
    block_rams = [site for row in BLOCK_RAMS.values() for site in row]
    multipliers = [site for row in MULTIPLIERS.values() for site in row]
    assert len(set(block_rams)) == 208
    assert len(set(multipliers)) == 156
    assert (block_rams[0], block_rams[-1]) == ("X4/Y22/EBR0", "X120/Y82/EBR3")
    assert multipliers[:4] == ["X4/Y10/MULT18_0", "X5/Y10/MULT18_1", "X8/Y10/MULT18_4",
                               "X9/Y10/MULT18_5"]


def placed(cells, device, directory):
    """nextpnr's placement of unconnected cells, given as site to primitive."""
    cells = {site: {"type": kind, "attributes": {"BEL": site}, "parameters": {},
                    "port_directions": {}, "connections": {}} for site, kind in cells.items()}
    module = {"attributes": {"top": "1"}, "ports": {}, "cells": cells, "netnames": {}}
    (directory / "top.json").write_text(json.dumps({"modules": {"top": module}}))
    arguments = [device, "--package", "CABGA381", "--json", "top.json", "--no-route"]
    return subprocess.run(
        [sys.executable, "-c", ECP5.tools["nextpnr-ecp5"].program, *arguments], cwd=directory,
        check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("device", ["--85k", "--um5g-85k"])
def test_sites_exist(device, tmp_path):
    """Every site of the tables is one of nextpnr's for that primitive, and there are no others."""
    cells = {site: kind for kind, rows in (("DP16KD", BLOCK_RAMS), ("MULT18X18D", MULTIPLIERS))
             for row in rows.values() for site in row}
    done = placed(cells, device, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:]
    assert re.search(r"DP16KD: +208/ +208 ", done.stdout)
    assert re.search(r"MULT18X18D: +156/ +156 ", done.stdout)
    for site, kind in (("X5/Y22/EBR0", "DP16KD"), ("X4/Y22/EBR0", "MULT18X18D")):
        done = placed({site: kind}, device, tmp_path)
        assert done.returncode != 0
        assert site in done.stdout


@pytest.mark.parametrize(("n_pes", "block_rams", "multipliers"), [
    (64, 3, 1), (48, 4, 1), (52, 4, 1), (17, 3, 1), (17, 0, 1), (61, 3, 1), (16, 13, 3), (30, 6, 3),
    (32, 6, 2), (5, 8, 1), (4, 52, 26), (1, 1, 0), (78, 2, 1), (40, 0, 0), (67, 3, 1), (68, 3, 1),
    (208, 1, 0), (35, 5, 1), (2, 100, 0), (33, 6, 1),
])
def test_every_pe_has_sites_of_its_own(n_pes, block_rams, multipliers):
    allotted = allot(n_pes, block_rams, multipliers)
    if (n_pes, block_rams) in ((2, 100), (33, 6)):  # no row has room for these
        assert allotted is None
        return
    for kind, count, rows in (("DP16KD", block_rams, BLOCK_RAMS),
                              ("MULT18X18D", multipliers, MULTIPLIERS)):
        where = {site: (y, k) for y, row in rows.items() for k, site in enumerate(row)}
        assert len({site for pe in allotted for site in pe[kind]}) == n_pes * count
        for pe in allotted:
            found = [where[site] for site in pe[kind]]
            assert found == [(found[0][0], found[0][1] + j) for j in range(count)]


@pytest.mark.parametrize(("n_pes", "block_rams", "multipliers"), [
    (17, 3, 1), (17, 0, 1), (16, 9, 3), (24, 6, 3), (32, 5, 2), (5, 8, 1), (4, 40, 26), (1, 1, 0),
    (58, 3, 1), (40, 0, 0),
])
def test_allotted_sites(n_pes, block_rams, multipliers):
    allotted = allot(n_pes, block_rams, multipliers)
    assert len(allotted) == n_pes
    per_row = -(-n_pes // 4)
    for kind, count, rows in (("DP16KD", block_rams, BLOCK_RAMS),
                              ("MULT18X18D", multipliers, MULTIPLIERS)):
        where = {site: (y, k) for y, row in rows.items() for k, site in enumerate(row)}
        # A site that is not the device's is not in `where`.
        places = [[where[site] for site in pe[kind]] for pe in allotted]
        assert len({site for pe in allotted for site in pe[kind]}) == n_pes * count
        for found in places:
            assert len({y for y, _ in found}) <= 1
            assert [k for _, k in found] == [found[0][1] + j for j in range(count)]
        if not count:
            continue
        starts = [found[0] for found in places]
        row_of = {"DP16KD": (22, 46, 70, 82), "MULT18X18D": (10, 34, 58, 58)}[kind]
        assert [y for y, _ in starts] == [row_of[pe // per_row] for pe in range(n_pes)]
        for first in range(0, n_pes, per_row):
            row = [k for _, k in starts[first:first + per_row]]
            assert row == sorted(row)
            assert row[0] <= 52 // (2 * len(row)) + 1
        for y in rows:
            row = sorted(k for found, k in starts if found == y)
            steps = {after - before for before, after in pairwise(row)}
            assert steps <= {52 // max(1, len(row)), 52 // max(1, len(row)) + 1}


def test_multiplier_is_near():
    """Not much farther along the row than the pitch of the PEs."""
    def column(site):
        return int(re.match(r"X(\d+)/", site)[1])

    for n_pes, block_rams in ((64, 3), (48, 4), (17, 3), (61, 3)):
        for pe in allot(n_pes, block_rams, 1):
            assert abs(column(pe["DP16KD"][0]) - column(pe["MULT18X18D"][0])) <= (
                4 * 120 // n_pes + 6)


@pytest.mark.parametrize(("n_pes", "block_rams"), [(64, 3), (48, 4), (52, 4), (61, 3), (68, 3),
                                                   (36, 5), (200, 1)])
def test_few_sites_that_are_left_lie_together(n_pes, block_rams):
    allotted = allot(n_pes, block_rams, 1 if n_pes < 100 else 0)
    taken = {site for pe in allotted for site in pe["DP16KD"]}
    rest = {y: [k for k, site in enumerate(row) if site not in taken]
            for y, row in BLOCK_RAMS.items()}
    # The outer rows keep only what is less than a PE. What any row keeps is its middle.
    assert all(len(rest[y]) < block_rams for y in (22, 82))
    for y in rest:
        assert rest[y] == list(range(rest[y][0], rest[y][0] + len(rest[y]))) if rest[y] else True
        assert all(abs(k - 25.5) <= len(rest[y]) / 2 + block_rams for k in rest[y])
    # Neighbours are side by side, also from one row to the next.
    def column(pe):
        return int(re.match(r"X(\d+)/", pe["DP16KD"][0])[1])

    gap = 120 * max(len(sites) for sites in rest.values()) // 52 + 12
    for before, after in pairwise(allotted):
        assert abs(column(before) - column(after)) <= gap + 3 * block_rams


def test_allotted_sites_of_64_pes():
    """As they were when this was measured."""
    allotted = allot(64, 3, 1)
    assert allotted[0] == {"DP16KD": ("X4/Y22/EBR0", "X6/Y22/EBR1", "X8/Y22/EBR2"),
                           "MULT18X18D": ("X4/Y10/MULT18_0",)}
    # The site that the outer rows keep is in their middle as well.
    assert allotted[8]["DP16KD"] == ("X58/Y22/EBR0", "X60/Y22/EBR1", "X62/Y22/EBR2")
    assert allotted[9]["DP16KD"] == ("X69/Y22/EBR0", "X71/Y22/EBR1", "X73/Y22/EBR2")
    assert allotted[16]["DP16KD"] == ("X116/Y22/EBR1", "X118/Y22/EBR2", "X120/Y22/EBR3")
    assert allotted[17]["DP16KD"] == ("X116/Y46/EBR1", "X118/Y46/EBR2", "X120/Y46/EBR3")
    assert allotted[63]["DP16KD"] == ("X4/Y82/EBR0", "X6/Y82/EBR1", "X8/Y82/EBR2")


@pytest.mark.parametrize("sizes", [
    (64, 4, 1), (53, 4, 1), (209, 1, 0), (1, 53, 0), (64, 3, 2), (1, 1, 53), (107, 1, 1)])
def test_too_little_room(sizes):
    assert allot(*sizes) is None


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, 0, 0), (4, -1, 1), (4, 1, -1)])
def test_impossible_sizes_are_refused(sizes):
    n_pes, block_rams, multipliers = sizes
    message = ("a floorplan is for 1 PE or more with 0 or more block RAMs and multipliers, not "
               f"{n_pes} PEs with {block_rams} and {multipliers}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        allot(*sizes)


@pytest.mark.parametrize(("device", "config", "n_pes"), [
    ("LFE5U-85F", EIE, 64),
    ("LFE5UM5G-85F", EIE, 64),
    ("LFE5U-45F", EIE, 0),
    ("iCE40UP5K", EIE, 0),
    # 51 PEs: the last cluster has 3.
    ("LFE5U-85F", EIE.with_(n_pes=51, spmat_depth=4096), 51),
    # 104 block RAMs are half of them, 105 are more.
    ("LFE5U-85F", EIE.with_(n_pes=34), 0),
    ("LFE5U-85F", EIE.with_(n_pes=35), 35),
    # Too few PEs, though they fill the device.
    ("LFE5U-85F", SMALL.with_(spmat_depth=65536), 0),
    ("LFE5U-85F", EIE.with_(n_pes=15, spmat_depth=16384), 0),
    # More block RAMs than there are.
    ("LFE5U-85F", PRESETS["eie-64"], 0),
    # Two multipliers each: 64 PEs have too many for their row, 40 have not.
    ("LFE5U-85F", EIE.with_(channels=2, state_depth=64), 0),
    ("LFE5U-85F", EIE.with_(n_pes=40, channels=2, state_depth=64), 40),
    # Memories that are not of PEs do not count.
    ("LFE5U-85F", EIE.with_(n_pes=34, state_depth=2048, peephole_depth=2048), 0),
    ("LFE5U-85F", PRESETS["ulx3s-85f"], 0),
])
def test_rule(device, config, n_pes):
    sites = floorplan(device, config)
    assert list(sites) == [f"cluster_{pe // 8}.pe_{pe % 8}" for pe in range(n_pes)]
    for found in sites.values():
        assert len(found["MULT18X18D"]) == config.channels
        assert 2 * n_pes * len(found["DP16KD"]) > 208


def test_cells_take_sites():
    sites = {"cluster_0.pe_1": {"DP16KD": ("a", "b"), "MULT18X18D": ("m",)},
             "cluster_1.pe_1": {"DP16KD": ("c", "d"), "MULT18X18D": ("n",)}}
    cells = {
        "engine.cluster_0.pe_1.words.1.0": "DP16KD", "engine.cluster_0.pe_1.act.0.0": "DP16KD",
        "engine.cluster_0.pe_1.multiplier.dsp": "MULT18X18D",
        # One block RAM fewer, and at the top.
        "cluster_1.pe_1.words.0.0": "DP16KD", "cluster_1.pe_1.multiplier.dsp": "MULT18X18D",
        # Not of a PE, of an unknown one, or no such primitive.
        "engine.words.0.0": "DP16KD", "engine.cluster_0.words.0.0": "DP16KD",
        "engine.cluster_0.pe_10.words.0.0": "DP16KD", "my_cluster_0.pe_1.words": "DP16KD",
        "engine.cluster_0.pe_1_DP16KD": "DP16KD", "engine.cluster_0.pe_1.x": "LUT4",
    }
    expected = {"engine.cluster_0.pe_1.act.0.0": "a", "engine.cluster_0.pe_1.words.1.0": "b",
                "engine.cluster_0.pe_1.multiplier.dsp": "m",
                "cluster_1.pe_1.words.0.0": "c", "cluster_1.pe_1.multiplier.dsp": "n"}
    assert bels(cells, sites) == expected
    # nextpnr finds a place for a cell too many.
    assert bels(cells | {"cluster_0.pe_1.zzz.0.0": "DP16KD"}, sites).keys() <= cells.keys() | {
        "cluster_0.pe_1.zzz.0.0"}
    assert bels(cells, {}) == bels({}, sites) == {}


def test_netlist_is_edited():
    def cell(kind):
        return {"type": kind, "attributes": {"src": "x"}, "connections": {"A": [2]}}

    netlist = {"creator": "Yosys", "modules": {"DP16KD": {"cells": {}}, "top": {
        "cells": {"cluster_0.pe_0.words.0.0": cell("DP16KD"), "link.0.0": cell("DP16KD"),
                  "cluster_0.pe_0.lut": cell("LUT4")}, "netnames": {"clk": {"bits": [2]}}}}}
    sites = {"cluster_0.pe_0": {"DP16KD": ("X4/Y22/EBR0",), "MULT18X18D": ("X4/Y10/MULT18_0",)}}
    placed = json.loads(place(json.dumps(netlist, indent=2), sites))
    attributes = placed["modules"]["top"]["cells"]["cluster_0.pe_0.words.0.0"]["attributes"]
    assert attributes.pop("BEL") == "X4/Y22/EBR0"
    assert placed == netlist
    message = ("the netlist has no block RAM and no multiplier of cluster_0.pe_1, for which the "
               "floorplan has sites: this version of Yosys does not work")
    with pytest.raises(BuildError, match=f"^{message}$"):
        place(json.dumps(netlist), sites | {"cluster_0.pe_1": sites["cluster_0.pe_0"]})


def test_small_designs_are_left_alone():
    """Also by the script, so that the netlist is what it was before there were floorplans."""
    plan = plan_of(SMALL)
    assert plan.sites == {}
    assert plan.files["top.ys"] == (
        "# Automatically generated by Amaranth 0.5.10. Do not edit.\n"
        "read_rtlil top.il\n"
        "delete t:$check t:$print\n"
        "setparam -set COLLISION_X_MASK 1'1 t:$memrd_v2 r:CLK_ENABLE=1 %i\n"
        "    synth_ecp5 -nowidelut -top top\n"
        "# (script_after_synth placeholder)\n"
        "write_json top.json")


def test_netlist_of_an_engine(any_size):
    """From Yosys: all block RAMs and multipliers of PEs have a site, and nothing else has."""
    plan = plan_of(SMALL)
    assert len(plan.sites) == 3
    assert _key(plan, ECP5, {}) != _key(replace(plan, sites={}), ECP5, {})
    assert _key(plan, ECP5, {}) != _key(plan, replace(ECP5, refine=None), {})
    rtlil = dedupe(plan.files["top.il"], keep=KEEP)
    results, _ = run_yosys(plan.files["top.ys"], {"top.il": rtlil}, [plan.netlist])
    cells = cells_of(place(results[plan.netlist], plan.sites))
    of_pes = {path: cell for path, cell in cells.items() if ".pe_" in path}
    assert len(of_pes) == 3 * (4 + 1)
    assert len(cells) > len(of_pes)
    found = [cell["attributes"].get("BEL") for cell in of_pes.values()]
    assert sorted(found) == sorted(site for pe in plan.sites.values()
                                   for sites in pe.values() for site in sites)
    assert not any("BEL" in cell["attributes"] for path, cell in cells.items()
                   if path not in of_pes)


@pytest.mark.slow
def test_contents_of_a_placed_engine(any_size, tmp_path):
    """`build` finds every bit of the memories in it, so that it need not be routed again."""
    def built(seed):
        image = compile_network(quantise(random_network(seed, [12, 9, 4], 0.5), SMALL), SMALL)
        return build(image, "ulx3s-85f", out_dir=tmp_path, target_mhz=50, progress=False)

    first, second = built(1), built(2)
    assert (first.cached, second.cached) == (False, True)
    assert first.directory == second.directory
    assert first.bitstream != second.bitstream
    folder = tmp_path / first.directory.rsplit("/", 1)[1]
    assert len([cell for cell in cells_of((folder / "top.json").read_text()).values()
                if "BEL" in cell["attributes"]]) == 3 * (4 + 1)
    assert json.loads((folder / "memories.json").read_text())
