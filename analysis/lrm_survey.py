"""The empirical table of the survey of efficient reasoning (arXiv 2503.23077), from this suite's own runs only.

Every answer counts, wrong ones too. What an answer does not show (rejected drafts, chains thrown away, a verifier's
tokens) is in `hidden_steps`, and ratios are of all generated tokens. What the survey prints is apart, in `lrm_printed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median

from analysis.comparison import Comparison, stable_units
from analysis.lrm_work import Work, answer_work, generated_tokens, hidden_steps, sequential_tokens
from analysis.samples import options_text, request_scores
from analysis.statistics import Estimate
from analysis.taxonomy import UNPLACED, place_of, training_of
from suite.harness.measurement import UnitResult
from suite.registry import WORKLOADS
from suite.spec import MethodSpec

FAMILY = "reasoning"
DEFAULT = "default"
Z = NormalDist().inv_cdf(0.975)
EQUAL_ACCURACY = 1.0
"""Points of accuracy that a method may lose and still count as equally accurate."""


@dataclass(frozen=True)
class SurveyRow:
    """One method in one setting of a reasoning workload; `keys` are the units behind it.

    `mean_tokens` and `median_tokens` are visible ones, `generated_tokens` those of all chains, `sequential_tokens`
    those on the critical path. Accuracy in percent over the answers, with its 95% Wilson interval. The ratios are the
    baseline's figure over the method's (above 1: less is spent), None where accuracy fell by more than a point
    (`no_gain`), or without a baseline.
    """

    leaf: str
    training: str
    method: str
    setting: str
    workload: str
    model: str
    is_baseline: bool
    accuracy: Estimate
    mean_tokens: float
    median_tokens: float
    generated_tokens: float
    sequential_tokens: float
    hidden_steps: float
    work: Work | None
    latency_ms: float | None
    token_ratio: float | None
    flop_ratio: float | None
    latency_ratio: float | None
    no_gain: bool
    keys: tuple[str, ...]

    @property
    def title(self) -> str:
        """The method, and the setting where it is not the workload's own."""
        return self.method if self.setting == DEFAULT else f"{self.method}, {self.setting}"


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95% Wilson interval of a share of `n`."""
    share, spread = successes / n, Z * Z / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return centre - half, centre + half


def survey_rows(rows: Sequence[Comparison], units: Sequence[UnitResult]) -> tuple[SurveyRow, ...]:
    """The table's rows: one per method and setting of a contest whose workload is about reasoning and was scored."""
    found: list[SurveyRow] = []
    for row in rows:
        if row.contest.workload not in WORKLOADS or WORKLOADS[row.contest.workload].family != FAMILY:
            continue
        base = next((one for one in rows if one.is_baseline and one.contest == row.contest), row)
        rivals = _by_setting(base, units) if base is not row else {}
        found += [_survey_row(row, own, rivals.get(key, [])) for key, own in _by_setting(row, units).items()]
    return tuple(found)


def _by_setting(row: Comparison, units: Sequence[UnitResult]) -> dict[str, list[UnitResult]]:
    """The scored units of a row, by the workload's options."""
    found: dict[str, list[UnitResult]] = {}
    for unit in units:
        if row.holds(unit) and request_scores(unit.samples):
            found.setdefault(_setting(unit), []).append(unit)
    return found


def _setting(unit: UnitResult) -> str:
    """The workload's options: shots, extraction, length of an answer."""
    return options_text(MethodSpec(name="", options=unit.spec.workload.options)) or DEFAULT


def _survey_row(row: Comparison, units: Sequence[UnitResult], baseline: Sequence[UnitResult]) -> SurveyRow:
    samples = [sample for unit in units for sample in unit.samples]
    tokens = [len(sample.token_ids) for sample in samples]
    scores = _scores(units)
    low, high = wilson(sum(scores) / 100, len(scores))
    place = place_of(row.name)
    no_gain = bool(baseline) and fmean(_scores(baseline)) - fmean(scores) > EQUAL_ACCURACY
    against = () if no_gain else baseline
    return SurveyRow(
        leaf=place.lrm if place is not None else UNPLACED,
        training=training_of(row.name),
        method=row.label,
        setting=_setting(units[0]),
        workload=row.contest.workload,
        model=row.contest.model,
        is_baseline=row.is_baseline,
        accuracy=Estimate(fmean(scores), 100 * low, 100 * high, len(scores)),
        mean_tokens=fmean(tokens),
        median_tokens=median(tokens),
        generated_tokens=_tokens(units),
        sequential_tokens=fmean(map(sequential_tokens, samples)),
        hidden_steps=fmean(map(hidden_steps, samples)),
        work=answer_work(units),
        latency_ms=_latency(units),
        token_ratio=_ratio(_tokens, units, against),
        flop_ratio=_ratio(_flops, units, against),
        latency_ratio=_ratio(_latency, units, against),
        no_gain=no_gain,
        keys=tuple(unit.key for unit in units),
    )


def _scores(units: Sequence[UnitResult]) -> list[float]:
    return [score for unit in units for score in request_scores(unit.samples).values()]


def _tokens(units: Sequence[UnitResult]) -> float:
    return fmean(generated_tokens(sample) for unit in units for sample in unit.samples)


def _flops(units: Sequence[UnitResult]) -> float | None:
    work = answer_work(units)
    return work.flops if work is not None else None


def _latency(units: Sequence[UnitResult]) -> float | None:
    """Median time of an answer in milliseconds, of the stable units as in every table; None where none was timed."""
    times = [sample.e2el_ms for unit in stable_units(units) for sample in unit.samples]
    return median(times) if times else None


def _ratio(
    figure: Callable[[Sequence[UnitResult]], float | None], units: Sequence[UnitResult], baseline: Sequence[UnitResult]
) -> float | None:
    before, after = figure(baseline) if baseline else None, figure(units)
    return before / after if before is not None and after else None
