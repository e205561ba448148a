"""Causal attention of many new tokens on the GPU: flash attention 2 (Dao, arXiv 2307.08691), forward only.

A program owns a tile of query positions of one head and walks the keys that some of them see.
"""

# No `from __future__ import annotations`: Triton reads the annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, dot, jit, variant

BLOCK_Q = 64
FAR = 1 << 30
"""A window wider than any cache."""


@jit
def attend_tokens(
    query: tl.tensor,
    key_base: tl.tensor,
    value_base: tl.tensor,
    t: tl.tensor,
    position: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    window: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    sums: tl.tensor,
    peak: tl.tensor,
    weight: tl.tensor,
    SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    TREE: tl.constexpr = False,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One online-softmax step over the tokens t [K] for queries at `position` [Q], between `first` and `last`.

    Tokens that no query sees, and negative ones, are not read. TREE: `position` are bit masks of the tokens from
    `first` on instead. Logits are in units of log2.
    """
    d = tl.arange(0, DIM)
    some = (t >= 0) & (t <= last) & (t > first - window)
    valid = some[:, None] & (d < WIDTH)[None, :]
    where = t.to(tl.int64)[:, None] * WIDTH + d[None, :]
    k, v = tl.load(key_base + where, valid, 0.0), tl.load(value_base + where, valid, 0.0)
    logit = dot(query, tl.trans(k), tl.zeros((query.shape[0], t.shape[0]), tl.float32)) * scale
    if SOFTCAP:
        logit = softcap * (2 * tl.sigmoid(2 * logit / softcap) - 1)
    if TREE:
        seen = ((position[:, None] >> (t - first).to(tl.int64)[None, :]) & 1) != 0
    else:
        seen = (t[None, :] <= position[:, None]) & (t[None, :] > position[:, None] - window)
    logit = tl.where(seen & some[None, :], logit * 1.4426950408889634, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(logit, 1))
    level = tl.maximum(new_peak, -3.0e38)  # finite, so that a row that has seen nothing keeps sums of 0
    shrink, p = tl.exp2(peak - level), tl.exp2(logit - level[:, None]).to(v.dtype)
    sums = dot(p, v, sums * shrink[:, None])
    return sums, new_peak, weight * shrink + tl.sum(p.to(tl.float32), 1)


@jit
def store_rows(
    out: tl.tensor,
    lse: tl.tensor,
    where: tl.tensor,
    some: tl.tensor,
    inside: tl.tensor,
    sums: tl.tensor,
    peak: tl.tensor,
    weight: tl.tensor,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """Normalises the sums of rows `where` [Q] of `out` [.., WIDTH] that are `inside`; 0 and -inf for all but `some`."""
    d = tl.arange(0, DIM)
    divisor = tl.where(some, weight, 1.0)
    y = tl.where(some[:, None], sums / divisor[:, None], 0.0)
    tl.store(
        out + where[:, None] * WIDTH + d[None, :], y.to(out.dtype.element_ty), inside[:, None] & (d < WIDTH)[None, :]
    )
    tl.store(lse + where, tl.where(some, (peak + tl.log2(divisor)) * 0.6931471805599453, float("-inf")), inside)


@jit
def flash_prefill_kernel(
    q: tl.tensor,
    q_batch: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    keys: tl.tensor,
    key_outer: tl.tensor,
    key_inner: tl.tensor,
    values: tl.tensor,
    value_outer: tl.tensor,
    value_inner: tl.tensor,
    starts: tl.tensor,
    counts: tl.tensor,
    rows: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    width: tl.tensor,
    heads: tl.tensor,
    kv_heads: tl.tensor,
    SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Program (query tile, head, batch row): q [B, width, heads, WIDTH] -> out alike, lse [B, width, heads]."""
    first, head, batch = tl.program_id(0) * BLOCK_Q, tl.program_id(1), tl.program_id(2).to(tl.int64)
    start, count, row = tl.load(starts + batch), tl.load(counts + batch), tl.load(rows + batch).to(tl.int64)
    i, d = first + tl.arange(0, BLOCK_Q), tl.arange(0, DIM)
    real = (i < count)[:, None] & (d < WIDTH)[None, :]
    query = tl.load(q + batch * q_batch + i[:, None] * q_token + head * q_head + d[None, :], real, 0.0)
    kv_head = (head * kv_heads // heads).to(tl.int64)
    key_base = keys + row * key_outer + kv_head * key_inner
    value_base = values + row * value_outer + kv_head * value_inner
    stop = start + tl.minimum(first + BLOCK_Q, count)
    oldest = tl.maximum(start + first + 1 - window, 0) // BLOCK_K * BLOCK_K

    sums = tl.zeros((BLOCK_Q, DIM), tl.float32)
    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_Q,), tl.float32)
    for tile in range(oldest, tl.where(first < count, stop, 0), BLOCK_K):
        sums, peak, weight = attend_tokens(
            query, key_base, value_base, tile + tl.arange(0, BLOCK_K), start + i, start + first, stop - 1, window,
            scale, softcap, sums, peak, weight, SOFTCAP, WIDTH, DIM,
        )  # fmt: skip
    some = (weight > 0) & (i < count)
    where = (batch * width + i) * heads + head
    store_rows(out, lse, where, some, i < width, sums, peak, weight, WIDTH, DIM)


def block_keys(dim: int) -> int:
    """Keys per tile: as many as leave all sums in registers on every target."""
    return 64 if dim <= 64 else 32


def warps(dim: int) -> int:
    """Twice the threads for twice the sums."""
    return 4 if dim <= 64 else 8


def flash_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """The contract of `kernels.flash_prefill.flash_prefill`, into contiguous `out` and `lse`."""
    (batch, width, heads, dim), device = q.shape, q.device
    if rows is None:
        rows = torch.arange(batch, dtype=torch.int32, device=device)
    flash_prefill_kernel[triton.cdiv(width, BLOCK_Q), heads, batch](
        *(q, q.stride(0), q.stride(1), q.stride(2)),
        *(key_cache, key_cache.stride(0), key_cache.stride(1)),
        *(value_cache, value_cache.stride(0), value_cache.stride(1)),
        *(starts.to(device), counts.to(device), rows.to(device)),
        out,
        lse,
        scale,
        softcap,
        FAR if window is None else min(window, FAR),
        width,
        heads,
        key_cache.shape[1],
        SOFTCAP=softcap > 0,
        WIDTH=dim,
        DIM=triton.next_power_of_2(dim),
        BLOCK_Q=BLOCK_Q,
        BLOCK_K=block_keys(dim),
        num_warps=warps(dim),
        num_stages=2,
    )


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16, D = 64 and 128, and the soft-capped logits of Gemma 2."""
    types = "*bf16 i64 i64 i64 *bf16 i64 i64 *bf16 i64 i64 *i32 *i32 *i32 *bf16 *fp32 fp32 fp32 i32 i32 i32 i32"
    return [
        variant(
            f"flash_prefill-{dim}{'-softcap' * softcap}",
            flash_prefill_kernel,
            types,
            num_warps=warps(dim),
            num_stages=2,
            SOFTCAP=softcap,
            WIDTH=dim,
            DIM=dim,
            BLOCK_Q=BLOCK_Q,
            BLOCK_K=block_keys(dim),
        )
        for dim, softcap in ((64, 0), (128, 0), (128, 1))
    ]
