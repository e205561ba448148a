"""What a report shows, as plain dataclasses: `reports` needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.comparison import Comparison, Contest
from analysis.lrm_survey import SurveyRow
from analysis.residuals import Score
from analysis.roofline.validation import Assessment
from analysis.spec_bench import SpecBenchRow
from analysis.studies import EngineReport, StudyReport
from suite.harness.measurement import Ceiling


@dataclass(frozen=True)
class Roof:
    """One measured (or datasheet) roofline: bandwidth lines in GB/s by name, compute peak in GFLOP/s."""

    label: str
    peak_gflop_per_s: float
    bandwidths_gb_per_s: Mapping[str, float]


@dataclass(frozen=True)
class RoofPoint:
    """One phase of one unit of the method `name`, labelled `method`; rates and work per pass, times in milliseconds."""

    contest: Contest
    name: str
    method: str
    task: str
    phase: str
    intensity: float
    gflop_per_s: float
    gb_per_s: float
    ceiling_fraction: float | None
    measured_ms: float
    predicted_ms: float | None
    cache_resident: bool
    trusted: bool


@dataclass(frozen=True)
class Stream:
    """One bandwidth curve of the calibration: GB/s by working set in bytes, with the extreme samples."""

    kind: str
    threads: int
    sizes: tuple[int, ...]
    gb_per_s: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class NoisePoint:
    """What disturbed one unit: spread of its repeats, share of time stolen, cores that others kept busy."""

    unit: str
    spread: float
    steal_share: float
    other_load: float
    stable: bool


@dataclass(frozen=True)
class Latencies:
    """Raw times of one method in one contest, in milliseconds; `outliers` counts flagged TTFT and ITL samples."""

    method: str
    ttft_ms: tuple[float, ...]
    itl_ms: tuple[float, ...]
    outliers: int


@dataclass(frozen=True)
class TaskScore:
    """Mean score of one method on one task, over `n` requests."""

    method: str
    task: str
    score: float
    standard_error: float | None
    n: int


@dataclass(frozen=True)
class HeatCell:
    """Mean score of one method over the `n` requests with a needle at one depth (percent) of one length (tokens)."""

    method: str
    length: int
    depth: float
    score: float
    n: int


@dataclass(frozen=True)
class FrontierPoint:
    """One method at one budget, on the same items: share of keys found, nats per token, bytes read per token."""

    method: str
    share: float
    retention: float
    read_bytes: float
    passkeys: float
    nats_per_token: float


@dataclass(frozen=True)
class Prediction:
    """Measured time of a pass beside the roofline's, means over units, in milliseconds."""

    method: str
    phase: str
    measured_ms: float
    predicted_ms: float
    launch_ms: float


@dataclass(frozen=True)
class Output:
    """What a model wrote: untrusted text."""

    contest: Contest
    method: str
    task: str
    request_id: str
    text: str
    score: float | None
    stop_reason: str
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class ContestReport:
    """Everything about one contest: its sentences, its table and what its plots need.

    `rules` says which rows may not be compared with which (`analysis.taxonomy`).
    """

    contest: Contest
    title: str
    headlines: tuple[str, ...]
    rows: tuple[Comparison, ...]
    latencies: tuple[Latencies, ...]
    task_scores: tuple[TaskScore, ...]
    heat: tuple[HeatCell, ...]
    predictions: tuple[Prediction, ...]
    spec_bench: tuple[SpecBenchRow, ...] = ()
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Past:
    """What one version of the code measured of a method in one contest; `score` is the mean over requests."""

    contest: str
    version: str
    since: str
    units: int
    median_tpot_ms: float | None
    score: float | None


@dataclass(frozen=True)
class MethodPage:
    """One method: `facts` are (name, value) pairs to print, `claims` the places of its rows in the ledger.

    `ablations` are its rows in contests that saw it with more than one set of options.
    """

    name: str
    title: str
    facts: tuple[tuple[str, str], ...]
    points: tuple[RoofPoint, ...]
    claims: tuple[int, ...]
    ablations: tuple[Comparison, ...]
    history: tuple[Past, ...]


@dataclass(frozen=True)
class ReportData:
    """One report. `conditions` are (name, value) pairs to print; `raw` is the JSON document to download.

    `refused` are the ceilings that varied too much to be used, a sentence each.
    `explorer` has the data of the roofline explorer (`analysis.roofline.explorer`).
    `scores` compare the units' passes with the uncalibrated roofline, `validation` those of a validation with both.
    """

    generated_at: str
    machine: str
    contests: tuple[ContestReport, ...]
    notes: tuple[str, ...]
    claims: tuple[Mapping[str, Any], ...]
    frontier: tuple[FrontierPoint, ...]
    roofs: tuple[Roof, ...]
    points: tuple[RoofPoint, ...]
    streams: tuple[Stream, ...]
    outputs: tuple[Output, ...]
    conditions: tuple[tuple[str, str], ...]
    raw: Mapping[str, Any]
    methods: tuple[MethodPage, ...] = ()
    survey: tuple[SurveyRow, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    refused: tuple[str, ...] = ()
    noise: tuple[NoisePoint, ...] = ()
    engines: tuple[EngineReport, ...] = ()
    studies: tuple[StudyReport, ...] = ()
    explorer: Mapping[str, Any] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    validation: Assessment | None = None
