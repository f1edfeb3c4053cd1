"""Where synthesis shall put small memories."""

from openese.model.config import LUT_RAM_WORDS

__all__ = ["small_memory"]


def small_memory(depth: int, platform: object = None) -> dict[str, str]:
    """Attributes of a memory of `depth` words: LUT RAM up to ``LUT_RAM_WORDS``, on devices that
    have such."""
    if depth > LUT_RAM_WORDS or getattr(platform, "family", None) == "ice40":
        return {}
    return {"ram_style": "distributed"}
