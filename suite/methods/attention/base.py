"""The attention family: exact attention over what a method selected, with KV metering and a dense fallback.

A method says which tokens each query reads, as *spans*: rows of (start, stop, query position). Keys stay in the cache
as they were stored; the query is rotated once for each span, so relative distances can be the true ones, compressed,
clamped or all alike without touching a key. That one form carries the family's systems:

- true distances (ChunkLLM, DHSA): keys stored rotated by position, every span with the query's own position;
- slots (LongHeads): keys stored rotated inside their chunk, one span per chunk, query position = own slot - chunk slot;
- regions (dual chunk attention): keys stored rotated modulo c, one span each for intra, successive and inter;
- one angle (ActQKV): retrieved blocks lie outside the cache, keys as projected, all spans with one query position.

In prefill many rows read together: `suite.methods.attention.selection` has the plans a method can answer with.

Shapes: B batch, T new tokens, H query heads, G KV heads, D head dim, N query rows, n spans.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kernels.decode_layer import Tables
from suite.methods.attention.selection import Plan, Selection, Site, read_spans
from suite.methods.attention.spans import count_read, stack
from suite.methods.base import Generator, Method, MethodConfig
from suite.models.attention import DenseAttention, Step, causal_attention, store_rotated
from suite.models.cache import KVCache
from suite.models.config import ModelConfig
from suite.models.generation import PREFILL_CHUNK, AttentionRead, Meter, generate
from suite.models.language_model import LanguageModel
from suite.models.rope import rotate
from workloads.schema import Completion, Request

Phase = Literal["prefill", "decode"]


class AttentionMethod(Method):
    """A method fills in `select` (decode), `plan` (prefill) or both, and `learn` where it builds an index.

    One instance runs one batch at a time; `begin_batch` resets it. `key_period` p stores keys rotated by position mod p
    (0: by position). A prompt of at most `dense_until` tokens, and the rows below it, get ordinary attention.
    `prefill_chunk` is the number of prompt tokens per pass. `acts_in` names the phases in which less is read (without
    "decode" and with true distances, decoding is the dense path's own, and no hook is called in it);
    `pools_queries` says that a prefill plan looks at several queries at once, so that it depends on how the prompt is
    cut into passes. `verifies`: drafts can be verified under it, as it either gives `reads` or decodes as dense does.
    `watched` are the layers whose output `observe` needs while the pass goes on; it always sees the last one.
    """

    key_period: int = 0
    dense_until: int = 0
    acts_in: ClassVar[tuple[Phase, ...]] = ("prefill", "decode")
    pools_queries: ClassVar[bool] = False
    verifies: ClassVar[bool] = False
    watched: ClassVar[tuple[int, ...]] = ()

    def prefill_chunk(self, config: Any) -> int:
        """The most prompt tokens of a prefill pass."""
        return PREFILL_CHUNK

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        """Layers with a sliding window stay as they are; a model that has no others is refused."""
        if model.config.windows and all(window is not None for window in model.config.windows):
            return f"every layer of {model.name} has a sliding window, so {self.card.slug} would change nothing"
        return None

    @abstractmethod
    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        """A new batch of `batch` rows: forget the last one's index; set `key_period` and `dense_until`."""

    def select(self, layer: int, q: Tensor, row: int, step: Step) -> Selection | None:
        """Decode: what the newest token of one batch row reads; q [H, D] is not rotated. `None` is everything."""
        return None

    def ahead(self, step: Step) -> Tensor | None:
        """Decode: what `select` would answer, where it is known before the pass: spans [B, n, 3], or [L, B, n, 3].

        Then all layers run in one call, without `keep` and `select`; `learn` comes after the watched and last layers.
        """
        rows = [self.reads(stop - 1, 1, row, step) for row, stop in enumerate(step.stops)]
        known = [Selection(spans) for spans in rows if spans is not None]
        return stack(known).spans[:, 0] if len(known) == len(rows) else None

    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Plan | None:
        """Prefill: how the rows q [T, H, D] (not rotated, at slots first, first+1, ...) are read; `None` is dense."""
        return None

    def reads(self, first: int, count: int, row: int, step: Step) -> Tensor | None:
        """Where a token's place alone decides: spans [count, 1, n, 3] of the tokens at slots first, first+1, ...

        A draft is verified with it, each branch as if its tokens stood there. `None` (with `verifies`): everything.
        """
        return None

    def index_read(self, layer: int, row: int, step: Step) -> int:
        """Bytes of the index that one choice for a batch row reads: `select`'s, or `plan`'s for all its rows."""
        return 0

    def keep(self, layer: int, k: Tensor, v: Tensor, row: int, step: Step) -> None:
        """New tokens of one batch row as projected, k and v [T, G, D], before they are rotated and stored."""

    def learn(self, layer: int, q: Tensor, row: int, step: Step) -> None:
        """New tokens of one batch row are stored: q [T, H, D] rotated as its keys are; extend the index."""

    def question_reader(self, row: int, prompt_tokens: int) -> DenseAttention | None:
        """Attends in a pass over one row's question alone, before its prompt; `None`: no such pass is run."""
        return None

    def sharpen(self, seen: Tensor) -> Tensor | None:
        """Factor on the logits of queries that have seen `seen` [...] tokens, their own included; `None` is 1."""
        return None

    def sharpens(self, seen: Tensor) -> bool:
        """Whether any of these factors is another one."""
        factor = self.sharpen(seen)
        return factor is not None and bool((factor != 1).any())

    def evict(self, cache: KVCache, counts: Sequence[int]) -> None:
        """Before a pass over `counts` new tokens per row: give back what no later query will read."""

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        """Sees the output of each layer, [B, T, hidden]."""

    def capacity(self, tokens: int) -> int:
        """Tokens the cache needs room for when a request has `tokens` in all."""
        return tokens

    def stored(self, row: int, step: Step) -> float:
        """Tokens of one batch row whose keys and values are kept, on any tier, after this pass."""
        return float(step.stops[row])

    def kv_bytes(self) -> int:
        """Bytes of keys and values kept outside the cache, on any tier."""
        return 0

    def host_bytes(self) -> int:
        """Those of `kv_bytes` that are on the host tier."""
        return 0

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
        make = partial(self._attention, model.config, config)
        yield AttentionGenerator(model, make, self.prefill_chunk(config))

    def _attention(self, model: ModelConfig, config: MethodConfig, batch: int, meter: Meter) -> MeteredAttention:
        self.begin_batch(model, config, batch)
        return SelectedAttention(model, self, meter)


class MeteredAttention(DenseAttention):
    """Dense attention that tells the meter what each decode step of a counting pass read."""

    def __init__(self, config: ModelConfig, meter: Meter | None = None) -> None:
        super().__init__(config)
        self._counter = meter if meter is not None and meter.counting else None
        self._prompt: list[int] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        attended = super().__call__(layer, q, k, v, step)
        if self._counter is not None and step.width == 1:
            spans = self.spans(layer, step)
            for row, stop in enumerate(step.stops):
                self._counter.attention(self._figures(layer, row, step, Selection(spans[row : row + 1]), stop))
        return attended

    def plain(self, step: Step) -> Tables | None:
        """In a counting pass every layer's reads are told one by one."""
        return None if self._counter is not None else super().plain(step)

    def begin(self, cache: KVCache, counts: Sequence[int]) -> None:
        """Notes each row's prompt length: what was there when single tokens begin."""
        if max(counts) > 1 or not self._prompt:
            self._prompt = [seen + count for seen, count in zip(cache.seen, counts, strict=True)]

    def _figures(self, layer: int, row: int, step: Step, selection: Selection, stored: float) -> AttentionRead:
        """What one decode call read for one batch row."""
        config = self.config
        read = count_read(selection.spans[0, ..., :2], config.heads, config.kv_heads)
        if selection.elsewhere is not None:
            read += count_read(selection.elsewhere.spans[0, ..., :2], config.heads, config.kv_heads)
        element = step.cache.keys[layer].element_size()
        return AttentionRead(
            layer=layer,
            tokens=int(step.positions[row, 0]) + 1,
            prompt_tokens=self._prompt[row],
            stored=stored,
            kv_bytes=int(read.union * config.kv_heads * 2 * config.head_dim * element),
            union=read.union,
            per_query_head=read.per_query_head,
            padded=read.padded,
            index_bytes=selection.index_bytes,
            copy_bytes=selection.copy_bytes,
            fetch_bytes=selection.fetch_bytes,
        )


class SelectedAttention(MeteredAttention):
    """Runs an `AttentionMethod`: stores keys as it wants them, asks it what to read, and reads exactly that."""

    def __init__(self, config: ModelConfig, method: AttentionMethod, meter: Meter | None = None) -> None:
        super().__init__(config, meter)
        self._method = method
        kind, hooks = type(method), (AttentionMethod.keep, AttentionMethod.learn)
        self._learns = (kind.keep, kind.learn) != hooks

    def plain(self, step: Step) -> Tables | None:
        """Decode passes that are dense ones (of a method that changes prefill alone), or known `ahead`."""
        tables = super().plain(step) if step.width == 1 else None
        if tables is None:
            return None
        untouched = "decode" not in self._method.acts_in and not self._method.key_period
        return tables if untouched or self._placed(step) else None

    def _placed(self, step: Step) -> bool:
        """Gives the step what the method knows ahead; nothing where all rows are short and nothing is learned."""
        dense = [seen < self._method.dense_until for seen in step.cache.seen]
        if all(dense) and not self._method.key_period:
            return not self._learns
        if any(dense) or self.config.windows or self._method.sharpens(step.positions + 1):
            return False
        spans = self._method.ahead(step)
        if spans is None:
            return False
        step.visible, step.turned, step.watched = spans, True, self._method.watched
        step.positions = self._key_positions(step)
        if self._learns:
            size = self.config.layers, step.cache.batch, self.config.heads * self.config.head_dim
            step.queries = torch.empty(*size, dtype=step.cache.keys[0].dtype)
        return True

    def capacity(self, tokens: int) -> int:
        return self._method.capacity(tokens)

    def kv_bytes(self) -> int:
        return self._method.kv_bytes()

    def host_bytes(self) -> int:
        return self._method.host_bytes()

    def index_bytes(self) -> int:
        return self._method.index_bytes()

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        if step.queries is not None:
            first = max((seen + 1 for seen in step.watched if seen < layer), default=0)
            for known in range(first, layer + 1):
                for row, q in enumerate(step.queries[known].view(step.cache.batch, 1, self.config.heads, -1)):
                    self._method.learn(known, q, row, step)
        self._method.observe(layer, hidden, step)

    def question_reader(self, row: int, prompt_tokens: int) -> DenseAttention | None:
        return self._method.question_reader(row, prompt_tokens)

    def begin(self, cache: KVCache, counts: Sequence[int]) -> None:
        super().begin(cache, counts)
        self._method.evict(cache, counts)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        if self.config.sliding(layer) is not None:  # a windowed layer reads little already: it stays as it is
            return super().__call__(layer, q, k, v, step)
        busy = [(row, count) for row, count in enumerate(step.counts) if count]
        for row, count in busy:
            self._method.keep(layer, k[row, :count], v[row, :count], row, step)
        turned = q.clone()
        store_rotated(layer, turned, k, v, *self.tables(layer, step.seen), self._key_positions(step), step)
        for row, count in busy:
            self._method.learn(layer, turned[row, :count], row, step)
        del turned  # a whole prompt's queries need not lie there twice while they attend
        factor = step.shared("sharpen", lambda: self._method.sharpen(step.positions + 1))
        if factor is not None:
            q = (q * factor[..., None, None]).to(q.dtype)
        return self._decode_rows(layer, q, step) if step.width == 1 else self._prefill_rows(layer, q, step)

    def _key_positions(self, step: Step) -> Tensor:
        """Positions keys are rotated by when they are stored, int32 [B, T]."""
        period = self._method.key_period
        return step.shared("key positions", lambda: step.positions % period) if period else step.positions

    def _decode_rows(self, layer: int, q: Tensor, step: Step) -> Tensor:
        chosen = [self._chosen(layer, q[row, 0], row, step) for row in range(step.cache.batch)]
        if self._counter is not None:
            for row, selection in enumerate(chosen):
                read = self._figures(layer, row, step, selection, self._method.stored(row, step))
                self._counter.attention(read)
        site = self.site(layer, step)
        if len(chosen) == 1 or all(selection.elsewhere is None for selection in chosen):
            return read_spans(q[:, 0], stack(chosen), step.rows, site)[:, None]
        each = [read_spans(q[r], s, step.rows[r : r + 1], site) for r, s in enumerate(chosen)]
        return torch.stack(each)

    def _chosen(self, layer: int, q: Tensor, row: int, step: Step) -> Selection:
        selects = step.counts[row] and step.cache.seen[row] >= self._method.dense_until
        selection = self._method.select(layer, q, row, step) if selects else None
        if selection is None:
            return step.shared(f"everything/{row}", partial(self._everything, row, step))
        return selection

    def site(self, layer: int, step: Step, row: int | None = None, first: int = 0) -> Site:
        """The cache of one layer, of all rows or of one."""
        rows = slice(None) if row is None else slice(row, row + 1)
        keys, values = step.cache.keys[layer][rows], step.cache.values[layer][rows]
        cos, sin = self.tables(layer, step.seen)
        return Site(keys, values, first, cos, sin, self.config.scale, self.config.attention_softcap)

    def _everything(self, row: int, step: Step) -> Selection:
        """All tokens of a row at their true distances: one span per period of the stored rotation."""
        stop, period = step.stops[row], self._method.key_period or step.stops[row]
        starts = torch.arange(0, stop, period, dtype=torch.int32)
        position = stop - 1 - starts if self._method.key_period else step.positions[row, :1].expand(1)
        return Selection(torch.stack((starts, (starts + period).clamp(max=stop), position), dim=-1)[None, None])

    def _prefill_rows(self, layer: int, q: Tensor, step: Step) -> Tensor:
        if step.cache.batch == 1:
            return self._prefill_row(layer, q[0], 0, step)[None]
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for row, count in enumerate(step.counts):
            if count:
                out[row, :count] = self._prefill_row(layer, q[row, :count], row, step)
        return out

    def _prefill_row(self, layer: int, q: Tensor, row: int, step: Step) -> Tensor:
        """The new tokens of one row, q [T, H, D] as projected: dense ones first, then as the method plans."""
        dense = min(max(self._method.dense_until - step.cache.seen[row], 0), len(q))
        first = step.starts[row] + dense
        plan = self._method.plan(layer, q[dense:], row, first, step) if dense < len(q) else None
        if plan is None:
            return self._dense_rows(layer, q, row, step)
        if self._counter is not None:
            self._counter.planned(self._method.index_read(layer, row, step))
        attended = plan.attend(q[dense:], self.site(layer, step, row, first))[0]
        return torch.cat((self._dense_rows(layer, q[:dense], row, step), attended)) if dense else attended

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


class AttentionGenerator:
    """Generates on the native decoder with a fresh attention for every batch."""

    def __init__(
        self,
        model: LanguageModel,
        attention: Callable[[int, Meter], MeteredAttention],
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        self._model = model
        self._attention = attention
        self._prefill_chunk = prefill_chunk

    def generate(self, requests: Sequence[Request], meter: Meter) -> Iterator[Completion]:
        """One batch; completions in the order of the requests."""
        attention = self._attention(len(requests), meter)
        return generate(self._model, attention, requests, meter, self._prefill_chunk)


def grow(reps: Tensor, chunks: int) -> Tensor:
    """A method's index [H, capacity, D] with room for `chunks` entries: the same storage, or one twice as large."""
    capacity = reps.shape[1]
    if chunks <= capacity:
        return reps
    wider = reps.new_empty(reps.shape[0], max(chunks, 2 * capacity), reps.shape[2])
    wider[:, :capacity] = reps
    return wider
