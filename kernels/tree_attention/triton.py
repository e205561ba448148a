"""Attention of the nodes of draft trees on the GPU: split over the cache, then merged as in flash_decode."""

# No `from __future__ import annotations`: Triton reads the annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.flash_decode.triton import merge_kernel, split_count
from kernels.flash_prefill.triton import FAR, attend_tokens
from kernels.jit import Variant, jit, variant

BLOCK_K = 32


@jit
def tree_attention_kernel(
    q: tl.tensor,
    q_batch: tl.tensor,
    q_node: tl.tensor,
    q_head: tl.tensor,
    keys: tl.tensor,
    key_outer: tl.tensor,
    key_inner: tl.tensor,
    values: tl.tensor,
    value_outer: tl.tensor,
    value_inner: tl.tensor,
    masks: tl.tensor,
    lengths: tl.tensor,
    counts: tl.tensor,
    partial: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    nodes: tl.tensor,
    heads: tl.tensor,
    kv_heads: tl.tensor,
    SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Program (split, head, batch row): its share of the committed tokens, the last one also the nodes.

    partial [B, nodes, heads, splits, WIDTH], largest and total [B, nodes, heads, splits]; logits in units of log2.
    """
    split, splits = tl.program_id(0), tl.num_programs(0)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    length, count = tl.load(lengths + batch), tl.load(counts + batch)
    n, d = tl.arange(0, NODES), tl.arange(0, DIM)
    real = (n < count)[:, None] & (d < WIDTH)[None, :]
    query = tl.load(q + batch * q_batch + n[:, None] * q_node + head * q_head + d[None, :], real, 0.0)
    bits = tl.load(masks + batch * nodes + n, n < count, 0)
    kv_head = (head * kv_heads // heads).to(tl.int64)
    key_base = keys + batch * key_outer + kv_head * key_inner
    value_base = values + batch * value_outer + kv_head * value_inner
    position = tl.where(n < count, length + n, -1)  # what is no node sees nothing
    begin = (length.to(tl.int64) * split // splits).to(tl.int32)
    end = (length.to(tl.int64) * (split + 1) // splits).to(tl.int32)

    sums = tl.zeros((NODES, DIM), tl.float32)
    peak = tl.full((NODES,), float("-inf"), tl.float32)
    weight = tl.zeros((NODES,), tl.float32)
    for tile in range(begin, tl.where(count > 0, end, begin), BLOCK_K):
        sums, peak, weight = attend_tokens(
            query, key_base, value_base, tile + tl.arange(0, BLOCK_K), position, length, end - 1, window, scale,
            softcap, sums, peak, weight, SOFTCAP, WIDTH, DIM,
        )  # fmt: skip
    for tile in range(0, tl.where(split == splits - 1, count, 0), BLOCK_K):
        sums, peak, weight = attend_tokens(
            query, key_base, value_base, length + tile + tl.arange(0, BLOCK_K), bits, length, length + count - 1,
            window, scale, softcap, sums, peak, weight, SOFTCAP, WIDTH, DIM, True,
        )  # fmt: skip
    where = ((batch * nodes + n) * heads + head) * splits + split
    tl.store(partial + where[:, None] * WIDTH + d[None, :], sums, (n < nodes)[:, None] & (d < WIDTH)[None, :])
    tl.store(largest + where, peak, n < nodes)
    tl.store(total + where, weight, n < nodes)


def tree_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    masks: Tensor,
    lengths: Tensor,
    counts: Tensor,
    scale: float,
    softcap: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """The contract of `kernels.tree_attention.tree_attention`, into contiguous `out` and `lse`."""
    (batch, nodes, heads, dim), device = q.shape, q.device
    if not q.numel():
        return
    splits = split_count(batch * heads, key_cache.shape[2], device)
    partial = torch.empty(batch, nodes, heads, splits, dim, dtype=torch.float32, device=device)
    largest, total = torch.empty(2, batch, nodes, heads, splits, dtype=torch.float32, device=device)
    tree_attention_kernel[(splits, heads, batch)](
        *(q, q.stride(0), q.stride(1), q.stride(2)),
        *(key_cache, key_cache.stride(0), key_cache.stride(1)),
        *(value_cache, value_cache.stride(0), value_cache.stride(1)),
        *(masks, lengths.to(device), counts.to(device), partial, largest, total),
        *(scale, softcap, FAR, nodes, heads, key_cache.shape[1]),
        SOFTCAP=softcap > 0,
        **shapes(nodes, dim),
    )
    merge_kernel[(batch * nodes * heads,)](
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


def shapes(nodes: int, dim: int) -> dict[str, int]:
    """Tile sizes and launch options; a matrix product has 16 rows at least."""
    padded = max(16, triton.next_power_of_2(nodes))
    tiles = {"WIDTH": dim, "DIM": triton.next_power_of_2(dim), "NODES": padded, "BLOCK_K": BLOCK_K}
    return tiles | {"num_warps": 8 if padded * dim > 4096 else 4, "num_stages": 2}


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16, D = 64 and 128, small trees and full ones."""
    types = "*bf16 i64 i64 i64 *bf16 i64 i64 *bf16 i64 i64 *i64 *i32 *i32 *fp32 *fp32 *fp32 fp32 fp32 i32 i32 i32 i32"
    return [
        variant(f"tree_attention-{nodes}-{dim}", tree_attention_kernel, types, SOFTCAP=0, **shapes(nodes, dim))
        for nodes in (16, 64)
        for dim in (64, 128)
    ]
