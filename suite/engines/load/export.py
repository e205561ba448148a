"""A run as the result JSON of `vllm bench serve --save-result --save-detailed` (read from its `benchmarks/serve.py`).

Its definitions, not ours: latencies count from sending, throughput is divided by the whole duration with the drain
tail, failures count nowhere but in `failed`. A token count nobody knows is null, where vLLM would tokenise the text:
without usage it needs `--tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from suite.engines.load import slo
from suite.engines.load.driver import Outcome
from suite.engines.load.records import Record, measured
from suite.engines.load.summary import gaps_ms, latencies, statistics
from suite.engines.load.target import Target

BACKENDS = {"completions": "openai", "chat": "openai-chat"}


def vllm_result(
    outcome: Outcome,
    target: Target,
    bounds: Mapping[str, float],
    burstiness: float = 1.0,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """The measured requests. Times are seconds where vLLM has seconds, milliseconds under names that end in `_ms`."""
    issued = measured(outcome.records)
    backend, plan = BACKENDS[target.endpoint], outcome.plan
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": None,
        "model_id": target.model,
        "tokenizer_id": tokenizer,
        "num_prompts": outcome.planned,
        "request_rate": "inf" if plan.rate is None else plan.rate,
        "burstiness": burstiness if np.isfinite(burstiness) else "inf",
        "max_concurrency": plan.concurrency,
        **_totals(issued, _duration(outcome.records), bounds),
        **_details(issued),
        **_statistics([r for r in issued if r.ok]),
    }


def _duration(records: Sequence[Record]) -> float:
    """From the start of the loop (the last warm-up request, where there are some) until all have returned."""
    start = max((r.t_sched for r in records if r.phase == "warmup"), default=0.0)
    return max(max((r.t_done for r in measured(records)), default=start) - start, 1e-9)


def _totals(issued: Sequence[Record], duration: float, bounds: Mapping[str, float]) -> dict[str, Any]:
    good = [r for r in issued if r.ok]
    n_in = sum(r.n_in or 0 for r in good)
    n_out = None if any(r.n_out is None for r in good) else sum(r.n_out or 0 for r in good)
    met = sum(slo.meets(bounds, _from_sending(r)) for r in good)
    return {
        "duration": duration,
        "completed": len(good),
        "failed": len(issued) - len(good),
        "total_input_tokens": n_in,
        "total_output_tokens": n_out,
        "request_throughput": len(good) / duration,
        "request_goodput": met / duration if bounds else None,
        "output_throughput": None if n_out is None else n_out / duration,
        "total_token_throughput": None if n_out is None else (n_in + n_out) / duration,
        "max_output_tokens_per_s": _peak_events(good),
        "max_concurrent_requests": _peak_in_flight(good),
        "rtfx": 0.0,
    }


def _from_sending(record: Record) -> dict[str, float | None]:
    found = latencies(record)
    return {"ttft": found["ttft_send"], "e2el": found["e2el_send"], "tpot": found["tpot"]}


def _peak_events(good: Sequence[Record]) -> float:
    """Most events in a second counted from the first sending: vLLM calls them tokens."""
    times = [at for r in good for at in r.chunks]
    start = min((r.t_send for r in good if r.t_send is not None), default=0.0)
    return float(np.bincount([int(at - start) for at in times]).max()) if times else 0.0


def _peak_in_flight(good: Sequence[Record]) -> int:
    steps = [(r.t_send, 1) for r in good if r.t_send is not None and r.last is not None]
    steps += [(r.last, -1) for r in good if r.last is not None]
    return max(accumulate(change for _, change in sorted(steps)), default=0)


def _details(issued: Sequence[Record]) -> dict[str, list[Any]]:
    values = [_from_sending(r) if r.ok else {"ttft": None, "e2el": None} for r in issued]
    return {
        "input_lens": [r.n_in or 0 for r in issued],
        "output_lens": [r.n_out if r.ok else 0 for r in issued],
        "ttfts": [(v["ttft"] or 0.0) / 1e3 for v in values],
        "itls": [[b - a for a, b in pairwise(r.chunks)] for r in issued],
        "latencies": [(v["e2el"] or 0.0) / 1e3 for v in values],
        "start_times": [r.t_send or 0.0 for r in issued],
        "queue_times": [(r.t_send - r.t_sched) if r.t_send is not None else 0.0 for r in issued],
        "generated_texts": [r.text for r in issued],
        "errors": [r.error for r in issued],
    }


def _statistics(good: Sequence[Record]) -> dict[str, float | None]:
    values = [_from_sending(r) for r in good]
    found: dict[str, float | None] = {}
    for name in ("ttft", "tpot", "e2el"):
        found |= statistics(name, [v for row in values if (v := row[name]) is not None])
    return found | statistics("itl", gaps_ms(good))
