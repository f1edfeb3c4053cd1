# amaranth: UnusedElaboratable=no
"""Proves of every board, short of place and route: its top elaborates with pins and constraints for
all that it uses, its clock and serial rates can be made, its engine fits the device's memory and
says of itself what it is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from amaranth.build import ResourceError

from openese.boards.build import KEEP, build
from openese.boards.platforms import BOARDS
from openese.boards.top import Top
from openese.boards.uart import divisor
from openese.commands import DATA
from openese.hdl.export import dedupe, take_memories
from openese.model.compile import compile_network
from openese.model.config import PRESETS
from openese.model.ese_file import load
from openese.model.quantise import quantise
from openese.model.resources import engine_memories

#: Block RAMs of the link.
LINK_BRAMS = 2

#: Every pin that is used, on boards whose schematics we could compare.
PINS = {
    "ulx3s-85f": {"G2", "M1", "L4", "B2", "C2"},
    "orangecrab-25f": {"A9", "N17", "M18", "K4", "M3", "J3"},
    "ecpix5-85f": {"K23", "R26", "R24", "T23", "R21", "T22"},
}


def plan_of(board):
    top = Top(board.config, board, board.target_mhz)
    return top, board.family.plan(board.platform(), top, 1)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] if board.config.n_pes > 8 else [])
    for name, board in BOARDS.items()])
def test_top(name):
    board = BOARDS[name]
    top, plan = plan_of(board)
    assert set(plan.files) >= {"top.ys", "top.il"}
    rtlil = dedupe(plan.files["top.il"], keep=KEEP)
    assert top.pll.output_hz == pytest.approx(board.target_mhz * 1e6, rel=0.02)
    [constraints] = [text for file, text in plan.files.items()
                     if file.endswith((".lpf", ".pcf", ".cst"))]
    for port in ("uart_0__rx", "uart_0__tx"):
        assert port in constraints
    for resource, number, _ in board.lights:
        assert f"{resource}_{number}" in constraints
    pins = PINS.get(name)
    if pins:
        assert set(re.findall(r'SITE "(\w+)"', constraints)) == pins
        assert f'FREQUENCY NET "clock" {top.pll.output_hz} HZ;' in constraints
    # What the board tells of itself is in a memory of the link.
    told = [bytes(memory.rows) for memory in take_memories(rtlil)[1]
            if memory.width == 8 and any(memory.rows)]
    assert [name.encode() in record for record in told] == [True]
    assert all(products.endswith(board.family.suffix) for products in plan.products[:1])


@pytest.mark.parametrize("name", BOARDS)
def test_rates(name):
    """The stated clock is made within 1 %, and the link runs at its rate and, with the adapters of
    FTDI, at 3 Mbaud."""
    board = BOARDS[name]
    made = board.family.pll(board.platform().default_clk_frequency, board.target_mhz * 1e6)
    assert made.output_hz == pytest.approx(board.target_mhz * 1e6, rel=0.01)
    assert divisor(made.output_hz, board.baud) >= 4
    assert board.family.name == "gowin" or divisor(made.output_hz, 3_000_000) >= 4


@pytest.mark.parametrize("name", [n for n, b in BOARDS.items() if b.family.name == "ecp5"])
def test_engine_fits(name):
    board = BOARDS[name]
    used = sum(memory.brams for memory in engine_memories(board.config)) + LINK_BRAMS
    assert used <= board.brams


def test_presets():
    assert BOARDS["ulx3s-85f"].config == PRESETS["ulx3s-85f"]
    assert all(len(name) <= 16 for name in BOARDS)
    # A preset that the board tells is looked up by its name.
    assert all(BOARDS[name].config == preset for name, preset in PRESETS.items()
               if name in BOARDS)


def test_table_of_the_documentation():
    table = Path(__file__).parents[2].joinpath("docs", "boards.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| (.*?) \| (\d+) PEs x ([\d,]+) entries.*\| ([\d.]+) MHz \|",
                      table, re.M)
    assert rows == [(board.name, board.device, str(board.config.n_pes),
                     f"{board.config.spmat_depth:,}", f"{board.target_mhz:g}")
                    for board in BOARDS.values()]


@pytest.mark.parametrize("name", [n for n, b in BOARDS.items() if b.family.name == "ecp5"])
@pytest.mark.parametrize("model", ["lenet_300_100", "spoken_digits"])
def test_shipped_models(name, model):
    """Every ECP5 board runs LeNet-300-100; those with an element-wise unit run the LSTM too."""
    config = BOARDS[name].config
    network = load(DATA / f"{model}.ese")
    if network.recurrent and not config.recurrent:
        return
    assert compile_network(quantise(network, config), config).config == config


def test_orangecrab_has_no_serial_line_of_its_own():
    platform = BOARDS["orangecrab-25f"].platform.__mro__[1]
    with pytest.raises(ResourceError, match="uart"):
        platform().request("uart", 0)


def test_importing_the_boards_needs_no_tools():
    """The table can be read where no tool but Amaranth is."""
    program = ("import sys; import openese.boards.platforms; "
               "print([m for m in sys.modules if m.startswith(('yowasp', 'apycula', 'torch'))])")
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout.decode().strip() == "[]"


#: Boards whose bitstream is built by `make test-all`: the smallest of each family.
SMALLEST = ("ulx3s-12f", "icebreaker", "tang-nano-9k")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_bitstream(name, tmp_path):
    """The engine of the table, routed at the clock of the table."""
    report = build(BOARDS[name].config, name, out_dir=tmp_path, progress=False)
    assert report.met
    assert report.brams <= BOARDS[name].brams
    assert json.loads(json.dumps(report.to_json()))["bitstream"].endswith(
        BOARDS[name].family.suffix)
