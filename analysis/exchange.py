"""Units in the shapes other tools read: github-action-benchmark, Bencher, pytest-benchmark, lm-evaluation-harness."""

from __future__ import annotations

import statistics as sample_statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from analysis import statistics
from analysis.metrics import Metrics, unit_metrics
from analysis.observations import label
from analysis.samples import is_timed, method_label, request_scores, timed_samples, times_ms
from suite.harness.measurement import UnitResult

SMALLER = {
    "median_ttft_ms": "ms",
    "median_tpot_ms": "ms",
    "kv_read_bytes_per_step": "bytes",
    "kv_resident_bytes": "bytes",
}
"""The figures that go to the tools which draw one line per figure; all of them are better when smaller."""


def github_action_benchmark(units: Sequence[UnitResult], machine: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The list that its tool `customSmallerIsBetter` reads; `range` is the standard deviation over requests."""
    return [
        {
            "name": f"{label(unit)}: {name}",
            "unit": SMALLER[name],
            "value": value,
            **_spread(unit, name),
            "extra": f"{unit.status}, code {unit.code_version}, {unit.started_at}",
        }
        for unit, name, value in _figures(units)
    ]


def _figures(units: Sequence[UnitResult]) -> list[tuple[UnitResult, str, float]]:
    found = [(unit, name, unit_metrics(unit).get(name)) for unit in units if is_timed(unit) for name in SMALLER]
    return [(unit, name, value) for unit, name, value in found if value is not None]


def _spread(unit: UnitResult, name: str) -> dict[str, str]:
    latency = name.removeprefix("median_").removesuffix("_ms")
    values = times_ms(timed_samples(unit)).get(latency, [])
    return {"range": f"± {sample_statistics.stdev(values):.4g}"} if len(values) > 1 else {}


def bencher(units: Sequence[UnitResult], machine: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Bencher Metric Format: benchmark -> measure -> value, with the 95 % interval of the mean of what is timed.

    Bencher's own measure `latency` is in nanoseconds: it holds the mean end-to-end time of a request.
    """
    document: dict[str, dict[str, dict[str, float]]] = {}
    for unit in units:
        if not is_timed(unit):
            continue
        times = times_ms(timed_samples(unit))
        measures = {"latency": _metric([value * 1e6 for value in times["e2el"]])}
        measures |= {f"{name}-ms": _metric(times[name]) for name in ("ttft", "tpot")}
        metrics = unit_metrics(unit)
        counted = {name.replace("_", "-"): metrics.get(name) for name in ("kv_read_bytes_per_step", "score")}
        measures |= {name: {"value": value} for name, value in counted.items() if value is not None}
        document[label(unit)] = {name: metric for name, metric in measures.items() if metric}
    return document


def _metric(values: Sequence[float]) -> dict[str, float]:
    estimate = statistics.mean_estimate(values)
    if estimate is None:
        return {}
    bounds = {"lower_value": estimate.low, "upper_value": estimate.high}
    return {"value": estimate.value} | {name: bound for name, bound in bounds.items() if bound is not None}


def pytest_benchmark(units: Sequence[UnitResult], machine: Mapping[str, Any]) -> dict[str, Any]:
    """The file of `pytest --benchmark-json`: a benchmark per unit and latency, in seconds, requests as rounds."""
    rows = [
        _benchmark(unit, latency, values)
        for unit in units
        for latency, values in times_ms(timed_samples(unit)).items()
        if latency in ("ttft", "tpot", "e2el") and values
    ]
    newest = max((unit.started_at for unit in units), default="")
    return {
        "machine_info": {**machine, "node": "", "cpu": {"brand_raw": machine.get("cpu", "")}},
        "commit_info": {"id": units[-1].code_version if units else "", "time": newest, "dirty": False},
        "benchmarks": rows,
        "datetime": newest,
        "version": "5.1.0",
    }


def _benchmark(unit: UnitResult, latency: str, values: Sequence[float]) -> dict[str, Any]:
    name = f"{method_label(unit.spec.method)}-{unit.spec.workload.task}-{latency}"
    return {
        "group": f"{unit.spec.workload.name}-{latency}",
        "name": name,
        "fullname": f"{unit.spec.workload.name}/{unit.spec.model.name}::{name}",
        "params": None,
        "param": None,
        "extra_info": {"key": unit.key, "status": unit.status},
        "options": {"timer": "perf_counter", "warmup": False},
        "stats": _round_statistics([value / 1e3 for value in values]),
    }


def _round_statistics(seconds: Sequence[float]) -> dict[str, Any]:
    """The fields under pytest-benchmark's names; outliers are those beyond one deviation and beyond Tukey's fences."""
    data = np.asarray(seconds)
    q1, middle, q3 = (float(value) for value in np.percentile(data, (25, 50, 75)))
    mean, spread = float(data.mean()), float(data.std(ddof=1)) if len(data) > 1 else 0.0
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    inside = data[(data >= low) & (data <= high)]
    beyond = int((np.abs(data - mean) > spread).sum()), len(data) - len(inside)
    return {
        "min": float(data.min()),
        "max": float(data.max()),
        "mean": mean,
        "stddev": spread,
        "rounds": len(data),
        "median": middle,
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": beyond[1],
        "stddev_outliers": beyond[0],
        "outliers": f"{beyond[0]};{beyond[1]}",
        "ld15iqr": float(inside.min()),
        "hd15iqr": float(inside.max()),
        "ops": 1 / mean,
        "total": float(data.sum()),
        "iterations": 1,
    }


def lm_eval(units: Sequence[UnitResult], machine: Mapping[str, Any]) -> dict[str, Any]:
    """The results file of lm-evaluation-harness: task -> `metric,filter` and its standard error, configs, samples.

    A task's name holds the method where it is not dense, since that harness knows tasks and models only.
    """
    scored = {_task(unit): unit for unit in units if request_scores(unit.samples)}
    metrics = {task: unit_metrics(unit) for task, unit in scored.items()}
    return {
        "results": {task: _scores(task, metrics[task]) for task in scored},
        "group_subtasks": {task: [] for task in scored},
        "configs": {task: _config(task, unit) for task, unit in scored.items()},
        "versions": {task: unit.workload_revision for task, unit in scored.items()},
        "n-shot": dict.fromkeys(scored, 0),
        "higher_is_better": {task: {"score": unit.higher_is_better} for task, unit in scored.items()},
        "n-samples": {task: _counts(unit) for task, unit in scored.items()},
        "model_name": " ".join(sorted({unit.spec.model.name for unit in scored.values()})),
        "date": max((unit.started_at for unit in scored.values()), default=""),
        "git_hash": next((unit.code_version for unit in scored.values()), ""),
    }


def _task(unit: UnitResult) -> str:
    task = f"{unit.spec.workload.name}_{unit.spec.workload.task}"
    return task if unit.spec.method.name == "dense" else f"{task}_{method_label(unit.spec.method)}"


def _scores(task: str, metrics: Metrics) -> dict[str, Any]:
    error = metrics["score_standard_error"]
    return {"alias": task, "score,none": metrics["score"], "score_stderr,none": "N/A" if error is None else error}


def _config(task: str, unit: UnitResult) -> dict[str, Any]:
    metric = {"metric": "score", "aggregation": "mean", "higher_is_better": unit.higher_is_better}
    generation = {"temperature": unit.spec.sampling.temperature, "do_sample": unit.spec.sampling.temperature > 0}
    return {
        "task": task,
        "output_type": "generate_until",
        "metric_list": [metric],
        "repeats": unit.spec.protocol.repeats,
        "generation_kwargs": generation,
        "metadata": {"model": unit.spec.model.name, "source": unit.source, "score": unit.score_name},
    }


def _counts(unit: UnitResult) -> dict[str, int]:
    measured = len({sample.request_id for sample in unit.samples})
    return {"original": unit.spec.workload.limit, "effective": measured}


Shape = Callable[[Sequence[UnitResult], Mapping[str, Any]], Any]

SHAPES: dict[str, Shape] = {
    "github-action-benchmark": github_action_benchmark,
    "bencher": bencher,
    "pytest-benchmark": pytest_benchmark,
    "lm-eval": lm_eval,
}
"""Shape by the name `suite export --format` knows it under; each is given the units and their machine's fingerprint."""
