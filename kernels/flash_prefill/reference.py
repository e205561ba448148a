"""Naive causal attention of new tokens over a KV cache: one softmax per query row and head."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype


def attend(
    q: Tensor, keys: Tensor, values: Tensor, allowed: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """q [n, D], keys and values [m, D], allowed bool [n, m] -> (out [n, D], lse [n]); rows without keys give 0, -inf.

    What no query may see is left out, so that even NaN there does not matter.
    """
    seen = allowed.any(0)
    keys, values, allowed = keys[seen].to(q.dtype), values[seen].to(q.dtype), allowed[:, seen]
    logits = q @ keys.T * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(logits, 1).nan_to_num() if allowed.shape[1] else logits
    return weights @ values, torch.logsumexp(logits, 1)


def flash_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The contract of `kernels.flash_prefill.flash_prefill`, computed in fp32 (fp64 for fp64 inputs)."""
    out, lse = torch.zeros_like(q), torch.full(q.shape[:3], -torch.inf, device=q.device)
    heads, kv_heads = q.shape[2], key_cache.shape[1]
    for b, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        tokens = torch.arange(start + count, device=q.device)
        allowed = visible(tokens, tokens[start:], window)
        row = b if rows is None else int(rows[b])
        for head in range(heads):
            where = (row, head * kv_heads // heads, tokens)
            query = q[b, :count, head].to(accumulate_dtype(q))
            attended = attend(query, key_cache[where], value_cache[where], allowed, scale, softcap)
            out[b, :count, head], lse[b, :count, head] = attended[0].to(q.dtype), attended[1].float()
    return out, lse


def visible(tokens: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """tokens [m] and positions of queries [n] -> bool [n, m]: not in the future, and inside the window."""
    allowed = tokens <= positions[:, None]
    return allowed if window is None else allowed & (tokens > positions[:, None] - window)
