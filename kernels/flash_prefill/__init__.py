"""Causal attention of many new tokens over a KV cache that holds their prefix (flash attention, Dao 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.arguments import Ints, as_int32, view
from kernels.build import Functions
from kernels.flash_prefill import reference
from kernels.flash_prefill.cost import causal_pairs, flash_prefill_cost

SIGNATURE = "piiipiipiipppppiiiiiffii"
"""The arguments that every prefill function of the C++ core begins with: see `native_arguments`."""
NO_WINDOW = 1 << 31

_flash_prefill = Functions(
    "flash_prefill", SIGNATURE, {torch.float32: "flash_prefill_f32", torch.bfloat16: "flash_prefill_bf16"}
)


def flash_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    starts: Ints,
    counts: Ints,
    rows: Ints | None = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q [B, T, H, D] -> (out [B, T, H, D], lse [B, T, H] fp32), exact causal attention of a ragged batch.

    key_cache, value_cache [N, G, C, D], any batch and head strides. Row b brings counts[b] <= T new tokens, whose keys
    and values are already at slots starts[b], ... of cache row rows[b] (default b); what lies behind them is not read.
    Query i of row b sees the slots [max(0, starts[b] + i + 1 - window), starts[b] + i + 1).
    softcap > 0: logits = softcap * tanh(logits / softcap). The scale must be positive.
    Padding (i >= counts[b]) gives out = 0 and lse = -inf. `out` must be contiguous to be filled without a copy.
    """
    starts, counts, rows = int_arguments(starts, counts, rows)
    check(q, key_cache, starts, counts, scale, window)
    out, lse = outputs(q, out)
    if counting.active is not None:
        _record(q, key_cache, starts, counts, window)
    matches = readable(q, key_cache, value_cache, out)
    function = _flash_prefill[q.dtype] if q.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(q):
            from kernels.flash_prefill import triton as gpu

            gpu.flash_prefill(q, key_cache, value_cache, starts, counts, rows, scale, window, softcap, out, lse)
            return out, lse
        exact, lse = reference.flash_prefill(
            q, key_cache, value_cache, starts, counts, rows, scale=scale, window=window, softcap=softcap
        )
        return out.copy_(exact), lse
    function(*native_arguments(q, key_cache, value_cache, starts, counts, rows, out, lse, scale, softcap, window))
    return out, lse


# ---- shared by the ops on the same core ------------------------------------------------------------------------------


def int_arguments(starts: Ints, counts: Ints, rows: Ints | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The numbers per batch row as the kernels read them."""
    return as_int32(starts), as_int32(counts), None if rows is None else as_int32(rows)


def check(
    q: Tensor, cache: Tensor, starts: Tensor, counts: Tensor, scale: float, window: int | None, heads: int = 0
) -> None:
    """Raises ValueError for what no backend could make sense of; `heads` is the number of selections, if there are."""
    batch, width, query_heads, _ = q.shape
    if len(starts) != batch or len(counts) != batch:
        raise ValueError(f"starts and counts must have one entry for each of the {batch} rows of q")
    if query_heads % cache.shape[1] or heads not in (0, 1, cache.shape[1], query_heads):
        raise ValueError(f"{query_heads} query heads, {cache.shape[1]} KV heads and {heads} selections do not fit")
    if not scale > 0 or (window is not None and window < 1):
        raise ValueError(f"scale {scale} and window {window} must be positive")
    if q.is_cpu and batch and (int(counts.max()) > width or int((starts + counts).max()) > cache.shape[2]):
        raise ValueError(f"counts exceed the {width} queries or, with starts, the {cache.shape[2]} slots of the cache")


def outputs(q: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """(out, lse) to be filled; `out` as given or new."""
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return out, torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)


def readable(q: Tensor, key_cache: Tensor, value_cache: Tensor, out: Tensor) -> bool:
    """One dtype, elements side by side, tokens D apart, and whole vectors of 16 elements."""
    head_dim = q.shape[3]
    if not key_cache.dtype is value_cache.dtype is q.dtype or head_dim % 16 or not out.is_contiguous():
        return False
    last = (head_dim, 1)
    return q.stride()[3] == 1 and key_cache.stride()[2:] == value_cache.stride()[2:] == last


def native_arguments(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    softcap: float,
    window: int | None,
) -> tuple[int | float | None, ...]:
    """What `SIGNATURE` stands for."""
    pointers = tuple(None if x is None else x.data_ptr() for x in (starts, counts, rows, out, lse))
    sizes = (*q.shape[:3], key_cache.shape[1], q.shape[3])
    views = (q.data_ptr(), *q.stride()[:3], *view(key_cache), *view(value_cache))
    limit = NO_WINDOW if window is None else min(window, NO_WINDOW)
    return (*views, *pointers, *sizes, scale, softcap, limit, torch.get_num_threads())


def _record(q: Tensor, cache: Tensor, starts: Tensor, counts: Tensor, window: int | None) -> None:
    pairs, tokens = causal_pairs(starts.tolist(), counts.tolist(), window)
    queries = int(counts.sum())
    cost = flash_prefill_cost(pairs, tokens, queries, q.shape, cache.shape[1], q.element_size())
    counting.record("flash_prefill", cost)
