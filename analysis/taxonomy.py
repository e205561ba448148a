"""Which class a method belongs to, whom it may be compared with, and what a reader must be told where rows break that.

The data is `taxonomy.toml`. A method without a place there is "unplaced", unless it is a plug-in whose card has one.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from analysis.comparison import Comparison
from suite.errors import InputError
from suite.place import Place
from suite.registry import METHODS

TAXONOMY_FILE = Path(__file__).with_name("taxonomy.toml")
UNPLACED = "unplaced"
EQUAL_BUDGET = 1.1
"""Budgets that differ by at most this factor count as equal: blocks round them."""


@dataclass(frozen=True)
class Group:
    """Methods that are plotted together on `axis`. `budget` is the metric that must be equal for them to be ranked."""

    name: str
    axis: str
    members: tuple[str, ...]
    budget: str = ""


@dataclass(frozen=True)
class Taxonomy:
    """The meaning of every code, the leaves of the survey's tree, groups, and the places of the known systems."""

    where: Mapping[str, str]
    needs: Mapping[str, str]
    exact: Mapping[str, str]
    rules: Mapping[str, str]
    leaves: tuple[str, ...]
    groups: tuple[Group, ...]
    places: Mapping[str, Place]

    def check(self, name: str, place: Place) -> Place:
        """The place; `InputError` where it has a code that the taxonomy does not define."""
        known = (self.where, self.needs, self.exact, self.leaves)
        for codes, vocabulary in zip((place.where, place.needs, (place.exact,), (place.lrm,)), known, strict=True):
            for code in codes:
                if code not in vocabulary:
                    raise InputError(f"the place of {name!r} has {code!r}; known: {', '.join(vocabulary)}.")
        return place


@functools.cache
def taxonomy() -> Taxonomy:
    """The taxonomy of `taxonomy.toml`, checked."""
    return read_taxonomy(tomllib.loads(TAXONOMY_FILE.read_text(encoding="utf-8")))


def read_taxonomy(document: Mapping[str, Any]) -> Taxonomy:
    """The taxonomy of a parsed file; `InputError` for a code, leaf or member that is not defined."""
    places = {
        name: Place(tuple(row["where"]), tuple(row["needs"]), row["exact"], row["lrm"])
        for name, row in document["places"].items()
    }
    groups = tuple(Group(**{**row, "members": tuple(row["members"])}) for row in document["groups"])
    codes = {name: document[name] for name in ("where", "needs", "exact", "rules")}
    found = Taxonomy(**codes, leaves=tuple(_leaves(document["lrm"])), groups=groups, places=places)
    for name, place in places.items():
        found.check(name, place)
    for group in groups:
        if strangers := set(group.members) - set(places):
            raise InputError(f"the group {group.name!r} has members without a place: {', '.join(sorted(strangers))}.")
    return found


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of the tree's leaves: "explicit_compact_cot.cot_compression.importance"."""
    for name, below in tree.items():
        here = f"{path}{name}"
        if isinstance(below, Mapping):
            yield from _leaves(below, f"{here}.")
        else:
            yield from (f"{here}.{leaf}" for leaf in below) if below else (here,)


def place_of(name: str) -> Place | None:
    """The method's place, None if it has none; `squeezellm+lookahead` has that of its parts together."""
    parts = [place for part in name.split("+") if (place := _single(part)) is not None]
    if len(parts) < 2:
        return parts[0] if parts and "+" not in name else None
    return Place(
        where=tuple(dict.fromkeys(code for part in parts for code in part.where)),
        needs=tuple(dict.fromkeys(code for part in parts for code in part.needs)),
        exact=max((part.exact for part in parts), key="-LDS".index),
        lrm=parts[0].lrm,
    )


def _single(name: str) -> Place | None:
    known = taxonomy()
    if name in known.places:
        return known.places[name]
    if name not in METHODS or METHODS[name].family != "plug-in":
        return None
    own = getattr(METHODS.load(name).card, "place", None)
    return known.check(name, own) if own is not None else None


def class_of(name: str) -> str:
    """A method's class in a word: "KV, MEM · TF · D"."""
    place = place_of(name)
    return UNPLACED if place is None else f"{', '.join(place.where)} · {', '.join(place.needs)} · {place.exact}"


def training_of(name: str) -> str:
    """How much a method trains, as the survey's tables ask: none, calibration, component or full."""
    place = place_of(name)
    if place is None:
        return UNPLACED
    levels = {"FT": "full", "TC": "component", "CAL": "calibration"}
    return next((word for code, word in levels.items() if code in place.needs), "none")


def class_facts(name: str) -> tuple[tuple[str, str], ...]:
    """The place in words, as (heading, text) pairs: what it acts on, needs, and must hold to."""
    place, known = place_of(name), taxonomy()
    if place is None:
        return (("class", "unplaced: this method has no entry in the taxonomy"),)
    rules = dict.fromkeys(known.rules[code] for code in (place.exact, *place.needs) if code in known.rules)
    return (
        ("acts on", ", ".join(known.where[code] for code in place.where)),
        ("needs", ", ".join(known.needs[code] for code in place.needs)),
        ("exactness", known.exact[place.exact]),
        ("reasoning survey", place.lrm.replace(".", " › ").replace("_", " ")),
        ("compared in", "; ".join(f"{group.name}: {group.axis}" for group in groups_of(name)) or "no group"),
        ("rules of its class", " ".join(rules) or "none"),
    )


def groups_of(name: str) -> tuple[Group, ...]:
    """The comparison groups of a method, those of all its parts for a combination."""
    return tuple(group for group in taxonomy().groups if set(name.split("+")) & set(group.members))


def rule_notes(rows: Sequence[Comparison]) -> tuple[str, ...]:
    """Where the rows of one contest break a rule of comparison, one sentence each."""
    return (*_unplaced(rows), *_without_quality(rows), *_unequal_budgets(rows))


def _unplaced(rows: Sequence[Comparison]) -> Iterator[str]:
    names = sorted({row.name for row in rows if place_of(row.name) is None})
    if names:
        yield f"{', '.join(names)}: no place in the taxonomy, so no rule of comparison is checked."


def _without_quality(rows: Sequence[Comparison]) -> Iterator[str]:
    """A lossy method's speed says nothing beside a lossless one's while its quality is not shown."""
    exact = [(row, place.exact) for row in rows if (place := place_of(row.name)) is not None]
    blind = [row.label for row, code in exact if code in "DS" and row.ratios and row.metrics["score"] is None]
    if blind and any(code == "L" for _, code in exact):
        yield (
            f"{', '.join(blind)}: lossy, and without a score here, so the speed must not be compared with that of a "
            "lossless method."
        )


def _unequal_budgets(rows: Sequence[Comparison]) -> Iterator[str]:
    for group in (group for group in taxonomy().groups if group.budget):
        budgets = {
            row.label: value
            for row in rows
            if row.name in group.members and (value := row.metrics.get(group.budget)) is not None
        }
        pairs = combinations(budgets.items(), 2)
        if any(max(a, b) > EQUAL_BUDGET * min(a, b) for (_, a), (_, b) in pairs):
            shown = ", ".join(f"{label} {value:.0%}" for label, value in budgets.items())
            yield (
                f"{group.name}: the budgets differ ({group.budget.replace('_', ' ')}: {shown}), so these methods are "
                f"points of a front ({group.axis}) and are not ranked against each other."
            )
