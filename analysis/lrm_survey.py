"""The empirical table of the survey of efficient reasoning (arXiv 2503.23077), from this suite's own runs only.

Every answer counts, wrong ones too. Tokens are visible ones; drafted tokens that were thrown away are `hidden_steps`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median

from analysis.comparison import Comparison
from analysis.samples import request_scores
from analysis.taxonomy import place_of
from suite.harness.measurement import Sample, UnitResult
from suite.registry import WORKLOADS

Z = NormalDist().inv_cdf(0.975)
EQUAL_ACCURACY = 1.0
"""Points of accuracy that a method may lose and still count as equally accurate."""


@dataclass(frozen=True)
class SurveyRow:
    """One method on one reasoning workload; `keys` are the units behind it.

    Accuracy in percent with its 95% Wilson interval. `flops` per answer are the counted ones of
    a token times its tokens, drafted ones included. `token_ratio` is the
    baseline's tokens over the method's at equal accuracy, None where the method lost more or there is no baseline.
    """

    leaf: str
    method: str
    contest: str
    accuracy: float
    low: float
    high: float
    answers: int
    mean_tokens: float
    median_tokens: float
    hidden_steps: float
    flops: float | None
    latency_ms: float | None
    token_ratio: float | None
    keys: tuple[str, ...]


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95% Wilson interval of a share of `n`."""
    share, spread = successes / n, Z * Z / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return centre - half, centre + half


def survey_rows(rows: Sequence[Comparison], units: Sequence[UnitResult]) -> tuple[SurveyRow, ...]:
    """The table's rows: one per method of a contest whose workload is about reasoning and was scored."""
    found: list[SurveyRow] = []
    for row in rows:
        workload = row.contest.workload
        if workload not in WORKLOADS or WORKLOADS[workload].family != "reasoning":
            continue
        members = [unit for unit in units if row.holds(unit)]
        if any(request_scores(unit.samples) for unit in members):
            base = next((one for one in rows if one.is_baseline and one.contest == row.contest), None)
            rivals = [unit for unit in units if base is not None and base is not row and base.holds(unit)]
            found.append(_survey_row(row, members, rivals))
    return tuple(found)


def _survey_row(row: Comparison, units: Sequence[UnitResult], baseline: Sequence[UnitResult]) -> SurveyRow:
    samples = [sample for unit in units for sample in unit.samples]
    tokens = [len(sample.token_ids) for sample in samples]
    scores = _scores(units)
    low, high = wilson(sum(scores) / 100, len(scores))
    place = place_of(row.name)
    contest = row.contest
    return SurveyRow(
        leaf=place.lrm if place is not None else "unplaced",
        method=row.label,
        contest=f"{contest.workload} on {contest.model}",
        accuracy=fmean(scores),
        low=100 * low,
        high=100 * high,
        answers=len(scores),
        mean_tokens=fmean(tokens),
        median_tokens=median(tokens),
        hidden_steps=fmean(_hidden(sample) for sample in samples),
        flops=_flops(units),
        latency_ms=row.metrics["median_e2el_ms"],
        token_ratio=_token_ratio(units, baseline),
        keys=tuple(unit.key for unit in units),
    )


def _scores(units: Sequence[UnitResult]) -> list[float]:
    return [score for unit in units for score in request_scores(unit.samples).values()]


def _hidden(sample: Sample) -> int:
    return sample.drafts.drafted - sample.drafts.accepted if sample.drafts is not None else 0


def _flops(units: Sequence[UnitResult]) -> float | None:
    """Mean over the answers: what a token of each phase was counted to cost, times the tokens that its passes were fed.

    The counting pass of a unit is a few steps long, so its own sum is no answer's.
    """
    answers: list[float] = []
    for unit in units:
        cost = {count.phase: count.flops / count.tokens for count in unit.counts if count.tokens}
        if "prefill" in cost:
            decode = cost.get("decode", 0.0)
            answers += [cost["prefill"] * s.prompt_tokens + decode * _decoded(s) for s in unit.samples]
    return fmean(answers) if answers else None


def _decoded(sample: Sample) -> int:
    """Tokens that decoding passes were fed: roots and all drafted nodes, or every token but the last."""
    drafts = sample.drafts
    return drafts.rounds + drafts.drafted if drafts is not None else len(sample.token_ids) - 1


def _token_ratio(units: Sequence[UnitResult], baseline: Sequence[UnitResult]) -> float | None:
    theirs = _scores(baseline)
    if not theirs or fmean(theirs) - fmean(_scores(units)) > EQUAL_ACCURACY:
        return None
    before, after = (fmean(len(s.token_ids) for unit in side for s in unit.samples) for side in (baseline, units))
    return before / after
