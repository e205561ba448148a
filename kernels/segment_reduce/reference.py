"""Naive reductions over token segments."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype


def segment_sum(x: Tensor, offsets: Tensor, kind: str) -> Tensor:
    """x [..., T, D] -> [..., n, D] in fp32 (fp64 for fp64 inputs), computed in fp64."""
    bounds = offsets.tolist()
    out = x.new_zeros(*x.shape[:-2], len(bounds) - 1, x.shape[-1], dtype=torch.float64)
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if stop > start:
            divisor = {"sum": 1.0, "mean": stop - start, "sqrt": (stop - start) ** 0.5}[kind]
            out[..., i, :] = x[..., start:stop, :].double().sum(dim=-2) / divisor
    return out.to(accumulate_dtype(x))


def probe_pool(x: Tensor, statistics: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """x [m, F] -> [F]: rows weighted by their mean squared deviation, in units of the variance."""
    wide = x.to(accumulate_dtype(x))
    if len(x) == 0:
        return wide.new_zeros(x.shape[1])
    mean, variance = (wide.mean(dim=0), wide.var(dim=0, correction=0)) if statistics is None else statistics
    scores = ((wide - mean).square() / (variance + variance.mean() / 100)).mean(dim=1).nan_to_num(nan=0.0)
    weights = scores / scores.sum() if scores.sum() > 0 else torch.full_like(scores, 1 / len(x))
    return weights @ wide


def segment_mass(
    q: Tensor, keys: Tensor, offsets: Tensor, positions: Tensor, *, scale: float, softcap: float = 0.0
) -> Tensor:
    """q [N, H, D], keys [G, T, D] -> [N, H, n], from whole rows of probabilities."""
    dtype = accumulate_dtype(q)
    heads, kv_heads = q.shape[1], keys.shape[0]
    bounds = offsets.tolist()
    out = q.new_zeros(len(q), heads, len(bounds) - 1, dtype=dtype)
    for i, position in enumerate(positions.tolist()):
        for head in range(heads):
            logits = keys[head * kv_heads // heads, : position + 1].to(dtype) @ q[i, head].to(dtype) * scale
            if softcap:
                logits = softcap * torch.tanh(logits / softcap)
            probabilities = torch.softmax(logits, dim=0)
            for segment, (start, stop) in enumerate(itertools.pairwise(bounds)):
                out[i, head, segment] = probabilities[start:stop].sum()
    return out
