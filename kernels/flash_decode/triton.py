"""Split-KV attention over token spans on the GPU: partial results per split, then a merge through the log-sum-exp."""

# No `from __future__ import annotations`: Triton reads the annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, dot, jit, variant

LEAST_TOKENS = 256  # per split; less does not pay for the merge
TENSOR_CORE_ROWS = 16
PROGRAMS_PER_PROCESSOR = 4


@jit
def rotated_query(
    q: tl.tensor,
    head_stride: tl.tensor,
    h: tl.tensor,
    valid: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    dim: tl.tensor,
    DIM: tl.constexpr,
) -> tl.tensor:
    """Rows h of q [heads, dim], rotated by the angles cos and sin [dim/2]: fp32 [h, DIM]."""
    d, half = tl.arange(0, DIM), dim // 2
    other, sign = tl.where(d < half, d + half, d - half), tl.where(d < half, -1.0, 1.0)
    c, s = tl.load(cos + d % half, d < dim, 0.0), tl.load(sin + d % half, d < dim, 0.0)
    own = tl.load(q + h[:, None] * head_stride + d[None, :], valid, 0.0).to(tl.float32)
    partner = tl.load(q + h[:, None] * head_stride + other[None, :], valid, 0.0).to(tl.float32)
    return own * c[None, :] + partner * (sign * s)[None, :]


@jit
def partial_kernel(
    q: tl.tensor,
    q_outer: tl.tensor,
    q_inner: tl.tensor,
    keys: tl.tensor,
    key_outer: tl.tensor,
    key_inner: tl.tensor,
    values: tl.tensor,
    value_outer: tl.tensor,
    value_inner: tl.tensor,
    spans: tl.tensor,
    selections: tl.tensor,
    span_count: tl.tensor,
    cache_rows: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    partial: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    groups: tl.tensor,
    kv_heads: tl.tensor,
    group_heads: tl.tensor,
    dim: tl.tensor,
    ROTATE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    """Program (row, group, split): its share of the selected tokens -> unnormalised sums, largest logit, total weight.

    partial [rows, heads, splits, dim], largest and total [rows, heads, splits]; logits are in units of log2.
    """
    row, group, split, splits = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    heads = groups * group_heads
    h, d, t = tl.arange(0, HEADS), tl.arange(0, DIM), tl.arange(0, BLOCK_T)
    head = group * group_heads + h
    valid_q = (h < group_heads)[:, None] & (d < dim)[None, :]
    cache_row, kv_head = tl.load(cache_rows + row).to(tl.int64), group * kv_heads // groups
    key_base = keys + cache_row * key_outer + kv_head.to(tl.int64) * key_inner
    value_base = values + cache_row * value_outer + kv_head.to(tl.int64) * value_inner
    span = spans + (row * selections + group % selections).to(tl.int64) * span_count * 3

    tokens = tl.full((), 0, tl.int32)
    for i in range(span_count):
        tokens += tl.load(span + 3 * i + 1) - tl.load(span + 3 * i)
    begin = (tokens.to(tl.int64) * split // splits).to(tl.int32)
    end = (tokens.to(tl.int64) * (split + 1) // splits).to(tl.int32)

    sums = tl.zeros((HEADS, DIM), tl.float32)
    peak = tl.full((HEADS,), float("-inf"), tl.float32)
    weight = tl.zeros((HEADS,), tl.float32)
    row_q = q + row * q_outer
    query = tl.load(row_q + head[:, None] * q_inner + d[None, :], valid_q, 0.0)
    before = tl.full((), 0, tl.int32)
    for i in range(span_count):
        start, stop = tl.load(span + 3 * i), tl.load(span + 3 * i + 1)
        first, last = start + tl.maximum(begin - before, 0), start + tl.minimum(stop - start, end - before)
        before += stop - start
        if ROTATE:  # noqa: SIM102 - known when compiling
            if first < last:
                table = tl.load(span + 3 * i + 2).to(tl.int64) * (dim // 2)
                turned = rotated_query(row_q, q_inner, head, valid_q, cos + table, sin + table, dim, DIM)
                query = turned.to(q.dtype.element_ty)
        for tile in range(first, last, BLOCK_T):
            token = (tile + t).to(tl.int64)
            valid = (tile + t < last)[:, None] & (d < dim)[None, :]
            k = tl.load(key_base + token[:, None] * dim + d[None, :], valid, 0.0)
            v = tl.load(value_base + token[:, None] * dim + d[None, :], valid, 0.0)
            logit = dot(query, tl.trans(k), tl.zeros((HEADS, BLOCK_T), tl.float32)) * scale
            if SOFTCAP:
                logit = softcap * (2 * tl.sigmoid(2 * logit / softcap) - 1)
            logit = tl.where((tile + t < last)[None, :], logit * 1.4426950408889634, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(logit, 1))
            shrink, p = tl.exp2(peak - new_peak), tl.exp2(logit - new_peak[:, None]).to(v.dtype)
            sums = dot(p, v, sums * shrink[:, None])
            weight = weight * shrink + tl.sum(p.to(tl.float32), 1)
            peak = new_peak
    where = (row * heads + head).to(tl.int64) * splits + split
    tl.store(partial + where[:, None] * dim + d[None, :], sums, valid_q)
    tl.store(largest + where, peak, h < group_heads)
    tl.store(total + where, weight, h < group_heads)


@jit
def merge_kernel(
    partial: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    splits: tl.tensor,
    dim: tl.tensor,
    SPLITS: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """One program per row and head: the splits into one normalised output and its log-sum-exp."""
    item, s, d = tl.program_id(0).to(tl.int64), tl.arange(0, SPLITS), tl.arange(0, DIM)
    peaks = tl.load(largest + item * splits + s, s < splits, float("-inf"))
    peak = tl.maximum(tl.max(peaks, 0), -3.0e38)  # finite, so that an empty selection gives factors of 0
    factor = tl.exp2(peaks - peak)
    weight = tl.sum(factor * tl.load(total + item * splits + s, s < splits, 0.0), 0)
    valid = (s < splits)[:, None] & (d < dim)[None, :]
    parts = tl.load(partial + (item * splits + s)[:, None] * dim + d[None, :], valid, 0.0)
    divisor = tl.where(weight > 0, weight, 1.0)
    y = tl.sum(parts * factor[:, None], 0) / divisor
    tl.store(out + item * dim + d, y.to(out.dtype.element_ty), d < dim)
    tl.store(lse + item, tl.where(weight > 0, (peak + tl.log2(divisor)) * 0.6931471805599453, float("-inf")))


def block_tokens(dim: int) -> int:
    """Keys per tile: as many as leave everything in registers on every target."""
    return 64 if dim <= 64 else 32


def warps(*, rotate: bool) -> int:
    """Turning a query between two spans takes registers beside the sums: more threads share them."""
    return 8 if rotate else 4


def split_count(items: int, tokens: int, device: torch.device) -> int:
    """Enough splits to fill the GPU, if the longest selection has the tokens for them."""
    if device.type != "cuda":
        return min(2, tokens)  # the interpreter: enough to test the merge
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(PROGRAMS_PER_PROCESSOR * processors // items, tokens // LEAST_TOKENS))


def flash_decode(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    spans: Tensor,
    rows: Tensor,
    tables: tuple[Tensor, Tensor] | None,
    scale: float,
    softcap: float,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """The contract of `kernels.flash_decode.flash_decode`, into contiguous `out`."""
    (n, heads, dim), kv_heads, (_, selections, span_count, _) = q.shape, key_cache.shape[1], spans.shape
    groups = heads if selections == heads else kv_heads
    splits = split_count(n * groups, key_cache.shape[2], q.device)
    partial = q.new_empty(n, heads, splits, dim, dtype=torch.float32)
    largest, total = partial.new_empty(n, heads, splits), partial.new_empty(n, heads, splits)
    lse = partial.new_empty(n, heads)
    partial_kernel[n, groups, splits](
        *(q, q.stride(0), q.stride(1)),
        *(key_cache, key_cache.stride(0), key_cache.stride(1)),
        *(value_cache, value_cache.stride(0), value_cache.stride(1)),
        spans,
        selections,
        span_count,
        rows,
        *(tables or (None, None)),
        scale,
        softcap,
        partial,
        largest,
        total,
        groups,
        kv_heads,
        heads // groups,
        dim,
        ROTATE=tables is not None,
        SOFTCAP=softcap > 0,
        HEADS=max(TENSOR_CORE_ROWS, triton.next_power_of_2(heads // groups)),
        DIM=triton.next_power_of_2(dim),
        BLOCK_T=block_tokens(dim),
        num_warps=warps(rotate=tables is not None),
    )
    merge_kernel[(n * heads,)](
        partial,
        largest,
        total,
        out,
        lse,
        splits,
        dim,
        SPLITS=triton.next_power_of_2(splits),
        DIM=triton.next_power_of_2(dim),
    )
    return out, lse


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16, D = 64 and 128, with and without span rotation."""
    types = (
        "*bf16 i32 i32 *bf16 i64 i64 *bf16 i64 i64 *i32 i32 i32 *i32 *fp32 *fp32 fp32 fp32 *fp32 *fp32 *fp32 "
        + "i32 " * 4
    )
    made = [
        variant(
            f"flash_decode-{dim}{'-rotated' * rotate}",
            partial_kernel,
            types,
            ROTATE=rotate,
            SOFTCAP=0,
            HEADS=TENSOR_CORE_ROWS,
            DIM=dim,
            BLOCK_T=block_tokens(dim),
            num_warps=warps(rotate=bool(rotate)),
        )
        for dim in (64, 128)
        for rotate in (0, 1)
    ]
    merge = variant("flash_decode-merge", merge_kernel, "*fp32 *fp32 *fp32 *bf16 *fp32 i32 i32", SPLITS=64, DIM=128)
    return [*made, merge]
