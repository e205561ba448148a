"""AIPerf's `profile_export_aiperf.json`, schema 1.x (read from its `export_models.py` and `json-export-schema.md`).

Its `inter_token_latency` is (latency - time to first token) / (tokens - 1) of a request, which vLLM calls TPOT; its
`inter_chunk_latency` is what vLLM calls ITL. Units are read from the file, as its schema asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from suite.engines.load.imports.run import Document, Figures, Part, Run, complete, latency, parsed
from suite.errors import InputError

MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "sec": 1e3}
SECONDS = {unit: 1e-3 * factor for unit, factor in MILLISECONDS.items()}
REQUESTS, TOKENS = {"requests": 1.0}, {"tokens": 1.0}
REQUESTS_PER_S, TOKENS_PER_S = {"requests/sec": 1.0}, {"tokens/sec": 1.0}
TOTALS = {
    "completed": ("request_count", REQUESTS),
    "failed": ("error_request_count", REQUESTS),
    "duration": ("benchmark_duration", SECONDS),
    "total_input_tokens": ("total_isl", TOKENS),
    "total_output_tokens": ("total_osl", TOKENS),
    "request_throughput": ("request_throughput", REQUESTS_PER_S),
    "request_goodput": ("goodput", REQUESTS_PER_S),
    "output_throughput": ("output_token_throughput", TOKENS_PER_S),
    "total_token_throughput": ("total_token_throughput", TOKENS_PER_S),
}
"""Our names, AIPerf's, and the units they may come in."""
LATENCIES = {
    "ttft_send": "time_to_first_token",
    "tpot": "inter_token_latency",
    "itl": "inter_chunk_latency",
    "e2el_send": "request_latency",
}
TAGS = (*(tag for tag, _ in TOTALS.values()), *LATENCIES.values())


class Metric(Part):
    """One metric's statistics; a total is in `avg`."""

    unit: str
    avg: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None


class Model(Part):
    """A model that was asked."""

    name: str


class Models(Part):
    """The models of a run."""

    items: list[Model] = Field(default_factory=list)


class InputConfig(Part):
    """What is read of the settings."""

    models: Models = Models()


class Summary(Part):
    """What is read of a summary."""

    schema_version: str = "1.0"
    was_cancelled: bool = False
    input_config: InputConfig = InputConfig()
    metrics: dict[str, Metric]


def recognised(document: Document) -> bool:
    """Whether it names AIPerf's version, or has a request latency with its unit."""
    latency_of_request = document.get("request_latency")
    return "aiperf_version" in document or (isinstance(latency_of_request, dict) and "unit" in latency_of_request)


def read(documents: Sequence[Document], file: str) -> list[Run]:
    """One run per summary."""
    return [_run(document, file) for document in documents]


def _run(document: Document, file: str) -> Run:
    metrics = {tag: document[tag] for tag in TAGS if document.get(tag) is not None}
    found = parsed(Summary, {**document, "metrics": metrics}, file)
    if not found.schema_version.startswith("1."):
        raise InputError(f"{file} has AIPerf's schema version {found.schema_version}; versions 1.x are read.")
    if not metrics:
        raise InputError(f"{file} is by AIPerf, but no summary of a run; give its profile_export_aiperf.json.")
    models = ", ".join(model.name for model in found.input_config.models.items) or None
    remarks = ("the run was cancelled",) if found.was_cancelled else ()
    return Run(file, "aiperf", models, None, _figures(found.metrics, file), remarks)


def _figures(metrics: Mapping[str, Metric], file: str) -> Figures:
    found: Figures = {}
    for name, (tag, units) in TOTALS.items():
        if tag in metrics and (value := metrics[tag].avg) is not None:
            found[name] = value * factor(metrics[tag].unit, units, f"{file}: {tag}")
    for name, tag in LATENCIES.items():
        if tag in metrics:
            to_ms = factor(metrics[tag].unit, MILLISECONDS, f"{file}: {tag}")
            found |= latency(name, _statistics(metrics[tag]), to_ms)
    return complete(found)


def _statistics(metric: Metric) -> Figures:
    return {"mean": metric.avg, "median": metric.p50, "p90": metric.p90, "p95": metric.p95, "p99": metric.p99}


def factor(unit: str, units: Mapping[str, float], place: str) -> float:
    """What a value in `unit` is multiplied by, to be in the suite's unit."""
    if unit not in units:
        raise InputError(f"{place} is in {unit!r}; known: {', '.join(units)}.")
    return units[unit]
