"""Naive attention of new tokens to spans of their own: every query is decoded alone."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.flash_decode import reference


def span_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    spans: Tensor,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    *,
    cos: Tensor,
    sin: Tensor,
    scale: float,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The contract of `kernels.span_prefill.span_prefill`, computed in fp32 (fp64 for fp64 inputs)."""
    visible = visible_spans(spans, starts, counts)
    cache_rows = torch.arange(len(q), device=q.device) if rows is None else rows
    each = cache_rows.to(q.device).repeat_interleave(q.shape[1])
    out, lse = reference.flash_decode(
        q.flatten(0, 1), key_cache, value_cache, visible.flatten(0, 1), each,
        cos=cos, sin=sin, scale=scale, softcap=softcap,
    )  # fmt: skip
    return out.view(q.shape), lse.view(q.shape[:3])


def visible_spans(spans: Tensor, starts: Tensor, counts: Tensor) -> Tensor:
    """spans [B, T, S, n, 3] cut at the query's own slot; those of padding queries, and padding, are made empty."""
    i = torch.arange(spans.shape[1], device=spans.device)
    end = torch.where(i < counts.to(spans.device)[:, None], starts.to(spans.device)[:, None] + i + 1, 0)
    begin, stop, position = spans.unbind(-1)
    stop = torch.maximum(torch.minimum(stop, end[..., None, None]), begin)
    return torch.stack((begin, stop, position), dim=-1)
