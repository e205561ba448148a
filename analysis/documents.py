"""The JSON documents of `suite run`: the units with metrics and ratios, and a summary per method over all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from analysis.comparison import Comparison, Ratios, baselines, compare, unit_ratios
from analysis.metrics import unit_metrics
from analysis.roofline.ceilings import Ceilings
from analysis.samples import method_label, request_scores
from analysis.spec_bench import spec_bench_rows
from analysis.unit_scores import unit_scores
from suite.harness.measurement import Calibration, UnitResult

SCHEMA = "inference-suite.run/1"

CategoryMeans = Callable[[Mapping[str, float]], Mapping[str, float]]
"""A workload's own averages: mean score by task -> mean score by category (LongBench)."""


def run_document(
    units: Sequence[UnitResult],
    machine: Mapping[str, Any],
    calibration: Calibration | None = None,
    report: str | None = None,
    category_means: CategoryMeans | None = None,
) -> dict[str, Any]:
    """The stable document of `suite run --json` (DESIGN section 4); `report` is the path of the HTML file.

    Metrics that do not exist (a gated unit's speed, energy without a counter) are null.
    """
    ceilings = Ceilings(calibration) if calibration is not None else None
    dense = baselines(units)
    protocol = [asdict(row) for row in spec_bench_rows(compare(units, ceilings), units)]
    return {
        "schema": SCHEMA,
        "machine": dict(machine),
        "units": [_unit_row(unit, dense.get(unit.block), ceilings) for unit in units],
        "summary": summary_rows(units, ceilings, category_means),
        **({"spec_bench": protocol} if protocol else {}),
        "residuals": [asdict(score) for score in unit_scores(units, ceilings)],
        "report": report,
    }


def _unit_row(unit: UnitResult, baseline: UnitResult | None, ceilings: Ceilings | None) -> dict[str, Any]:
    return {
        "key": unit.key,
        "workload": unit.spec.workload.name,
        "task": unit.spec.workload.task,
        "method": method_label(unit.spec.method),
        "model": unit.spec.model.name,
        "dtype": unit.spec.model.dtype,
        "engine": unit.spec.engine.name,
        "source": unit.source,
        "status": unit.status,
        "gates": [gate.model_dump() for gate in unit.gates],
        "metrics": unit_metrics(unit, ceilings),
        "ratios": ratio_document(unit_ratios(unit, baseline)),
        "noise": unit.noise.model_dump(mode="json") if unit.noise is not None else None,
        "error": unit.error,
    }


def ratio_document(ratios: Ratios) -> dict[str, dict[str, Any]]:
    """Speed-ups over dense as JSON: `{metric: {value, low, high, n, note}}`."""
    return {name: asdict(estimate) for name, estimate in ratios.items()}


def summary_rows(
    units: Sequence[UnitResult], ceilings: Ceilings | None = None, category_means: CategoryMeans | None = None
) -> list[dict[str, Any]]:
    """One row per method over all its tasks, with the workload's category means where it has them."""
    return [_summary_row(row, units, category_means) for row in compare(units, ceilings)]


def _summary_row(row: Comparison, units: Sequence[UnitResult], category_means: CategoryMeans | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        **asdict(row.contest),
        "engine": row.engine,
        "method": row.method,
        "tasks": list(row.tasks),
        "statuses": dict(row.statuses),
        "requests": row.requests,
        "metrics": row.metrics,
        "ratios": ratio_document(row.ratios),
        "score_name": row.score_name,
        "score_change": asdict(row.score_change) if row.score_change is not None else None,
        "problems": list(row.problems),
    }
    if category_means is not None:
        document["category_scores"] = dict(category_means(task_scores(row, units)))
    return document


def task_scores(row: Comparison, units: Sequence[UnitResult]) -> dict[str, float]:
    """Mean score of each task of one comparison row."""
    members = [unit for unit in units if row.holds(unit)]
    scores = {unit.spec.workload.task: list(request_scores(unit.samples).values()) for unit in members}
    return {task: fmean(values) for task, values in scores.items() if values}
