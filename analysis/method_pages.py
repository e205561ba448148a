"""What the report says of each method on its own: card, place, where its phases lie, and how it went over versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analysis import statistics
from analysis.comparison import Comparison, contest_of
from analysis.headlines import contest_title
from analysis.report_data import MethodPage, Past, RoofPoint
from analysis.samples import request_scores, timed_samples, times_ms
from analysis.taxonomy import class_facts
from suite.harness.measurement import UnitResult
from suite.registry import METHODS


def method_pages(
    units: Sequence[UnitResult],
    rows: Sequence[Comparison],
    points: Sequence[RoofPoint],
    claims: Sequence[Mapping[str, Any]],
) -> tuple[MethodPage, ...]:
    """One page per method with a unit or a claim, in order of name. `units` are all versions of this machine."""
    by_name: dict[str, list[UnitResult]] = {}
    for unit in units:
        by_name.setdefault(unit.spec.method.name, []).append(unit)
    names = sorted({*by_name, *(claim["slug"] for claim in claims)})
    return tuple(_page(name, by_name.get(name, []), rows, points, claims) for name in names)


def _page(
    name: str,
    units: Sequence[UnitResult],
    rows: Sequence[Comparison],
    points: Sequence[RoofPoint],
    claims: Sequence[Mapping[str, Any]],
) -> MethodPage:
    title, facts = _card_facts(name)
    return MethodPage(
        name=name,
        title=title,
        facts=(*facts, *class_facts(name)),
        points=tuple(point for point in points if point.name == name),
        claims=tuple(index for index, claim in enumerate(claims) if claim["slug"] == name),
        ablations=_ablations([row for row in rows if row.name == name]),
        history=_history(units),
    )


def _ablations(rows: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Rows of a method that differ in their options alone."""
    rivals = Counter((row.contest, row.engine) for row in rows)
    return tuple(row for row in rows if rivals[row.contest, row.engine] > 1)


def _card_facts(name: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Title and facts of the card; what is no longer installed, or not a method, has none."""
    if not all(part in METHODS for part in name.split("+")):
        return "not an installed method", ()
    card = METHODS.load(name).card
    promised = "; ".join(f"{claim.text} ({claim.paper})" for claim in card.claims)
    rows = [("source", card.source), ("family", card.family), ("promises", promised)]
    return card.title, tuple(row for row in rows if row[1])


def _history(units: Sequence[UnitResult]) -> tuple[Past, ...]:
    """One row per contest and version of the code, oldest first."""
    groups: dict[tuple[str, str], list[UnitResult]] = {}
    for unit in units:
        groups.setdefault((contest_title(contest_of(unit)), unit.code_version), []).append(unit)
    return tuple(_past(*key, members) for key, members in groups.items())


def _past(contest: str, version: str, units: Sequence[UnitResult]) -> Past:
    times = times_ms([sample for unit in units for sample in timed_samples(unit)])
    scores = [score for unit in units for score in request_scores(unit.samples).values()]
    return Past(
        contest=contest,
        version=version,
        since=min(unit.started_at for unit in units),
        units=len(units),
        median_tpot_ms=statistics.median(times["tpot"]),
        score=statistics.mean(scores),
    )
