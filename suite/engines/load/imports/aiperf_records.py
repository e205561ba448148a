"""AIPerf's `profile_export.jsonl`, one request a line (read from its `record_export_models.py` and its guide to it).

Statistics are made from the requests that succeeded, as AIPerf does; percentiles are numpy's linear ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from suite.engines.load.imports.aiperf import LATENCIES, MILLISECONDS, TOKENS, factor
from suite.engines.load.imports.run import Document, Figures, Part, Run, complete, parsed
from suite.engines.load.summary import statistics


class Value(Part):
    """One request's value, or one per gap."""

    value: float | list[float]
    unit: str


class Metrics(Part):
    """What is read of a request's metrics."""

    time_to_first_token: Value | None = None
    inter_token_latency: Value | None = None
    inter_chunk_latency: Value | None = None
    request_latency: Value | None = None
    input_sequence_length: Value | None = None
    output_sequence_length: Value | None = None


class Metadata(Part):
    """When a request ran, in nanoseconds of the clock, and in which phase."""

    benchmark_phase: str
    request_start_ns: int
    request_end_ns: int
    was_cancelled: bool = False


class Request(Part):
    """One line."""

    metadata: Metadata
    metrics: Metrics | None = None
    error: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether the whole answer arrived."""
        return self.error is None and not self.metadata.was_cancelled


def recognised(document: Document) -> bool:
    """Whether it is a line about one request."""
    metadata = document.get("metadata")
    return isinstance(metadata, dict) and {"benchmark_phase", "request_start_ns"} <= metadata.keys()


def read(documents: Sequence[Document], file: str) -> list[Run]:
    """All lines are one run; requests of the warm-up do not count."""
    lines = [parsed(Request, document, f"{file}, line {n}") for n, document in enumerate(documents, 1)]
    measured = [line for line in lines if line.metadata.benchmark_phase == "profiling"]
    good = [line.metrics or Metrics() for line in measured if line.ok]
    duration = _duration([line.metadata for line in measured if line.ok])
    found: Figures = {"completed": len(good), "failed": len(measured) - len(good), "duration": duration}
    n_in, n_out = (_total(good, f"{side}_sequence_length", file) for side in ("input", "output"))
    found |= {"total_input_tokens": n_in, "total_output_tokens": n_out}
    if duration:
        both = None if n_in is None or n_out is None else (n_in + n_out) / duration
        found["request_throughput"] = len(good) / duration
        found |= {"output_throughput": n_out and n_out / duration, "total_token_throughput": both}
    for name, tag in LATENCIES.items():
        found |= statistics(name, _values(good, tag, MILLISECONDS, file))
    return [Run(file, "aiperf", None, None, complete(found))]


def _duration(times: Sequence[Metadata]) -> float | None:
    """Seconds from the first request to the last response."""
    if not times:
        return None
    return 1e-9 * (max(at.request_end_ns for at in times) - min(at.request_start_ns for at in times))


def _total(good: Sequence[Metrics], tag: str, file: str) -> float | None:
    """The sum over all requests; None where one does not tell."""
    values = _values(good, tag, TOKENS, file)
    return sum(values) if values and len(values) == len(good) else None


def _values(good: Sequence[Metrics], tag: str, units: dict[str, float], file: str) -> list[float]:
    found: list[float] = []
    for metrics in good:
        value: Value | None = getattr(metrics, tag)
        if value is not None:
            scale = factor(value.unit, units, f"{file}: {tag}")
            found += [scale * one for one in (value.value if isinstance(value.value, list) else [value.value])]
    return found
