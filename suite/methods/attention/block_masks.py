"""The four masks of DHSA's second version (arXiv 2510.24606): which blocks of 32 keys a block of 128 queries keeps.

Shapes: m query blocks, n key blocks, T queries, L keys, H query heads, G KV heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.segment_reduce import segment_sum
from kernels.select_top import top
from suite.methods.attention.vertical_slash import line_sums

QUERIES, KEYS = 128, 32


@dataclass(frozen=True)
class Grid:
    """Query blocks from slot `first` on against the key blocks of `length` slots, `budget` of which a row keeps."""

    first: int
    length: int
    budget: int

    @property
    def oldest(self) -> Tensor:
        """Key block of each query block's first query [m, 1]."""
        return torch.arange(self.first, self.length, QUERIES)[:, None] // KEYS

    @property
    def newest(self) -> Tensor:
        """Key block of each query block's last query [m, 1]."""
        last = torch.arange(self.first + QUERIES - 1, self.length + QUERIES - 1, QUERIES)
        return last.clamp(max=self.length - 1)[:, None] // KEYS

    @property
    def key_blocks(self) -> Tensor:
        """0 to n - 1."""
        return torch.arange(-(-self.length // KEYS))

    @property
    def dense(self) -> Tensor:
        """Query blocks that `vs` and `vsb` read densely [m, 1]: the last, and those within `budget` key blocks."""
        rows = len(self.oldest)
        early = torch.arange(rows) * QUERIES + self.first < self.budget * KEYS
        return (early | (torch.arange(rows) == rows - 1))[:, None]


def keep(q: Tensor, keys: Tensor, scale: float, variant: str, budget: int) -> Tensor:
    """Kept tiles bool [H, m, n] of the last T of L tokens, `budget` a row; q [T, H, D], keys [G, L, D]."""
    length = keys.shape[1]
    grid = Grid(length - len(q), length, budget)
    causal = grid.key_blocks <= grid.newest
    scores = _SCORES[variant](q, keys, scale, grid)
    if variant == "topk":
        return best(scores, grid.budget)
    local = grid.oldest if variant == "vsb" else grid.newest
    forced = (grid.key_blocks == 0) | (grid.key_blocks >= local)
    if variant != "a":
        forced = forced | grid.dense
    ranked = scores.masked_fill(forced, torch.inf).masked_fill(~causal, -torch.inf)
    return (best(ranked, grid.budget) | forced) & causal


def best(scores: Tensor, count: int) -> Tensor:
    """bool [H, m, n]: the `count` largest of each row; ties go to the lower block."""
    rows = scores.flatten(0, 1)
    places = top(rows, min(count, rows.shape[1])).long() + 1  # -1, for none, falls into a column of its own
    kept = torch.zeros(len(rows), rows.shape[1] + 1, dtype=torch.bool).scatter_(1, places, True)
    return kept[:, 1:].reshape(scores.shape)


def by_means(q: Tensor, keys: Tensor, scale: float, grid: Grid) -> Tensor:
    """Mean query . mean key, fp32 [H, m, n]."""
    return means(q.transpose(0, 1), QUERIES) @ _key_means(q, keys).transpose(1, 2)


def means(x: Tensor, block: int) -> Tensor:
    """[heads, T, D] -> fp32 [heads, blocks, D]: means of every `block` tokens; the last block may be shorter."""
    edges = torch.arange(0, x.shape[1] + block, block).clamp(max=x.shape[1]).int()
    return segment_sum(x[None], edges, kind="mean")[0]


def _key_means(q: Tensor, keys: Tensor) -> Tensor:
    return means(keys, KEYS).repeat_interleave(q.shape[1] // len(keys), dim=0)


def by_last_queries(q: Tensor, keys: Tensor, scale: float, grid: Grid) -> Tensor:
    """Votes [H, m, n] of the columns and diagonals with the most attention of the last 128 queries."""
    last = q[-QUERIES:]
    grouped = (last.transpose(0, 1) * scale).reshape(len(keys), -1, q.shape[2])
    columns, diagonals = line_sums([(slice(0, grid.length), grouped)], keys, len(last))
    return votes(columns, diagonals, grid.budget * KEYS, 1, grid)


def by_last_block(q: Tensor, keys: Tensor, scale: float, grid: Grid) -> Tensor:
    """The same with block means in place of tokens and logits in place of probabilities."""
    rest = (len(q) - 1) % QUERIES + 1
    last = q[-rest:].transpose(0, 1).float().mean(dim=1, keepdim=True)
    logits = (last @ _key_means(q, keys).transpose(1, 2))[:, 0] * scale
    return votes(logits, logits.flip(1), grid.budget, KEYS, grid)


def votes(columns: Tensor, diagonals: Tensor, budget: int, unit: int, grid: Grid) -> Tensor:
    """[H, m, n]: what the best half `budget` of columns and of diagonals [H, c], each `unit` slots, give to a tile.

    A column gives its value to its key block, for all queries. A diagonal gives its value to every key block that it
    crosses within a query block: the same ones seen from each, four further on.
    """
    n, m = len(grid.key_blocks), len(grid.oldest)
    value, place = columns.topk(min(budget // 2, columns.shape[1]), dim=1)
    vertical = columns.new_zeros(len(columns), n).scatter_add_(1, place * unit // KEYS, value)
    value, offset = diagonals.topk(min(budget - budget // 2, diagonals.shape[1]), dim=1)
    lowest = (grid.first - offset * unit).div(KEYS, rounding_mode="floor")
    highest = (grid.first + QUERIES - 1 - offset * unit).div(KEYS, rounding_mode="floor")
    step, shift = QUERIES // KEYS, (m - 1) * (QUERIES // KEYS) + n
    slash = columns.new_zeros(len(columns), shift + n + step + 1)  # by key block - 4 x query block
    for further in range(step + 1):
        touched = lowest + further
        slash.scatter_add_(1, touched + shift, value * (touched <= highest))
    relative = grid.key_blocks - step * torch.arange(m)[:, None] + shift
    return vertical[:, None] + slash[:, relative]


_SCORES: dict[str, Callable[[Tensor, Tensor, float, Grid], Tensor]] = {
    "topk": by_means,
    "a": by_means,
    "vs": by_last_queries,
    "vsb": by_last_block,
}
