"""The survey's own rows, and how much of its tree is covered here. Nothing in this file was measured by this suite."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from analysis.taxonomy import place_of, taxonomy
from suite.errors import InputError
from suite.registry import METHODS

PRINTED_FILE = Path(__file__).with_name("lrm_printed.toml")
OUT_OF_SCOPE = ("outside", "analysis")


@dataclass(frozen=True)
class PrintedRow:
    """A row as a paper printed it and the survey copied it: not measured here, and not comparable row by row."""

    leaf: str
    method: str
    model: str
    accuracy: float
    tokens: float | None
    source: str


@functools.cache
def printed_rows() -> tuple[PrintedRow, ...]:
    """The rows of `lrm_printed.toml`; `InputError` for one on a leaf that the taxonomy does not have."""
    document = tomllib.loads(PRINTED_FILE.read_text(encoding="utf-8"))
    rows = tuple(PrintedRow(**{"tokens": None, "source": document["source"], **row}) for row in document["rows"])
    for row in rows:
        if row.leaf not in taxonomy().leaves:
            raise InputError(
                f"{PRINTED_FILE.name}: {row.method!r} is on {row.leaf!r}, which is no leaf of the taxonomy."
            )
    return rows


def coverage() -> dict[str, tuple[str, ...]]:
    """The leaves of the survey's tree and the runnable methods on each; those outside its scope are left out."""
    return {
        leaf: tuple(name for name in METHODS if (place := place_of(name)) is not None and place.lrm == leaf)
        for leaf in taxonomy().leaves
        if leaf not in OUT_OF_SCOPE
    }
