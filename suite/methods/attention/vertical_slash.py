"""Vertical-slash sparsity (MInference, arXiv 2407.02490): which columns and diagonals the last queries of a pass want.

The estimate reads every key once for 64 queries; what it finds holds for all queries of the pass. Shapes: H query
heads, L keys, r the estimating queries, m query blocks, n key blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.block_sparse_prefill import VerticalSlash
from kernels.select_top import top
from suite.methods.attention.selection import LIST_BLOCK

LAST_QUERIES = 64


@dataclass(frozen=True)
class Sparsity:
    """How much each head keeps, int64 [H]: single columns, and diagonals. `forced` are the first columns, and the
    diagonals next to the main one, that every head keeps among them."""

    verticals: Tensor
    slashes: Tensor
    forced_columns: int
    forced_diagonals: int


@dataclass(frozen=True)
class Pattern:
    """What each head keeps, bool [H, L]: `columns` by slot, `diagonals` by query slot - key slot."""

    columns: Tensor
    diagonals: Tensor


def line_sums(looks: Sequence[tuple[slice, Tensor]], keys: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Column and diagonal sums [H, L] of the probabilities that the last `rows` queries give to keys [G, L, D].

    looks: slots, and the scaled queries [G, H / G x rows, D] as they look at these slots. One KV head at a time: what
    one needs is used again by the next, where fresh memory for all of them would cost more than the arithmetic, as a
    batched product over a slice of the cache would.
    """
    (groups, length, _), width = keys.shape, looks[0][1].shape[1] // rows
    scores = torch.empty(width, rows, length)
    columns, diagonals = torch.empty(groups * width, length), torch.empty(groups * width, length)
    for group in range(groups):
        for slots, queries in looks:
            scores[:, :, slots] = (queries[group] @ keys[group, slots].T).view(width, rows, -1)
        probability = probabilities(scores)
        heads = slice(group * width, (group + 1) * width)
        columns[heads], diagonals[heads] = probability.sum(dim=1), diagonal_sums(probability)
    return columns, diagonals


def probabilities(scores: Tensor) -> Tensor:
    """Softmax in fp32 of scaled scores [H, r, L] of the last r of L slots, causal among those r; in place."""
    rows, length = scores.shape[1:]
    future = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    scores[:, :, length - rows :].masked_fill_(future, float("-inf"))
    scores -= scores.amax(dim=-1, keepdim=True)
    scores.exp_()
    scores /= scores.sum(dim=-1, keepdim=True)
    return scores


def find(columns: Tensor, diagonals: Tensor, sparsity: Sparsity) -> Pattern:
    """The columns and diagonals with the largest sums of probability [H, L] (MInference, section 3.2)."""
    columns[:, : sparsity.forced_columns] = float("inf")
    diagonals[:, : sparsity.forced_diagonals] = float("inf")
    return Pattern(_largest(columns, sparsity.verticals), _largest(diagonals, sparsity.slashes))


def diagonal_sums(probability: Tensor) -> Tensor:
    """[H, r, L] -> [H, L]: sums over the queries of what each sees `offset` slots back.

    Offsets that reach before the first slot for some of the queries have fewer terms, or none.
    """
    heads, rows, length = probability.shape
    # Row i of the last r queries stands at slot L - r + i and sees slot j at offset L - r + i - j: shifted by
    # r - 1 - i, all rows have one offset in a column.
    sums = probability.new_zeros(heads, length + rows - 1)
    for row in range(rows):
        shift = rows - 1 - row
        sums[:, shift : shift + length] += probability[:, row]
    return sums[:, :length].flip(1)


def _largest(sums: Tensor, counts: Tensor) -> Tensor:
    """bool [H, L]: the counts[h] largest entries of each head; ties go to the lower index."""
    kept = torch.zeros(sums.shape, dtype=torch.bool)
    for head, count in enumerate(counts.tolist()):
        best = top(sums[head : head + 1], min(count, sums.shape[1]))
        kept[head, best[0].long()] = True
    return kept


def region_lists(pattern: Pattern, first: int, count: int, start: int, stop: int) -> VerticalSlash:
    """The pattern as lists [1, H, m, ...] for `count` queries from slot `first`, restricted to the slots [start, stop).

    A key block is listed where a diagonal crosses it; columns are single slots outside the listed blocks. Blocks count
    from `start`, and what is left over behind the last whole one is listed by columns.
    """
    blocks, whole = -(-count // LIST_BLOCK), (stop - start) // LIST_BLOCK
    crossed = _crossed(pattern.diagonals, first - start, blocks, -(-(stop - start) // LIST_BLOCK))
    slots, kept = _columns(pattern.columns[:, start:stop], crossed, whole)
    block_slots = (torch.arange(whole) * LIST_BLOCK).expand(len(slots), -1)
    block_count, block_offset = _compact(crossed[..., :whole], block_slots + start)
    column_count, column_index = _compact(kept, slots + start)
    return VerticalSlash(*(x[None] for x in (block_count, block_offset, column_count, column_index)))


def _crossed(diagonals: Tensor, ahead: int, blocks: int, key_blocks: int) -> Tensor:
    """bool [H, m, n]: key blocks that a diagonal crosses within a query block; the first query is `ahead` slots in.

    A diagonal lies in two key blocks of every query block, one block further on for each of them: the map depends on
    the difference of the two block numbers only.
    """
    head, offset = diagonals.nonzero(as_tuple=True)
    lowest = (ahead - offset).div(LIST_BLOCK, rounding_mode="floor")  # block of the first query's key
    touched = torch.stack((lowest, (ahead - offset + LIST_BLOCK - 1).div(LIST_BLOCK, rounding_mode="floor")))
    steps = torch.zeros(
        len(diagonals), blocks + key_blocks, dtype=torch.bool
    )  # by key block - query block + blocks - 1
    place = touched + blocks - 1
    inside = (place >= 0) & (place < steps.shape[1])
    steps[head.expand_as(place)[inside], place[inside]] = True
    return steps.unfold(1, key_blocks, 1)[:, :blocks].flip(1)


def _columns(columns: Tensor, crossed: Tensor, whole: int) -> tuple[Tensor, Tensor]:
    """Candidates: slots [H, c] of the region, and bool [H, m, c]: whether a query block reads them as single columns.

    Those are kept columns outside the listed blocks, and behind the whole blocks every slot of a crossed one, too.
    """
    tail = torch.arange(whole * LIST_BLOCK, columns.shape[1])
    counts = columns[:, : whole * LIST_BLOCK].sum(dim=1)
    most = int(counts.max())
    chosen = columns[:, : whole * LIST_BLOCK].to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    real = torch.arange(most) < counts[:, None]
    listed = crossed.gather(2, (chosen // LIST_BLOCK)[:, None].expand(-1, crossed.shape[1], -1))
    behind = columns[:, None, tail] | crossed[:, :, whole:].expand(-1, -1, len(tail))
    kept = torch.cat((real[:, None] & ~listed, behind), dim=2)
    return torch.cat((chosen, tail.expand(len(columns), -1)), dim=1), kept


def _compact(kept: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [H, m], and the names [H, c] of the entries kept [H, m, c], first in each list, int32."""
    counts = kept.sum(dim=-1)
    most = int(counts.max()) if kept.numel() else 0
    order = kept.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :most]
    named = names[:, None].expand(-1, kept.shape[1], -1).gather(2, order)
    return counts.int(), named.int()
