"""What searches cost, per request (`methods/_verifiers.md` section 4)."""

from __future__ import annotations

from collections.abc import Sequence

from analysis import statistics
from analysis.samples import busy_seconds
from suite.harness.measurement import Sample

Metrics = dict[str, float | None]

FIGURES = {
    "generated": "search_generated_tokens",
    "sequential": "search_sequential_depth",
    "prompt_logical": "search_prompt_tokens",
    "prefilled": "search_prefilled_tokens",
    "verifier_passes": "search_verifier_passes",
    "verifier_tokens": "search_verifier_tokens",
    "judge_calls": "search_judge_calls",
    "samples": "search_samples",
    "cancelled": "search_cancelled",
    "flops": "search_flops",
    "verifier_flops": "search_verifier_flops",
}
"""Fields of `SearchFigures` and the metrics they become: means over the requests; None where one request's is."""


def search_metrics(units: Sequence[Sequence[Sample]]) -> Metrics:
    """Means per request, all None where nothing was searched.

    `search_discarded_share`: generated tokens that are not in the answer, of all; `search_throughput`: generated tokens
    per second, the discarded ones too.
    """
    searches = [sample for samples in units for sample in samples if sample.search is not None]
    found: Metrics = {}
    for field, metric in FIGURES.items():
        values = [getattr(sample.search, field) for sample in searches]
        found[metric] = None if None in values else statistics.mean(values)
    generated = sum(sample.search.generated for sample in searches if sample.search is not None)
    kept = sum(len(sample.token_ids) - _written(sample) for sample in searches)
    seconds = sum(busy_seconds(samples, [sample.e2el_ms for sample in samples]) for samples in units)
    found["search_discarded_share"] = 1 - kept / generated if generated else None
    found["search_throughput"] = generated / seconds if generated and seconds else None
    return found


def _written(sample: Sample) -> float:
    """Tokens of the answer that the model did not choose."""
    return sample.search.extra.get("written", 0.0) if sample.search is not None else 0.0
