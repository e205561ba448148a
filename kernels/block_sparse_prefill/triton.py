"""Attention of query blocks to chosen blocks of keys, and to single columns, on the GPU."""

# No `from __future__ import annotations`: Triton reads the annotations.
import triton.language as tl
from torch import Tensor

from kernels.block_sparse_prefill.lists import VerticalSlash
from kernels.flash_prefill.triton import FAR, attend_tokens, store_rows
from kernels.gathered_prefill.triton import TENSORS, grid, load_queries, shapes, tensors
from kernels.jit import Variant, jit, variant


@jit
def block_sparse_prefill_kernel(
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
    tiles: tl.tensor,
    key_blocks: tl.tensor,
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
    """Program (part of a query block, head, batch row); tiles [B, selections, blocks, key_blocks], a byte each."""
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
    kept = tiles + ((batch * selections + head * selections // heads) * blocks + number) * key_blocks
    last = start + stop - 1

    sums = tl.zeros((BLOCK_Q, DIM), tl.float32)
    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_Q,), tl.float32)
    for j in range(tl.where(first < stop, tl.minimum(key_blocks, last // key_block + 1), 0)):
        size = tl.where(tl.load(kept + j) != 0, key_block, 0)
        for tile in range(0, size, BLOCK_K):
            inside = tile + tl.arange(0, BLOCK_K)
            t = tl.where(inside < key_block, j * key_block + inside, -1)
            sums, peak, weight = attend_tokens(
                query, key_base, value_base, t, start + i, start + first, last, window, scale, softcap,
                sums, peak, weight, SOFTCAP, WIDTH, DIM,
            )  # fmt: skip
    where = (batch * width + i) * heads + head
    store_rows(out, lse, where, (weight > 0) & (i < stop), i < end, sums, peak, weight, WIDTH, DIM)


@jit
def vertical_slash_kernel(
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
    SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Program (part of a query block, head, batch row): first the blocks of its list, then the columns."""
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
    pieces = tl.cdiv(block, BLOCK_K)
    for piece in range(tl.where(some, tl.load(block_count + entry) * pieces, 0)):
        inside = piece % pieces * BLOCK_K + tl.arange(0, BLOCK_K)
        offset = tl.load(block_offset + entry * most_blocks + piece // pieces)
        t = tl.where(inside < block, offset + inside, -1)
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


def block_sparse_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    tiles: Tensor,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    block: tuple[int, int],
    scale: float,
    softcap: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """The contract of `kernels.block_sparse_prefill.block_sparse_prefill`, into contiguous `out` and `lse`."""
    _, width, heads, dim = q.shape
    _, selections, _, key_blocks = tiles.shape
    block_sparse_prefill_kernel[grid(q, block[0])](
        *tensors(q, key_cache, value_cache, starts, counts, rows, out, lse),
        *(tiles.byte(), key_blocks),
        *(scale, softcap, FAR),
        *(width, heads, key_cache.shape[1], selections, *block),
        SOFTCAP=softcap > 0,
        **shapes(dim),
    )


def vertical_slash_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    lists: VerticalSlash,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    block: int,
    scale: float,
    softcap: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """The contract of `kernels.block_sparse_prefill.vertical_slash_prefill`, into contiguous `out` and `lse`."""
    _, width, heads, dim = q.shape
    vertical_slash_kernel[grid(q, block)](
        *tensors(q, key_cache, value_cache, starts, counts, rows, out, lse),
        *(*lists, lists.block_offset.shape[3], lists.column_index.shape[3]),
        *(scale, softcap, FAR),
        *(width, heads, key_cache.shape[1], lists.selections, block),
        SOFTCAP=softcap > 0,
        **shapes(dim),
    )


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16, D = 64 and 128."""
    tiled = f"{TENSORS} *u8 i32 fp32 fp32 i32 i32 i32 i32 i32 i32 i32"
    listed = f"{TENSORS} *i32 *i32 *i32 *i32 i32 i32 fp32 fp32 i32 i32 i32 i32 i32 i32"
    kernels = (
        ("block_sparse_prefill", block_sparse_prefill_kernel, tiled),
        ("vertical_slash", vertical_slash_kernel, listed),
    )
    return [
        variant(f"{name}-{dim}", kernel, types, SOFTCAP=0, **shapes(dim))
        for name, kernel, types in kernels
        for dim in (64, 128)
    ]
