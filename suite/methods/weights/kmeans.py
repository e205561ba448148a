"""Weighted k-means in one dimension, all rows of a matrix at once (methods/squeezellm.md, section 3, step 3).

In one dimension a cluster is a stretch of the sorted values, so a step of Lloyd's algorithm is exact from prefix sums:
boundaries halfway between neighbouring centroids, each new centroid the weighted mean of its stretch.
Shapes: R rows, n values of a row, K centroids.
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 50
BLOCK = 1 << 21
"""Values that are clustered together: bounds the fp64 scratch of a large matrix."""


def codebooks(values: Tensor, weights: Tensor, count: int) -> Tensor:
    """values and weights [R, n] -> centroids fp32 [R, K = count], ascending.

    A row without any weight counts all its values alike. A row of fewer distinct values than centroids has some twice.
    """
    rows = max(1, BLOCK // max(1, values.shape[1]))
    generator = torch.Generator().manual_seed(0)
    pairs = zip(torch.split(values, rows), torch.split(weights, rows), strict=True)
    return torch.cat([_clustered(v.double(), w.double(), count, generator) for v, w in pairs])


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Codes uint8 [R, n]: each value's nearest centroid of its row, the lower one where two are as near."""
    middles = _middles(centroids.float())
    return torch.searchsorted(middles, values.float().contiguous()).to(torch.uint8)


def _clustered(values: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, torch.ones_like(weights))
    values, order = values.sort(dim=1)
    weights = weights.gather(1, order)
    mass, moment = _prefix(weights), _prefix(weights * values)
    centroids = _seeded(values, weights, count, generator)
    for _ in range(ITERATIONS):
        moved = _lloyd(values, mass, moment, centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids.float()


def _lloyd(values: Tensor, mass: Tensor, moment: Tensor, centroids: Tensor) -> Tensor:
    """One exact step; a cluster without weight keeps its centroid. A value on a boundary belongs to the lower one."""
    ends = torch.searchsorted(values, _middles(centroids), right=True)
    edges = torch.nn.functional.pad(ends, (1, 0))
    edges = torch.cat((edges, torch.full_like(edges[:, :1], values.shape[1])), dim=1)
    weight, sums = mass.gather(1, edges).diff(dim=1), moment.gather(1, edges).diff(dim=1)
    means = torch.where(weight > 0, sums / weight, centroids)
    return means.sort(dim=1).values


def _seeded(values: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++: every further centroid is a value drawn in proportion to its weighted squared distance."""
    distances = torch.ones_like(values)
    chosen = []
    for _ in range(count):
        chances = (weights * distances).cumsum(dim=1)
        drawn = torch.rand(len(values), 1, generator=generator, dtype=torch.float64) * chances[:, -1:]
        index = torch.searchsorted(chances, drawn, right=True).clamp_(max=values.shape[1] - 1)
        chosen.append(values.gather(1, index))
        gaps = (values - chosen[-1]).square_()
        distances = gaps if len(chosen) == 1 else torch.minimum(distances, gaps, out=distances)
    return torch.cat(chosen, dim=1).sort(dim=1).values


def _middles(centroids: Tensor) -> Tensor:
    return ((centroids[:, 1:] + centroids[:, :-1]) / 2).contiguous()


def _prefix(values: Tensor) -> Tensor:
    """[R, n] -> [R, n + 1]: sums of the first 0, 1, ..., n values."""
    return torch.nn.functional.pad(values.cumsum(dim=1), (1, 0))
