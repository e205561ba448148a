"""Methods against the dense baseline: paired ratios per unit, and one row per method over all tasks of a workload.

A unit is compared with the baseline of its own block only, the units that were interleaved with it. A ratio above 1
means that the method is faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from analysis import statistics
from analysis.drafts import draft_metrics, roofline_speedup
from analysis.metrics import Metrics, kv_metrics, latency_metrics, prefill_density, throughput_metrics
from analysis.placement import placement_metrics, placements
from analysis.roofline.ceilings import Ceilings
from analysis.samples import is_timed, method_label, options_text, pair_times, request_scores, threads_of, timed_samples
from analysis.searches import search_metrics
from analysis.statistics import Estimate
from suite.harness.measurement import UnitResult
from suite.spec import MethodSpec

BASELINE = "dense"
RATIOS = ("ttft", "tpot", "e2el")

Ratios = dict[str, Estimate]


@dataclass(frozen=True, order=True)
class Contest:
    """What must be equal for methods to be compared in one table."""

    workload: str
    model: str
    dtype: str
    threads: int
    batch_size: int
    source: str


@dataclass(frozen=True)
class Comparison:
    """One method in one contest, over all its tasks. Speeds come from the stable units, or from all if none is stable.

    `method` names the method with all its options, `label` with those only that tell it from others of the contest.
    `ratios` are speed-ups over the dense baseline with 95% intervals, from `pairs` sample pairs; empty for the baseline
    itself and where there is none. `score_change` is the paired difference of scores to the baseline.
    `placement` means are over units. `problems` says why units are unstable, gated or failed. `keys` are its units'.
    """

    contest: Contest
    engine: str
    method: str
    label: str
    options: str
    family: str
    is_baseline: bool
    tasks: tuple[str, ...]
    scored_tasks: int
    statuses: Mapping[str, int]
    requests: int
    ratios: Ratios
    metrics: Metrics
    score_name: str
    higher_is_better: bool
    score_change: Estimate | None
    problems: tuple[str, ...]
    keys: frozenset[str]

    @property
    def speedups(self) -> Ratios:
        """Those of `ratios` that a plot shows: of the whole request where all tokens come at once, as of a search."""
        parts = {name: ratio for name, ratio in self.ratios.items() if name != "e2el"}
        return parts or self.ratios

    @property
    def name(self) -> str:
        """The registered name, without options."""
        return self.method.partition("(")[0]

    @property
    def trusted(self) -> bool:
        """At least one stable unit stands behind the speeds."""
        return self.statuses.get("ok", 0) > 0

    @property
    def score_coverage(self) -> str:
        """Says so where the score is not the mean over all tasks, as units failed: "over 4 of 6 tasks"."""
        total = len(self.tasks)
        return "" if self.scored_tasks == total else f"over {self.scored_tasks} of {total} tasks"

    def holds(self, unit: UnitResult) -> bool:
        """True for the units this row was made of."""
        return unit.key in self.keys


def contest_of(unit: UnitResult) -> Contest:
    """The table a unit belongs into."""
    spec = unit.spec
    return Contest(
        spec.workload.name, spec.model.name, spec.model.dtype, threads_of(unit), spec.engine.batch_size, unit.source
    )


def baselines(units: Iterable[UnitResult]) -> dict[str, UnitResult]:
    """The dense unit of each block by block id: the native engine's where there are several."""
    dense = [unit for unit in units if unit.spec.method.name == BASELINE]
    dense.sort(key=lambda unit: (unit.spec.engine.name == "native", not unit.spec.method.options))
    return {unit.block: unit for unit in dense}


def unit_ratios(unit: UnitResult, baseline: UnitResult | None) -> Ratios:
    """Speed-ups of one unit over the baseline of its block, from pairs of the same request and repeat."""
    logs = unit_logs(unit, baseline)
    found = {name: statistics.ratio_from_logs(values) for name, values in logs.items()}
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def unit_logs(unit: UnitResult, baseline: UnitResult | None) -> dict[str, list[float]]:
    """Logarithms of the speed-ups of every pair, by latency; nothing where there are no pairs."""
    if baseline is None or baseline.key == unit.key or not (is_timed(unit) and is_timed(baseline)):
        return {}
    theirs, ours = pair_times(baseline.samples), pair_times(unit.samples)
    return {name: statistics.pair_logs(theirs[name], ours[name]) for name in RATIOS}


def compare(units: Sequence[UnitResult], ceilings: Ceilings | None = None) -> list[Comparison]:
    """One row per method and contest, baselines first, then by name."""
    dense = baselines(units)
    groups: dict[tuple[Contest, str, str], list[UnitResult]] = {}
    for unit in units:
        groups.setdefault(_group_of(unit), []).append(unit)
    labels = _labels([group[0] for group in groups.values()])
    rows = [_compare_group(label, group, dense, ceilings) for label, group in zip(labels, groups.values(), strict=True)]
    rows = [_with_prediction(row, rows) for row in rows]
    return sorted(rows, key=lambda row: (row.contest, not row.is_baseline, row.label))


def _with_prediction(row: Comparison, rows: Sequence[Comparison]) -> Comparison:
    """Also what the roofline says of a drafting method's decode speed-up."""
    dense = next((other for other in rows if other.is_baseline and other.contest == row.contest), None)
    predicted = roofline_speedup(row.metrics, dense.metrics) if dense is not None else None
    return replace(row, metrics={**row.metrics, "predicted_decode_speedup": predicted})


def _group_of(unit: UnitResult) -> tuple[Contest, str, str]:
    return contest_of(unit), unit.spec.engine.name, method_label(unit.spec.method)


def _labels(units: Sequence[UnitResult]) -> list[str]:
    """A short name per unit: options only where its contest has the same method twice, and only those that differ."""
    labels = []
    for unit in units:
        name, engine = unit.spec.method.name, unit.spec.engine.name
        rivals = [
            other.spec.method.options
            for other in units
            if (contest_of(other), other.spec.engine.name, other.spec.method.name) == (contest_of(unit), engine, name)
        ]
        options = unit.spec.method.options
        telling = {key: value for key, value in options.items() if any(rival.get(key) != value for rival in rivals)}
        label = method_label(MethodSpec(name=name, options=telling))
        labels.append(label if engine == "native" else f"{label} · {engine}")
    return labels


def _compare_group(
    label: str, units: Sequence[UnitResult], dense: Mapping[str, UnitResult], ceilings: Ceilings | None
) -> Comparison:
    first = units[0]
    pairs = [(unit, dense.get(unit.block)) for unit in units]
    return Comparison(
        contest=contest_of(first),
        engine=first.spec.engine.name,
        method=method_label(first.spec.method),
        label=label,
        options=options_text(first.spec.method),
        family=first.family,
        is_baseline=any(unit is baseline for unit, baseline in pairs),
        tasks=tuple(dict.fromkeys(unit.spec.workload.task for unit in units)),
        scored_tasks=len({unit.spec.workload.task for unit in units if request_scores(unit.samples)}),
        statuses={status: sum(u.status == status for u in units) for status in ("ok", "unstable", "gated", "failed")},
        requests=len({(unit.spec.workload.task, s.request_id) for unit in units for s in unit.samples}),
        ratios=_pooled_ratios(pairs),
        metrics=_group_metrics(units, ceilings),
        score_name=first.score_name,
        higher_is_better=first.higher_is_better,
        score_change=_score_change(pairs),
        problems=tuple(dict.fromkeys(reason for unit in units for reason in problems(unit))),
        keys=frozenset(unit.key for unit in units),
    )


def problems(unit: UnitResult) -> list[str]:
    """Why a unit is not simply ok, as sentences."""
    found = [f"gate {gate.name} failed: {gate.detail}" for gate in unit.gates if not gate.passed]
    if unit.noise is not None and unit.status == "unstable":
        found += unit.noise.reasons
    return [*found, unit.error] if unit.error else found


def stable_units(units: Sequence[UnitResult]) -> list[UnitResult]:
    """The stable units, or all timed ones if none is stable: an all-noisy run still shows what it saw."""
    timed = [unit for unit in units if is_timed(unit)]
    return [unit for unit in timed if unit.status == "ok"] or timed


def _pooled_ratios(pairs: Sequence[tuple[UnitResult, UnitResult | None]]) -> Ratios:
    """Geometric mean over the pairs of all tasks; pairs with an unstable side count only if there are no others."""
    timed = [(unit, baseline, unit_logs(unit, baseline)) for unit, baseline in pairs]
    stable = [logs for unit, baseline, logs in timed if baseline and logs and unit.status == baseline.status == "ok"]
    chosen = stable or [logs for _, _, logs in timed if logs]
    pooled = {name: statistics.ratio_from_logs([log for logs in chosen for log in logs[name]]) for name in RATIOS}
    return {name: estimate for name, estimate in pooled.items() if estimate is not None}


def _group_metrics(units: Sequence[UnitResult], ceilings: Ceilings | None) -> Metrics:
    """Metrics over all tasks: latencies pooled over requests, scores and retention as the mean of the tasks' means."""
    stable = stable_units(units)
    samples = [sample for unit in stable for sample in timed_samples(unit)]
    memory = [unit.memory.process_peak_bytes for unit in units if unit.memory is not None]
    return {
        **latency_metrics(samples),
        **throughput_metrics([timed_samples(unit) for unit in stable]),
        **_mean_score(units),
        **kv_metrics([sample for unit in units for sample in unit.kv]),
        **draft_metrics(samples),
        **search_metrics([timed_samples(unit) for unit in stable]),
        "prefill_density": prefill_density(units),
        **placement_metrics([placements(unit, ceilings) for unit in stable]),
        "process_peak_bytes": float(max(memory)) if memory else None,
    }


def _mean_score(units: Sequence[UnitResult]) -> Metrics:
    """Mean of the tasks' mean scores (as LongBench averages) and its standard error.

    The error adds the tasks' own errors; where a task has one request it has none, and the spread of all requests,
    which is wider, stands in.
    """
    by_task = [scores for unit in units if (scores := list(request_scores(unit.samples).values()))]
    if not by_task:
        return {"score": None, "score_standard_error": None}
    errors = [statistics.standard_error(scores) for scores in by_task]
    known = [error for error in errors if error is not None]
    combined = math.sqrt(sum(error**2 for error in known)) / len(known) if known else None
    if len(known) < len(errors):
        combined = statistics.standard_error([score for scores in by_task for score in scores])
    return {"score": fmean(fmean(scores) for scores in by_task), "score_standard_error": combined}


def _score_change(pairs: Sequence[tuple[UnitResult, UnitResult | None]]) -> Estimate | None:
    """Mean of score(method) - score(baseline) over the requests both have, with its interval."""
    changes: list[float] = []
    for unit, baseline in pairs:
        if baseline is None or unit is baseline:
            continue
        theirs, ours = request_scores(baseline.samples), request_scores(unit.samples)
        changes += [ours[request] - theirs[request] for request in sorted(ours.keys() & theirs.keys())]
    return statistics.mean_estimate(changes)
