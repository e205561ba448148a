"""What the harness itself costs per generated token: a timed turn whose generator has nothing to compute."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, ClassVar, cast

from suite.harness.block import sample
from suite.harness.contender import Contender
from suite.harness.heap import frozen_heap, quiet_heap
from suite.harness.measurement import Sample
from suite.harness.meter import RequestMeter
from suite.harness.telemetry import UnitTelemetry
from suite.methods.base import Card, Generator, Method, MethodConfig
from workloads.schema import Completion, CostLedger, Request

if TYPE_CHECKING:
    from suite.models.generation import Meter
    from suite.models.language_model import LanguageModel

LIMIT_US = 50.0
TOKENS = 256
TURNS = 20


@dataclass(frozen=True)
class Overhead:
    """Microseconds per generated token: of the whole harness path around a turn, and of the meter alone in the loop."""

    harness_us: float
    meter_us: float
    tokens: int


class _NullMethod(Method):
    """Yields tokens at once."""

    card: ClassVar[Card] = Card("null", "none", "a generator without a model", "", lossless=False)

    def attach(self, model: LanguageModel, config: MethodConfig) -> AbstractContextManager[Generator]:
        return nullcontext(_NullGenerator())


class _NullGenerator:
    def generate(self, requests: Sequence[Request], meter: Meter) -> Iterator[Completion]:
        for request in requests:
            meter.start(request.id, 1)
            for token in range(request.max_new_tokens):
                meter.token(request.id, token)
            start_ns, stamps = meter.times(request.id)
            ids, cost = tuple(range(request.max_new_tokens)), CostLedger(1, request.max_new_tokens)
            yield Completion(request.id, ids, "", start_ns, stamps, "length", cost)


def harness_overhead(tokens: int = TOKENS, turns: int = TURNS) -> Overhead:
    """Medians over some turns of `tokens` tokens each; everything a timed turn does is inside the measured time."""
    model = cast("LanguageModel", None)  # the null method never looks at it
    contender = Contender(_NullMethod(), MethodConfig(), model)
    telemetry = UnitTelemetry(None)
    request = Request(id="null", task="null", prompt="", metric="none", max_new_tokens=tokens)
    times, samples = [], []
    with frozen_heap():
        for turn in range(turns):
            start = time.perf_counter()
            samples.append(_turn(contender, request, telemetry, turn))
            times.append((time.perf_counter() - start) * 1e6 / tokens)
    meter_us = median(one.e2el_ms for one in samples) * 1e3 / tokens
    return Overhead(median(times), meter_us, tokens)


def _turn(contender: Contender, request: Request, telemetry: UnitTelemetry, turn: int) -> Sample:
    meter = RequestMeter()
    with quiet_heap(), telemetry.turn():
        (completion,) = contender.complete([request], meter)
    return sample(request, completion, meter, 0, turn)
