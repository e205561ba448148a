"""Cost of attention of query blocks to listed tokens (card dhsa.md, "Kernels")."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cost import Cost


def sparse_prefill_cost(
    pairs: int, loaded: int, heads_per_list: int, q: Tensor, queries: int, index_bytes: int
) -> Cost:
    """`pairs` of a query and a key it sees and `loaded` keys, summed over all lists; each list serves some heads."""
    batch, width, heads, head_dim = q.shape
    size = q.element_size()
    read = 2 * loaded * head_dim * size + queries * heads * head_dim * size + index_bytes + batch * 8
    outputs = batch * width * heads
    return Cost(4 * pairs * heads_per_list * head_dim, read, outputs * (head_dim * size + 4))


def seen(tokens: Tensor, starts: Tensor, counts: Tensor, block: int, window: int | None) -> tuple[int, int]:
    """tokens [B, S, blocks, n], negative ones padding -> (pairs, loaded): by how many queries, and whether by any."""
    begins = torch.arange(tokens.shape[2], device=tokens.device) * block
    lasts = torch.minimum(begins + block, counts[:, None].to(begins)) + starts[:, None] - 1  # [B, blocks]
    first, last = (x[:, None, :, None] for x in (begins + starts[:, None], lasts))
    limit = 1 << 40 if window is None else window
    pairs = (torch.minimum(last, tokens + limit - 1) - torch.maximum(first, tokens) + 1).clamp(min=0) * (tokens >= 0)
    return int(pairs.sum()), int((pairs > 0).sum())


def gathered_prefill_cost(
    q: Tensor, kv_heads: int, indices: Tensor, starts: Tensor, counts: Tensor, block: int, window: int | None = None
) -> Cost:
    """Every list loads what some query of its block sees: once per KV head, or per query head if each has its own."""
    heads, selections = q.shape[2], indices.shape[1]
    pairs, loaded = seen(indices.long(), starts, counts, block, window)
    loads = kv_heads if selections == 1 else 1
    return sparse_prefill_cost(pairs, loaded * loads, heads // selections, q, int(counts.sum()), indices.numel() * 4)
