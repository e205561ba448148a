"""What flows through the bench: a `Request` goes into a method, a `Completion` comes out (DESIGN section 3).

Nothing here knows a model or a tokenizer. A request holds text; token ids appear first in a completion.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Json = dict[str, Any]
StopReason = Literal["eos", "stop", "length", "scored"]


class DataError(ValueError):
    """A data file or a workload option is unusable; the message names file, line and field."""


class TextTokenizer(Protocol):
    """The two calls truncation needs; every tokenizer of the suite and of `transformers` has them."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Request(BaseModel):
    """One item of work, independent of any tokenizer.

    `target` turns generation into teacher forcing: the prompt is prefilled and the target's tokens are scored one by
    one on the decode path, so that methods that act in decode only are measured too. `truncation` says what happens to
    a prompt longer than the model's window: its middle is cut, it is refused, or it runs past the trained window
    ("extend", for work that measures extrapolation). Temperature 0 is greedy; `top_k` 0 and `top_p` 1 do not restrict.
    `question` is the part of the prompt that asks, word for word, where the workload knows it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    task: str
    prompt: str
    question: str | None = None
    chat: bool = False
    references: tuple[str, ...] = ()
    metric: str
    max_new_tokens: int = Field(ge=1)
    stop: tuple[str, ...] = ()
    seed: int = 0
    temperature: float = Field(default=0.0, ge=0.0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    target: str | None = None
    truncation: Literal["middle", "refuse", "extend"] = "middle"
    metadata: Json = Field(default_factory=dict)

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if self.question is not None and (not self.question.strip() or self.question not in self.prompt):
            raise ValueError("question must be a part of the prompt, word for word, and not blank")
        return self


@dataclass(frozen=True)
class CostLedger:
    """Tokens and passes a completion cost; all counts are token ids, counted by the meter."""

    prompt_tokens: int
    generated_tokens: int
    discarded_tokens: int = 0
    verifier_passes: int = 0
    sequential_depth: int = 0


@dataclass(frozen=True)
class KVFigures:
    """KV-cache figures of one completion, as defined in `_kv_retention.md`; fractions of the full cache, and bytes."""

    stored_retention: float
    selected_retention: float
    selected_retention_per_query_head: float
    selected_retention_last: float
    selected_retention_prompt: float
    resident_bytes: int
    index_bytes: int
    read_bytes_per_step: float
    full_bytes: int


@dataclass(frozen=True)
class DraftFigures:
    """Draft-and-verify figures of one completion (`_speculative.md` section 1). Prefill and its token are left out.

    `rounds` passes of the target emitted `emitted` tokens; of `drafted` tokens (nodes of a tree) it took `accepted`,
    those behind an end not counted. `offered_at[k]` is the number of rounds that came to draft position k + 1, the ones
    before it accepted, and had a token there; in `accepted_at[k]` of them it was taken. `draft_ns` of the `decode_ns`
    went into drafting (of a batch: of the rounds in which this request took part).
    """

    rounds: int
    emitted: int
    drafted: int
    accepted: int
    offered_at: tuple[int, ...]
    accepted_at: tuple[int, ...]
    draft_ns: int
    decode_ns: int


@dataclass(frozen=True)
class SearchFigures:
    """What one search cost (`_verifiers.md` section 4); all counts are tokens or calls.

    `generated`: every sampled token once, discarded ones too. `sequential`: longest chain of dependent decode steps.
    `prompt_logical` and `prefilled`: prompt and prefix tokens that the samples stood behind, and those computed after
    reuse (None: the engine does not say). `verifier_passes`: scored prefixes; `verifier_tokens` fed for them.
    `judge_calls`: questions to a judge. `samples`: pieces drawn; `cancelled`: those called off before their end.
    `flops`: those of the policy's passes (None: the engine does not say what it computed), and `verifier_flops`.
    `extra`: a method's own counts.
    """

    generated: int
    sequential: int
    prompt_logical: int
    prefilled: int | None
    verifier_passes: int = 0
    verifier_tokens: int = 0
    judge_calls: int = 0
    samples: int = 0
    cancelled: int = 0
    flops: float | None = None
    verifier_flops: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """What came back for a request. Times are `time.perf_counter_ns()` values (monotonic, nanoseconds).

    `token_ns[i]` is when token i was known to the caller; `start_ns` is when its tokenised prompt was handed over.
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    start_ns: int
    token_ns: tuple[int, ...]
    stop_reason: StopReason
    cost: CostLedger
    kv: KVFigures | None = None
    drafts: DraftFigures | None = None
    search: SearchFigures | None = None
    target_logprobs: tuple[float, ...] = ()
    notes: tuple[str, ...] = field(default=())


class WorkloadConfig(BaseModel):
    """Options every workload takes. `data`: a user's own copy in the public schema; without it the generator serves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path | None = None


class Workload(ABC):
    """A named, versioned source of requests and the judge of their completions.

    Subclasses set `name`, `version`, `tasks`, `score_name` and implement `requests` and `score`. A workload is made
    with its config; a missing or malformed data file raises `DataError` there, before any model is loaded.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    tasks: tuple[str, ...]
    """All tasks on the class; on an instance those its data holds."""
    score_name: ClassVar[str]
    """What `score` returns, with its unit: "score, 0-100", "nats per token"."""
    higher_is_better: ClassVar[bool] = True
    Config: ClassVar[type[WorkloadConfig]] = WorkloadConfig

    def __init__(self, config: WorkloadConfig | None = None) -> None:
        self.config = config if config is not None else self.Config()

    @property
    def source(self) -> str:
        """Where the items come from: "synthetic", or the path or hub id they were read from."""
        return str(self.config.data) if self.config.data else "synthetic"

    @abstractmethod
    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        """At most `limit` requests of one task. The first n items are the same for every limit >= n."""

    @abstractmethod
    def score(self, completion: Completion, request: Request) -> float:
        """The score of one completion, in the unit of `score_name`."""

    def revision(self, seed: int) -> str:
        """Hash of what the items are made of: the data file's bytes, or the generator's version, options and seed."""
        digest = hashlib.sha256(f"{self.name}/{self.version}/{seed}".encode())
        files = {name for name, value in self.config if isinstance(value, Path)}  # their bytes count, not their place
        digest.update(
            json.dumps(self.config.model_dump(mode="json", exclude=files | {"data"}), sort_keys=True).encode()
        )
        for path in self.data_files():
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def data_files(self) -> Sequence[Path]:
        """The files this workload reads."""
        return (self.config.data,) if self.config.data else ()

    def check_task(self, task: str) -> None:
        """`DataError` for a task this workload does not have."""
        if task not in self.tasks:
            raise DataError(f"{self.name} has no task {task!r}; expected one of {', '.join(self.tasks)}.")


def truncate_middle(text: str, max_tokens: int, tokenizer: TextTokenizer) -> tuple[str, int]:
    """LongBench's truncation: keep the first and the last half of the tokens and join their text.

    Returns the text and the number of tokens it had before. Source: THUDM/LongBench `pred.py`.
    """
    ids = tokenizer.encode(text)
    if len(ids) <= max_tokens:
        return text, len(ids)
    half = max_tokens // 2
    return tokenizer.decode(ids[:half]) + tokenizer.decode(ids[-half:]), len(ids)
