"""Where a method belongs among the others. The built-in ones are placed in `analysis/taxonomy.toml`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Codes of `analysis/taxonomy.toml`, which says what they mean and which there are.

    `where` is what the method acts on, the main thing first. `exact` is "L" (lossless), "D" (an approximation of the
    same job), "S" (changes the output on purpose) or "-". `lrm` is a leaf of the reasoning survey's tree.
    """

    where: tuple[str, ...]
    needs: tuple[str, ...]
    exact: str
    lrm: str
