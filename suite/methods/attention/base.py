"""The attention family: exact attention over what a method selected, with KV metering and a dense fallback.

A method says which tokens each query reads, as *spans*: rows of (start, stop, query position). Keys stay in the cache
as they were stored; the query is rotated once for each span, so relative distances can be the true ones, compressed,
clamped or all alike without touching a key. That one form carries the family's systems:

- true distances (ChunkLLM, DHSA decode): keys stored rotated by position, every span with the query's own position;
- slots (LongHeads): keys stored rotated inside their chunk, one span per chunk, query position = own slot - chunk slot;
- regions (dual chunk attention): keys stored rotated modulo c, one span each for intra, successive and inter;
- one angle (ActQKV): keys stored as projected, every retrieved span with the same query position.

Shapes: B batch, T new tokens, H query heads, G KV heads, D head dim, N query rows, n spans.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels import flash_decode
from kernels.decode_layer import Tables
from suite.methods.base import Generator, Method, MethodConfig
from suite.models.attention import DenseAttention, Step, causal_attention, store_rotated
from suite.models.cache import KVCache
from suite.models.config import ModelConfig
from suite.models.generation import AttentionRead, Meter, generate
from suite.models.language_model import LanguageModel
from suite.models.rope import rotate
from workloads.schema import Completion, Request


@dataclass(frozen=True)
class Selection:
    """What every query row reads in one layer; several spans of a row are one softmax.

    spans: int32 [N, S, n, 3], S = 1 (all heads alike), G or H; the columns are start, stop (cache slots, stop excluded;
    start == stop is padding) and the position the query is rotated to. Bytes are those of making the selection.
    """

    spans: Tensor
    index_bytes: int = 0
    copy_bytes: int = 0


class AttentionMethod(Method):
    """A method of this family fills in `select` (decode) and `plan` (prefill), and `learn` where it builds an index.

    One instance runs one batch at a time; `begin_batch` resets it. `key_period` p stores keys rotated by position mod p
    (0: by position). A prompt of at most `dense_until` tokens, and the rows below it, get ordinary attention.
    """

    key_period: int = 0
    dense_until: int = 0

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        """Layers with a sliding window stay as they are; a model that has no others is refused."""
        if model.config.windows and all(window is not None for window in model.config.windows):
            return f"every layer of {model.name} has a sliding window, so {self.card.slug} would change nothing"
        return None

    @abstractmethod
    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        """A new batch of `batch` rows: forget the last one's index; set `key_period` and `dense_until`."""

    @abstractmethod
    def select(self, layer: int, q: Tensor, row: int, step: Step) -> Selection:
        """Decode: what the newest token of one batch row reads; q [H, D] is not rotated."""

    @abstractmethod
    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Selection | None:
        """Prefill: what the rows q [T, H, D] (not rotated, at slots first, first+1, ...) read; `None` is dense."""

    def learn(self, layer: int, q: Tensor, row: int, step: Step) -> None:
        """New tokens of one batch row are stored: q [T, H, D] rotated as its keys are; extend the index."""

    def evict(self, cache: KVCache, counts: Sequence[int]) -> None:
        """Before a pass over `counts` new tokens per row: give back what no later query will read."""

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        """Sees the output of each layer, [B, T, hidden]."""

    def capacity(self, tokens: int) -> int:
        """Tokens the cache needs room for when a request has `tokens` in all."""
        return tokens

    def index_bytes(self) -> int:
        """Bytes of what the method keeps beside keys and values."""
        return 0

    @classmethod
    @abstractmethod
    def at_budget(cls, tokens: int) -> dict[str, Any]:
        """Options under which one query reads about `tokens` tokens per head: for comparisons at equal budget."""

    @contextmanager
    def attach(self, model: LanguageModel, config: MethodConfig) -> Iterator[Generator]:
        """Nothing is installed on the model: the decoder takes its attention as an argument."""
        yield AttentionGenerator(model, lambda batch, meter: self._attention(model.config, config, batch, meter))

    def _attention(self, model: ModelConfig, config: MethodConfig, batch: int, meter: Meter) -> MeteredAttention:
        self.begin_batch(model, config, batch)
        return SelectedAttention(model, self, meter)


class MeteredAttention(DenseAttention):
    """Dense attention that tells the meter what it read. `_reads` is called in decode passes of a counting pass."""

    def __init__(self, config: ModelConfig, meter: Meter) -> None:
        super().__init__(config)
        self._meter = meter
        self._prompt: list[int] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        attended = super().__call__(layer, q, k, v, step)
        if self._meter.counting and step.width == 1:
            self._report(layer, step, Selection(self.spans(layer, step)))
        return attended

    def plain(self, step: Step) -> Tables | None:
        """In a counting pass every layer's reads are told one by one."""
        return None if self._meter.counting else super().plain(step)

    def begin(self, cache: KVCache, counts: Sequence[int]) -> None:
        """Notes each row's prompt length: what was there when single tokens begin."""
        if max(counts) > 1 or not self._prompt:
            self._prompt = [seen + count for seen, count in zip(cache.seen, counts, strict=True)]

    def _report(self, layer: int, step: Step, selection: Selection) -> None:
        for row, spans in enumerate(selection.spans):
            read = count_read(spans[..., :2], self.config.heads, self.config.kv_heads)
            element = step.cache.keys[layer].element_size()
            figures = AttentionRead(
                layer=layer,
                tokens=int(step.positions[row, 0]) + 1,
                prompt_tokens=self._prompt[row],
                stored=float(step.stops[row]),
                kv_bytes=int(read.union * self.config.kv_heads * 2 * self.config.head_dim * element),
                union=read.union,
                per_query_head=read.per_query_head,
                padded=read.padded,
                index_bytes=selection.index_bytes // len(selection.spans),
                copy_bytes=selection.copy_bytes // len(selection.spans),
            )
            self._meter.attention(figures)


class SelectedAttention(MeteredAttention):
    """Runs an `AttentionMethod`: stores keys as it wants them, asks it what to read, and reads exactly that."""

    def __init__(self, config: ModelConfig, method: AttentionMethod, meter: Meter) -> None:
        super().__init__(config, meter)
        self._method = method

    def plain(self, step: Step) -> Tables | None:
        return None

    def capacity(self, tokens: int) -> int:
        return self._method.capacity(tokens)

    def index_bytes(self) -> int:
        return self._method.index_bytes()

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        self._method.observe(layer, hidden, step)

    def begin(self, cache: KVCache, counts: Sequence[int]) -> None:
        super().begin(cache, counts)
        self._method.evict(cache, counts)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        if self.config.sliding(layer) is not None:  # a windowed layer reads little already: it stays as it is
            return super().__call__(layer, q, k, v, step)
        turned = q.clone()
        store_rotated(layer, turned, k, v, *self.tables(layer, step.seen), self._key_positions(step), step)
        for row, count in enumerate(step.counts):
            self._method.learn(layer, turned[row, :count], row, step)
        return self._decode_rows(layer, q, step) if step.width == 1 else self._prefill_rows(layer, q, step)

    def _key_positions(self, step: Step) -> Tensor:
        """Positions keys are rotated by when they are stored, int32 [B, T]."""
        period = self._method.key_period
        return step.shared("key positions", lambda: step.positions % period) if period else step.positions

    def _decode_rows(self, layer: int, q: Tensor, step: Step) -> Tensor:
        chosen = [
            self._method.select(layer, q[row, 0], row, step)
            if step.cache.seen[row] >= self._method.dense_until
            else step.shared(f"everything/{row}", partial(self._everything, row, step))
            for row in range(step.cache.batch)
        ]
        selection = chosen[0] if len(chosen) == 1 else stack(chosen, self.config)
        if self._meter.counting:
            self._report(layer, step, selection)
        return self._read(layer, q[:, 0], selection.spans, step.rows, step)[:, None]

    def _everything(self, row: int, step: Step) -> Selection:
        """All tokens of a row at their true distances: one span per period of the stored rotation."""
        stop, period = step.stops[row], self._method.key_period or step.stops[row]
        starts = torch.arange(0, stop, period, dtype=torch.int32)
        position = stop - 1 - starts if self._method.key_period else step.positions[row, :1].expand(1)
        return Selection(torch.stack((starts, (starts + period).clamp(max=stop), position), dim=-1)[None, None])

    def _prefill_rows(self, layer: int, q: Tensor, step: Step) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for row, count in enumerate(step.counts):
            dense = min(max(self._method.dense_until - step.cache.seen[row], 0), count)
            first = step.starts[row] + dense
            selection = self._method.plan(layer, q[row, dense:count], row, first, step) if dense < count else None
            if selection is None:
                dense = count
            else:
                rows = torch.full((count - dense,), row, dtype=torch.int32)
                out[row, dense:count] = self._read(layer, q[row, dense:count], selection.spans, rows, step)
            if dense:
                out[row, :dense] = self._dense_rows(layer, q[row, :dense], row, step)
        return out

    def _dense_rows(self, layer: int, q: Tensor, row: int, step: Step) -> Tensor:
        """Ordinary causal attention for the first rows [T, H, D] of a pass, at true distances."""
        start, stop = step.starts[row], step.starts[row] + len(q)
        keys, values = step.cache.keys[layer][row, :, :stop], step.cache.values[layer][row, :, :stop]
        cos, sin = self.tables(layer, step.seen)
        own = step.positions[row, : len(q)].long()[:, None]
        if period := self._method.key_period:  # rotations add up: turn stored keys on by what their storage left out
            rest = torch.arange(stop) // period * period
            keys = rotate(keys, cos[rest], sin[rest])
        turned = rotate(q, cos[own], sin[own]).transpose(0, 1)
        return causal_attention(
            turned, keys, values, start, self.config.scale, softcap=self.config.attention_softcap
        ).transpose(0, 1)

    def _read(self, layer: int, q: Tensor, spans: Tensor, rows: Tensor, step: Step) -> Tensor:
        """Exact attention of q [N, H, D] over its spans."""
        cos, sin = self.tables(layer, step.seen)
        out, _ = flash_decode.flash_decode(
            q, step.cache.keys[layer], step.cache.values[layer], spans, rows, cos=cos, sin=sin,
            scale=self.config.scale, softcap=self.config.attention_softcap,
        )  # fmt: skip
        return out


class AttentionGenerator:
    """Generates on the native decoder with a fresh attention for every batch."""

    def __init__(self, model: LanguageModel, attention: Any) -> None:
        self._model = model
        self._attention = attention

    def generate(self, requests: Sequence[Request], meter: Meter) -> Iterator[Completion]:
        """One batch; completions in the order of the requests."""
        return generate(self._model, self._attention(len(requests), meter), requests, meter)


@dataclass(frozen=True)
class Read:
    """Positions read by one query row: per KV head as a union over its query heads, per query head, and the largest."""

    union: float
    per_query_head: float
    padded: float


def count_read(spans: Tensor, heads: int, kv_heads: int) -> Read:
    """Counts positions in spans [S, n, 2] of one row (definitions: `_kv_retention.md` section 2).

    `union` averages over KV heads, `per_query_head` over query heads, `padded` is the largest union of a KV head.
    """
    ranges = spans.numpy()  # numpy, so that this bookkeeping is not itself counted as the method's work
    read = np.zeros((len(ranges), int(ranges.max()) + 1), dtype=np.bool_)
    for row, selected in zip(read, ranges.tolist(), strict=True):
        for start, stop in selected:
            row[start:stop] = True
    per_head = np.repeat(read, heads // len(read), axis=0)
    unions = per_head.reshape(kv_heads, -1, per_head.shape[1]).any(axis=1).sum(axis=1)
    return Read(float(unions.mean()), float(per_head.sum(axis=1).mean()), float(unions.max()))


def stack(selections: Sequence[Selection], config: ModelConfig) -> Selection:
    """The selections of several batch rows as one: padded with empty spans to the longest, widened to the widest S."""
    width = max(s.spans.shape[1] for s in selections)
    longest = max(s.spans.shape[2] for s in selections)
    rows = []
    for selection in selections:
        spans = selection.spans
        spans = spans.repeat_interleave(width // spans.shape[1], dim=1)
        rows.append(torch.nn.functional.pad(spans, (0, 0, 0, longest - spans.shape[2])))
    return Selection(torch.cat(rows), sum(s.index_bytes for s in selections), sum(s.copy_bytes for s in selections))


def grow(reps: Tensor, chunks: int) -> Tensor:
    """A method's index [H, capacity, D] with room for `chunks` entries: the same storage, or one twice as large."""
    capacity = reps.shape[1]
    if chunks <= capacity:
        return reps
    wider = reps.new_empty(reps.shape[0], max(chunks, 2 * capacity), reps.shape[2])
    wider[:, :capacity] = reps
    return wider
