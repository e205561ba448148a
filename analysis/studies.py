"""Engine comparisons and tuning studies for the report, from the documents that their commands left in the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.statistics import Estimate
from analysis.wording import plural


@dataclass(frozen=True)
class EngineRow:
    """One engine at one batch size; `ratio` is native's speed over its, `remark` why it failed or is unstable."""

    engine: str
    batch: int
    status: str
    output_throughput: float | None
    ttft_ms: float | None
    tpot_ms: float | None
    memory_bytes: float | None
    ratio: Estimate | None
    remark: str


@dataclass(frozen=True)
class EngineReport:
    """One `suite engines compare`; `agreements` are (engine, equal answers, compared answers)."""

    title: str
    rows: tuple[EngineRow, ...]
    agreements: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class StudyReport:
    """One search of one setting: its verdict, what raced at the end, what mattered, and the best by trial and sampler.

    `race` are (name, speed-up over the default) with an interval.
    """

    title: str
    verdict: str
    best: str
    race: tuple[tuple[str, Estimate], ...]
    importances: tuple[tuple[str, float], ...]
    best_so_far: Mapping[str, Sequence[float | None]]


def engine_reports(documents: Sequence[Mapping[str, Any]]) -> tuple[EngineReport, ...]:
    """Documents of kind "engines"."""
    return tuple(
        EngineReport(
            title=_title(document),
            rows=tuple(map(_engine_row, document["rows"])),
            agreements=tuple((found["engine"], found["equal"], found["compared"]) for found in document["outputs"]),
        )
        for document in documents
    )


def _title(document: Mapping[str, Any]) -> str:
    model = f"{document['model']} ({document['dtype']}, {plural(document['threads'], 'thread')})"
    tokens = f"{document['prompt_tokens']} prompt tokens, {document['new_tokens']} new ones"
    return f"{model}: {tokens}, {plural(document['rounds'], 'round')}"


def _engine_row(row: Mapping[str, Any]) -> EngineRow:
    remarks = [row["fault"]["detail"]] if row["fault"] else row["noise"]["reasons"]
    return EngineRow(
        engine=row["engine"],
        batch=row["batch"],
        status=row["status"],
        output_throughput=row.get("output_throughput"),
        ttft_ms=row.get("median_ttft_ms"),
        tpot_ms=row.get("median_tpot_ms"),
        memory_bytes=row.get("peak_memory_bytes"),
        ratio=_estimate(row.get("native_ratio")),
        remark=" ".join(remarks),
    )


def study_reports(documents: Sequence[Mapping[str, Any]]) -> tuple[StudyReport, ...]:
    """Documents of kind "tuning": those of an engine have a part for each setting, those of a method are one."""
    return tuple(report for document in documents for report in _studies(document))


def _studies(document: Mapping[str, Any]) -> Iterator[StudyReport]:
    for part in document.get("settings", [document]):
        races = {"best": part["race"]} if "settings" not in document else part["race"]
        raced = {name: _estimate(race["over_default"]) for name, race in races.items()}
        best_so_far = part["best_so_far"]
        yield StudyReport(
            title=f"{document['study']}: {part['setting']}" if "setting" in part else document["study"],
            verdict=part["verdict"],
            best=", ".join(f"{name}={value}" for name, value in part["best"].items()),
            race=tuple((name, estimate) for name, estimate in raced.items() if estimate is not None),
            importances=tuple(part["importances"].items()),
            best_so_far=best_so_far if isinstance(best_so_far, dict) else {"search": best_so_far},
        )


def _estimate(document: Mapping[str, Any] | None) -> Estimate | None:
    return None if document is None else Estimate(**document)
