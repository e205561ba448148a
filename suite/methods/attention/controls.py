"""Controls at equal retention: what a selection must beat (uniform blocks, random blocks), and what it cannot (oracle).

All three read the first tokens, the most recent ones, and as many others per KV head as the budget allows, at true
distances; the prompt is read densely. Definitions: `_kv_retention.md` section 5. Sinks and a recent window alone are
`streaming`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kernels.segment_reduce import segment_sum
from kernels.select_top import select_top, top
from suite.methods.attention import costs
from suite.methods.attention.base import AttentionMethod, Phase, grow
from suite.methods.attention.selection import Selection
from suite.methods.base import Card, MethodConfig, tunable
from suite.models.attention import Step
from suite.models.config import ModelConfig


class ControlConfig(MethodConfig):
    """`budget` tokens per query and KV head: `sinks`, a quarter recent, the rest chosen in blocks of `block`."""

    budget: int = tunable(1024, low=16, high=131072, log=True)
    block: int = tunable(16, low=1, high=256, log=True)
    sinks: int = Field(4, ge=0)

    @property
    def local(self) -> int:
        """Recent tokens, the query's own included."""
        return self.budget // 4

    @property
    def blocks(self) -> int:
        """Blocks chosen."""
        return max(1, (self.budget - self.sinks - self.local) // self.block)


class Control(AttentionMethod):
    """Sinks, recent tokens, and the chosen ones. Blocks count from the end of the sinks."""

    Config = ControlConfig
    acts_in: ClassVar[tuple[Phase, ...]] = ("decode",)

    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        self._model, self._config = model, config
        self.dense_until = config.budget
        self._queries: dict[tuple[int, int], Tensor] = {}

    def learn(self, layer: int, q: Tensor, row: int, step: Step) -> None:
        """Keeps the newest query, rotated as the keys are."""
        self._queries[layer, row] = q[-1]

    def select(self, layer: int, q: Tensor, row: int, step: Step) -> Selection:
        """Spans of one token's selection, one list per KV head."""
        stop, sinks = step.stops[row], self._config.sinks
        recent = stop - self._config.local
        chosen, length, index_bytes = self.choose(layer, row, recent, step)
        starts = chosen.int()
        ends = torch.where(starts >= 0, (starts + length).clamp(max=recent), starts)
        fixed = torch.tensor([[0, sinks], [recent, stop]], dtype=torch.int32).expand(len(chosen), 2, 2)
        spans = torch.cat((fixed, torch.stack((starts, ends), dim=-1)), dim=1)
        position = torch.full((*spans.shape[:2], 1), int(step.positions[row, 0]), dtype=torch.int32)
        return Selection(torch.cat((spans, position), dim=-1)[None], index_bytes=index_bytes)

    @abstractmethod
    def choose(self, layer: int, row: int, recent: int, step: Step) -> tuple[Tensor, int, int]:
        """Among the tokens [sinks, recent): first slots [G, k] (-1: none), their length, and the bytes read for it."""

    def _slots(self, blocks: Tensor) -> Tensor:
        """First slots of blocks; -1 stays."""
        return torch.where(blocks >= 0, blocks * self._config.block + self._config.sinks, blocks)

    def _candidates(self, recent: int) -> int:
        """Blocks that begin before the recent tokens."""
        blocks: int = -(-(recent - self._config.sinks) // self._config.block)
        return blocks

    @classmethod
    def at_budget(cls, tokens: int) -> dict[str, Any]:
        return {"budget": tokens, "block": max(1, min(16, tokens // 16))}


class Uniform(Control):
    """Fixed blocks by the product of the query with their mean key, summed over the heads of a group."""

    card: ClassVar[Card] = Card(
        slug="uniform",
        family="control",
        title="Fixed blocks scored by their mean key",
        source="control of this suite (as in Quest, arXiv 2406.10774, with means)",
        lossless=False,
    )
    cost = staticmethod(costs.uniform)

    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        super().begin_batch(model, config, batch)
        G, D = model.kv_heads, model.head_dim
        self._reps = [[torch.empty(G, 0, D) for _ in range(batch)] for _ in range(model.layers)]
        self._known = [[0] * batch for _ in range(model.layers)]

    def learn(self, layer: int, q: Tensor, row: int, step: Step) -> None:
        """Also adds the mean keys of the blocks that these tokens complete."""
        super().learn(layer, q, row, step)
        block, sinks, known = self._config.block, self._config.sinks, self._known[layer][row]
        full = max(0, step.stops[row] - sinks) // block
        if full == known:
            return
        offsets = torch.arange(known, full + 1, dtype=torch.int32) * block + sinks
        keys = step.cache.keys[layer][row : row + 1]
        fresh = segment_sum(keys, offsets, kind="mean")[0].to(keys.dtype)
        self._reps[layer][row] = grow(self._reps[layer][row].to(keys.dtype), full)
        self._reps[layer][row][:, known:full] = fresh
        self._known[layer][row] = full

    def choose(self, layer: int, row: int, recent: int, step: Step) -> tuple[Tensor, int, int]:
        complete = min(self._known[layer][row], self._candidates(recent))
        reps = self._reps[layer][row][:, :complete]
        last = torch.tensor([complete], dtype=torch.int32)
        best = select_top(
            self._queries[layer, row][None], reps, self._config.blocks, last, selections=self._model.kv_heads
        )[0]
        return self._slots(best), self._config.block, reps.numel() * reps.element_size()

    def index_bytes(self) -> int:
        return sum(reps.untyped_storage().nbytes() for layer in self._reps for reps in layer)


class Random(Control):
    """Fixed blocks drawn at random, anew for every place in the text, layer and KV head."""

    card: ClassVar[Card] = Card(
        slug="random",
        family="control",
        title="Fixed blocks at random",
        source="control of this suite",
        lossless=False,
    )
    cost = staticmethod(costs.random)

    def choose(self, layer: int, row: int, recent: int, step: Step) -> tuple[Tensor, int, int]:
        draw = torch.Generator().manual_seed(step.stops[row] * self._model.layers + layer)  # the same in any batch
        scores = torch.rand(self._model.kv_heads, self._candidates(recent), generator=draw)
        return self._slots(top(scores, self._config.blocks)), self._config.block, 0


class Oracle(Control):
    """The single tokens with the most true attention, summed over the heads of a group: reads every key to choose."""

    card: ClassVar[Card] = Card(
        slug="oracle",
        family="control",
        title="Tokens of the largest true attention",
        source="upper control of this suite",
        lossless=False,
    )
    cost = staticmethod(costs.oracle)

    def choose(self, layer: int, row: int, recent: int, step: Step) -> tuple[Tensor, int, int]:
        G, sinks = self._model.kv_heads, self._config.sinks
        keys = step.cache.keys[layer][row, :, : step.stops[row]].contiguous()  # else torch takes a far slower path
        q = self._queries[layer, row].view(G, -1, self._model.head_dim)
        mass = ((q @ keys.transpose(1, 2)).float() * self._model.scale).softmax(dim=-1).sum(dim=1)
        best = top(mass[:, sinks:recent], self._config.blocks * self._config.block) + sinks
        return best, 1, keys.numel() * keys.element_size()
