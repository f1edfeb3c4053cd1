"""Where synthesis shall put small memories."""

from openese.model.config import LUT_RAM_WORDS

__all__ = ["lut_ram", "small_memory"]


def lut_ram(platform: object = None) -> dict[str, str]:
    """Attributes of a memory that shall be LUT RAM, on devices that have such."""
    return {} if getattr(platform, "family", None) == "ice40" else {"ram_style": "distributed"}


def small_memory(depth: int, platform: object = None) -> dict[str, str]:
    """Attributes of a memory of `depth` words: LUT RAM up to ``LUT_RAM_WORDS``."""
    return lut_ram(platform) if depth <= LUT_RAM_WORDS else {}
