"""Registers behind block RAM, which ECP5 has within it and Yosys puts beside it."""

import json
from collections import defaultdict

__all__ = ["merge_output_registers"]

#: A port that reads words of this many bits has the data outputs of both ports, and port B's clock.
_BOTH = 36


def merge_output_registers(netlist: str) -> str:
    """Use the output registers of ``DP16KD`` for registers that are fed by nothing else.

    Data come 5.8 ns after the clock, and within a nanosecond from the register within, which also
    is never far. A port changes if every output that is used goes to one register and nowhere else,
    and all of these have the same clock as the port, the same enable and no reset. The register
    within starts with zeros as those do.

    Parameters
    ----------
    netlist
        As Yosys writes it as JSON for ECP5; of one module or several.

    Returns
    -------
    str
        The netlist with ``REGMODE_A`` and ``REGMODE_B`` set at these ports, without the registers.
    """
    design = json.loads(netlist)
    for module in design["modules"].values():
        memories = [cell for cell in module.get("cells", {}).values() if cell["type"] == "DP16KD"]
        if memories:
            users = _users(module)
            for memory in memories:
                wide = int(memory["parameters"]["DATA_WIDTH_B"], 2) == _BOTH
                for sides in ["AB"] if wide else ["A", "B"]:
                    _merge(module["cells"], users, memory, sides)
    # Netlists of large engines are tens of megabytes, a third of it the blanks that Yosys writes.
    return json.dumps(design, separators=(",", ":"))


def _users(module: dict) -> dict[int, list[tuple[str, str]]]:
    """Where each net goes to: cells and their ports; ports of the module have no cell."""
    users: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for path, cell in module["cells"].items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] != "output":
                for bit in bits:
                    users[bit].append((path, port))
    for port, found in module["ports"].items():
        for bit in found["bits"]:
            users[bit].append(("", port))
    return users


def _merge(cells: dict[str, dict], users: dict[int, list[tuple[str, str]]], memory: dict,
           sides: str) -> None:
    """Merge the registers behind one side of a memory, or behind both, if that changes nothing."""
    outputs = {port: users[bits[0]] for port, bits in memory["connections"].items()
               if port[:2] == "DO" and port[2] in sides and users.get(bits[0])}
    paths = [user[0][0] for user in outputs.values() if len(user) == 1]
    if not outputs or len(paths) < len(outputs) or "" in paths:
        return
    registers = [cells[path] for path in paths]
    if any(user[0][1] != "DI" for user in outputs.values()) or any(
            register["type"] != "TRELLIS_FF" for register in registers):
        return
    controls = [_control(register) for register in registers]
    enable = controls[0][1]
    common = memory["connections"][f"CLK{sides[-1]}"], enable, True
    if any(control != common for control in controls):
        return
    for side in sides:
        memory["parameters"][f"REGMODE_{side}"] = "OUTREG"
        memory["connections"][f"OCE{side}"] = enable
        memory["port_directions"][f"OCE{side}"] = "input"
    for port, path in zip(outputs, paths, strict=True):
        memory["connections"][port] = cells.pop(path)["connections"]["Q"]


def _control(register: dict) -> tuple[list, list, bool]:
    """Clock and enable of a register, and whether the one of a block RAM can be like it."""
    connections, parameters = register["connections"], register["parameters"]
    # Yosys pads some of the values with blanks.
    modes = {name: value.strip() for name, value in parameters.items() if isinstance(value, str)}
    enable = {"1": ["1"], "CE": connections.get("CE")}.get(modes.get("CEMUX", "CE"))
    plain = (enable is not None and modes.get("CLKMUX", "CLK") == "CLK"
             and modes.get("REGSET", "RESET") == "RESET"
             and modes.get("LSRMUX", "LSR") == "LSR" and connections.get("LSR", ["0"]) == ["0"])
    return connections["CLK"], enable, plain
