"""Attention of query blocks to listed tokens on the GPU: the tiles of flash_prefill, their keys gathered."""

# No `from __future__ import annotations`: Triton reads the annotations.
import triton
import triton.language as tl
from torch import Tensor

from kernels.flash_prefill.triton import BLOCK_Q, FAR, attend_tokens, store_rows, warps
from kernels.jit import Variant, jit, variant

BLOCK_K = 32
"""Keys per tile: the addresses of gathered ones take registers too."""
TENSORS = "*bf16 i64 i64 i64 *bf16 i64 i64 *bf16 i64 i64 *i32 *i32 *i32 *bf16 *fp32"
"""The arguments that `tensors` gives, for ahead-of-time compilation."""


@jit
def load_queries(
    q: tl.tensor,
    q_batch: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    i: tl.tensor,
    batch: tl.tensor,
    head: tl.tensor,
    last: tl.tensor,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
) -> tl.tensor:
    """Rows i [Q] before `last` of one head of a batch row, [Q, DIM], zeros elsewhere."""
    d = tl.arange(0, DIM)
    real = (i < last)[:, None] & (d < WIDTH)[None, :]
    return tl.load(q + batch * q_batch + i[:, None] * q_token + head * q_head + d[None, :], real, 0.0)


@jit
def gathered_prefill_kernel(
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
    indices: tl.tensor,
    listed: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    width: tl.tensor,
    heads: tl.tensor,
    kv_heads: tl.tensor,
    selections: tl.tensor,
    block: tl.tensor,
    SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Program (part of a query block, head, batch row); indices [B, selections, blocks, listed]."""
    parts = tl.cdiv(block, BLOCK_Q)
    number, head, batch = tl.program_id(0) // parts, tl.program_id(1), tl.program_id(2).to(tl.int64)
    start, count, row = tl.load(starts + batch), tl.load(counts + batch), tl.load(rows + batch).to(tl.int64)
    first = number * block + tl.program_id(0) % parts * BLOCK_Q
    end = tl.minimum(tl.minimum(first + BLOCK_Q, (number + 1) * block), width)
    stop, i = tl.minimum(end, count), first + tl.arange(0, BLOCK_Q)
    query = load_queries(q, q_batch, q_token, q_head, i, batch, head, stop, WIDTH, DIM)
    kv_head = (head * kv_heads // heads).to(tl.int64)
    key_base = keys + row * key_outer + kv_head * key_inner
    value_base = values + row * value_outer + kv_head * value_inner
    blocks = tl.cdiv(width, block)
    tokens = indices + ((batch * selections + head * selections // heads) * blocks + number) * listed

    sums = tl.zeros((BLOCK_Q, DIM), tl.float32)
    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_Q,), tl.float32)
    for tile in range(0, tl.where(first < stop, listed, 0), BLOCK_K):
        place = tile + tl.arange(0, BLOCK_K)
        t = tl.load(tokens + place, place < listed, -1)
        sums, peak, weight = attend_tokens(
            query, key_base, value_base, t, start + i, start + first, start + stop - 1, window, scale, softcap,
            sums, peak, weight, SOFTCAP, WIDTH, DIM,
        )  # fmt: skip
    where = (batch * width + i) * heads + head
    store_rows(out, lse, where, (weight > 0) & (i < stop), i < end, sums, peak, weight, WIDTH, DIM)


def tensors(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor | int, ...]:
    """What the kernels begin with."""
    device = q.device
    cache_rows = starts.new_tensor(range(len(starts))) if rows is None else rows
    return (
        *(q, q.stride(0), q.stride(1), q.stride(2)),
        *(key_cache, key_cache.stride(0), key_cache.stride(1)),
        *(value_cache, value_cache.stride(0), value_cache.stride(1)),
        *(starts.to(device), counts.to(device), cache_rows.to(device), out, lse),
    )


def grid(q: Tensor, block: int) -> tuple[int, int, int]:
    """Parts of at most BLOCK_Q queries of each block, heads and batch rows."""
    batch, width, heads, _ = q.shape
    return triton.cdiv(width, block) * triton.cdiv(block, BLOCK_Q), heads, batch


def gathered_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    *,
    block: int,
    scale: float,
    window: int | None,
    softcap: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """The contract of `kernels.gathered_prefill.gathered_prefill`, into contiguous `out` and `lse`."""
    _, width, heads, dim = q.shape
    _, selections, _, listed = indices.shape
    limit = FAR if window is None else min(window, FAR)
    gathered_prefill_kernel[grid(q, block)](
        *tensors(q, key_cache, value_cache, starts, counts, rows, out, lse),
        indices,
        listed,
        scale,
        softcap,
        limit,
        width,
        heads,
        key_cache.shape[1],
        selections,
        block,
        SOFTCAP=softcap > 0,
        **shapes(dim),
    )


def shapes(dim: int) -> dict[str, int]:
    """Tile sizes and launch options by head dimension."""
    tiles = {"WIDTH": dim, "DIM": triton.next_power_of_2(dim), "BLOCK_Q": BLOCK_Q, "BLOCK_K": BLOCK_K}
    return tiles | {"num_warps": warps(dim), "num_stages": 2}


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16, D = 64 and 128."""
    types = f"{TENSORS} *i32 i32 fp32 fp32 i32 i32 i32 i32 i32 i32"
    return [
        variant(f"gathered_prefill-{dim}", gathered_prefill_kernel, types, SOFTCAP=0, **shapes(dim))
        for dim in (64, 128)
    ]
