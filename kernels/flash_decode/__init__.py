"""Exact split-KV attention of few query rows over chosen spans of a KV cache (flash-decoding, Dao et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import counting
from kernels.arguments import as_int32
from kernels.build import Functions
from kernels.flash_decode import reference
from kernels.flash_decode.cost import flash_decode_cost

_flash_decode = Functions(
    "flash_decode",
    "piipiipiipiipppffppiiiii",
    {torch.float32: "flash_decode_f32", torch.bfloat16: "flash_decode_bf16"},
)


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
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q [N, H, D] -> (out [N, H, D], lse [N, H] fp32), exact softmax attention over the selected tokens.

    key_cache, value_cache [B, G, C, D], any batch and head strides; query row i reads batch row rows[i].
    spans [N, S, n, 3] int32: token range [start, stop) (start == stop is padding) and the position the query is
    rotated to for this span, with the fp32 tables cos and sin [P, D/2]; keys are used as stored. Without tables the
    query is used as given. The spans of one selection must not overlap.
    S = 1: all heads read the same spans, S = G: one selection per KV head, S = H: one per query head.
    softcap > 0: logits = softcap * tanh(logits / softcap). An empty selection gives out = 0 and lse = -inf.
    """
    if out is None:
        out = q.new_empty(q.shape)
    if counting.active is not None:
        _record(q, key_cache, spans, cos)
    function = _flash_decode.get(q.dtype) if q.is_cpu and _readable(q, key_cache) else None
    if function is None or (cos is not None and cos.dtype is not torch.float32):
        exact, lse = reference.flash_decode(
            q, key_cache, value_cache, spans, rows, cos=cos, sin=sin, scale=scale, softcap=softcap
        )
        return out.copy_(exact), lse
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    spans, rows = as_int32(spans), as_int32(rows)
    function(
        *_view(q),
        *_view(key_cache),
        *_view(value_cache),
        spans.data_ptr(),
        spans.size(1),
        spans.size(2),
        rows.data_ptr(),
        None if cos is None else cos.data_ptr(),
        None if sin is None else sin.data_ptr(),
        scale,
        softcap,
        out.data_ptr(),
        lse.data_ptr(),
        q.size(0),
        q.size(1),
        key_cache.size(1),
        q.size(2),
        torch.get_num_threads(),
    )
    return out, lse


def dense_spans(lengths: Sequence[int] | Tensor) -> Tensor:
    """lengths [N] -> spans [N, 1, 1, 3]: row i reads tokens [0, lengths[i]) and is rotated to its last position."""
    stop = torch.as_tensor(lengths, dtype=torch.int32)
    return torch.stack((torch.zeros_like(stop), stop, stop - 1), dim=-1)[:, None, None]


def _view(x: Tensor) -> tuple[int, int, int]:
    """Pointer and the two leading strides."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def _readable(q: Tensor, cache: Tensor) -> bool:
    """One dtype, elements side by side, tokens D apart, and whole vectors of 16 elements."""
    head_dim = q.size(2)
    return cache.dtype is q.dtype and q.stride(2) == 1 and cache.stride(2) == head_dim and head_dim % 16 == 0


def _record(q: Tensor, cache: Tensor, spans: Tensor, cos: Tensor | None) -> None:
    lengths = spans[..., 1] - spans[..., 0]
    selections = spans.size(1)
    rotations = 0 if cos is None else int((lengths > 0).sum()) * q.size(1) // selections
    cost = flash_decode_cost(
        int(lengths.sum()),
        selections,
        *q.shape[:2],
        *cache.shape[1::2],
        q.element_size(),
        span_count=spans.size(2),
        rotations=rotations,
    )
    counting.record("flash_decode", cost)
