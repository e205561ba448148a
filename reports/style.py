"""Colours and words shared by the interactive and the static figures."""

from __future__ import annotations

import math
from collections.abc import Iterable

NEUTRAL = "#7c8798"
PALETTE = ("#3b7dd8", "#e0812e", "#2a9d74", "#9a6dd7", "#d1556b", "#2aa5b5", "#a58b2a", "#c05fb0")
"""Readable on white and on dark grey, and told apart by the colour-blind in this order. The baseline is neutral."""

PHASES = {"prefill": "prefill (time to first token)", "decode": "decode (time per output token)"}
PHASE_SYMBOLS = {"prefill": "square", "decode": "circle"}
NONE = "–"


def colours(methods: Iterable[str], baseline: str = "dense") -> dict[str, str]:
    """One colour per method label, the same in every figure of a report; those of the baseline are grey."""
    chosen: dict[str, str] = {}
    for method in dict.fromkeys(methods):
        is_baseline = method == baseline or method.startswith(f"{baseline} ·")
        taken = sum(colour != NEUTRAL for colour in chosen.values())
        chosen[method] = NEUTRAL if is_baseline else PALETTE[taken % len(PALETTE)]
    return chosen


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits without an exponent: 0.0123, 1.23, 123, 12 300."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}".replace(",", "\u202f")


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
        if abs(value) >= scale:
            return f"{number(value / scale)} {unit}"
    return f"{value:.0f} B"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """[low, high], or that there is none."""
    return "no interval" if low is None else f"[{number(low, digits)}, {number(high, digits)}]"


def signed(value: float, digits: int = 2) -> str:
    """With its sign: +1.2, −0.4 (a true minus)."""
    return ("+" if value > 0 else "−" if value < 0 else "") + number(abs(value), digits)
