"""Naive attention of query blocks to chosen blocks of keys and single columns: one softmax per query row and head."""

from __future__ import annotations

from torch import Tensor

from kernels.block_sparse_prefill.lists import VerticalSlash, tile_tokens
from kernels.gathered_prefill import reference


def block_sparse_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    tiles: Tensor,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    *,
    block: tuple[int, int] = (64, 64),
    scale: float,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The contract of `kernels.block_sparse_prefill.block_sparse_prefill`, in fp32 (fp64 for fp64 inputs)."""
    selections, heads = tiles.shape[1], q.shape[2]

    def listed(b: int, head: int, number: int) -> Tensor:
        return tile_tokens(tiles[b, head * selections // heads, number], block[1])

    return reference.listed_prefill(
        q, key_cache, value_cache, listed, starts, counts, rows,
        block=block[0], scale=scale, window=None, softcap=softcap,
    )  # fmt: skip


def vertical_slash_prefill(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    lists: VerticalSlash,
    starts: Tensor,
    counts: Tensor,
    rows: Tensor | None,
    *,
    block: int = 64,
    scale: float,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The contract of `kernels.block_sparse_prefill.vertical_slash_prefill`, in fp32 (fp64 for fp64 inputs)."""
    indices = lists.tokens(block)
    return reference.gathered_prefill(
        q, key_cache, value_cache, indices, starts, counts, rows, block=block, scale=scale, softcap=softcap
    )
