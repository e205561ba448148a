"""What every engine is: started, asked for tokens of prompts given as ids, measured, and always stopped."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Literal, Self

from suite.errors import UnitError
from suite.spec import Dtype

FaultKind = Literal["did not start", "out of memory", "died", "timed out", "wrong output"]


class EngineError(UnitError):
    """An engine failed. `kind` is what happened; the sentence carries the end of the engine's log."""

    def __init__(self, kind: FaultKind, engine: str, detail: str) -> None:
        super().__init__(f"{engine} {_VERBS[kind]}: {detail}")
        self.kind: FaultKind = kind


_VERBS: dict[FaultKind, str] = {
    "did not start": "did not start",
    "out of memory": "ran out of memory",
    "died": "died",
    "timed out": "timed out",
    "wrong output": "gave wrong output",
}


@dataclass(frozen=True)
class Prompt:
    """One request as every engine gets it. Temperature 0 is greedy; with no `eos_ids` all `max_new_tokens` are made.

    `stop`: texts that end it too, with the token that completes one. `logprobs`: the chunks carry them. Prompts with
    equal `salt` may share a prefix cache, where the engine has one; no others do.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    eos_ids: tuple[int, ...] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    salt: str = ""


@dataclass(frozen=True)
class Chunk:
    """Tokens of prompt number `index` that became known at `ns` (`time.perf_counter_ns()`), usually one.

    `logprobs`: the model's own, before temperature, one for each token; none where they are not known.
    """

    index: int
    token_ids: tuple[int, ...]
    ns: int
    logprobs: tuple[float, ...] = ()


@dataclass
class Output:
    """What one prompt produced. `token_ns[i]` is when token i was known; all times are `time.perf_counter_ns()`."""

    start_ns: int
    token_ids: list[int] = field(default_factory=list)
    token_ns: list[int] = field(default_factory=list)

    @property
    def ttft_ms(self) -> float:
        """From handing the prompt over to its first token."""
        return (self.token_ns[0] - self.start_ns) / 1e6

    @property
    def tpot_ms(self) -> float | None:
        """Per token after the first; one token alone has none."""
        later = len(self.token_ns) - 1
        return (self.token_ns[-1] - self.token_ns[0]) / 1e6 / later if later > 0 else None


@dataclass(frozen=True)
class EngineModel:
    """The model as engines need it: a registered name, directory or hub id, and the directory it is stored in."""

    name: str
    directory: str
    dtype: Dtype
    window: int

    @property
    def torch_dtype(self) -> str:
        """The dtype as torch, transformers and vLLM name it."""
        return {"bf16": "bfloat16", "fp32": "float32"}[self.dtype]


@dataclass(frozen=True)
class Limits:
    """Seconds an engine may take: until it is ready (vLLM compiles the model for minutes), and for one call."""

    start_s: float = 900.0
    generate_s: float = 600.0


GAUGES = ("kv_cache_usage_perc", "num_requests_running", "num_requests_waiting")
COUNTERS = ("num_preemptions", "prefix_cache_queries", "prefix_cache_hits")


def changes(before: Mapping[str, float], largest: Mapping[str, float]) -> dict[str, float]:
    """The largest value of each gauge, and the increase of each counter, as far as the engine has them."""
    gauges = {name: largest[name] for name in GAUGES if name in largest}
    return gauges | {name: largest[name] - before.get(name, 0.0) for name in COUNTERS if name in largest}


class Engine(ABC):
    """Runs one model. A context manager: whatever happens inside, the engine and all its processes have ended after.

    `metrics` are the engine's own gauges and counters under the names of vLLM's Prometheus metrics, without prefix;
    `peak_memory_bytes` is the sum over its processes of each one's largest resident set (pages shared by two count
    twice), `None` for an engine on another machine. `token_source` is "text" once ids had to be made from text again.
    """

    name: ClassVar[str]
    draws: ClassVar[bool] = True
    """Whether it has stop texts, log-probabilities, seeds of each prompt and `cancel`: what searches need."""
    token_source: Literal["engine", "text"] = "engine"

    def __init__(self, model: EngineModel, threads: int, limits: Limits | None = None) -> None:
        self.model = model
        self.threads = threads
        self.limits = limits or Limits()

    @abstractmethod
    def start(self) -> None:
        """Starts the engine and returns when it can answer; `EngineError` says in one sentence why it cannot."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether the engine can answer now."""

    @abstractmethod
    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Chunk]:
        """Runs the prompts together; tokens come as they are made. `EngineError` "timed out" ends a hung engine.

        Closed early, it cancels what is not done.
        """

    @abstractmethod
    def cancel(self, index: int) -> None:
        """Calls off a prompt of the stream that runs, between two chunks; tokens it has made by then may still come."""

    @abstractmethod
    def metrics(self) -> Mapping[str, float]:
        """The engine's gauges and counters; empty where it has none."""

    @abstractmethod
    def watched(self, prompts: Sequence[Prompt]) -> Mapping[str, float]:
        """Runs the prompts for their metrics, not their time: what `changes` makes of looks at them in between."""

    @abstractmethod
    def peak_memory_bytes(self) -> int | None:
        """Largest memory of the engine's processes so far."""

    @abstractmethod
    def stop(self) -> None:
        """Ends every process of the engine; a second call does nothing."""

    def pids(self) -> list[int]:
        """The engine's processes; none for an engine on another machine."""
        return []

    def cpu_seconds(self) -> float:
        """CPU time that the engine's processes have used so far; 0 for an engine on another machine."""
        return 0.0

    def generate(self, prompts: Sequence[Prompt]) -> list[Output]:
        """Runs the prompts together to their ends, and checks that each gave as many tokens as it had to."""
        start_ns = time.perf_counter_ns()
        outputs = [Output(start_ns) for _ in prompts]
        for chunk in self.stream(prompts):
            output = outputs[chunk.index]
            output.token_ids += chunk.token_ids
            output.token_ns += [chunk.ns] * len(chunk.token_ids)
        for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
            self._check(number, prompt, output)
        return outputs

    def _check(self, number: int, prompt: Prompt, output: Output) -> None:
        count = len(output.token_ids)
        ended = count and (output.token_ids[-1] in prompt.eos_ids or prompt.stop)
        if not (count == prompt.max_new_tokens or (ended and count <= prompt.max_new_tokens)):
            detail = f"prompt {number} has {count} tokens of {prompt.max_new_tokens}, and no end token."
            raise EngineError("wrong output", self.name, detail)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
