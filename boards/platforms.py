"""The boards that `openese build` knows."""

from dataclasses import dataclass

from amaranth.build import Attrs, Platform
from amaranth_boards.ecpix5 import ECPIX585Platform
from amaranth_boards.icebreaker import ICEBreakerPlatform
from amaranth_boards.orangecrab_r0_2 import (
    OrangeCrabR0_2_25FPlatform,
    OrangeCrabR0_2_85FPlatform,
)
from amaranth_boards.resources import UARTResource
from amaranth_boards.tang_nano_9k import TangNano9kPlatform
from amaranth_boards.ulx3s import (
    ULX3S_12F_Platform,
    ULX3S_25F_Platform,
    ULX3S_45F_Platform,
    ULX3S_85F_Platform,
)

from openese.model.config import PRESETS, EngineConfig

from .ecp5 import ECP5
from .family import Family
from .gowin import GW1N, GW2A, TangNano20kPlatform
from .ice40 import ICE40
from .protocol import BUFFER_BYTES, SENT_BYTES

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
    device
        The device in words.
    brams
        Block RAMs of the device, in the unit of `BuildReport.brams`.
    config
        Engine that fits the device.
    target_mhz
        Engine clock, unless a build asks for another.
    link
        How a host reaches the ``uart`` resource, in words.
    lights
        Where state is shown: (resource, number, subsignal or ``None``) of the light that blinks
        while the clock runs, then of the one that tells of lost bytes. There may be fewer.
    sram, flash
        Arguments of openFPGALoader, before the file, that load the device until power goes, and
        that write the memory it starts from; ``None`` where the board cannot.
    baud
        Rate of the serial link.
    uart
        Number of the ``uart`` resource that leads to the host.
    buffer_bytes, sent_bytes
        What the link keeps of what came, and of what it sent.
    holds_model
        Whether a bitstream can hold a model; not where weights are in memory that is empty at
        power-up.
    """

    name: str
    platform: type[Platform]
    family: Family
    device: str
    brams: int
    config: EngineConfig
    target_mhz: float
    link: str
    lights: tuple[tuple[str, int, str | None], ...]
    sram: tuple[str, ...] | None
    flash: tuple[str, ...] | None
    baud: int = 1_000_000
    uart: int = 0
    buffer_bytes: int = BUFFER_BYTES
    sent_bytes: int = SENT_BYTES
    holds_model: bool = True


def _with_pins(platform: type[Platform]) -> type[Platform]:
    """An OrangeCrab with a serial line at the pins that a Feather has it at."""
    uart = UARTResource(0, rx="0", tx="1", conn=("io", 0),
                        attrs=Attrs(IO_TYPE="LVCMOS33", PULLMODE="UP"))
    return type(platform.__name__, (platform,), {"resources": [*platform.resources, uart]})


_LEDS = (("led", 0, None), ("led", 1, None))
_RGB_LED = (("rgb_led", 0, "g"), ("rgb_led", 0, "r"))


def _ulx3s(size: str, platform: type[Platform], brams: int, config: EngineConfig,
           target_mhz: float) -> Board:
    return Board(
        f"ulx3s-{size}f", platform, ECP5, f"ECP5 LFE5U-{size}F, grade 6", brams, config,
        target_mhz, "USB serial (FT231X)", _LEDS,
        sram=("-b", "ulx3s", "-m"), flash=("-b", "ulx3s", "-f"))


def _orangecrab(size: str, platform: type[Platform], brams: int, config: EngineConfig,
                target_mhz: float) -> Board:
    # The bootloader at the USB connector writes flash only.
    return Board(
        f"orangecrab-{size}f", _with_pins(platform), ECP5, f"ECP5 LFE5U-{size}F, grade 8", brams,
        config, target_mhz, "3.3 V serial adapter at pins 0 (rx) and 1 (tx)", _RGB_LED,
        sram=None, flash=("-b", "orangeCrab"))


#: Block RAMs of the 12F are those Lattice promises. The open tools also offer it those of the 25F.
BOARDS: dict[str, Board] = {board.name: board for board in (
    _ulx3s("12", ULX3S_12F_Platform, 32, EngineConfig(
        n_pes=4, spmat_depth=8192, ptr_depth=2048, bias_depth=128, act_depth=512, acc_depth=128,
        input_lanes=4), 75.0),
    _ulx3s("25", ULX3S_25F_Platform, 56, EngineConfig(
        n_pes=8, spmat_depth=4096, ptr_depth=2048, bias_depth=128, act_depth=256, acc_depth=128,
        input_lanes=4), 75.0),
    _ulx3s("45", ULX3S_45F_Platform, 108, EngineConfig(
        n_pes=16, spmat_depth=4096, ptr_depth=2048, bias_depth=512, act_depth=256, acc_depth=64,
        shift_bits=4, state_depth=256, peephole_depth=256, input_lanes=4), 75.0),
    _ulx3s("85", ULX3S_85F_Platform, 208, PRESETS["ulx3s-85f"], 90.0),
    _orangecrab("25", OrangeCrabR0_2_25FPlatform, 56, EngineConfig(
        n_pes=8, spmat_depth=4096, ptr_depth=2048, bias_depth=128, act_depth=256, acc_depth=128,
        input_lanes=4), 96.0),
    _orangecrab("85", OrangeCrabR0_2_85FPlatform, 208, EngineConfig(
        n_pes=16, spmat_depth=8192, ptr_depth=2048, bias_depth=512, act_depth=512, acc_depth=64,
        shift_bits=4, state_depth=512, peephole_depth=512, input_lanes=4), 72.0),
    Board("ecpix5-85f", ECPIX585Platform, ECP5, "ECP5 LFE5UM5G-85F, grade 8", 208, EngineConfig(
        n_pes=32, spmat_depth=4096, ptr_depth=2048, bias_depth=64, act_depth=256, acc_depth=32,
        input_lanes=4), 100.0, "USB serial (second port of the FT2232H)", _RGB_LED,
        sram=("-b", "ecpix5", "-m"), flash=("-b", "ecpix5", "-f")),
    # Matrices are in SPRAM, which has no contents at power-up: this engine is loaded by the link.
    Board("icebreaker", ICEBreakerPlatform, ICE40, "iCE40UP5K, package SG48", 30, EngineConfig(
        n_pes=4, queue_depth=1, entry_bits=10, spmat_depth=16384, ptr_depth=1, bias_depth=128,
        act_depth=512, acc_depth=128, act_bits=13, weight_bits=12, acc_bits=28, bias_bits=16,
        pointers=False), 24.0, "USB serial (second port of the FT2232H)", _LEDS, sram=None,
        flash=("-b", "ice40_generic", "-f"), buffer_bytes=512, sent_bytes=256, holds_model=False),
    Board("tang-nano-9k", TangNano9kPlatform, GW1N, "Gowin GW1NR-9C, grade C6/I5", 26, EngineConfig(
        n_pes=2, spmat_depth=14336, ptr_depth=2048, bias_depth=512, act_depth=1024, acc_depth=512,
        input_lanes=2), 54.0, "USB serial (second port of the BL702)", _LEDS,
        sram=("-b", "tangnano9k"), flash=("-b", "tangnano9k", "-f")),
    Board("tang-nano-20k", TangNano20kPlatform, GW2A, "Gowin GW2AR-18C, grade C8/I7", 46,
          EngineConfig(n_pes=8, spmat_depth=4096, ptr_depth=2048, bias_depth=64, act_depth=256,
                       acc_depth=48, input_lanes=4), 108.0,
          "USB serial (second port of the BL616)", _LEDS,
          sram=("-b", "tangnano20k"), flash=("-b", "tangnano20k", "-f")),
)}
