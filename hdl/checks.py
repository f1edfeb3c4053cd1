"""Checks of constructor arguments that several blocks share."""

from collections.abc import Iterable

from openese.model.config import EngineConfig

__all__ = ["checked_config", "checked_contents"]


def checked_config(config: EngineConfig) -> EngineConfig:
    """`config` itself, or ``TypeError`` if it is no `EngineConfig`."""
    if not isinstance(config, EngineConfig):
        raise TypeError(f"config must be an EngineConfig, not {config!r}")
    return config


def checked_contents(name: str, words: Iterable[int], depth: int, bits: int) -> list[int]:
    """Initial contents of memory `name` as a list, or ``ValueError``.

    Amaranth itself cuts words that are too wide; the texts name the memory and the limit.
    """
    words = list(words)
    if len(words) > depth:
        raise ValueError(f"{name} has {len(words)} words but the memory of this configuration "
                         f"holds {depth}")
    for place, word in enumerate(words):
        if not isinstance(word, int) or not 0 <= word < 1 << bits:
            raise ValueError(f"{name} word {place} must be an integer from 0 to "
                             f"{(1 << bits) - 1} ({bits} bits), not {word!r}")
    return words
