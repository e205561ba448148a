"""What ActQKV (arXiv 2502.13542) knows of a layer: its blocks, their representatives, statistics of its queries.

Shapes: H query heads, G KV heads, D head dim, F = H D features of a query, m queries of a window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from kernels.segment_reduce import probe_pool
from suite.methods.attention.base import grow
from suite.methods.attention.block_store import BlockStore
from suite.models.config import ModelConfig

RUNNING_UPDATES = 1000
"""Horizon of the release's running statistics in updates, which all layers together make: 1000 / layers for each."""


class RunningStatistics:
    """The release's variant: mean and variance [F] of the queries of past windows, here of each layer for itself."""

    def __init__(self, horizon: int) -> None:
        self._horizon = max(1, horizon)
        self._updates = 0
        self._mean = self._variance = torch.empty(0)

    def update(self, h: Tensor) -> tuple[Tensor, Tensor] | None:
        """Takes in the features h [m, F]; `None` until `horizon` windows were seen (the release then pools evenly)."""
        self._updates += 1
        mean, variance = h.mean(dim=0), h.var(dim=0, correction=0)
        rate = 1 / min(self._updates, self._horizon)
        self._mean = mean if self._updates == 1 else self._mean.lerp(mean, rate)
        self._variance = variance if self._updates == 1 else self._variance.lerp(variance, rate)
        return (self._mean, self._variance) if self._updates > self._horizon else None


@dataclass
class LayerMemory:
    """One layer of one batch row. `mass` [H, pending tokens]: local attention each token has received so far.

    `reps` [capacity, F]: representatives of the flushed blocks, of length 1. `asked` [F], of length 1: the query of
    the question, where it is known.
    """

    store: BlockStore
    mass: Tensor
    reps: Tensor
    running: RunningStatistics
    asked: Tensor | None = None

    @classmethod
    def empty(cls, model: ModelConfig, config: Any) -> LayerMemory:
        """Of a text that has not begun."""
        sinks = config.n_init // config.block
        pinned = sinks + -(-(config.n_local + config.window) // config.block) + 3
        return cls(
            BlockStore(model.kv_heads, model.head_dim, config.block, sinks, pinned, config.cached_blocks),
            torch.zeros(model.heads, 0),
            torch.empty(0, model.heads * model.head_dim),
            RunningStatistics(RUNNING_UPDATES // model.layers),
        )

    @property
    def blocks(self) -> int:
        """Flushed blocks: those that can be retrieved."""
        return self.store.flushed - self.store.sinks

    @property
    def index_bytes(self) -> int:
        """Bytes kept beside keys and values."""
        kept = (self.reps, self.mass, self.asked)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept if tensor is not None)

    def flush(self, pending: int, count: int) -> None:
        """Flushes the oldest blocks until at most `pending` tokens wait, and notes their representatives."""
        while self.mass.shape[1] > pending:
            keys, mass = self.store.flush(), self.mass[:, : self.store.block]
            self.mass = self.mass[:, self.store.block :]
            self.reps = grow(self.reps.to(keys.dtype)[None], self.blocks)[0]
            self.reps[self.blocks - 1] = represent(keys, mass, count)

    def receive(self, received: Tensor) -> None:
        """Adds what the newest tokens [H, n], pending or sinks, received from the queries of a pass."""
        pending = max(0, self.store.tokens - self.store.flushed * self.store.block)
        self.mass = functional.pad(self.mass, (0, pending - self.mass.shape[1]))
        covered = min(received.shape[1], pending)
        self.mass[:, pending - covered :] += received[:, received.shape[1] - covered :]


def represent(keys: Tensor, mass: Tensor, count: int) -> Tensor:
    """A block's representative [F] in fp32, of length 1: per head the mean of its `count` most attended keys.

    keys [G, block, D] as projected, mass [H, block].
    """
    group = len(mass) // len(keys)
    best = mass.topk(count, dim=1).indices
    chosen = keys.float().repeat_interleave(group, dim=0).gather(1, best[..., None].expand(-1, -1, keys.shape[2]))
    return functional.normalize(chosen.mean(dim=1).flatten(), dim=0)


def local_mass(q: Tensor, keys: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Softmax mass [H, n] that keys [G, n, D] receive from queries [T, H, D], both rotated; `mask` [T, n] is added."""
    grouped = q.transpose(0, 1).reshape(len(keys), -1, q.shape[2])
    scores = (grouped @ keys.transpose(1, 2)).view(q.shape[1], len(q), -1).float() * scale
    if mask is not None:
        scores += mask
    return scores.softmax(dim=-1).sum(dim=1)


def density(scores: Tensor) -> float:
    """The entropy of softmax(scores [n]) over its largest value ln n: the paper's information density of a layer."""
    if len(scores) < 2:
        return math.nan
    p = scores.softmax(dim=0)
    return float(torch.special.entr(p).sum()) / math.log(len(scores))


def local_mask(rows: int, keys: int, reach: int) -> Tensor:
    """[rows, keys]: 0 where one of the last `rows` tokens sees one of the last `keys` within `reach`, else -inf."""
    gap = torch.arange(keys - rows, keys)[:, None] - torch.arange(keys)
    return torch.zeros(rows, keys).masked_fill_((gap < 0) | (gap >= reach), -math.inf)


def probe_query(kind: Literal["window", "running", "mean"], running: RunningStatistics, h: Tensor) -> Tensor:
    """One query [F] for a window of them [m, F]."""
    if kind == "window":
        return probe_pool(h)
    statistics = running.update(h.float()) if kind == "running" else None
    return h.float().mean(dim=0) if statistics is None else probe_pool(h, statistics)
