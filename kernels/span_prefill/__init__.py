"""Attention of many new tokens to spans that each chose for itself (card longheads.md, "Kernels" 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.arguments import Ints, as_int32
from kernels.build import Functions
from kernels.flash_prefill import SIGNATURE, check, int_arguments, native_arguments, outputs, readable
from kernels.span_prefill import reference
from kernels.span_prefill.cost import span_prefill_cost

_span_prefill = Functions(
    "span_prefill",
    SIGNATURE + "piipp",
    {torch.float32: "span_prefill_f32", torch.bfloat16: "span_prefill_bf16"},
)


def span_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    spans: Tensor,
    starts: Ints,
    counts: Ints,
    rows: Ints | None = None,
    *,
    cos: Tensor,
    sin: Tensor,
    scale: float,
    softcap: float = 0.0,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q [B, T, H, D], not rotated -> (out [B, T, H, D], lse [B, T, H] fp32), exact softmax attention to the spans.

    spans [B, T, S, n, 3] int32 are those of `kernels.flash_decode.flash_decode`, one list per query: slots
    [start, stop), as far as they are no later than the query (start >= stop is padding), and the position it is rotated
    to for them, with the fp32 tables cos and sin [P, D/2]; keys are used as stored. The spans of a list must not
    overlap. S = 1: all heads share a list, S = G: one per KV head, S = H: one per query head.
    The result is that of flash_decode; here queries whose spans start at the same slot share the loads, and a span that
    starts at a multiple of 32 is cheapest. Of that one, tokens up to the next multiple of 32 may be read, where the row
    has stored them.
    The other arguments are those of `kernels.flash_prefill.flash_prefill`; a query without tokens gives 0 and -inf.
    """
    starts, counts, rows = int_arguments(starts, counts, rows)
    check(q, key_cache, starts, counts, scale, None, spans.shape[2])
    if spans.shape[:2] != q.shape[:2] or spans.shape[4] != 3:
        raise ValueError(f"spans {list(spans.shape)} do not fit q {list(q.shape)}: need a list for every query")
    out, lse = outputs(q, out)
    if counting.active is not None:
        counting.record("span_prefill", span_prefill_cost(q, key_cache.shape[1], spans, starts, counts))
    matches = readable(q, key_cache, value_cache, out) and cos.dtype is torch.float32
    function = _span_prefill[q.dtype] if q.is_cpu else None
    if function is None or not matches:
        given = q, key_cache, value_cache, as_int32(spans), starts, counts, rows
        if matches and arguments.on_gpu(q):
            from kernels.span_prefill import triton as gpu

            gpu.span_prefill(*given, cos=cos, sin=sin, scale=scale, softcap=softcap, out=out, lse=lse)
            return out, lse
        exact, lse = reference.span_prefill(*given, cos=cos, sin=sin, scale=scale, softcap=softcap)
        return out.copy_(exact), lse
    spans = as_int32(spans)
    function(
        *native_arguments(q, key_cache, value_cache, starts, counts, rows, out, lse, scale, softcap, None),
        spans.data_ptr(),
        *spans.shape[2:4],
        cos.data_ptr(),
        sin.data_ptr(),
    )
    return out, lse
