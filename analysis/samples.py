"""What a unit's raw samples say one by one: names, times per request and scores per request."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from analysis.statistics import PairKey
from suite.harness.measurement import Sample, UnitResult
from suite.spec import MethodSpec, Protocol

LATENCIES = ("ttft", "tpot", "itl", "e2el")


def method_label(method: MethodSpec) -> str:
    """The method's name with the options that were set: "longheads(top_k=4)"."""
    options = options_text(method)
    return f"{method.name}({options})" if options else method.name


def options_text(method: MethodSpec) -> str:
    """The options that were set: "chunk=32, top_k=4"."""
    return ", ".join(f"{name}={value}" for name, value in sorted(method.options.items()))


def question(unit: UnitResult) -> str:
    """What was asked, whatever the number of items and repeats, as JSON: equal for units that can be compared."""
    workload = unit.spec.workload.model_copy(update={"limit": 1})
    return unit.spec.model_copy(update={"workload": workload, "protocol": Protocol()}).model_dump_json()


def is_timed(unit: UnitResult) -> bool:
    """A unit that failed, or failed a gate, gets no speed number."""
    return unit.status in ("ok", "unstable")


def timed_samples(unit: UnitResult) -> Sequence[Sample]:
    """The samples that speed may be computed from."""
    return unit.samples if is_timed(unit) else ()


def threads_of(unit: UnitResult) -> int:
    """Threads the unit ran with: as measured, or as asked for."""
    return unit.noise.threads if unit.noise is not None else unit.spec.engine.threads


def tpot_ms(sample: Sample) -> float | None:
    """(e2el - ttft) / (output tokens - 1); None for fewer than two tokens, and of a search, whose all come at once."""
    tokens = len(sample.token_ids) if sample.search is None else 0
    return (sample.e2el_ms - sample.ttft_ms) / (tokens - 1) if tokens > 1 else None


def times_ms(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Samples of the four latencies: one per request, except `itl`, which pools the gaps of all requests."""
    tpots = [tpot_ms(sample) for sample in samples]
    return {
        "ttft": [sample.ttft_ms for sample in samples],
        "tpot": [value for value in tpots if value is not None],
        "itl": [gap for sample in samples for gap in sample.itl_ms],
        "e2el": [sample.e2el_ms for sample in samples],
    }


def pair_times(samples: Sequence[Sample]) -> dict[str, dict[PairKey, float]]:
    """ttft, tpot and e2el of each sample in milliseconds, keyed for pairing; of a search e2el alone."""
    pairs: dict[str, dict[PairKey, float]] = {"ttft": {}, "tpot": {}, "e2el": {}}
    for sample in samples:
        key, tpot = (sample.request_id, sample.repeat), tpot_ms(sample)
        pairs["e2el"][key] = sample.e2el_ms
        if sample.search is None:
            pairs["ttft"][key] = sample.ttft_ms
        if tpot is not None:
            pairs["tpot"][key] = tpot
    return pairs


def request_scores(samples: Sequence[Sample]) -> dict[str, float]:
    """Score of each request, the mean of its repeats: a repeat of a greedy request is no new evidence."""
    scores: dict[str, list[float]] = {}
    for sample in samples:
        if sample.score is not None:
            scores.setdefault(sample.request_id, []).append(sample.score)
    return {request: fmean(values) for request, values in scores.items()}


def busy_seconds(samples: Sequence[Sample], request_ms: Sequence[float]) -> float:
    """Time the engine was at work: the requests of one turn are one batch, which its longest one ends."""
    turns: dict[int, float] = {}
    for sample, milliseconds in zip(samples, request_ms, strict=True):
        turns[sample.turn] = max(milliseconds, turns.get(sample.turn, 0.0))
    return sum(turns.values()) / 1e3
