"""Where synthesis shall put small memories."""

from openese.model.config import LUT_RAM_WORDS

__all__ = ["small_memory"]


def small_memory(depth: int) -> dict[str, str]:
    """Attributes of a memory of `depth` words: LUT RAM up to ``LUT_RAM_WORDS``."""
    return {"ram_style": "distributed"} if depth <= LUT_RAM_WORDS else {}
