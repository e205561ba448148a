"""Naive rotary position embedding (Su et al., arXiv 2104.09864) in the half-split layout of Llama, and KV append."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype


def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """x [N, H, D], cos and sin [P, D/2], positions [N] -> x with row i rotated to positions[i], in x's dtype."""
    dtype = accumulate_dtype(x)
    first, second = x.to(dtype).chunk(2, dim=-1)
    c, s = cos.to(dtype)[positions.long(), None], sin.to(dtype)[positions.long(), None]
    return torch.cat((first * c - second * s, second * c + first * s), dim=-1).to(x.dtype)


def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    """Rotate q [N, H, D] and k [N, G, D] in place."""
    q.copy_(rotate(q, cos, sin, positions))
    k.copy_(rotate(k, cos, sin, positions))


def shift(key_cache: Tensor, cos: Tensor, sin: Tensor, deltas: Tensor, rows: Tensor, slots: Tensor) -> None:
    """Rotate the keys [rows[i], :, slots[i]] of the cache [B, G, C, D] on by deltas[i], backwards if negative."""
    index = (rows.long(), slice(None), slots.long())
    keys = key_cache[index]
    backwards, forwards = (rotate(keys, cos, sign * sin, deltas.abs()) for sign in (-1, 1))
    key_cache[index] = torch.where((deltas < 0)[:, None, None], backwards, forwards)


def append(k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, rows: Tensor, slots: Tensor) -> None:
    """Write k and v [N, G, D] to [rows[i], :, slots[i]] of the caches [B, G, C, D]."""
    key_cache[rows.long(), :, slots.long()] = k.to(key_cache.dtype)
    value_cache[rows.long(), :, slots.long()] = v.to(value_cache.dtype)
