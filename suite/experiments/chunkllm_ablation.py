"""Why ChunkLLM falls behind blocks by their mean key: the way from one to the other, one step at a time.

`uniform` differs from ChunkLLM in four things: every KV head has a list of its own, it chooses at every token, its
chunks have one length, and a chunk is scored by its mean key instead of trained adapters on its last token. Each
variant here changes one of them, so that the frontier shows what each costs at equal budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from kernels.select_top import select_top
from suite.experiments.frontier import Point, at
from suite.methods.attention.base import AttentionMethod
from suite.methods.attention.chunkllm import ChunkLLM, Chunks
from suite.methods.attention.controls import Uniform
from suite.models.attention import Step
from suite.models.config import ModelConfig

EVERY = 20
"""Tokens between two choices of `Stale`: about as many as ChunkLLM's boundaries lie apart."""


class OneList(Uniform):
    """Uniform blocks with one list for all heads of a layer."""

    def choose(self, layer: int, row: int, recent: int, step: Step) -> tuple[Tensor, int, int]:
        G, complete = self._model.kv_heads, min(self._known[layer][row], self._candidates(recent))
        reps, last = self._reps[layer][row][:, :complete], torch.tensor([complete], dtype=torch.int32)
        best = select_top(self._queries[layer, row][None], reps, self._config.blocks, last, selections=1)[0]
        return self._slots(best).expand(G, -1), self._config.block, reps.numel() * reps.element_size()


class Stale(OneList):
    """One list, chosen anew every `EVERY` tokens only; what is newer is read."""

    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        super().begin_batch(model, config, batch)
        self._choices: dict[tuple[int, int], tuple[int, tuple[Tensor, int, int]]] = {}

    def choose(self, layer: int, row: int, recent: int, step: Step) -> tuple[Tensor, int, int]:
        at, choice = self._choices.get((layer, row), (-EVERY, None))
        if choice is None or recent - at >= EVERY:
            at, choice = recent, super().choose(layer, row, recent, step)
            self._choices[layer, row] = at, choice
        return choice


class MeanKeys(ChunkLLM):
    """ChunkLLM's chunks and moments of choice, but scored by the product of the query with the chunk's mean key."""

    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        super().begin_batch(model, config, batch)
        G, D, group = model.kv_heads, model.head_dim, model.heads // model.kv_heads
        same_group = torch.eye(G * D).view(G, 1, D, G * D).expand(G, group, D, G * D)
        self._to_keys = same_group.reshape(-1, G * D)  # sums the queries of a group
        self._means = {id(chunks): torch.empty(len(chunks.keys), 0, G * D) for chunks in self._rows}

    def _close(self, row: int, predicted: list[int], step: Step) -> None:
        self._now = row, step
        super()._close(row, predicted, step)

    def _choose(self, chunks: Chunks, seen: int) -> None:
        self._average(chunks)
        super()._choose(chunks, seen)

    def _average(self, chunks: Chunks) -> None:
        """Adds the mean keys of the chunks that have ended since."""
        (row, step), means = self._now, self._means[id(chunks)]
        edges = [0, *chunks.ends]
        ended = list(pairwise(edges[means.shape[1] :]))
        if ended:
            fresh = [
                torch.stack([step.cache.keys[layer][row, :, a:b].float().mean(dim=1).flatten() for a, b in ended])
                for layer in self._place
            ]
            self._means[id(chunks)] = torch.cat([means, torch.stack(fresh)], dim=1)

    def _scores(self, chunks: Chunks, near: int) -> Tensor:
        query = torch.stack(chunks.newest).float() @ self._to_keys
        return torch.bmm(query[:, None], self._means[id(chunks)][:, 1:near].transpose(1, 2))[:, 0]


class EveryToken(ChunkLLM):
    """ChunkLLM that chooses after every token."""

    def _close(self, row: int, predicted: list[int], step: Step) -> None:
        chunks = self._rows[row]
        known = len(chunks.ends)
        super()._close(row, predicted, step)
        if step.width == 1 and len(chunks.ends) == known:
            self._choose(chunks, step.stops[row])


VARIANTS: Mapping[str, type[AttentionMethod]] = {
    "one list for all heads": OneList,
    "and chosen every 20 tokens": Stale,
    "chunkllm's chunks by mean keys": MeanKeys,
    "chunkllm at every token": EveryToken,
}
"""From uniform towards ChunkLLM; the last one goes beyond it."""


def losses_on_the_way(points: Sequence[Point], share: float) -> str:
    """Nats per token lost against dense, from uniform to ChunkLLM."""
    row = at(points, share)
    dense = fmean(row["dense"].nats)
    names = ("uniform", *VARIANTS, "chunkllm")
    return f"at {share:.1%}: " + ", ".join(f"{name} {fmean(row[name].nats) - dense:+.3f}" for name in names)
