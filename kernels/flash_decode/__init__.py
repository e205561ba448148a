"""Exact split-KV attention of few query rows over chosen spans of a KV cache (flash-decoding, Dao et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.arguments import as_int32, view
from kernels.build import Functions
from kernels.flash_decode import reference
from kernels.flash_decode.cost import distinct_tokens, flash_decode_cost

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
    S = 1: all heads read the same spans, S = G: one selection per KV head, S = H: one per query head. What rows that
    follow each other begin with in common (S = 1, no tables) is read once for all of them where it is long and they are
    many.
    softcap > 0: logits = softcap * tanh(logits / softcap). An empty selection gives out = 0 and lse = -inf.
    """
    rows_count, heads, head_dim = q.shape
    if out is None:
        out = q.new_empty(rows_count, heads, head_dim)
    if counting.active is not None:
        _record(q, key_cache, spans, rows, cos)
    matches = _readable(q, key_cache, out) and (cos is None or cos.dtype is torch.float32)
    function = _flash_decode[q.dtype] if q.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(q):
            from kernels.flash_decode import triton as gpu

            tables = None if cos is None or sin is None else (cos, sin)
            index = as_int32(spans), as_int32(rows)
            return gpu.flash_decode(q, key_cache, value_cache, *index, tables, scale, softcap, out)
        exact, lse = reference.flash_decode(
            q, key_cache, value_cache, spans, rows, cos=cos, sin=sin, scale=scale, softcap=softcap
        )
        return out.copy_(exact), lse
    lse = q.new_empty(rows_count, heads, dtype=torch.float32)
    spans, rows = as_int32(spans), as_int32(rows)
    _, selections, span_count, _ = spans.shape
    angles = [None if table is None else table.data_ptr() for table in (cos, sin)]
    chosen = spans.data_ptr(), selections, span_count, rows.data_ptr(), *angles, scale, softcap
    sizes = rows_count, heads, key_cache.shape[1], head_dim, torch.get_num_threads()
    function(*view(q), *view(key_cache), *view(value_cache), *chosen, out.data_ptr(), lse.data_ptr(), *sizes)
    return out, lse


def dense_spans(lengths: Sequence[int] | Tensor) -> Tensor:
    """lengths [N] -> spans [N, 1, 1, 3]: row i reads tokens [0, lengths[i]) and is rotated to its last position."""
    stop = torch.as_tensor(lengths, dtype=torch.int32)
    return torch.stack((torch.zeros_like(stop), stop, stop - 1), dim=-1)[:, None, None]


def paged(pool: Tensor) -> Tensor:
    """A pool of pages [P, G, page, D], contiguous, as a cache [1, G, C, D] whose spans are those of `page_spans`.

    A view: no key moves. Page p of every KV head is the tokens [p G page, p G page + page) of that cache.
    """
    pages, kv_heads, page, head_dim = pool.shape
    if not pool.is_contiguous():
        raise ValueError("a pool of pages must be contiguous")
    slots = max(0, pages * kv_heads - kv_heads + 1) * page
    return pool.as_strided((1, kv_heads, slots, head_dim), (0, page * head_dim, head_dim, 1))


def page_spans(pages: Tensor, lengths: Tensor, page: int, kv_heads: int) -> Tensor:
    """Page table [N, n] int32 and lengths [N] -> spans [N, 1, n, 3] over `paged(pool)`, every row's row being 0.

    Row i reads its first lengths[i] tokens, token t in page pages[i, t // page]; entries of the table behind them are
    not looked at. All spans are rotated to the last position. The pages of a row must differ.
    """
    if pages.shape[1] * page < int(lengths.max()):
        raise ValueError(f"{pages.shape[1]} pages of {page} tokens do not hold {int(lengths.max())}")
    filled = (lengths[:, None] - torch.arange(pages.shape[1], device=pages.device) * page).clamp(0, page)
    starts = torch.where(filled > 0, pages * (kv_heads * page), 0)
    last = (lengths - 1)[:, None].expand_as(starts)
    return torch.stack((starts, starts + filled, last), dim=-1).int()[:, None]


def _readable(q: Tensor, cache: Tensor, out: Tensor) -> bool:
    """One dtype, elements side by side, tokens D apart, and whole vectors of 16 elements."""
    head_dim = q.shape[2]
    if cache.dtype is not q.dtype or head_dim % 16 or not out.is_contiguous():
        return False
    return q.stride()[2] == 1 and cache.stride()[2:] == (head_dim, 1)


def _record(q: Tensor, cache: Tensor, spans: Tensor, rows: Tensor, cos: Tensor | None) -> None:
    lengths = spans[..., 1] - spans[..., 0]
    query_rows, heads, head_dim = q.shape
    _, selections, span_count, _ = spans.shape
    cost = flash_decode_cost(
        int(lengths.sum()),
        selections,
        query_rows,
        heads,
        cache.shape[1],
        head_dim,
        q.element_size(),
        span_count=span_count,
        rotations=0 if cos is None else int((lengths > 0).sum()) * heads // selections,
        distinct=distinct_tokens(spans, rows),
    )
    counting.record("flash_decode", cost)
