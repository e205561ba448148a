"""The meters that a generator reports to: one for timed runs, one for the untimed counting pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from time import perf_counter_ns
from typing import TYPE_CHECKING, NamedTuple, cast

from suite.harness.measurement import KVSample, Phase

if TYPE_CHECKING:
    from suite.models.generation import AttentionRead


class Step(NamedTuple):
    """One forward pass: new tokens, and tokens in the cache after it."""

    tokens: int
    context_tokens: int


class _Track:
    """Time stamps (ns) and token ids of one request."""

    __slots__ = ("ids", "prompt_tokens", "stamps", "start_ns")

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.stamps: list[int] = []
        self.ids: list[int] = []
        self.start_ns = perf_counter_ns()


class RequestMeter:
    """The clock of timed runs: two list appends per token. One meter per turn; request ids are unique within it."""

    counting: bool = False

    def __init__(self) -> None:
        self._tracks: dict[str, _Track] = {}

    def start(self, request_id: str, prompt_tokens: int) -> None:
        """Starts the clock of one request."""
        self._tracks[request_id] = _Track(prompt_tokens)

    def token(self, request_id: str, token_id: int) -> None:
        """Stamps one token."""
        track = self._tracks[request_id]
        track.stamps.append(perf_counter_ns())
        track.ids.append(token_id)

    def times(self, request_id: str) -> tuple[int, tuple[int, ...]]:
        """Start and token stamps of one request, in `time.perf_counter_ns()`."""
        track = self._tracks[request_id]
        return track.start_ns, tuple(track.stamps)

    def token_ids(self, request_id: str) -> tuple[int, ...]:
        """The ids as they were reported, one for each stamp."""
        return tuple(self._tracks[request_id].ids) if request_id in self._tracks else ()

    def prompt_tokens(self, request_id: str) -> int:
        """Tokens of the prompt as handed over."""
        return self._tracks[request_id].prompt_tokens

    def phase(self, name: str) -> None:
        """Phases matter in the counting pass only."""

    def step(self, tokens: int, context_tokens: int) -> None:
        """Forward passes are counted in the counting pass only."""

    def attention(self, read: AttentionRead) -> None:
        """Never called while timing."""

    def planned(self, index_bytes: int) -> None:
        """Never called while timing."""

    def resident(self, kv_bytes: int, index_bytes: int, host_bytes: int = 0) -> None:
        """Never called while timing."""


@dataclass
class _Ledger:
    """What one counted request read, by decode step and of an index in prefill, and the bytes resident at its end."""

    steps: list[list[AttentionRead]] = field(default_factory=list)
    kv_bytes: int = 0
    index_bytes: int = 0
    host_bytes: int = 0
    prefill_index_bytes: int = 0


class CountingMeter(RequestMeter):
    """Collects steps per phase and attention reads. Requests are counted one after the other, never in one batch.

    `on_phase` is told of each phase change, so that operator counters can be switched with it.
    """

    counting = True

    def __init__(self, kv_bytes_per_token: int, on_phase: Callable[[Phase], None] | None = None) -> None:
        super().__init__()
        self.kv_bytes_per_token = kv_bytes_per_token
        self.steps: dict[Phase, list[Step]] = {"prefill": [], "decode": []}
        self._phase: Phase = "prefill"
        self._on_phase = on_phase
        self._ledgers: list[_Ledger] = []

    def start(self, request_id: str, prompt_tokens: int) -> None:
        """Opens the ledger of one request."""
        super().start(request_id, prompt_tokens)
        self._ledgers.append(_Ledger())

    def phase(self, name: str) -> None:
        """The steps that follow belong to this phase."""
        self._phase = cast(Phase, name)
        if self._on_phase is not None:
            self._on_phase(self._phase)

    def step(self, tokens: int, context_tokens: int) -> None:
        """Counts a forward pass; a decode step also opens a list for its attention reads."""
        self.steps[self._phase].append(Step(tokens, context_tokens))
        if self._phase == "decode":
            self._ledgers[-1].steps.append([])

    def attention(self, read: AttentionRead) -> None:
        """Retention is a figure of decoding: prefill has a density instead, and is not collected here."""
        if self._phase == "decode" and self._ledgers[-1].steps:
            self._ledgers[-1].steps[-1].append(read)

    def planned(self, index_bytes: int) -> None:
        """Adds what a prefill call read of an index."""
        self._ledgers[-1].prefill_index_bytes += index_bytes

    def resident(self, kv_bytes: int, index_bytes: int, host_bytes: int = 0) -> None:
        """Bytes of the real storages at the end of the request."""
        ledger = self._ledgers[-1]
        ledger.kv_bytes, ledger.index_bytes, ledger.host_bytes = kv_bytes, index_bytes, host_bytes

    def kv_samples(self) -> tuple[KVSample, ...]:
        """One record per counted request that decoded at least one step."""
        samples = (_kv_sample(ledger, self.kv_bytes_per_token) for ledger in self._ledgers)
        return tuple(sample for sample in samples if sample is not None)


def _ratio(reads: list[AttentionRead], part: str, whole: str = "tokens") -> float:
    """Micro-average over the layers of one step: sum of tokens / sum of full tokens (`_kv_retention.md` section 2)."""
    return float(sum(getattr(read, part) for read in reads) / sum(getattr(read, whole) for read in reads))


def _layer_means(steps: list[list[AttentionRead]]) -> list[float]:
    """Mean selected retention of each layer over the decode steps."""
    layers: dict[int, list[float]] = {}
    for reads in steps:
        for read in reads:
            layers.setdefault(read.layer, []).append(read.union / read.tokens)
    return [fmean(values) for values in layers.values()]


def _kv_sample(ledger: _Ledger, kv_bytes_per_token: int) -> KVSample | None:
    """Arithmetic means over the decode steps of one request (`_kv_retention.md` sections 1 and 3)."""
    steps = [reads for reads in ledger.steps if reads]
    if not steps:
        return None
    layers = _layer_means(steps)
    return KVSample(
        stored_retention=fmean(_ratio(reads, "stored") for reads in steps),
        selected_retention=fmean(_ratio(reads, "union") for reads in steps),
        selected_retention_per_query_head=fmean(_ratio(reads, "per_query_head") for reads in steps),
        selected_retention_last=_ratio(steps[-1], "union"),
        selected_retention_prompt=fmean(_ratio(reads, "union", "prompt_tokens") for reads in steps),
        selected_retention_layer_min=min(layers),
        selected_retention_layer_max=max(layers),
        padded_retention=fmean(_ratio(reads, "padded") for reads in steps),
        stored_retention_last=_ratio(steps[-1], "stored"),
        resident_bytes=ledger.kv_bytes,
        index_bytes=ledger.index_bytes,
        host_bytes=ledger.host_bytes,
        prefill_index_bytes=ledger.prefill_index_bytes,
        read_bytes_per_step=fmean(sum(r.kv_bytes + r.index_bytes + r.copy_bytes for r in reads) for reads in steps),
        fetch_bytes_per_step=fmean(sum(r.fetch_bytes for r in reads) for reads in steps),
        full_bytes=kv_bytes_per_token * steps[-1][0].tokens,
    )
