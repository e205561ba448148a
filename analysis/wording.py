"""Numbers as people read them: no exponents, no false digits."""

from __future__ import annotations

import math

NONE = "–"


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits without an exponent: 0.0123, 1.23, 123, 12 300."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # 0.9996 has three digits as 1.00, not as 1.000
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{places}f}".replace(",", "\u202f")


def signed(value: float, digits: int = 2) -> str:
    """With its sign: +1.2, −0.40 (a true minus)."""
    return ("+" if value > 0 else "−" if value < 0 else "") + number(abs(value), digits)


def plural(count: int, word: str) -> str:
    """A count with its noun: "1 task", "6 tasks"."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
