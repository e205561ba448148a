"""Spec-Bench's own figures (arXiv 2401.07851; `_speculative.md` section 6): ratios of mean speeds, prefill included.

They are not the paired ratios of the other tables: there every request counts alike, here the fast ones count more.
Two differences from the published script: tokens are the generated ids for the baseline too (it re-tokenises its text),
and every turn is a request, so that the time between two turns counts for nobody.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from analysis.comparison import Comparison, baselines
from analysis.samples import timed_samples
from suite.harness.measurement import Sample, UnitResult

WORKLOAD = "spec-bench"
OVERALL = "overall"

Question = tuple[str, int, int]
"""Task, number of the question, repeat."""


@dataclass(frozen=True)
class SpecBenchRow:
    """One method on one category, or overall, on the questions that it and dense both answered.

    `tokens_per_s` is the mean of the questions' speeds; `speedup` is it over dense's, `spread` the standard deviation
    of the speed-ups of the single repeats; `accepted` the mean accepted tokens per round, the target's own included.
    """

    method: str
    category: str
    questions: int
    tokens_per_s: float
    speedup: float
    spread: float | None
    accepted: float


def spec_bench_rows(rows: Sequence[Comparison], units: Sequence[UnitResult]) -> list[SpecBenchRow]:
    """Of every method, overall first, then by category; none for other workloads, or batches of several requests."""
    dense = baselines(units)
    found = []
    for row in rows:
        if row.contest.workload != WORKLOAD or row.contest.batch_size != 1:
            continue
        pairs = [(unit, dense[unit.block]) for unit in units if row.holds(unit) and unit.block in dense]
        own = [sample for unit, _ in pairs for sample in timed_samples(unit)]
        base = [sample for _, baseline in pairs for sample in timed_samples(baseline)]
        for category in (OVERALL, *dict.fromkeys(sample.task for sample in own)):
            members = [[s for s in some if category in (OVERALL, s.task)] for some in (own, base)]
            if (made := _row(row.label, category, *members)) is not None:
                found.append(made)
    return found


def _row(method: str, category: str, own: Sequence[Sample], base: Sequence[Sample]) -> SpecBenchRow | None:
    ours, theirs = speeds(own), speeds(base)
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    by_repeat = [
        _ratio(ours, theirs, [key for key in both if key[2] == repeat]) for repeat in sorted({key[2] for key in both})
    ]
    return SpecBenchRow(
        method=method,
        category=category,
        questions=len({key[:2] for key in both}),
        tokens_per_s=statistics.fmean(ours[key] for key in both),
        speedup=_ratio(ours, theirs, both),
        spread=statistics.stdev(by_repeat) if len(by_repeat) > 1 else None,
        accepted=accepted_tokens([sample for sample in own if _question(sample) in both]),
    )


def speeds(samples: Iterable[Sample]) -> dict[Question, float]:
    """Tokens per second of each question and repeat: the tokens of all its turns over their time from prompt to end."""
    tokens: dict[Question, int] = {}
    milliseconds: dict[Question, float] = {}
    for sample in samples:
        key = _question(sample)
        tokens[key] = tokens.get(key, 0) + len(sample.token_ids)
        milliseconds[key] = milliseconds.get(key, 0.0) + sample.e2el_ms
    return {key: 1e3 * tokens[key] / milliseconds[key] for key in tokens if milliseconds[key]}


def accepted_tokens(samples: Sequence[Sample]) -> float:
    """Mean over all rounds of all questions; a pass of plain decoding is a round of one token."""
    drafts = [sample.drafts for sample in samples if sample.drafts is not None]
    rounds = sum(draft.rounds for draft in drafts)
    return sum(draft.emitted for draft in drafts) / rounds if rounds else 1.0


def _question(sample: Sample) -> Question:
    return sample.task, int(sample.metadata["question_id"]), sample.repeat


def _ratio(ours: Mapping[Question, float], theirs: Mapping[Question, float], keys: Sequence[Question]) -> float:
    return statistics.fmean(ours[key] for key in keys) / statistics.fmean(theirs[key] for key in keys)
