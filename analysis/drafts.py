"""Draft-and-verify figures over many requests, and the cost model of their speed (`methods/_speculative.md`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from suite.harness.measurement import Sample

Metrics = dict[str, float | None]

PLACES = 4
"""Draft positions whose rates are metrics of their own."""


def draft_metrics(samples: Sequence[Sample]) -> Metrics:
    """Micro-averages over all rounds of all requests; all None where nothing was drafted.

    `tau`: tokens per target pass, the target's own included. `draft_acceptance_rate`: accepted of drafted tokens.
    `draft_acceptance_at_k`: accepted at position k, of the rounds that came so far. `draft_time_share` of decoding.
    """
    drafts = [sample.drafts for sample in samples if sample.drafts is not None]
    offered = _by_place([draft.offered_at for draft in drafts])
    accepted = _by_place([draft.accepted_at for draft in drafts])
    rates = [_share(got, of) for got, of in zip(accepted, offered, strict=True)][:PLACES]
    rates += [None] * (PLACES - len(rates))
    return {
        "tau": _share(sum(draft.emitted for draft in drafts), sum(draft.rounds for draft in drafts)),
        "draft_acceptance_rate": _share(sum(d.accepted for d in drafts), sum(d.drafted for d in drafts)),
        "draft_time_share": _share(sum(d.draft_ns for d in drafts), sum(d.decode_ns for d in drafts)),
        **{f"draft_acceptance_at_{place}": rate for place, rate in enumerate(rates, start=1)},
    }


def _by_place(columns: Sequence[Sequence[int]]) -> list[int]:
    return [sum(values) for values in zip_longest(*columns, fillvalue=0)]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def roofline_speedup(own: Mapping[str, float | None], dense: Mapping[str, float | None]) -> float | None:
    """Of decoding over dense, by the metrics of both: tau over r, the roofline's time of a round over that of a step.

    What drafting takes on the host is in no roofline, and left out; passes of a drafting model are in the round.
    """
    tau, verify, step = own.get("tau"), own.get("predicted_tpot_ms"), dense.get("predicted_tpot_ms")
    return predicted_speedup(tau, 0.0, verify / step) if tau and verify and step else None


def predicted_speedup(tau: float, draft: float, verify: float, overhead: float = 0.0) -> float:
    """Over plain decoding: tau / (D c_d + r(T) + o), all costs of a round in units of one plain target step.

    `draft` is D c_d, what drafting costs; `verify` is r(T), what a pass over T tokens costs; `overhead` the rest.
    """
    return tau / (draft + verify + overhead)
