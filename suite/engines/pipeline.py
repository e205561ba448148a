"""Dynamic chunked pipeline parallelism (Qwen2.5-1M, arXiv 2501.15383; card qwen2_5_1m, section 6), simulated.

A long prompt passes the stages of a pipeline in chunks. Attention makes a chunk slower the more tokens stand before it,
so with equal chunks the stages wait for the late ones. Dynamic chunks shrink so that all take the same time. The cost
of a chunk of x tokens after Lp others is modelled as c0 + g Lp + a (2 Lp x + x^2) + b x seconds, the form of
ROCm/ATOM's public implementation; the coefficients are fitted to measured passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True)
class ChunkCost:
    """Seconds of one pass over all stages."""

    c0: float
    g: float
    a: float
    b: float

    def seconds(self, before: int, tokens: int) -> float:
        """A chunk of `tokens` after `before` others."""
        return self.c0 + self.g * before + self.a * (2 * before * tokens + tokens**2) + self.b * tokens

    def tokens(self, before: int, seconds: float) -> float:
        """The chunk that takes `seconds` after `before` others; 0 where even an empty one takes longer."""
        slope, rest = 2 * self.a * before + self.b, seconds - self.c0 - self.g * before
        if rest <= 0:
            return 0.0
        return rest / slope if self.a == 0 else (math.sqrt(slope**2 + 4 * self.a * rest) - slope) / (2 * self.a)

    @classmethod
    def fitted(cls, measured: Sequence[tuple[int, int, float]]) -> ChunkCost:
        """Non-negative least squares over rows of (before, tokens, seconds), each weighted by 1 / seconds."""
        rows = np.array([(1.0, before, 2 * before * x + x * x, x) for before, x, _ in measured])
        seconds = np.array([s for _, _, s in measured])
        solution, _ = nnls(rows / seconds[:, None], np.ones(len(rows)))
        return cls(*(float(value) for value in solution))


def fixed_chunks(length: int, chunk: int) -> list[int]:
    """Equal chunks, the last one shorter."""
    return [min(chunk, length - start) for start in range(0, length, chunk)]


def dynamic_chunks(length: int, first: int, cost: ChunkCost, *, least: int = 512, align: int = 64) -> list[int]:
    """Chunks that all take as long as the first one, as far as they lie between `least` and `first` tokens."""
    chunks: list[int] = []
    budget, done = cost.seconds(0, first), 0
    while done < length:
        wanted = int(cost.tokens(done, budget)) // align * align
        chunks.append(min(max(least, min(wanted, first)), length - done))
        done += chunks[-1]
    return chunks


@dataclass(frozen=True)
class PipelineRun:
    """`bubble`: the share of the stages' time in which they wait."""

    seconds: float
    bubble: float


def simulate(chunks: Sequence[int], cost: ChunkCost, stages: int) -> PipelineRun:
    """Every stage has an equal part of the layers and takes a chunk once the stage before has done it."""
    done = [0.0] * stages
    work, before = 0.0, 0
    for tokens in chunks:
        share = cost.seconds(before, tokens) / stages
        arrived = 0.0
        for stage in range(stages):
            arrived = done[stage] = max(arrived, done[stage]) + share
        work, before = work + share * stages, before + tokens
    return PipelineRun(done[-1], 1 - work / (stages * done[-1]))
