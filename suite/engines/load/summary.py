"""From raw records to the figures of a report, under the names of `vllm bench serve` (card section 2).

Latencies are counted from the scheduled arrival, so that a request that had to wait for a stalled server or client
shows it; `_send` names the same from the moment of sending. Percentiles are numpy's linear ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from suite.engines.load import slo
from suite.engines.load.records import Record, measured

PERCENTILES = (50, 90, 95, 99, 99.9)
Summary = dict[str, Any]


def latencies(record: Record) -> dict[str, float | None]:
    """One request's latencies in milliseconds; None for what it does not have."""
    first, last, sent = record.first, record.last, record.t_send
    known = first is not None and last is not None and sent is not None
    if not known or first is None or last is None or sent is None:
        return dict.fromkeys(("ttft", "ttft_send", "e2el", "e2el_send", "tpot", "norm_latency"))
    several = record.n_out is not None and record.n_out >= 2
    return {
        "ttft": 1e3 * (first - record.t_sched),
        "ttft_send": 1e3 * (first - sent),
        "e2el": 1e3 * (last - record.t_sched),
        "e2el_send": 1e3 * (last - sent),
        "tpot": 1e3 * (last - first) / ((record.n_out or 0) - 1) if several else None,
        "norm_latency": 1e3 * (last - record.t_sched) / record.n_out if record.n_out else None,
    }


def gaps_ms(records: Iterable[Record]) -> list[float]:
    """ITL: the gaps between events with output, pooled over all requests."""
    return [1e3 * (b - a) for record in records for a, b in zip(record.chunks, record.chunks[1:], strict=False)]


def token_gaps_ms(records: Iterable[Record]) -> list[float]:
    """`itl_tok`: every gap divided by the tokens of the event that ended it, where the server told them."""
    return [
        1e3 * (b - a) / tokens
        for r in records
        if r.chunk_tokens
        for a, b, tokens in zip(r.chunks, r.chunks[1:], r.chunk_tokens[1:], strict=False)
        if tokens
    ]


def statistics(name: str, values: Sequence[float]) -> Summary:
    """`mean_NAME_ms`, `median_`, `std_`, `p50_` ... `p99.9_`; None of no values."""
    if not len(values):
        return {f"{kind}_{name}_ms": None for kind in ("mean", "median", "std", *(f"p{p:g}" for p in PERCENTILES))}
    array = np.asarray(values)
    found = {f"p{p:g}_{name}_ms": float(np.percentile(array, p)) for p in PERCENTILES}
    middle = {f"mean_{name}_ms": float(array.mean()), f"median_{name}_ms": float(np.median(array))}
    return {**middle, f"std_{name}_ms": float(array.std()), **found}


def window(records: Sequence[Record]) -> tuple[float, float]:
    """From the first measured arrival to the last measured output (or failure)."""
    return min(r.t_sched for r in records), max(r.t_done if r.last is None else r.last for r in records)


def summarise(records: Sequence[Record], planned: int, bounds: Mapping[str, float] | None = None) -> Summary:
    """All figures of the measured window. `planned` requests were to be measured: those without a record are `lost`."""
    issued = measured(records)
    if not issued:
        return {"completed": 0, "failed": 0, "lost": planned}
    good = [r for r in issued if r.ok]
    values = [latencies(r) for r in good]
    found: Summary = {
        "completed": len(good),
        "failed": len(issued) - len(good),
        "lost": planned - len(issued),
        "errors": dict(Counter(r.error.split(":")[0] for r in issued if not r.ok)),
        **_throughput(records, issued, good),
        **_goodput(issued, planned, bounds or {}),
        **_delivery(issued),
        **_tokens(good),
    }
    for name in ("ttft", "ttft_send", "tpot", "e2el", "e2el_send", "norm_latency"):
        found |= statistics(name, [v for row in values if (v := row[name]) is not None])
    return found | statistics("itl", gaps_ms(good)) | statistics("itl_tok", token_gaps_ms(good))


def _throughput(records: Sequence[Record], issued: Sequence[Record], good: Sequence[Record]) -> Summary:
    """Totals over the window. Output tokens count when they arrive, those of warm-up and cool-down requests too."""
    start, end = window(issued)
    duration = max(end - start, 1e-9)
    unknown = any(r.n_out is None for r in good)
    n_in = sum(r.n_in or 0 for r in good)
    n_out = sum(_tokens_inside(r, start, end) for r in records if r.ok)
    return {
        "duration": duration,
        "total_input_tokens": n_in,
        "total_output_tokens": None if unknown else sum(r.n_out or 0 for r in good),
        "request_throughput": len(good) / duration,
        "output_throughput": None if unknown else n_out / duration,
        "total_token_throughput": None if unknown else (n_in + n_out) / duration,
    }


def _tokens_inside(record: Record, start: float, end: float) -> float:
    """Tokens that arrived in the window; spread evenly over the events where the server does not tell them."""
    if not record.chunks or record.n_out is None:
        return 0.0
    tokens = record.chunk_tokens or (record.n_out / len(record.chunks),) * len(record.chunks)
    return sum(count for at, count in zip(record.chunks, tokens, strict=True) if start <= at <= end)


def _goodput(issued: Sequence[Record], planned: int, bounds: Mapping[str, float]) -> Summary:
    """Requests per second that met every objective, and their share of all issued: a failure never meets one."""
    if not bounds:
        return {"request_goodput": None, "slo_attainment": None}
    start, end = window(issued)
    met = sum(r.ok and slo.meets(bounds, latencies(r)) for r in issued)
    return {"request_goodput": met / max(end - start, 1e-9), "slo_attainment": met / max(planned, len(issued))}


def _delivery(issued: Sequence[Record]) -> Summary:
    """Whether the client kept its own schedule: the rate it was asked for and sent at, and how late it sent."""
    late = [1e3 * (r.t_send - r.t_sched) for r in issued if r.t_send is not None]
    due = sorted(r.t_sched for r in issued)
    sent = sorted(r.t_send for r in issued if r.t_send is not None)
    return {
        "asked_rate": _rate(due),
        "delivered_rate": _rate(sent),
        **statistics("client_queue_time", late),
    }


def _rate(times: Sequence[float]) -> float | None:
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None


def _tokens(good: Sequence[Record]) -> Summary:
    """Where the token counts come from, and where the server's and the tokenizer's differ."""
    events = sum(len(r.chunks) for r in good)
    known = [r for r in good if r.n_out is not None]
    usage = [r for r in good if r.source == "usage"]
    return {
        "token_source": dict(Counter(r.source for r in good)),
        "tokens_per_event": sum(r.n_out or 0 for r in known) / events if events and len(known) == len(good) else None,
        "token_check": {
            "prompt": _agreement((r.n_in, r.n_tokenizer_in) for r in usage),
            "completion": _agreement((r.n_out, r.n_tokenizer) for r in usage),
        },
        # A re-tokenised answer may be a token shorter than the server's: that does not make it short.
        "short_answers": sum((r.n_out or 0) < r.asked_out for r in known if r.asked_out and r.source != "tokenizer"),
    }


def _agreement(counts: Iterable[tuple[int | None, int | None]]) -> Summary:
    """How often the server and the tokenizer count the same, of the requests that both have counted."""
    differences = [abs(server - ours) for server, ours in counts if server is not None and ours is not None]
    return {
        "checked": len(differences),
        "agree": differences.count(0),
        "share": differences.count(0) / len(differences) if differences else None,
        "largest_difference": max(differences, default=None),
    }
