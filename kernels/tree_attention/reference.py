"""Naive attention of the nodes of draft trees: one softmax per row, node and head."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype
from kernels.flash_prefill.reference import attend
from kernels.tree_attention.masks import visible


def tree_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    masks: Tensor,
    lengths: Tensor,
    counts: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The contract of `kernels.tree_attention.tree_attention`, computed in fp32 (fp64 for fp64 inputs)."""
    out, lse = torch.zeros_like(q), torch.full(q.shape[:3], -torch.inf, device=q.device)
    heads, kv_heads = q.shape[2], key_cache.shape[1]
    for b, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        prefix = torch.ones(count, length, dtype=torch.bool, device=q.device)
        allowed = torch.cat((prefix, visible(masks[b, :count], count)), dim=1)
        for head in range(heads):
            where = (b, head * kv_heads // heads, slice(0, length + count))
            query = q[b, :count, head].to(accumulate_dtype(q))
            attended = attend(query, key_cache[where], value_cache[where], allowed, scale, softcap)
            out[b, :count, head], lse[b, :count, head] = attended[0].to(q.dtype), attended[1].float()
    return out, lse
