"""When the tokens of one request were known."""

from __future__ import annotations

from suite.harness.contender import Contender
from suite.harness.heap import quiet_heap
from suite.harness.meter import RequestMeter
from workloads.schema import Request

Stamps = list[int]
"""When generation started and when each token was known, in ns."""


def stamps(contender: Contender, request: Request) -> Stamps:
    """Completes one request on a quiet heap."""
    meter = RequestMeter()
    with quiet_heap():
        contender.complete([request], meter)
    start, tokens = meter.times(request.id)
    return [start, *tokens]


def first_token_s(times: Stamps) -> float:
    """Seconds from the tokenised prompt to the first token."""
    return (times[1] - times[0]) / 1e9


def total_s(times: Stamps) -> float:
    """Seconds from the tokenised prompt to the last token."""
    return (times[-1] - times[0]) / 1e9
