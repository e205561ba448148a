"""DHSA's second version (arXiv 2510.24606, 2026): masks of fixed blocks, 128 queries x 32 keys, and nothing learned."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from suite.methods.attention import costs
from suite.methods.attention.base import AttentionMethod, Phase
from suite.methods.attention.block_masks import KEYS, QUERIES, keep
from suite.methods.attention.dhsa import WHOLE_PROMPT
from suite.methods.attention.selection import Plan, Tiles
from suite.methods.base import Card, Claim, MethodConfig, tunable
from suite.models.attention import Step
from suite.models.config import ModelConfig

VARIANTS = ("topk", "a", "vs", "vsb")

CLAIMS = (
    Claim("prefill-speed-up", "sparse prefill against dense FlashAttention-2", "up to 10x at 128K, density 12.5 %",
          "attention time, dense / sparse, at the longest length measured", 10.0),
    Claim("time-to-first-token", "the whole prefill is faster, too",
          "Llama-3.1-8B 4-bit, 24 GB, 32K (off a plot): 11.8 s -> 5.8 s", "time to first token, dense / sparse", 2.0),
    Claim("beats-blocks", "better than Block-Sparse Attention at equal density",
          "+12-20 % relative, Llama-3.1-8B and Qwen2.5-3B, density 12.5 %", "accuracy, vs / topk", 1.12),
)  # fmt: skip


class DHSABlockConfig(MethodConfig):
    """Each query block keeps `density` of all key blocks, or as many as hold `budget` tokens."""

    variant: Literal["topk", "a", "vs", "vsb"] = tunable("vs", choices=VARIANTS)
    density: float = tunable(0.125, low=0.001, high=1.0, log=True)
    budget: int | None = Field(None, ge=1)

    def blocks(self, length: int) -> int:
        """Key blocks kept for a prompt of `length` tokens (topk of the card)."""
        share = self.density if self.budget is None else min(1.0, self.budget / length)
        return max(1, math.floor(share * length / KEYS))


class DHSABlock(AttentionMethod):
    """Every query head keeps key blocks for each block of queries, by products of block means or by the last queries.

    `topk` takes the best of all key blocks, future ones included, which wastes early rows: a query without any kept key
    gives 0. `a` takes the best causal ones and always the first and the newest. `vs` adds up the attention of the last
    128 queries by column and by diagonal; the best of each vote for the blocks they lie in. `vsb` does so with block
    means and forces all key blocks of the own queries. Both read the first blocks and the last one densely. Which
    blocks are kept depends on later queries; what a query reads of them is causal. Decode reads everything.
    """

    card: ClassVar[Card] = Card(
        slug="dhsa_block",
        family="attention",
        title="Long-Context Modeling with Dynamic Hierarchical Sparse Attention for Memory-Constrained LLM Inference",
        source="arXiv 2510.24606v2",
        lossless=False,
        claims=CLAIMS,
    )
    Config = DHSABlockConfig
    cost = staticmethod(costs.dhsa_block)
    acts_in: ClassVar[tuple[Phase, ...]] = ("prefill",)
    verifies: ClassVar[bool] = True
    pools_queries: ClassVar[bool] = True

    def prefill_chunk(self, config: Any) -> int:
        return WHOLE_PROMPT

    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        self._model, self._config = model, config
        self._kept: dict[int, Tensor] = {}

    def learn(self, layer: int, q: Tensor, row: int, step: Step) -> None:
        """Makes the mask of this row and layer. q [T, H, D] and the stored keys are rotated by position."""
        if step.width > 1:
            keys = step.cache.keys[layer][row, :, : step.stops[row]]
            blocks = self._config.blocks(keys.shape[1])
            self._kept[row] = keep(q, keys, self._model.scale, self._config.variant, blocks)

    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Plan:
        return Tiles(self._kept.pop(row)[None], (QUERIES, KEYS), step.positions[row, : len(q)])

    @classmethod
    def at_budget(cls, tokens: int) -> dict[str, Any]:
        return {"budget": tokens}
