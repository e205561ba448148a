"""Verification under an attention method: every node reads what the method would let that token read on its own path.

Tokens of a path are taken as the continuation of the cache: what the method says of slots there is looked up on the
path, so no node sees a sibling, and the positions are those it would give to the tokens one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from kernels.decode_layer import Tables
from suite.methods.attention.base import AttentionMethod, SelectedAttention
from suite.methods.attention.selection import Selection, read_spans
from suite.methods.attention.spans import count_read
from suite.methods.decoding.tree import TokenTree
from suite.methods.decoding.verification import Planted, TreeAttention, Watch
from suite.models.attention import Step, store_rotated
from suite.models.cache import KVCache
from suite.models.config import ModelConfig
from suite.models.generation import Meter

Span = tuple[int, int, int]


class Under(NamedTuple):
    """An attention method with its options."""

    method: AttentionMethod
    options: Any


def verifier(model: ModelConfig, batch: int, under: Under | None, meter: Meter, watch: Watch | None) -> TreeAttention:
    """The target's attention for one batch of drafts."""
    if under is None:
        return TreeAttention(model, meter, watch)
    under.method.begin_batch(model, under.options, batch)
    return SelectedTree(model, under, meter, watch)


class SelectedTree(TreeAttention):
    """Prompts as the method reads them; planted passes node by node. Where the method decodes densely so do they."""

    def __init__(self, config: ModelConfig, under: Under, meter: Meter, watch: Watch | None) -> None:
        super().__init__(config, meter, watch)
        self._method = under.method
        self._prompts = SelectedAttention(config, under.method, meter)
        self._trees: Sequence[TokenTree | None] = ()
        self.prefill_chunk = under.method.prefill_chunk(under.options)

    def capacity(self, tokens: int) -> int:
        return self._method.capacity(tokens)

    def begin(self, cache: KVCache, counts: Sequence[int]) -> None:
        """Rounds evict when they are planted."""
        if self._planted is None:
            self._prompts.begin(cache, counts)

    def plant(self, cache: KVCache, trees: Sequence[TokenTree | None]) -> None:
        self._method.evict(cache, [0 if tree is None else 1 + len(tree) for tree in trees])
        self._trees = trees
        super().plant(cache, trees)

    def plain(self, step: Step) -> Tables | None:
        """Rounds are, as what a token reads is known from its place, unless queries are sharpened."""
        if self._planted is None:
            return None
        positions, period, spans = self._planted.positions, self._method.key_period, self._spans(step)
        if spans is not None and self._method.sharpens(positions + 1):
            return None
        tables = super().plain(step)
        if tables is not None and spans is not None:
            step.visible, step.turned = spans[:, 0], True
            step.positions = positions % period if period else positions
        return tables

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        if self._planted is None:
            return self._prompts(layer, q, k, v, step)
        spans = self._spans(step)
        if spans is None:
            return super().__call__(layer, q, k, v, step)
        if self._counter is not None:
            self._tell(self._counter, layer, step)
        return self._read_nodes(layer, q, k, v, spans, self._planted, step)

    def _read_nodes(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, spans: Tensor, planted: Planted, step: Step
    ) -> Tensor:
        """Stores keys where the method wants them, and reads exactly the spans."""
        period, positions = self._method.key_period, planted.positions
        cos, sin = self.tables(layer, step.seen)
        store_rotated(layer, q.clone(), k, v, cos, sin, positions % period if period else positions, step)
        factor = step.shared("sharpen", lambda: self._method.sharpen(positions + 1))
        if factor is not None:
            q = (q * factor[..., None, None]).to(q.dtype)
        site = self._prompts.site(layer, step)
        return read_spans(q.flatten(0, 1), Selection(spans), step.rows, site).view(q.shape)

    def _spans(self, step: Step) -> Tensor | None:
        """Of every token of a planted pass, int32 [B*T, 1, n, 3], alike in all layers; None: everything."""
        return step.shared("tree spans", partial(self._make_spans, step))

    def _make_spans(self, step: Step) -> Tensor | None:
        found: list[list[Span]] = []
        for row, tree in enumerate(self._trees):
            own = [[(0, 1, 0)]] if tree is None else self._row_spans(row, tree, step)
            if own is None:
                return None
            found += own + [own[0]] * (step.width - len(own))  # padding: nobody looks at what it reads
        most = max(map(len, found))
        return torch.tensor([[[*spans, *[(0, 0, 0)] * (most - len(spans))]] for spans in found], dtype=torch.int32)

    def _row_spans(self, row: int, tree: TokenTree, step: Step) -> list[list[Span]] | None:
        """Of the root and the nodes of one row."""
        depths, first, seen = (0, *tree.depths), step.starts[row], step.cache.seen[row]
        reads = self._method.reads(first, max(depths) + 1, row, step)
        if reads is None:
            return None
        by_depth = cast(list[list[Span]], reads[:, 0].tolist())
        found = []
        for runs, depth in zip(tree.runs, depths, strict=True):
            dense = seen + depth < self._method.dense_until
            spans = [(0, first + depth + 1, seen + depth)] if dense else by_depth[depth]
            found.append([piece for span in spans for piece in along(runs, first, span)])
        return found

    def _read(self, row: int, step: Step) -> tuple[int, int]:
        spans = self._spans(step)
        if spans is None:
            return super()._read(row, step)
        own = spans[row * step.width :][: step.counts[row], 0, :, :2]
        root, together = (count_read(some[None], 1, 1).union for some in (own[0], own.flatten(0, 1)))
        return int(root), int(together)


def along(runs: Sequence[tuple[int, int]], first: int, span: Span) -> Iterator[Span]:
    """A span of slots as a path has them that continues the cache from slot `first` with the pass's tokens `runs`."""
    start, stop, position = span
    if start < min(stop, first):
        yield start, min(stop, first), position
    place = first
    for begin, end in runs:
        low, high = max(start - place, 0), min(stop - place, end - begin)
        if low < high:
            yield first + begin + low, first + begin + high, position
        place += end - begin
