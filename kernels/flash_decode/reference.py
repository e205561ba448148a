"""Naive attention of query rows over spans of a KV cache: one softmax per query row and head."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype
from kernels.rope.reference import rotate


def flash_decode(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    spans: Tensor,
    rows: Tensor,
    *,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    scale: float,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The contract of `kernels.flash_decode.flash_decode`, computed in fp32 (fp64 for fp64 inputs)."""
    dtype = accumulate_dtype(q)
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=torch.float32, device=q.device)
    heads, kv_heads = q.size(1), key_cache.size(1)
    for i in range(q.size(0)):
        for head in range(heads):
            chosen = spans[i, head * spans.size(1) // heads]
            logits, values = [], []
            for start, stop, position in chosen.tolist():
                where = (int(rows[i]), head * kv_heads // heads, slice(start, stop))
                query = q[i : i + 1, head : head + 1].to(dtype)
                if cos is not None and sin is not None and stop > start:
                    query = rotate(query, cos, sin, torch.tensor([position], device=q.device))
                logits.append(key_cache[where].to(dtype) @ query[0, 0] * scale)
                values.append(value_cache[where].to(dtype))
            scores = torch.cat(logits)
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            if len(scores):
                out[i, head] = (torch.softmax(scores, 0) @ torch.cat(values)).to(q.dtype)
                lse[i, head] = torch.logsumexp(scores, 0)
    return out, lse
