"""GuideLLM's benchmark report, schema version 2 (read from its `benchmark/schemas` and `schemas/base/statistics.py`).

Only requests that succeeded count, as in `vllm bench serve`. Its `inter_token_latency_ms` is (last - first token) /
(tokens - 1) of a request, which vLLM calls TPOT; its own `time_per_output_token_ms` has the prefill in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from suite.engines.load.imports.run import Document, Figures, Part, Run, complete, latency, parsed
from suite.errors import InputError

VERSION = 2
WEIGHTED = "GuideLLM's TPOT weighs requests by their output tokens, vLLM's does not"


class Percentiles(Part):
    """The upper ones."""

    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p999: float | None = None


class Distribution(Part):
    """Statistics of `count` values; all of them are 0 when there is none."""

    count: int
    mean: float | None = None
    median: float | None = None
    total_sum: float | None = None
    percentiles: Percentiles = Percentiles()


class ByStatus(Part):
    """A distribution over the requests that succeeded."""

    successful: Distribution | None = None


class Totals(Part):
    """Requests by what became of them."""

    successful: int
    incomplete: int
    errored: int


NONE = ByStatus()


class Metrics(Part):
    """What is read of a benchmark's metrics; the two request latencies are in seconds."""

    request_totals: Totals
    requests_per_second: ByStatus = NONE
    request_goodput: ByStatus | None = None
    output_tokens_per_second: ByStatus = NONE
    tokens_per_second: ByStatus = NONE
    prompt_token_count: ByStatus = NONE
    output_token_count: ByStatus = NONE
    time_to_first_token_ms: ByStatus = NONE
    inter_token_latency_ms: ByStatus = NONE
    request_latency: ByStatus = NONE
    request_scheduled_latency: ByStatus | None = None


class Strategy(Part):
    """How requests were scheduled: `rate` in requests/s, `streams` in flight."""

    type_: str
    rate: float | None = None
    streams: int | None = None


class Backend(Part):
    """What was asked."""

    model: str | None = None


class Config(Part):
    """What is read of a benchmark's settings."""

    strategy: Strategy
    backend: Backend = Backend()


class Benchmark(Part):
    """One strategy's run; `duration` in seconds, without warm-up and cool-down."""

    config: Config
    duration: float | None = None
    metrics: Metrics


class Report(Part):
    """All benchmarks of an invocation."""

    benchmarks: list[Benchmark]


class Metadata(Part):
    """Reports older than the version field are of version 1."""

    version: int = 1


class Head(Part):
    """What tells a report's version."""

    metadata: Metadata = Metadata()


def recognised(document: Document) -> bool:
    """Whether it is a report: `pytest --benchmark-json` has `benchmarks` too, but neither settings nor metadata."""
    return "benchmarks" in document and bool({"metadata", "config", "args"} & document.keys())


def read(documents: Sequence[Document], file: str) -> list[Run]:
    """One run per benchmark."""
    runs: list[Run] = []
    for document in documents:
        version = parsed(Head, document, file).metadata.version
        if version != VERSION:
            raise InputError(f"{file} is a GuideLLM report of schema version {version}; version {VERSION} is read.")
        runs += [_run(one, file) for one in parsed(Report, document, file).benchmarks]
    return runs


def _run(found: Benchmark, file: str) -> Run:
    cut_off = found.metrics.request_totals.incomplete
    remarks = (WEIGHTED, *([f"{cut_off} requests were cut off at the end and count nowhere"] if cut_off else []))
    model = found.config.backend.model or None  # "" where GuideLLM asked the server
    return Run(file, "guidellm", model, _load(found.config.strategy), _metrics(found), remarks)


def _load(strategy: Strategy) -> str:
    rate = "" if strategy.rate is None else f", {strategy.rate:g} requests/s"
    return strategy.type_ + rate + ("" if strategy.streams is None else f", {strategy.streams} in flight")


def _metrics(found: Benchmark) -> Figures:
    metrics, goodput = found.metrics, found.metrics.request_goodput
    return complete(
        {
            "completed": metrics.request_totals.successful,
            "failed": metrics.request_totals.errored,
            "duration": found.duration,
            "total_input_tokens": _values(metrics.prompt_token_count)["sum"],
            "total_output_tokens": _values(metrics.output_token_count)["sum"],
            "request_throughput": _values(metrics.requests_per_second)["mean"],
            # Without a request that met the objectives there is nothing to count, and yet 0 is the answer.
            "request_goodput": goodput.successful.mean if goodput and goodput.successful else None,
            "output_throughput": _values(metrics.output_tokens_per_second)["mean"],
            "total_token_throughput": _values(metrics.tokens_per_second)["mean"],
            **latency("ttft_send", _values(metrics.time_to_first_token_ms)),
            **latency("tpot", _values(metrics.inter_token_latency_ms)),
            **latency("e2el_send", _values(metrics.request_latency), to_ms=1e3),
            **latency("e2el", _values(metrics.request_scheduled_latency or NONE), to_ms=1e3),
        }
    )


def _values(metric: ByStatus) -> Figures:
    """A distribution by the suite's names for its statistics. 0 is what GuideLLM writes for unknown: no value."""
    found = metric.successful or Distribution(count=0)
    tail = found.percentiles
    values = {"mean": found.mean, "median": found.median, "sum": found.total_sum}
    values |= {"p90": tail.p90, "p95": tail.p95, "p99": tail.p99, "p99.9": tail.p999}
    return {name: value or None for name, value in values.items()}
