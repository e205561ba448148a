"""Which tokens the query blocks of a sparse prefill see, as lists."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class VerticalSlash(NamedTuple):
    """Per query block: the first slots of some blocks of keys (merged diagonals), and single columns. All int32."""

    block_count: Tensor
    """[B, S, blocks]"""
    block_offset: Tensor
    """[B, S, blocks, n]: the first `block_count` entries count."""
    column_count: Tensor
    """[B, S, blocks]"""
    column_index: Tensor
    """[B, S, blocks, m]: the first `column_count` entries count."""

    @property
    def shape(self) -> torch.Size:
        """[B, S, blocks]."""
        return self.block_count.shape

    @property
    def selections(self) -> int:
        """S: 1, or one for each KV head, or one for each query head."""
        return self.shape[1]

    def tokens(self, block: int) -> Tensor:
        """[B, S, blocks, n * block + m]: every token named, -1 in unused places."""
        inside = torch.arange(block, device=self.block_offset.device)
        blocks = _used(self.block_offset, self.block_count)[..., None] + inside
        blocks = blocks.where(_used(self.block_offset, self.block_count)[..., None] > UNUSED, -1)
        columns = _used(self.column_index, self.column_count)
        return torch.cat((blocks.flatten(-2), columns.clamp(min=-1)), -1)


UNUSED = -(1 << 30)


def _used(entries: Tensor, count: Tensor) -> Tensor:
    """The first `count` entries, others replaced."""
    used = torch.arange(entries.shape[-1], device=entries.device) < count[..., None]
    return entries.long().where(used, UNUSED)


def tile_tokens(tiles: Tensor, key_block: int) -> Tensor:
    """tiles [..., n] bool -> [..., n * key_block]: every token of a kept tile, -1 in the places of the others."""
    tokens = torch.arange(tiles.shape[-1] * key_block, device=tiles.device)
    return tokens.where(tiles.repeat_interleave(key_block, -1), -1)


def tile_lists(tiles: Tensor, starts: Tensor, counts: Tensor, block: tuple[int, int]) -> VerticalSlash:
    """tiles [B, S, blocks, n] bool -> lists of the kept tiles that hold something the queries of their block see."""
    blocks, key_blocks = tiles.shape[2:]
    device = tiles.device
    ends = torch.minimum((torch.arange(blocks, device=device) + 1) * block[0], counts.to(device)[:, None])
    first_slots = torch.arange(key_blocks, device=device) * block[1]
    kept = tiles & (first_slots < (starts.to(device)[:, None] + ends)[:, None, :, None])
    order = kept.int().argsort(dim=-1, descending=True, stable=True)
    none = torch.zeros(tiles.shape[:3], dtype=torch.int32, device=device)
    return VerticalSlash(kept.sum(dim=-1).int(), (order * block[1]).int(), none, none[..., None])
