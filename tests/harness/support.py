"""A model, methods and a workload that take milliseconds: what the harness does is tested, not what it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field, model_validator

from suite.harness.measurement import Noise, Sample, UnitResult
from suite.harness.plan import Plan, Wishes, load_contenders, plan
from suite.harness.runner import Bench, Outcome, run_blocks, start_sweep
from suite.harness.store import Store
from suite.methods.base import Card, Method, MethodConfig, tunable
from suite.registry import METHODS, MODELS, WORKLOADS, Entry
from suite.spec import MethodSpec, ModelSpec, Protocol, RunSpec, WorkloadSpec
from workloads.schema import Completion, CostLedger, DataError, Request, Workload, WorkloadConfig

log: list[tuple[str, str]] = []
"""(method, request id) of every completion, in order."""


class Words:
    """A tokenizer whose tokens are words; an id is the word's length."""

    def __init__(self) -> None:
        self._words: dict[int, str] = {}

    def encode(self, text: str) -> list[int]:
        ids = [hash(word) for word in text.split()]
        self._words |= dict(zip(ids, text.split(), strict=True))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._words.get(i, str(i)) for i in ids)


@dataclass
class FakeModel:
    """Looks like a `LanguageModel` from where the harness stands."""

    name: str = "fake"
    digest: str = "0" * 64
    dtype: str = "bf16"
    window: int = 4096
    model_bytes: int = 1000
    tokenizer: Words = field(default_factory=Words)
    config: Any = field(
        default_factory=lambda: SimpleNamespace(
            kv_bytes_per_token=lambda element: 24 * element, attention_flops_per_pair=0
        )
    )

    def encode(self, request: Request) -> Any:
        target = tuple(self.tokenizer.encode(request.target)) if request.target else ()
        return SimpleNamespace(ids=tuple(self.tokenizer.encode(request.prompt)), target_ids=target, notes=())


class ExactConfig(MethodConfig):
    """`delay_us` per token; a fancy method cannot be that slow."""

    delay_us: int = tunable(20, low=0, high=1000000)
    mode: Literal["plain", "fancy"] = tunable("plain", choices=("plain", "fancy"))
    ratio: float = Field(0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> ExactConfig:
        if self.mode == "fancy" and self.delay_us > 1000:
            raise ValueError("a fancy delay is at most 1000")
        return self


class Exact(Method):
    """Says the lengths of the prompt's words, again and again. Subclasses break one promise each."""

    card: ClassVar[Card] = Card("exact", "test", "", "", lossless=True)
    Config = ExactConfig

    @contextmanager
    def attach(self, model: Any, config: MethodConfig) -> Iterator[Any]:
        yield SimpleNamespace(generate=lambda requests, meter: self._generate(model, config, requests, meter))

    def _generate(self, model: Any, config: Any, requests: Sequence[Request], meter: Any) -> Iterator[Completion]:
        for request in requests:
            log.append((self.card.slug, request.id))
            yield self.complete(model, config, request, meter)

    def tokens(self, request: Request) -> list[int]:
        lengths = [len(word) for word in request.prompt.split()] or [1]
        return [lengths[i % len(lengths)] for i in range(request.max_new_tokens)]

    def complete(self, model: Any, config: Any, request: Request, meter: Any) -> Completion:
        prompt = len(model.encode(request).ids)
        meter.start(request.id, prompt)
        meter.phase("prefill")
        meter.step(prompt, prompt)
        ids = self.tokens(request)
        for index, token in enumerate(ids):
            time.sleep(config.delay_us / 1e6)
            if index:
                meter.step(1, prompt + index)
                self.read(meter, prompt, prompt + index)
            else:
                meter.phase("decode")
            meter.token(request.id, token)
        if meter.counting:
            meter.resident(48 * (prompt + len(ids)), 0)
        start_ns, stamps = meter.times(request.id)
        logprobs = self.logprobs(len(ids)) if request.target is not None else ()
        text, cost = " ".join(map(str, ids)), CostLedger(prompt, len(ids))
        return Completion(request.id, tuple(ids), text, start_ns, stamps, "length", cost, target_logprobs=logprobs)

    def logprobs(self, count: int) -> tuple[float, ...]:
        return (-1.0,) * count

    def read(self, meter: Any, prompt: int, tokens: int) -> None:
        if meter.counting:
            from suite.models.generation import AttentionRead

            meter.attention(AttentionRead(0, tokens, prompt, tokens, tokens, tokens, tokens, 48 * tokens, 0, 0))


class Other(Exact):
    card = Card("other", "test", "", "", lossless=False)


class Wrong(Exact):
    """Lossless by its card only."""

    card = Card("wrong", "test", "", "", lossless=True)

    def tokens(self, request: Request) -> list[int]:
        ids = super().tokens(request)
        return [*ids[:3], 999, *ids[4:]] if len(ids) > 4 else ids


class Restless(Exact):
    """Never says the same twice."""

    card = Card("restless", "test", "", "", lossless=False)
    calls = 0

    def tokens(self, request: Request) -> list[int]:
        Restless.calls += 1
        return [*super().tokens(request)[:-1], 100 + Restless.calls]


class Poisoned(Exact):
    card = Card("poisoned", "test", "", "", lossless=False)

    def logprobs(self, count: int) -> tuple[float, ...]:
        return (float("nan"),) * count


class Selfish(Exact):
    """No dense fallback for short inputs."""

    card = Card("selfish", "test", "", "", lossless=False)

    def tokens(self, request: Request) -> list[int]:
        return [0] * request.max_new_tokens


class Failing(Exact):
    """Works in the gates, fails on the second item it is timed with."""

    card = Card("failing", "test", "", "", lossless=False)

    def tokens(self, request: Request) -> list[int]:
        if request.id.endswith("/1"):
            raise RuntimeError("out of luck")
        return super().tokens(request)


class Unprepared(Exact):
    card = Card("unprepared", "test", "", "", lossless=False)

    def prepare(self, model: Any, config: MethodConfig) -> None:
        raise FileNotFoundError("no adapter")


class Refusing(Exact):
    card = Card("refusing", "test", "", "", lossless=False)

    def refusal(self, model: Any, config: MethodConfig) -> str | None:
        return "it needs rotary embeddings."


class Stopping(Exact):
    """The user presses Ctrl-C while the second task is timed."""

    card = Card("stopping", "test", "", "", lossless=False)

    def tokens(self, request: Request) -> list[int]:
        if request.id.startswith("b/"):
            raise KeyboardInterrupt
        return super().tokens(request)


class Miscounting(Exact):
    """Returns a token it never told the meter about."""

    card = Card("miscounting", "test", "", "", lossless=False)

    def complete(self, model: Any, config: Any, request: Request, meter: Any) -> Completion:
        done = super().complete(model, config, request, meter)
        return Completion(done.request_id, (*done.token_ids, 7), "", 0, (), "length", done.cost)


class Mute(Exact):
    """Completes a request without a token."""

    card = Card("mute", "test", "", "", lossless=False)

    def tokens(self, request: Request) -> list[int]:
        return []


class Swapping(Exact):
    """Answers another request than the one it was asked."""

    card = Card("swapping", "test", "", "", lossless=False)

    def complete(self, model: Any, config: Any, request: Request, meter: Any) -> Completion:
        return replace(super().complete(model, config, request, meter), request_id="another")


_BROKEN = (Wrong, Restless, Poisoned, Selfish, Failing, Unprepared, Refusing, Stopping, Miscounting, Mute, Swapping)
METHOD_CLASSES: dict[str, type[Exact]] = {"dense": Exact, **{kind.card.slug: kind for kind in (Other, *_BROKEN)}}


class TasksConfig(WorkloadConfig):
    """`words` per prompt."""

    words: int = Field(12, ge=1, le=100)
    tokens: int = 6


class Tasks(Workload):
    """Five tasks of up to four items each."""

    name = "tasks"
    version = "1"
    tasks = ("a", "b", "c", "d", "e")
    score_name = "score, 0-1"
    Config = TasksConfig

    def __init__(self, config: WorkloadConfig | None = None) -> None:
        super().__init__(config)
        if self.config.data is not None:
            raise DataError(f"{self.config.data}, line 3: field 'answers' is missing.")

    @property
    def source(self) -> str:
        return "synthetic"

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        config: Any = self.config
        for item in range(min(limit, 4)):
            prompt = " ".join("x" * (1 + (item + word) % 5) for word in range(config.words))
            yield Request(id=f"{task}/{item}", task=task, prompt=prompt, metric="m", max_new_tokens=config.tokens)

    def score(self, completion: Completion, request: Request) -> float:
        return float(completion.request_id == request.id)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills the registries with the fakes of this module."""
    module = "tests.harness.support"
    methods = {name: Entry(name, f"{module}:{kind.__name__}", "test", "") for name, kind in METHOD_CLASSES.items()}
    monkeypatch.setattr(METHODS, "_builtin", methods)
    monkeypatch.setattr(WORKLOADS, "_builtin", {"tasks": Entry("tasks", f"{module}:Tasks", "test", "")})
    monkeypatch.setattr(MODELS, "_builtin", {"fake": Entry("fake", f"{module}:FakeModel", "test", "")})
    log.clear()


def wishes(*methods: str, tasks: Sequence[str] = ("a",), **changes: Any) -> Wishes:
    """Two items of each task, one counted request, no warm-up."""
    every = tuple(MethodSpec(name=name) for name in METHOD_CLASSES)
    defaults: dict[str, Any] = {"limit": 2, "default_methods": every, "protocol": Protocol(warmup=0, counted=1)}
    specs = tuple(MethodSpec(name=name) for name in methods)
    return Wishes(workload="tasks", model="fake", methods=specs, tasks=tasks, **(defaults | changes))


def bench(made: Plan, store: Store, **changes: Any) -> tuple[Plan, Bench]:
    """A plan's contenders on the fake model."""
    model: Any = FakeModel()
    made, contenders = load_contenders(made, model)
    return made, Bench(model, contenders, store, threads=1, **changes)


def run(wished: Wishes, store: Store, **changes: Any) -> Outcome:
    """Plans and runs in a new sweep."""
    made, ready = bench(plan(wished), store, **changes)
    return run_blocks(made, start_sweep(store, made), ready)


def unit(
    key: str = "k0", block: str = "b0", *, status: Any = "ok", text: str = "", method: str = "dense"
) -> UnitResult:
    """A stored unit with one sample."""
    spec = RunSpec(
        workload=WorkloadSpec(name="tasks", task="a", limit=1),
        method=MethodSpec(name=method),
        model=ModelSpec(name="m"),
    )
    return UnitResult(
        key=key, block=block, spec=spec, status=status, samples=(timing(text=text),), machine_id="machine"
    )


def timing(
    request: str = "r0", *, itl_ms: Sequence[float] = (1.0, 1.0), ttft_ms: float = 5.0, text: str = ""
) -> Sample:
    """A sample with these gaps between its tokens."""
    return Sample(
        request_id=request,
        task="a",
        repeat=0,
        turn=0,
        prompt_tokens=3,
        token_ids=tuple(range(len(itl_ms) + 1)),
        text=text,
        stop_reason="length",
        ttft_ms=ttft_ms,
        itl_ms=tuple(itl_ms),
        e2el_ms=ttft_ms + sum(itl_ms),
        score=1.0,
    )


def quiet(**changes: Any) -> Noise:
    """A record without a disturbance."""
    calm: dict[str, Any] = {"threads": 1, "pinned": True, "steal_share": 0.0, "other_load": 0.0, "spread": 0.0}
    return Noise(**(calm | changes))
