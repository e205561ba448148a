"""From a unit's raw samples to its metrics, under the names of vLLM's benchmark (`mean_ttft_ms`, `p99_itl_ms`, ...).

Definitions: `methods/_serving_metrics.md` section 2. A gated or failed unit has no speed metrics: those are `None`.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis import statistics
from analysis.drafts import draft_metrics
from analysis.placement import placement_metrics, placements
from analysis.roofline.ceilings import Ceilings
from analysis.samples import busy_seconds, request_scores, timed_samples, times_ms
from analysis.searches import search_metrics
from suite.harness.measurement import KVSample, Sample, UnitResult

Metrics = dict[str, float | None]

KV_FIGURES = {
    "stored_retention": "stored_retention",
    "selected_retention": "selected_retention",
    "selected_retention_per_query_head": "selected_retention_per_query_head",
    "selected_retention_last": "selected_retention_last",
    "selected_retention_prompt": "selected_retention_prompt",
    "resident_bytes": "kv_resident_bytes",
    "index_bytes": "kv_index_bytes",
    "host_bytes": "kv_host_bytes",
    "prefill_index_bytes": "kv_prefill_index_bytes",
    "read_bytes_per_step": "kv_read_bytes_per_step",
    "fetch_bytes_per_step": "kv_fetch_bytes_per_step",
    "full_bytes": "kv_full_bytes",
}
"""Fields of `KVSample` and the metrics they become: means over the counted requests."""


def unit_metrics(unit: UnitResult, ceilings: Ceilings | None = None) -> Metrics:
    """All metrics of one unit; those against a ceiling need a calibration of the machine it ran on."""
    timed = timed_samples(unit)
    return {
        **latency_metrics(timed),
        **throughput_metrics([timed]),
        **score_metrics(unit.samples),
        **kv_metrics(unit.kv),
        **draft_metrics(timed),
        **search_metrics([timed]),
        "prefill_density": prefill_density([unit]),
        **_memory_metrics(unit),
        "joules_per_token": _joules_per_token(unit, timed),
        **placement_metrics([placements(unit, ceilings)]),
    }


def latency_metrics(samples: Sequence[Sample]) -> Metrics:
    """Mean, median and 99th percentile of every latency in milliseconds."""
    metrics: Metrics = {}
    for name, values in times_ms(samples).items():
        metrics[f"mean_{name}_ms"] = statistics.mean(values)
        metrics[f"median_{name}_ms"] = statistics.median(values)
        metrics[f"p99_{name}_ms"] = statistics.percentile(values, 99)
    return metrics


def throughput_metrics(units: Sequence[Sequence[Sample]]) -> Metrics:
    """Tokens per request, output tokens per second of serving, prompt tokens per second of prefill, over units.

    Of a search no time of prefill is known: its first token comes with its last.
    """
    plain = [[sample for sample in samples if sample.search is None] for samples in units]
    served = sum(busy_seconds(samples, [sample.e2el_ms for sample in samples]) for samples in units)
    prefilled = sum(busy_seconds(samples, [sample.ttft_ms for sample in samples]) for samples in plain)
    generated = sum(len(sample.token_ids) for samples in units for sample in samples)
    prompts = sum(sample.prompt_tokens for samples in plain for sample in samples)
    return {
        "mean_output_tokens": statistics.mean([len(sample.token_ids) for samples in units for sample in samples]),
        "output_throughput": generated / served if served else None,
        "prompt_throughput": prompts / prefilled if prefilled else None,
    }


def score_metrics(samples: Sequence[Sample]) -> Metrics:
    """Mean score over requests and its standard error."""
    scores = list(request_scores(samples).values())
    return {"score": statistics.mean(scores), "score_standard_error": statistics.standard_error(scores)}


def kv_metrics(kv: Sequence[KVSample]) -> Metrics:
    """KV-cache figures, means over the counted requests (`methods/_kv_retention.md`)."""
    found = {metric: statistics.mean([getattr(sample, name) for sample in kv]) for name, metric in KV_FIGURES.items()}
    return found | {"kv_device_bytes": statistics.mean([sample.resident_bytes - sample.host_bytes for sample in kv])}


def prefill_density(units: Sequence[UnitResult]) -> float | None:
    """Attention FLOPs of the counted prompts over those of full causal attention, mean over the units that have it."""
    densities = [count.attention_density for unit in units for count in unit.counts if count.phase == "prefill"]
    return statistics.mean([density for density in densities if density is not None])


def _memory_metrics(unit: UnitResult) -> Metrics:
    fields = ("process_peak_bytes", "model_bytes", "device_peak_bytes")
    return {name: getattr(unit.memory, name, None) for name in fields}


def _joules_per_token(unit: UnitResult, timed: Sequence[Sample]) -> float | None:
    tokens = sum(len(sample.token_ids) for sample in timed)
    return None if unit.energy.joules is None or not tokens else unit.energy.joules / tokens
