"""Did anything get worse? Two sets of results against each other, or a night against the nights before it.

Times are noisy: they are compared pair by pair (same request, same repeat) by a rank test, whose p-values are corrected
over everything compared (Holm), by a bootstrap interval and by a minimum effect; an unstable unit gets no verdict. What
is counted (KV cache, memory) has no noise and needs the minimum effect only. Greedy scores are compared per request.
Over the nights a time has got worse when its level has shifted (`analysis.change_points`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any, Literal

import numpy as np
from scipy import stats

from analysis import change_points, statistics
from analysis.statistics import Estimate
from suite.harness.history import Observation

Outcome = Literal["regression", "improvement", "same", "no verdict"]

TIMED = ("ttft", "tpot", "e2el")
COUNTED = (
    "selected_retention",
    "stored_retention",
    "kv_resident_bytes",
    "kv_index_bytes",
    "kv_read_bytes_per_step",
    "model_bytes",
)
LEVEL = 0.05  # chance of one wrong verdict or more in a whole comparison
MIN_EFFECT = 0.05  # two single runs differ by a few percent for no reason but the day
MIN_PAIRS = 5
COUNTED_EFFECT = 0.01
JUMP, FEW = 0.25, 0.75  # how much slower than each of n nights one night must be to need no second: JUMP + FEW / n


@dataclass(frozen=True)
class Verdict:
    """One figure of one unit. `change` is the relative change, above 0 where the figure has grown."""

    unit: str
    metric: str
    outcome: Outcome
    before: float | None = None
    after: float | None = None
    change: Estimate | None = None
    p: float | None = None
    reason: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def compare(
    before: Sequence[Observation], after: Sequence[Observation], min_effect: float = MIN_EFFECT
) -> list[Verdict]:
    """The verdicts on every unit of either side, in the order of `after`; of equal questions the last answer counts."""
    old, new = ({one.question: one for one in side} for side in (before, after))
    verdicts: list[Verdict] = []
    for question, one in new.items():
        if question in old:
            verdicts += _pair(old[question], one, min_effect)
        else:
            verdicts.append(Verdict(one.label, "status", "no verdict", reason="it is not among the earlier results."))
    for question, one in old.items():
        if question not in new:
            verdicts.append(Verdict(one.label, "status", "no verdict", reason="it was not measured again."))
    return _corrected(verdicts)


def _pair(old: Observation, new: Observation, min_effect: float) -> list[Verdict]:
    broken = _status(old, new)
    if broken is not None:
        return [broken]
    timed = [_timed(old, new, metric, min_effect) for metric in TIMED if metric in old.times and metric in new.times]
    return [*timed, *_untimed(old, new)]


def _status(old: Observation, new: Observation) -> Verdict | None:
    """The verdict where one side has no figures; None where both have."""
    lost = {"gated", "failed"}
    if new.status in lost:
        outcome: Outcome = "no verdict" if old.status in lost else "regression"
        return Verdict(new.label, "status", outcome, reason=f"{new.status}: {'; '.join(new.reasons)}")
    if old.status in lost:
        return Verdict(new.label, "status", "improvement", reason=f"it was {old.status} before.")
    return None


def _timed(old: Observation, new: Observation, metric: str, min_effect: float) -> Verdict:
    was, now = old.metrics.get(f"median_{metric}_ms"), new.metrics.get(f"median_{metric}_ms")
    empty = Verdict(new.label, metric, "no verdict", was, now)
    if old.place != new.place:
        return replace(empty, reason="the results are from different machines.")
    noisy = [reason for one in (old, new) if one.status == "unstable" for reason in one.reasons]
    if noisy:
        return replace(empty, reason=f"unstable: {noisy[0]}")
    logs = _pair_logs(new.times[metric], old.times[metric])
    if len(logs) < MIN_PAIRS:
        return replace(empty, reason=f"{len(logs)} pairs of requests are too few, {MIN_PAIRS} are needed.")
    ratio = statistics.ratio_from_logs(logs)
    assert ratio is not None
    change = Estimate(ratio.value - 1, _less_one(ratio.low), _less_one(ratio.high), ratio.n, ratio.note)
    p = float(stats.wilcoxon(logs).pvalue) if np.any(logs) else 1.0
    outcome = _outcome(change, min_effect)
    return Verdict(new.label, metric, outcome, was, now, change, p)


def _pair_logs(new: Mapping[str, float], old: Mapping[str, float]) -> list[float]:
    keyed = [{(name, 0): value for name, value in side.items()} for side in (new, old)]
    return statistics.pair_logs(keyed[0], keyed[1])


def _less_one(value: float | None) -> float | None:
    return None if value is None else value - 1


def _outcome(change: Estimate, min_effect: float, larger_is_worse: bool = True) -> Outcome:
    """What the change means when its interval excludes 0 and it is large enough."""
    low, high = (change.value if bound is None else bound for bound in (change.low, change.high))
    if abs(change.value) < min_effect or low <= 0 <= high:
        return "same"
    return "regression" if (change.value > 0) == larger_is_worse else "improvement"


def _untimed(old: Observation, new: Observation) -> list[Verdict]:
    verdicts = [
        _counted(new.label, metric, old.metrics[metric], new.metrics[metric])
        for metric in COUNTED
        if metric in old.metrics and metric in new.metrics
    ]
    score = _score(old, new)
    return [*verdicts, score] if score is not None else verdicts


def _counted(label: str, metric: str, was: float, now: float) -> Verdict:
    """Less of it is better, for all of them."""
    change = Estimate((now - was) / (was or 1.0), None, None, 1, "counted")  # what was nothing is counted in bytes
    return Verdict(label, metric, _outcome(change, COUNTED_EFFECT), was, now, change)


def _score(old: Observation, new: Observation) -> Verdict | None:
    """Of the requests both have; the change is relative to their mean before. Sampled scores are not compared."""
    shared = sorted(old.scores.keys() & new.scores.keys())
    if not shared or not (old.greedy and new.greedy):
        return None
    was, now = fmean(old.scores[name] for name in shared), fmean(new.scores[name] for name in shared)
    difference = statistics.mean_estimate([new.scores[name] - old.scores[name] for name in shared])
    assert difference is not None
    scale = abs(was) or max(abs(now), 1e-12)
    low, high = (None if bound is None else bound / scale for bound in (difference.low, difference.high))
    change = Estimate(difference.value / scale, low, high, difference.n, difference.note)
    outcome = _outcome(change, COUNTED_EFFECT, larger_is_worse=not new.higher_is_better)
    return Verdict(new.label, "score", outcome, was, now, change)


def _corrected(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Holm's correction: a timed verdict stands only if its p-value does among all of them."""
    tested = sorted((one.p, index) for index, one in enumerate(verdicts) if one.p is not None)
    corrected, worst = list(verdicts), 0.0
    for rank, (p, index) in enumerate(tested):
        worst = min(1.0, max(worst, p * (len(tested) - rank)))
        one = replace(verdicts[index], p=worst)
        if one.outcome != "same" and worst >= LEVEL:
            pairs = one.change.n if one.change is not None else 0
            one = replace(one, outcome="no verdict", reason=f"{pairs} pairs do not exclude chance (p = {worst:.2g}).")
        corrected[index] = one
    return corrected


def judge_night(history: Sequence[Observation], night: str) -> list[Verdict]:
    """The verdicts on the units of one night, given all nights up to it, oldest first."""
    earlier: dict[tuple[str, str], list[Observation]] = {}
    tonight: dict[tuple[str, str], Observation] = {}
    for one in history:
        if one.night == night:
            tonight[one.question, one.place] = one
        elif one.night < night:
            earlier.setdefault((one.question, one.place), []).append(one)
    family = max(1, sum(len(one.times) for one in tonight.values()))
    return [verdict for key, one in tonight.items() for verdict in _night(earlier.get(key, []), one, family)]


def _night(earlier: Sequence[Observation], one: Observation, family: int) -> list[Verdict]:
    sound = [past for past in earlier if past.status in ("ok", "unstable")]
    if not earlier:
        return [Verdict(one.label, "status", "no verdict", reason="it is measured for the first time here.")]
    broken = _status(sound[-1] if sound else earlier[-1], one)
    if broken is not None:
        return [broken]
    if not sound:
        return []
    timed = [_shifted(sound, one, metric, family) for metric in TIMED if metric in one.times]
    return [*timed, *_untimed(_usual(sound), one)]


def _usual(sound: Sequence[Observation]) -> Observation:
    """What the nights of the window have in common: medians of their counted figures and of each request's score."""
    window = sound[-change_points.WINDOW :]

    def medians(field: Callable[[Observation], Mapping[str, float]]) -> dict[str, float]:
        names = {name for one in window for name in field(one)}
        return {name: median(field(one)[name] for one in window if name in field(one)) for name in sorted(names)}

    return window[-1].model_copy(
        update={"metrics": medians(lambda one: one.metrics), "scores": medians(lambda one: one.scores)}
    )


def _shifted(earlier: Sequence[Observation], one: Observation, metric: str, family: int) -> Verdict:
    """The level of a time tonight, against the level before its last shift."""
    name = f"median_{metric}_ms"
    if one.status == "unstable":
        reason = f"unstable: {one.reasons[0]}" if one.reasons else "unstable."
        return Verdict(one.label, metric, "no verdict", after=one.metrics.get(name), reason=reason)
    past = [night for night in earlier if night.status == "ok" and night.metrics.get(name, 0.0) > 0]
    values = [night.metrics[name] for night in past] + [one.metrics[name]]
    shift = change_points.last_shift(values, family)
    if shift is not None:
        since = [*past, one][shift.start]
        before, after = values[: shift.start][-change_points.WINDOW :], values[shift.start :]
        change = Estimate(math.expm1(shift.size), None, None, len(after), "level before and after the shift")
        reason = f"since the night {since.night}" + (f" (commit {since.commit[:12]})" if since.commit else "") + "."
        outcome: Outcome = "regression" if shift.size > 0 else "improvement"
        return Verdict(one.label, metric, outcome, median(before), median(after), change, shift.p, reason)
    return _jump(past, one, metric)


def _jump(past: Sequence[Observation], one: Observation, metric: str) -> Verdict:
    """One night against all before: for what is too large to wait for, and for short histories."""
    name = f"median_{metric}_ms"
    now = one.metrics[name]
    window = [night.metrics[name] for night in past[-change_points.WINDOW :]]
    if not window:
        return Verdict(one.label, metric, "no verdict", after=now, reason="no stable night before this one.")
    usual = median(window)
    change = Estimate(now / usual - 1, None, None, len(window), "tonight against the usual")
    jump = JUMP + FEW / len(window)
    if now > (1 + jump) * max(window) and _slower_by(jump / 2, past[-1], one, metric):
        reason = f"more than {jump:.0%} slower than each of {len(window)} nights."
        return Verdict(one.label, metric, "regression", usual, now, change, reason=reason)
    if len(window) < change_points.MIN_BASE:
        reason = f"{len(window)} of {change_points.MIN_BASE} stable nights are there to judge it by."
        return Verdict(one.label, metric, "no verdict", usual, now, change, reason=reason)
    return Verdict(one.label, metric, "same", usual, now, change)


def _slower_by(least: float, last: Observation, one: Observation, metric: str) -> bool:
    """Request by request, too: the whole interval is beyond it."""
    paired = statistics.ratio_from_logs(_pair_logs(one.times[metric], last.times.get(metric, {})))
    return paired is not None and paired.low is not None and paired.low > 1 + least
