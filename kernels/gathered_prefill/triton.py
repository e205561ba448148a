"""Attention of query blocks to listed tokens on the GPU: the tiles of flash_prefill, their keys chosen by lists.

One kernel serves every sparse prefill: a list has blocks of keys, single columns, or both.
"""

# No `from __future__ import annotations`: Triton reads the annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.flash_prefill.triton import BLOCK_Q, FAR, attend_tokens, store_rows, warps
from kernels.jit import Variant, jit, variant

BLOCK_K = 32
"""Keys per tile: the addresses of gathered ones take registers too."""


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
def listed_prefill_kernel(
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
    block_count: tl.tensor,
    block_offset: tl.tensor,
    column_count: tl.tensor,
    column_index: tl.tensor,
    most_blocks: tl.tensor,
    most_columns: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    width: tl.tensor,
    heads: tl.tensor,
    kv_heads: tl.tensor,
    selections: tl.tensor,
    block: tl.tensor,
    key_block: tl.tensor,
    SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Program (part of a query block, head, batch row): first the blocks of keys of its list, then the columns.

    block_count, column_count [B, selections, blocks]; block_offset, column_index the same by most_blocks, most_columns.
    """
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
    entry = (batch * selections + head * selections // heads) * tl.cdiv(width, block) + number
    last, some = start + stop - 1, first < stop

    sums = tl.zeros((BLOCK_Q, DIM), tl.float32)
    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_Q,), tl.float32)
    pieces = tl.cdiv(key_block, BLOCK_K)
    for piece in range(tl.where(some, tl.load(block_count + entry) * pieces, 0)):
        inside = piece % pieces * BLOCK_K + tl.arange(0, BLOCK_K)
        offset = tl.load(block_offset + entry * most_blocks + piece // pieces)
        t = tl.where(inside < key_block, offset + inside, -1)
        sums, peak, weight = attend_tokens(
            query, key_base, value_base, t, start + i, start + first, last, window, scale, softcap,
            sums, peak, weight, SOFTCAP, WIDTH, DIM,
        )  # fmt: skip
    columns = tl.load(column_count + entry)
    for tile in range(0, tl.where(some, columns, 0), BLOCK_K):
        place = tile + tl.arange(0, BLOCK_K)
        t = tl.load(column_index + entry * most_columns + place, place < columns, -1)
        sums, peak, weight = attend_tokens(
            query, key_base, value_base, t, start + i, start + first, last, window, scale, softcap,
            sums, peak, weight, SOFTCAP, WIDTH, DIM,
        )  # fmt: skip
    where = (batch * width + i) * heads + head
    store_rows(out, lse, where, (weight > 0) & (i < stop), i < end, sums, peak, weight, WIDTH, DIM)


def listed_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    lists: tuple[Tensor, Tensor, Tensor, Tensor],
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    block: int,
    key_block: int,
    *,
    scale: float,
    window: int | None,
    softcap: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Into contiguous `out` and `lse`; lists int32: block_count, block_offset, column_count, column_index."""
    (batch, width, heads, dim), device = q.shape, q.device
    selections = lists[0].shape[1]
    cache_rows = torch.arange(batch, dtype=torch.int32, device=q.device) if rows is None else rows
    listed_prefill_kernel[triton.cdiv(width, block) * triton.cdiv(block, BLOCK_Q), heads, batch](
        *(q, q.stride(0), q.stride(1), q.stride(2)),
        *(key_cache, key_cache.stride(0), key_cache.stride(1)),
        *(value_cache, value_cache.stride(0), value_cache.stride(1)),
        *(starts.to(device), counts.to(device), cache_rows.to(device), out, lse),
        *(*lists, lists[1].shape[3], lists[3].shape[3]),
        *(scale, softcap, FAR if window is None else min(window, FAR)),
        *(width, heads, key_cache.shape[1], selections, block, key_block),
        SOFTCAP=softcap > 0,
        **shapes(dim),
    )


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
    """The contract of `kernels.gathered_prefill.gathered_prefill`: lists of columns only."""
    none = torch.zeros(indices.shape[:3], dtype=torch.int32, device=q.device)
    lists = none, none[..., None], torch.full_like(none, indices.shape[3]), indices
    listed_prefill(
        *(q, key_cache, value_cache, lists, starts, counts, rows),
        block=block,
        key_block=1,
        scale=scale,
        window=window,
        softcap=softcap,
        out=out,
        lse=lse,
    )


def shapes(dim: int) -> dict[str, int]:
    """Tile sizes and launch options by head dimension."""
    tiles = {"WIDTH": dim, "DIM": triton.next_power_of_2(dim), "BLOCK_Q": BLOCK_Q, "BLOCK_K": BLOCK_K}
    return tiles | {"num_warps": warps(dim), "num_stages": 2}


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16, D = 64 and 128."""
    types = "*bf16 i64 i64 i64 *bf16 i64 i64 *bf16 i64 i64 *i32 *i32 *i32 *bf16 *fp32"
    types += " *i32 *i32 *i32 *i32 i32 i32 fp32 fp32 i32 i32 i32 i32 i32 i32 i32"
    return [
        variant(f"listed_prefill-{dim}", listed_prefill_kernel, types, SOFTCAP=0, **shapes(dim)) for dim in (64, 128)
    ]
