"""The boards that `openese build` knows."""

from dataclasses import dataclass

from amaranth.build import Platform
from amaranth_boards.ulx3s import ULX3S_85F_Platform

from .ecp5 import ECP5
from .family import Family

__all__ = ["BOARDS", "Board"]


@dataclass(frozen=True)
class Board:
    """A board, and how the top of `openese.boards.top` uses it.

    Parameters
    ----------
    name
        Name on the command line.
    platform
        Amaranth platform class. A platform builds once, so every build makes a new one.
    family
        Family of its device.
    preset
        Engine configuration that fits the device (`openese.model.config.PRESETS`).
    target_mhz
        Engine clock, unless a build asks for another.
    baud
        Rate of the serial link.
    uart
        Number of the ``uart`` resource that leads to the host.
    """

    name: str
    platform: type[Platform]
    family: Family
    preset: str
    target_mhz: float
    baud: int = 1_000_000
    uart: int = 0


BOARDS: dict[str, Board] = {board.name: board for board in (
    Board("ulx3s-85f", ULX3S_85F_Platform, ECP5, preset="ulx3s-85f", target_mhz=90.0),
)}
