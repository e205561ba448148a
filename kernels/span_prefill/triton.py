"""Attention of new tokens to spans of their own on the GPU: one program per tile of queries that chose the same span.

(query, span) pairs are sorted by where their span starts and cut into tiles that share one, as a mixture of experts
sorts its tokens by expert; every pair gives a partial result, and the merge of flash_decode joins those of a query.
"""

# No `from __future__ import annotations`: Triton reads the annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.flash_decode.triton import merge_kernel
from kernels.flash_prefill.triton import FAR, attend_tokens, warps
from kernels.jit import Variant, jit, variant
from kernels.span_prefill.reference import visible_spans

BLOCK_P = 32
"""Pairs per tile."""
BLOCK_K = 32
"""Keys per step."""


@jit
def span_prefill_kernel(
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
    rows: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    spans: tl.tensor,
    order: tl.tensor,
    tiles: tl.tensor,
    partial: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    width: tl.tensor,
    heads: tl.tensor,
    kv_heads: tl.tensor,
    selections: tl.tensor,
    count: tl.tensor,
    SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Program (tile, head of a selection): pairs order[tiles[tile, 0] : tiles[tile, 1]], all of one span and batch row.

    spans [B, width, selections, count, 3] -> partial [B, width, heads, count, WIDTH], largest and total without WIDTH.
    """
    tile, each = tl.program_id(0), heads // selections
    place = tl.load(tiles + 2 * tile) + tl.arange(0, BLOCK_P)
    some = place < tl.load(tiles + 2 * tile + 1)
    leader = tl.load(order + tl.load(tiles + 2 * tile))
    pair = tl.load(order + place, some, 0)
    head = leader // count % selections * each + tl.program_id(1)
    query, batch = pair // (selections * count), leader // (selections * count) // width
    row, kv_head = tl.load(rows + batch).to(tl.int64), head * kv_heads // heads
    start = tl.load(spans + 3 * leader)
    stop = tl.load(spans + 3 * pair + 1, some, 0)
    angle = tl.load(spans + 3 * pair + 2, some, 0).to(tl.int64) * (WIDTH // 2)

    d, half = tl.arange(0, DIM), WIDTH // 2
    other, sign = tl.where(d < half, d + half, d - half), tl.where(d < half, -1.0, 1.0)
    real = some[:, None] & (d < WIDTH)[None, :]
    turn = angle[:, None] + (d % half)[None, :]
    base = q + batch * q_batch + head * q_head + (query - batch * width)[:, None] * q_token
    own, partner = tl.load(base + d[None, :], real, 0.0), tl.load(base + other[None, :], real, 0.0)
    turned = own.to(tl.float32) * tl.load(cos + turn, real, 0.0)
    turned += partner.to(tl.float32) * sign[None, :] * tl.load(sin + turn, real, 0.0)

    sums = tl.zeros((BLOCK_P, DIM), tl.float32)
    peak = tl.full((BLOCK_P,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_P,), tl.float32)
    key_base = keys + row * key_outer + kv_head * key_inner
    value_base = values + row * value_outer + kv_head * value_inner
    end = tl.max(stop, 0)
    for first in range(start, end, BLOCK_K):
        sums, peak, weight = attend_tokens(
            turned.to(q.dtype.element_ty), key_base, value_base, first + tl.arange(0, BLOCK_K), stop - 1, start,
            end - 1, window, scale, softcap, sums, peak, weight, SOFTCAP, WIDTH, DIM,
        )  # fmt: skip
    where = (query * heads + head) * count + pair % count
    tl.store(partial + where[:, None] * WIDTH + d[None, :], sums, real)
    tl.store(largest + where, peak, some)
    tl.store(total + where, weight, some)


def shared_tiles(spans: Tensor) -> tuple[Tensor, Tensor]:
    """spans [B, T, S, n, 3] -> int64 order of the pairs, and [tiles, 2]: which of them make a tile, [first, last)."""
    batch, _, selections, _, _ = spans.shape
    begin, stop, _ = spans.long().unbind(-1)
    reach = int(stop.max()) + 1 if stop.numel() else 1
    owner = torch.arange(batch * selections, device=spans.device).view(batch, 1, selections, 1)
    key = torch.where(stop > begin, owner * reach + begin, -1).flatten()
    key, order = key.sort(stable=True)
    leads = torch.ones_like(key, dtype=torch.bool)
    leads[1:] = key[1:] != key[:-1]
    begins = leads.nonzero()[:, 0]
    ends = torch.cat((begins[1:], begins.new_full((1,), len(key))))[: len(begins)]
    begins, ends = (x[key[begins] >= 0] for x in (begins, ends))
    pieces = (ends - begins + BLOCK_P - 1) // BLOCK_P
    owners = torch.arange(len(pieces), device=spans.device).repeat_interleave(pieces)
    number = torch.arange(len(owners), device=spans.device) - (pieces.cumsum(0) - pieces)[owners]
    first = begins[owners] + number * BLOCK_P
    return order, torch.stack((first, torch.minimum(first + BLOCK_P, ends[owners])), dim=1)


def span_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    spans: Tensor,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    *,
    cos: Tensor,
    sin: Tensor,
    scale: float,
    softcap: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """The contract of `kernels.span_prefill.span_prefill`, into contiguous `out` and `lse`."""
    (batch, width, heads, dim), (selections, count) = q.shape, spans.shape[2:4]
    visible = visible_spans(spans.to(q.device), starts, counts).contiguous()
    order, tiles = shared_tiles(visible)
    cache_rows = torch.arange(batch, device=q.device) if rows is None else rows.to(q.device)
    partial = torch.zeros(batch * width, heads, count, dim, dtype=torch.float32, device=q.device)
    total = partial.new_zeros(partial.shape[:3])
    largest = torch.full_like(total, -torch.inf)
    if len(tiles):
        span_prefill_kernel[len(tiles), heads // selections](
            *(q, q.stride(0), q.stride(1), q.stride(2)),
            *(key_cache, key_cache.stride(0), key_cache.stride(1)),
            *(value_cache, value_cache.stride(0), value_cache.stride(1)),
            *(cache_rows.int(), cos, sin, visible, order, tiles, partial, largest, total),
            *(scale, softcap, FAR, width, heads, key_cache.shape[1], selections, count),
            SOFTCAP=softcap > 0,
            **shapes(dim),
        )
    whole = {"SPLITS": triton.next_power_of_2(max(1, count)), "DIM": triton.next_power_of_2(dim)}
    merge_kernel[(batch * width * heads,)](partial, largest, total, out, lse, count, dim, **whole)


def shapes(dim: int) -> dict[str, int]:
    """Tile sizes and launch options by head dimension."""
    tiles = {"WIDTH": dim, "DIM": triton.next_power_of_2(dim), "BLOCK_P": BLOCK_P, "BLOCK_K": BLOCK_K}
    return tiles | {"num_warps": warps(dim), "num_stages": 2}


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16, D = 64 and 128."""
    types = "*bf16 i64 i64 i64 *bf16 i64 i64 *bf16 i64 i64 *i32 *fp32 *fp32 *i32 *i64 *i64 *fp32 *fp32 *fp32"
    types += " fp32 fp32 i32 i32 i32 i32 i32 i32"
    return [variant(f"span_prefill-{dim}", span_prefill_kernel, types, SOFTCAP=0, **shapes(dim)) for dim in (64, 128)]
