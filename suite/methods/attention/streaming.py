"""Attention sinks and a recent window (StreamingLLM, arXiv 2309.17453): the control selection must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from kernels.tree_attention import MOST_NODES
from suite.methods.attention import costs
from suite.methods.attention.base import AttentionMethod
from suite.methods.attention.selection import Selection
from suite.methods.base import Card, MethodConfig, tunable
from suite.models.attention import Step
from suite.models.cache import KVCache
from suite.models.config import ModelConfig
from suite.models.generation import PREFILL_CHUNK


class StreamingConfig(MethodConfig):
    """Tokens kept: the first `sinks`, and the last `window` (the query's own included)."""

    sinks: int = tunable(4, low=0, high=128)
    window: int = tunable(1020, low=1, high=131072, log=True)


class Streaming(AttentionMethod):
    """Reads the first few tokens and the most recent ones, numbered as if they were neighbours; evicts the others.

    Distances among recent tokens stay true, so only the sinks need another query position: their place in the list.
    """

    card: ClassVar[Card] = Card(
        slug="streaming",
        family="attention",
        title="Efficient Streaming Language Models with Attention Sinks",
        source="arXiv 2309.17453",
        lossless=False,
    )
    Config = StreamingConfig
    verifies: ClassVar[bool] = True
    cost = staticmethod(costs.streaming)

    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        self._config = config
        self._kept = config.sinks + config.window
        self._evicting = not model.windows  # a sliding layer shares the cache and may still need what is evicted
        self.dense_until = self._kept

    def evict(self, cache: KVCache, counts: Sequence[int]) -> None:
        """Frees what the pass's first query can no longer read, a chunk at a time so that the copying is rare."""
        if not self._evicting:
            return
        slack = PREFILL_CHUNK if max(counts) > MOST_NODES else self._slack
        for row, length in enumerate(cache.lengths):
            excess = length - (self._kept - 1)
            if excess >= slack:
                cache.evict(row, self._config.sinks, self._config.sinks + excess)

    @property
    def _slack(self) -> int:
        """Tokens kept beyond need between two evictions in decode, drafts or not."""
        return max(1, int(self._config.window) // 16)

    def select(self, layer: int, q: Tensor, row: int, step: Step) -> Selection:
        return Selection(self.reads(step.stops[row] - 1, 1, row, step))

    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Selection:
        return Selection(self.reads(first, len(q), row, step))

    def reads(self, first: int, count: int, row: int, step: Step) -> Tensor:
        """Sinks and window of `count` queries whose slots begin at `first`, [count, 1, 2, 3]; alike in all layers."""

        def make() -> Tensor:
            slot = torch.arange(first, first + count, dtype=torch.int32)
            sinks, zero = torch.full_like(slot, self._config.sinks), torch.zeros_like(slot)
            recent = torch.stack((slot + 1 - self._config.window, slot + 1, slot + step.cache.evicted[row]), dim=-1)
            oldest = torch.stack((zero, sinks, zero + self._kept - 1), dim=-1)
            return torch.stack((oldest, recent), dim=1)[:, None]

        return step.shared(f"streaming/{row}", make)

    def capacity(self, tokens: int) -> int:
        return min(tokens, self._kept + 2 * PREFILL_CHUNK) if self._evicting else tokens

    @classmethod
    def at_budget(cls, tokens: int) -> dict[str, Any]:
        sinks = min(4, tokens - 1)
        return {"sinks": sinks, "window": tokens - sinks}
