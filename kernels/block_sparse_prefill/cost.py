"""Cost of attention of query blocks to chosen blocks of keys (card qwen2_5_1m.md, "Kernels")."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.block_sparse_prefill.lists import VerticalSlash
from kernels.cost import Cost
from kernels.gathered_prefill.cost import seen, sparse_prefill_cost


def block_sparse_prefill_cost(
    q: Tensor, kv_heads: int, tiles: Tensor, starts: Tensor, counts: Tensor, block: tuple[int, int]
) -> Cost:
    """Every query block loads the keys of its kept tiles that it sees, once per KV head, or per query head if S = H."""
    pairs = loaded = 0
    for j in range(tiles.shape[3]):  # one column of tiles at a time: all of them would be T x S tokens
        tokens = torch.arange(j * block[1], (j + 1) * block[1]).where(tiles[:, :, :, j, None], -1)
        column = seen(tokens, starts, counts, block[0], None)
        pairs, loaded = pairs + column[0], loaded + column[1]
    heads, selections = q.shape[2], tiles.shape[1]
    loads = kv_heads if selections == 1 else 1
    return sparse_prefill_cost(pairs, loaded * loads, heads // selections, q, int(counts.sum()), tiles.numel())


def vertical_slash_prefill_cost(
    q: Tensor, kv_heads: int, lists: VerticalSlash, starts: Tensor, counts: Tensor, block: int
) -> Cost:
    """The same for blocks and single columns; the used entries of the lists are read."""
    pairs, loaded = seen(lists.tokens(block), starts, counts, block, None)
    heads, selections = q.shape[2], lists.selections
    entries = int(lists.block_count.sum() + lists.column_count.sum()) + 2 * lists.block_count.numel()
    loads = kv_heads if selections == 1 else 1
    return sparse_prefill_cost(pairs, loaded * loads, heads // selections, q, int(counts.sum()), entries * 4)
