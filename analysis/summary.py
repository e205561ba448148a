"""`build_summary`: from the store to what a report shows."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from analysis import statistics
from analysis.claims import reproduce_document
from analysis.comparison import Comparison, Contest, compare, contest_of
from analysis.conditions import conditions, notes, refused
from analysis.documents import SCHEMA
from analysis.headlines import contest_title, headlines
from analysis.lrm_survey import survey_rows
from analysis.method_pages import method_pages
from analysis.metrics import score_metrics
from analysis.placement import placements
from analysis.report_data import (
    ContestReport,
    FrontierPoint,
    HeatCell,
    Latencies,
    NoisePoint,
    Output,
    Prediction,
    ReportData,
    Roof,
    RoofPoint,
    Stream,
    TaskScore,
)
from analysis.roofline.ceilings import Ceilings, human_bytes
from analysis.roofline.explorer import report_explorer
from analysis.roofline.validation import assess
from analysis.samples import question, request_scores, threads_of, timed_samples, times_ms
from analysis.spec_bench import spec_bench_rows
from analysis.studies import engine_reports, study_reports
from analysis.taxonomy import rule_notes
from analysis.unit_scores import unit_scores
from suite.errors import NothingMeasuredError
from suite.harness.measurement import Calibration, Finding, UnitResult
from suite.harness.store import Store

OUTPUTS_PER_UNIT = 1
OUTPUT_UNITS = 500
"""Units whose outputs are in the page; those of the others are in the raw data."""
NOISE_UNITS = 1000


def build_summary(store: Store, keys: Collection[str] | None = None) -> ReportData:
    """What the report shows: units of the machine measured last, each block in its newest version.

    `keys` restricts it to some units (those of one run). Raises `NothingMeasuredError` when nothing is left.
    """
    everything = [unit for unit in store.units() if keys is None or unit.key in keys]
    findings = store.findings()
    documents = {kind: store.documents(kind) for kind in ("engines", "tuning")} if keys is None else {}
    if not everything and not findings and not any(documents.values()):
        raise NothingMeasuredError(f"there is nothing to report in {store.path}; run `python -m suite run` first.")
    seen = [machine for found in documents.values() for machine in found]
    seen += [one.machine_id for measured in (findings, everything) for one in measured]
    machine_id = seen[-1]
    here = [unit for unit in everything if unit.machine_id == machine_id]
    units = newest_blocks(here)
    findings = [finding for finding in findings if finding.machine_id == machine_id]
    calibration = store.calibration(machine_id)
    machine = json.loads(store.machines().get(machine_id, "{}"))
    left_out = len(everything) - len(units)
    data = _report_data(units, findings, calibration, machine, left_out)
    rows = [row for contest in data.contests for row in contest.rows]
    kept = {kind: by.get(machine_id, []) for kind, by in documents.items()}
    validations = store.validations(machine_id)
    return replace(
        data,
        methods=method_pages(here, rows, data.points, data.claims),
        engines=engine_reports(kept.get("engines", [])),
        studies=study_reports(kept.get("tuning", [])),
        validation=assess(validations, calibration),
        raw={**data.raw, **kept, "validations": [run.model_dump(mode="json") for run in validations]},
    )


def newest_blocks(units: Sequence[UnitResult]) -> list[UnitResult]:
    """Of blocks that put the same question (whatever their number of items and repeats) only the last one measured."""
    blocks: dict[str, list[UnitResult]] = {}
    for unit in units:
        blocks.setdefault(unit.block, []).append(unit)
    newest = {frozenset(map(question, members)): members for members in blocks.values()}
    return [unit for members in newest.values() for unit in members]


def _report_data(
    units: Sequence[UnitResult],
    findings: Sequence[Finding],
    calibration: Calibration | None,
    machine: Mapping[str, Any],
    left_out: int,
) -> ReportData:
    ceilings = Ceilings(calibration) if calibration is not None else None
    rows = compare(units, ceilings)
    points = _points(units, rows, ceilings)
    return ReportData(
        generated_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=str(machine.get("cpu", "unknown machine")),
        contests=_contests(units, rows, ceilings),
        notes=notes(units, points, calibration, left_out),
        claims=tuple(reproduce_document(findings)),
        frontier=_frontier(findings),
        roofs=_roofs(units, ceilings),
        points=points,
        streams=_streams(ceilings),
        outputs=_outputs(units, rows),
        survey=survey_rows(rows, units),
        ceilings=calibration.ceilings if calibration is not None else (),
        refused=refused(calibration),
        noise=_noise(units, rows),
        explorer=report_explorer(calibration),
        scores=tuple(unit_scores(units, ceilings)),
        conditions=conditions(units, calibration, machine),
        raw={
            "schema": SCHEMA,
            "machine": dict(machine),
            "calibration": calibration.model_dump(mode="json") if calibration is not None else None,
            "units": [unit.model_dump(mode="json") for unit in units],
            "findings": [finding.model_dump(mode="json") for finding in findings],
        },
    )


def _contests(
    units: Sequence[UnitResult], compared: Sequence[Comparison], ceilings: Ceilings | None
) -> tuple[ContestReport, ...]:
    rows_by_contest: dict[Contest, list[Comparison]] = {}
    for row in compared:
        rows_by_contest.setdefault(row.contest, []).append(row)
    return tuple(
        ContestReport(
            contest=contest,
            title=contest_title(contest),
            headlines=headlines(rows),
            rows=tuple(rows),
            latencies=tuple(found for row in rows if (found := _latencies(row, units)) is not None),
            task_scores=tuple(score for row in rows for score in _task_scores(row, units)),
            heat=tuple(cell for row in rows for cell in heat_cells(row, units)),
            predictions=tuple(found for row in rows for found in _predictions(row, units, ceilings)),
            spec_bench=tuple(spec_bench_rows(rows, units)),
            rules=rule_notes(rows),
        )
        for contest, rows in rows_by_contest.items()
    )


def _latencies(row: Comparison, units: Sequence[UnitResult]) -> Latencies | None:
    samples = [sample for unit in units if row.holds(unit) for sample in timed_samples(unit)]
    if not samples:
        return None
    times = times_ms(samples)
    flagged = sum(statistics.outliers(times["ttft"])) + sum(statistics.outliers(times["itl"]))
    return Latencies(row.label, tuple(times["ttft"]), tuple(times["itl"]), flagged)


def _task_scores(row: Comparison, units: Sequence[UnitResult]) -> list[TaskScore]:
    scores = []
    for unit in (unit for unit in units if row.holds(unit)):
        metrics = score_metrics(unit.samples)
        if metrics["score"] is not None:
            requests = len({sample.request_id for sample in unit.samples})
            error = metrics["score_standard_error"]
            scores.append(TaskScore(row.label, unit.spec.workload.task, metrics["score"], error, requests))
    return scores


def heat_cells(row: Comparison, units: Sequence[UnitResult]) -> list[HeatCell]:
    """Needle scores by length and depth, for requests that say both; none for other workloads."""
    cells: dict[tuple[int, float], dict[str, float]] = {}
    for unit in units:
        if not row.holds(unit):
            continue
        scores = request_scores(unit.samples)
        for sample in unit.samples:
            if {"context_length", "depth_percent"} <= sample.metadata.keys() and sample.request_id in scores:
                place = int(sample.metadata["context_length"]), float(sample.metadata["depth_percent"])
                cells.setdefault(place, {})[sample.request_id] = scores[sample.request_id]
    return [
        HeatCell(row.label, length, depth, fmean(found.values()), len(found))
        for (length, depth), found in sorted(cells.items())
    ]


def _frontier(findings: Sequence[Finding]) -> tuple[FrontierPoint, ...]:
    """Of the newest finding that measured one."""
    measured = [finding.details["frontier"] for finding in findings if "frontier" in finding.details]
    names = {field.name for field in fields(FrontierPoint)}
    rows = measured[-1] if measured else []
    return tuple(FrontierPoint(**{name: row[name] for name in names}) for row in rows)


def _predictions(row: Comparison, units: Sequence[UnitResult], ceilings: Ceilings | None) -> list[Prediction]:
    placed = [placements(unit, ceilings) for unit in units if row.holds(unit)]
    found = []
    for phase in ("prefill", "decode"):
        places = [places[phase] for places in placed if phase in places and places[phase].predicted_ms is not None]
        if places:
            measured = fmean(place.measured_ms for place in places)
            predicted = fmean(place.predicted_ms or 0.0 for place in places)
            launch = fmean(place.launch_ms or 0.0 for place in places)
            found.append(Prediction(row.label, phase, measured, predicted, launch))
    return found


def _roofs(units: Sequence[UnitResult], ceilings: Ceilings | None) -> tuple[Roof, ...]:
    """One roofline per (data type, threads) that the units used; none without a calibration."""
    if ceilings is None:
        return ()
    roofs = []
    for dtype, threads in sorted({(unit.spec.model.dtype, threads_of(unit)) for unit in units}):
        peak, sweep = ceilings.gemm(dtype, threads), ceilings.streams("read", threads)
        if peak is None or not sweep:
            continue
        llc = ceilings.llc_bytes
        cached = [ceiling for ceiling in sweep if ceiling.size <= llc // 2][-1:]
        lines = {f"memory ({human_bytes(ceiling.size)})": ceiling.value for ceiling in sweep[-1:] if ceiling.size > llc}
        lines |= {f"cache ({human_bytes(ceiling.size)})": ceiling.value for ceiling in cached}
        label = f"{dtype}, {threads} thread{'s' if threads != 1 else ''}"
        roofs.append(Roof(label, peak.value, lines))
    return tuple(roofs)


def _label(unit: UnitResult, rows: Sequence[Comparison]) -> str:
    """The name the unit's method has in the tables."""
    return next(row.label for row in rows if row.holds(unit))


def _points(
    units: Sequence[UnitResult], rows: Sequence[Comparison], ceilings: Ceilings | None
) -> tuple[RoofPoint, ...]:
    return tuple(
        RoofPoint(
            contest=contest_of(unit),
            name=unit.spec.method.name,
            method=_label(unit, rows),
            task=unit.spec.workload.task,
            phase=place.phase,
            intensity=place.intensity,
            gflop_per_s=place.gflop_per_s,
            gb_per_s=place.gb_per_s,
            ceiling_fraction=place.ceiling_fraction,
            measured_ms=place.measured_ms,
            predicted_ms=place.predicted_ms,
            cache_resident=place.cache_resident,
            trusted=unit.status == "ok",
        )
        for unit in units
        for place in placements(unit, ceilings).values()
    )


def _noise(units: Sequence[UnitResult], rows: Sequence[Comparison]) -> tuple[NoisePoint, ...]:
    """Of the newest units, as many as a figure can show."""
    return tuple(
        NoisePoint(
            f"{_label(unit, rows)}, {unit.spec.workload.name} {unit.spec.workload.task}",
            unit.noise.spread,
            unit.noise.steal_share,
            unit.noise.other_load,
            unit.status != "unstable",
        )
        for unit in units[-NOISE_UNITS:]
        if unit.noise is not None
    )


def _streams(ceilings: Ceilings | None) -> tuple[Stream, ...]:
    if ceilings is None:
        return ()
    sweeps = {
        (kind, threads): ceilings.streams(kind, threads)
        for kind in ("read", "copy", "triad")
        for threads in ceilings.threads()
    }
    return tuple(
        Stream(
            kind,
            threads,
            tuple(ceiling.size for ceiling in sweep),
            tuple(ceiling.value for ceiling in sweep),
            tuple(min(ceiling.samples) for ceiling in sweep),
            tuple(max(ceiling.samples) for ceiling in sweep),
        )
        for (kind, threads), sweep in sweeps.items()
        if sweep
    )


def _outputs(units: Sequence[UnitResult], rows: Sequence[Comparison]) -> tuple[Output, ...]:
    """The first outputs of the first units, as they were written."""
    return tuple(
        Output(
            contest=contest_of(unit),
            method=_label(unit, rows),
            task=unit.spec.workload.task,
            request_id=sample.request_id,
            text=sample.text,
            score=sample.score,
            stop_reason=sample.stop_reason,
            prompt_tokens=sample.prompt_tokens,
            output_tokens=len(sample.token_ids),
        )
        for unit in units[:OUTPUT_UNITS]
        for sample in unit.samples[:OUTPUTS_PER_UNIT]
    )
