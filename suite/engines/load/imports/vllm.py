"""Result JSON of `vllm bench serve --save-result` or `--append-result` (read from its `benchmarks/serve.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from suite.engines.load.imports.run import KINDS, TOTALS, Document, Figures, Part, Run, complete, latency, parsed

NAMED = {
    "ttft_send": "ttft",
    "tpot": "tpot",
    "itl": "itl",
    "e2el_send": "e2el",
    "e2el": "e2el_including_client_queue",
}
"""Our names and vLLM's: its latencies count from sending."""


class Result(Part):
    """What is read of a result; `duration` in seconds, `request_rate` in requests/s or "inf"."""

    model_id: str
    request_rate: float | str | None = None
    max_concurrency: int | None = None
    completed: float
    failed: float | None = None
    duration: float
    total_input_tokens: float | None = None
    total_output_tokens: float | None = None
    request_throughput: float
    request_goodput: float | None = None
    output_throughput: float | None = None
    total_token_throughput: float | None = None
    latencies: dict[str, float | None]


def recognised(document: Document) -> bool:
    """Whether it has the fields that name the model and count its requests."""
    return {"model_id", "request_throughput"} <= document.keys()


def read(documents: Sequence[Document], file: str) -> list[Run]:
    """One run per result."""
    return [_run(document, file) for document in documents]


def _run(document: Document, file: str) -> Run:
    names = [f"{kind}_{name}_ms" for name in NAMED.values() for kind in KINDS]
    found = parsed(Result, {**document, "latencies": {name: document.get(name) for name in names}}, file)
    metrics: Figures = found.model_dump(include=set(TOTALS))
    for ours, theirs in NAMED.items():
        metrics |= latency(ours, {kind: found.latencies[f"{kind}_{theirs}_ms"] for kind in KINDS})
    return Run(file, "vllm", found.model_id, _load(found), complete(metrics))


def _load(found: Result) -> str | None:
    rate = found.request_rate
    parts = [f"{rate:g} requests/s" if isinstance(rate, float | int) else "all at once"] if rate is not None else []
    if found.max_concurrency is not None:
        parts.append(f"at most {found.max_concurrency} in flight")
    return ", ".join(parts) or None
