"""ActQKV's dynamic cut-off (arXiv 2502.13542): layers with more spread evidence get more of a common pool of blocks."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

HISTORY = 100
"""Entropies kept per layer; before every layer has as many, the cut-off is uniform."""


@dataclass
class CutOff:
    """Deals the blocks of one window or step to the layers, by the mean of their last entropies."""

    layers: int
    topk: int
    least: int
    entropies: list[deque[float]] = field(default_factory=list)
    remaining: int = 0

    def __post_init__(self) -> None:
        self.entropies = [deque(maxlen=HISTORY) for _ in range(self.layers)]

    def deal(self, layer: int, entropy: float, available: int) -> int:
        """Blocks for this layer; layers come in order, and the first opens a new pool."""
        if layer == 0:
            self.remaining = self.topk * self.layers
        if math.isnan(entropy):  # of a single block
            k = 1
        else:
            self.entropies[layer].append(entropy)
            k = round(self._share(layer) * self.remaining)
        k = max(min(available, self.least), min(available, 2 * self.topk, k))
        self.remaining -= k
        return k

    def _share(self, layer: int) -> float:
        """Of what remains. Uniform until every layer has a full history."""
        if min(map(len, self.entropies)) < HISTORY:
            return 1 / (self.layers - layer)
        means = [fmean(values) for values in self.entropies[layer:]]
        return means[0] / sum(means) if sum(means) > 0 else 0.0
