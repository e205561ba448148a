"""Naive moves of tokens in KV caches: everything is read into a copy first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gather(source: Tensor, index: Tensor) -> Tensor:
    """The contract of `kernels.kv_move.gather` for index [B, n]."""
    batch, heads, _, dim = source.shape
    out = source.new_zeros(batch, heads, index.shape[1], dim)
    for b, tokens in enumerate(index.tolist()):
        for i, token in enumerate(tokens):
            if token >= 0:
                out[b, :, i] = source[b, :, token]
    return out


def compact(caches: Sequence[Tensor], index: Tensor, starts: Tensor) -> None:
    """The contract of `kernels.kv_move.compact`."""
    for cache in caches:
        before = cache.clone()
        for b, (start, tokens) in enumerate(zip(starts.tolist(), index.tolist(), strict=True)):
            for i, token in enumerate(tokens):
                if token < 0:
                    break
                cache[b, :, start + i] = before[b, :, token]


def copy_slots(caches: Sequence[Tensor], pairs: Tensor, lengths: Tensor) -> None:
    """The contract of `kernels.kv_move.copy_slots`."""
    for cache in caches:
        before = cache.clone()
        for (source, target), length in zip(pairs.tolist(), lengths.tolist(), strict=True):
            cache[target, :, :length] = before[source, :, :length]


def raw(x: Tensor) -> Tensor:
    """The bits of x as integers, which compare exactly."""
    return x.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
