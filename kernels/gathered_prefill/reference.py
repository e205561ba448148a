"""Naive attention of query blocks to listed tokens: one softmax per query row and head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype
from kernels.flash_prefill.reference import attend, visible

Listed = Callable[[int, int, int], Tensor]
"""(row, head, block of queries) -> tokens [n]; negative ones and those behind the last query are left out."""


def listed_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    listed: Listed,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    *,
    block: int,
    scale: float,
    window: int | None,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Attention of every query to those of its block's tokens that are not in its future."""
    out, lse = torch.zeros_like(q), torch.full(q.shape[:3], -torch.inf, device=q.device)
    heads, kv_heads = q.shape[2], key_cache.shape[1]
    for b, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        row = b if rows is None else int(rows[b])
        for head in range(heads):
            for first in range(0, count, block):
                last = min(first + block, count)
                tokens = listed(b, head, first // block).long()
                tokens = tokens[(tokens >= 0) & (tokens < start + last)]
                allowed = visible(tokens, torch.arange(start + first, start + last, device=q.device), window)
                where = (row, head * kv_heads // heads, tokens)
                query = q[b, first:last, head].to(accumulate_dtype(q))
                attended = attend(query, key_cache[where], value_cache[where], allowed, scale, softcap)
                out[b, first:last, head] = attended[0].to(q.dtype)
                lse[b, first:last, head] = attended[1].float()
    return out, lse


def gathered_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    *,
    block: int,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The contract of `kernels.gathered_prefill.gathered_prefill`, computed in fp32 (fp64 for fp64 inputs)."""
    heads, selections = q.shape[2], indices.shape[1]

    def listed(b: int, head: int, number: int) -> Tensor:
        return indices[b, head * selections // heads, number]

    return listed_prefill(
        q, key_cache, value_cache, listed, starts, counts, rows,
        block=block, scale=scale, window=window, softcap=softcap,
    )  # fmt: skip
