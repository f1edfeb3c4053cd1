"""Registers are merged into block RAM only where nothing changes by it."""

import copy
import json

import pytest

from openese.boards.ecp5_registers import merge_output_registers

CLOCK, RESET, ENABLE = 2, 3, 4
#: Nets of the memory's outputs, and of the registers behind them.
DATA, WORD = [10, 11, 12], [20, 21, 22]


def register(data: int, word: int, **changed: list) -> dict:
    connections = {"CLK": [CLOCK], "CE": [ENABLE], "DI": [data], "LSR": ["0"], "Q": [word]}
    return {
        "type": "TRELLIS_FF",
        "parameters": {"CEMUX": "CE", "CLKMUX": "CLK", "LSRMUX": "LSR", "REGSET": "RESET"},
        "port_directions": {port: "output" if port == "Q" else "input" for port in connections},
        "connections": connections | changed,
    }


def netlist(width: int = 18) -> dict:
    """A memory whose three outputs that are used have a register each."""
    outputs = ["DOB0", "DOB1", "DOA0" if width == 36 else "DOB2"]
    connections = {"CLKA": [CLOCK], "CLKB": [CLOCK], "OCEA": ["1"], "OCEB": ["1"], "CEB": ["1"],
                   "DOB17": []} | {port: [net] for port, net in zip(outputs, DATA, strict=True)}
    memory = {
        "type": "DP16KD",
        "parameters": {"DATA_WIDTH_A": f"{width:032b}", "DATA_WIDTH_B": f"{width:032b}",
                       "REGMODE_A": "NOREG", "REGMODE_B": "NOREG"},
        "port_directions": {port: "output" if port.startswith("DO") else "input"
                            for port in connections},
        "connections": {port: bits or [30] for port, bits in connections.items()},
    }
    cells = {f"word_{k}": register(*nets) for k, nets in enumerate(zip(DATA, WORD, strict=True))}
    return {"modules": {"top": {
        "ports": {"clk": {"direction": "input", "bits": [CLOCK]},
                  "o": {"direction": "output", "bits": list(WORD)}},
        "cells": {"memory": memory} | cells,
    }, "empty": {"ports": {}, "cells": {}}}}


def merged(design: dict) -> dict:
    return json.loads(merge_output_registers(json.dumps(design)))


@pytest.mark.parametrize("width", [18, 36])
def test_registers_become_those_of_the_memory(width):
    cells = merged(netlist(width))["modules"]["top"]["cells"]
    assert list(cells) == ["memory"]
    memory = cells["memory"]
    assert [bits for port, bits in memory["connections"].items()
            if port in ("DOB0", "DOB1", "DOB2", "DOA0")] == [[net] for net in WORD]
    assert memory["parameters"]["REGMODE_B"] == "OUTREG"
    assert memory["connections"]["OCEB"] == [ENABLE]
    # A word of 36 bits comes out of both ports.
    both = width == 36
    assert memory["parameters"]["REGMODE_A"] == ("OUTREG" if both else "NOREG")
    assert memory["connections"]["OCEA"] == ([ENABLE] if both else ["1"])


def test_register_without_enable():
    design = netlist()
    cells = design["modules"]["top"]["cells"]
    for k in range(3):
        del cells[f"word_{k}"]["connections"]["CE"]
        # With the blank that Yosys writes.
        cells[f"word_{k}"]["parameters"]["CEMUX"] = "1 "
    memory = merged(design)["modules"]["top"]["cells"]["memory"]
    assert memory["parameters"]["REGMODE_B"] == "OUTREG"
    assert memory["connections"]["OCEB"] == ["1"]


def with_connection(port, bits):
    def change(module):
        module["cells"]["word_1"]["connections"][port] = bits
    return change


def with_parameter(name, value):
    def change(module):
        module["cells"]["word_1"]["parameters"][name] = value
    return change


def on_another_clock(module):
    for k in range(3):
        module["cells"][f"word_{k}"]["connections"]["CLK"] = [RESET]


def used_twice(module):
    module["cells"]["other"] = register(DATA[1], 40)


def used_by_logic(module):
    module["cells"]["word_1"] = {
        "type": "LUT4", "parameters": {}, "port_directions": {"A": "input", "Z": "output"},
        "connections": {"A": [DATA[1]], "Z": [WORD[1]]}}


def used_as_control(module):
    module["cells"]["word_1"]["connections"] |= {"DI": ["0"], "CE": [DATA[1]]}


def seen_outside(module):
    module["ports"]["o"]["bits"].append(DATA[1])


def only_outside(module):
    del module["cells"]["word_1"]
    module["ports"]["o"]["bits"].append(DATA[1])


@pytest.mark.parametrize("change", [
    with_connection("CE", [RESET]), with_connection("CLK", [RESET]),
    with_connection("LSR", [RESET]), with_parameter("REGSET", "SET"),
    with_parameter("CEMUX", "INV"), with_parameter("CLKMUX", "INV"),
    with_parameter("LSRMUX", "INV"), with_parameter("CEMUX", "1"), on_another_clock, used_twice,
    used_by_logic, used_as_control, seen_outside, only_outside,
])
def test_everything_else_stays(change):
    design = netlist()
    change(design["modules"]["top"])
    assert merged(copy.deepcopy(design)) == design


def test_one_port_of_two():
    """Port A has words of its own, which go to logic."""
    design = netlist()
    memory = design["modules"]["top"]["cells"]["memory"]
    memory["connections"]["DOA0"], memory["port_directions"]["DOA0"] = [50], "output"
    design["modules"]["top"]["ports"]["o"]["bits"].append(50)
    parameters = merged(design)["modules"]["top"]["cells"]["memory"]["parameters"]
    assert (parameters["REGMODE_A"], parameters["REGMODE_B"]) == ("NOREG", "OUTREG")
