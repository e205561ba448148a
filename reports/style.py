"""Colours and words shared by the interactive and the static figures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from analysis.comparison import BASELINE
from analysis.wording import NONE, number

NEUTRAL = "#7c8798"
PALETTE = ("#3b7dd8", "#e0812e", "#2a9d74", "#9a6dd7", "#d1556b", "#2aa5b5", "#a58b2a", "#c05fb0")
"""Readable on white and on dark grey, and told apart by the colour-blind in this order. The baseline is neutral."""

PHASES = {"prefill": "prefill, ms", "decode": "decode, ms per token"}
PHASE_SYMBOLS = {"prefill": "square", "decode": "circle"}


def colours(methods: Iterable[str]) -> dict[str, str]:
    """One colour per method label, in order of appearance; the dense baseline is grey and takes none."""
    others = [method for method in dict.fromkeys(methods) if method != BASELINE]
    return {BASELINE: NEUTRAL, **dict(zip(others, itertools.cycle(PALETTE), strict=False))}


def giga(value: float | None) -> str:
    """Billions of something."""
    return number(None if value is None else value / 1e9)


def percent(value: float | None) -> str:
    """A fraction as a percentage: 38%, 4.2%."""
    if value is None:
        return NONE
    return f"{value:.0%}" if abs(value) >= 0.095 or value == 0 else f"{value:.1%}"


def size(value: float | None) -> str:
    """Bytes with a decimal unit (1 GB = 1e9 bytes)."""
    if value is None:
        return NONE
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= 0.9995 * scale:  # what rounds to 1 000 of the next smaller unit
            return f"{number(value / scale)} {unit}"
    return f"{value:.0f} B"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """[low, high], or that there is none."""
    return "no interval" if low is None else f"[{number(low, digits)}, {number(high, digits)}]"
