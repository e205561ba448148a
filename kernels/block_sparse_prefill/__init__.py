"""Attention of query blocks to chosen blocks of keys: tile masks, and vertical-slash lists (MInference, Jiang et al.
2024; card qwen2_5_1m.md, "Kernels")."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.arguments import Ints, as_int32
from kernels.block_sparse_prefill import reference
from kernels.block_sparse_prefill.cost import block_sparse_prefill_cost, vertical_slash_prefill_cost
from kernels.block_sparse_prefill.lists import VerticalSlash, tile_lists
from kernels.build import Functions
from kernels.flash_prefill import SIGNATURE, check, int_arguments, native_arguments, outputs, readable

__all__ = ["VerticalSlash", "block_sparse_prefill", "vertical_slash_prefill"]

KEY_STEP = 32
_F32, _BF16 = torch.float32, torch.bfloat16
_block_sparse = Functions(
    "block_sparse_prefill",
    SIGNATURE + "piiii",
    {_F32: "block_sparse_prefill_f32", _BF16: "block_sparse_prefill_bf16"},
)
_vertical_slash = Functions(
    "block_sparse_prefill",
    SIGNATURE + "ppppiiii",
    {_F32: "vertical_slash_prefill_f32", _BF16: "vertical_slash_prefill_bf16"},
)


def block_sparse_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    tiles: Tensor,
    starts: Ints,
    counts: Ints,
    rows: Ints | None = None,
    *,
    block: tuple[int, int] = (64, 64),
    scale: float,
    softcap: float = 0.0,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q [B, T, H, D] -> (out [B, T, H, D], lse [B, T, H] fp32), exact causal attention inside the kept tiles.

    tiles [B, S, ceil(T / m), n] bool with (m, k) = block: whether the queries [i m, (i + 1) m) of a row see the slots
    [j k, (j + 1) k) of its cache, as far as they are not in their future; n k must reach every stored token that is
    to be seen. S = 1: all heads share a mask, S = G: one per KV head, S = H: one per query head.
    Key blocks that are multiples of 32 are served by the kernels, others by the reference. Of a kept tile that reaches
    into the future, tokens up to the next multiple of 32 may be read, where the row has stored them.
    The other arguments are those of `kernels.flash_prefill.flash_prefill`; a query without tokens gives 0 and -inf.
    """
    starts, counts, rows = int_arguments(starts, counts, rows)
    check(q, key_cache, starts, counts, scale, None, tiles.shape[1])
    if tiles.shape[0] != q.shape[0] or tiles.shape[2] != -(-q.shape[1] // block[0]):
        raise ValueError(f"tiles {list(tiles.shape)} do not fit q {list(q.shape)} in blocks of {block[0]}")
    if tiles.dtype is not torch.bool:
        raise ValueError(f"tiles must be bool, not {tiles.dtype}")
    out, lse = outputs(q, out)
    if counting.active is not None:
        cost = block_sparse_prefill_cost(q, key_cache.shape[1], tiles, starts, counts, block)
        counting.record("block_sparse_prefill", cost)
    tiles = tiles.contiguous()
    matches = readable(q, key_cache, value_cache, out) and block[1] % KEY_STEP == 0
    function = _block_sparse[q.dtype] if q.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(q):
            from kernels.block_sparse_prefill import triton as gpu

            lists = tile_lists(tiles, starts, counts, block)
            given, sizes = (q, key_cache, value_cache, lists, starts, counts, rows), block
            gpu.listed_prefill(*given, *sizes, scale=scale, window=None, softcap=softcap, out=out, lse=lse)
            return out, lse
        exact, lse = reference.block_sparse_prefill(
            q, key_cache, value_cache, tiles, starts, counts, rows, block=block, scale=scale, softcap=softcap
        )
        return out.copy_(exact), lse
    function(
        *native_arguments(q, key_cache, value_cache, starts, counts, rows, out, lse, scale, softcap, None),
        tiles.data_ptr(),
        tiles.shape[1],
        block[0],
        tiles.shape[3],
        block[1],
    )
    return out, lse


def vertical_slash_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    lists: VerticalSlash,
    starts: Ints,
    counts: Ints,
    rows: Ints | None = None,
    *,
    block: int = 64,
    scale: float,
    softcap: float = 0.0,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q [B, T, H, D] -> (out [B, T, H, D], lse [B, T, H] fp32), exact causal attention to listed blocks and columns.

    The lists hold for `block` queries each, counted from a row's first new token, and name blocks of `block` slots by
    their first one, which may be any (multiples of 32 are cheapest), and columns, which are single slots. Blocks and
    columns of a list must not overlap: a token named twice counts twice. S and the rest are those of
    `block_sparse_prefill`.
    """
    starts, counts, rows = int_arguments(starts, counts, rows)
    check(q, key_cache, starts, counts, scale, None, lists.selections)
    if lists.shape != (q.shape[0], lists.selections, -(-q.shape[1] // block)):
        raise ValueError(f"lists {list(lists.shape)} do not fit q {list(q.shape)} in blocks of {block}")
    out, lse = outputs(q, out)
    if counting.active is not None:
        cost = vertical_slash_prefill_cost(q, key_cache.shape[1], lists, starts, counts, block)
        counting.record("vertical_slash_prefill", cost)
    lists = VerticalSlash(*map(as_int32, lists))
    matches = readable(q, key_cache, value_cache, out)
    function = _vertical_slash[q.dtype] if q.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(q):
            from kernels.block_sparse_prefill import triton as gpu

            given, sizes = (q, key_cache, value_cache, lists, starts, counts, rows), (block, block)
            gpu.listed_prefill(*given, *sizes, scale=scale, window=None, softcap=softcap, out=out, lse=lse)
            return out, lse
        exact, lse = reference.vertical_slash_prefill(
            q, key_cache, value_cache, lists, starts, counts, rows, block=block, scale=scale, softcap=softcap
        )
        return out.copy_(exact), lse
    function(
        *native_arguments(q, key_cache, value_cache, starts, counts, rows, out, lse, scale, softcap, None),
        *(x.data_ptr() for x in lists),
        lists.selections,
        block,
        lists.block_offset.shape[3],
        lists.column_index.shape[3],
    )
    return out, lse
