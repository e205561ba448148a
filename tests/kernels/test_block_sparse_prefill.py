"""Attention to chosen tiles of keys, and to blocks and columns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import counting
from kernels.block_sparse_prefill import VerticalSlash, block_sparse_prefill, vertical_slash_prefill
from kernels.block_sparse_prefill.cost import block_sparse_prefill_cost, vertical_slash_prefill_cost
from kernels.cost import Cost
from kernels.flash_prefill import flash_prefill
from kernels.gathered_prefill import gathered_prefill

TOKENS, HEADS, KV_HEADS, DIM, BLOCK = 150, 6, 2, 32, 32
BLOCKS = -(-TOKENS // BLOCK)
Drawn = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def drawn() -> Drawn:
    return torch.randn(1, TOKENS, HEADS, DIM), *torch.randn(2, 1, KV_HEADS, TOKENS, DIM)


def tiled(drawn: Drawn, tiles: Tensor) -> tuple[Tensor, Tensor]:
    return block_sparse_prefill(*drawn, tiles, [0], [TOKENS], block=(BLOCK, BLOCK), scale=0.2)


def lists(offsets: list[int], columns: list[int]) -> VerticalSlash:
    """The same for every block of queries and every head."""
    shape = (1, 1, BLOCKS)
    block_offset, column_index = torch.tensor(offsets).int(), torch.tensor(columns).int()
    return VerticalSlash(
        torch.full(shape, len(offsets)).int(),
        block_offset.expand(*shape, -1),
        torch.full(shape, len(columns)).int(),
        column_index.expand(*shape, -1),
    )


def slashed(drawn: Drawn, chosen: VerticalSlash) -> tuple[Tensor, Tensor]:
    return vertical_slash_prefill(*drawn, chosen, [0], [TOKENS], block=BLOCK, scale=0.2)


@pytest.mark.parametrize("selections", [1, KV_HEADS, HEADS])
def test_all_tiles_are_dense_attention(drawn: Drawn, selections: int) -> None:
    expected = flash_prefill(*drawn, [0], [TOKENS], scale=0.2)
    whole = torch.ones(1, selections, BLOCKS, BLOCKS, dtype=torch.bool)
    torch.testing.assert_close(tiled(drawn, whole), expected, atol=1e-5, rtol=1e-5)


def test_all_blocks_are_dense_attention(drawn: Drawn) -> None:
    expected = flash_prefill(*drawn, [0], [TOKENS], scale=0.2)
    every_block = lists([i * BLOCK for i in range(BLOCKS)], [])
    torch.testing.assert_close(slashed(drawn, every_block), expected, atol=1e-5, rtol=1e-5)


def test_tiles_are_lists_of_their_tokens(drawn: Drawn) -> None:
    """A mask of its own for each query head, against the op that reads token lists."""
    tiles = torch.rand(1, HEADS, BLOCKS, BLOCKS) < 0.5
    tokens = torch.arange(BLOCKS * BLOCK).where(tiles.repeat_interleave(BLOCK, -1), -1)
    expected = gathered_prefill(*drawn, tokens.int(), [0], [TOKENS], block=BLOCK, scale=0.2)
    torch.testing.assert_close(tiled(drawn, tiles), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("offset", [0, 5, -20])
def test_blocks_may_begin_anywhere(drawn: Drawn, offset: int) -> None:
    """A slash is a diagonal: its blocks are not on the grid."""
    columns = [70, 100, 149]
    tokens = [t for t in range(offset, offset + BLOCK) if t >= 0] + columns
    listed = torch.tensor(tokens).int().expand(1, 1, BLOCKS, -1)
    expected = gathered_prefill(*drawn, listed, [0], [TOKENS], block=BLOCK, scale=0.2)
    torch.testing.assert_close(slashed(drawn, lists([offset], columns)), expected, atol=1e-5, rtol=1e-5)


def test_blocks_narrower_than_a_step_of_the_kernel(drawn: Drawn) -> None:
    """16 tokens on a multiple of 32 are not 32."""
    shape = (1, 1, -(-TOKENS // 16))
    one, zero = torch.ones(shape).int(), torch.zeros(shape).int()
    chosen = VerticalSlash(one, torch.full((*shape, 1), 32).int(), zero, torch.zeros(*shape, 1).int())
    out = vertical_slash_prefill(*drawn, chosen, [0], [TOKENS], block=16, scale=0.2)
    listed = torch.arange(32, 48).int().expand(*shape, 16)
    expected = gathered_prefill(*drawn, listed, [0], [TOKENS], block=16, scale=0.2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_costs_by_hand() -> None:
    """40 queries, H = 4, G = 2, D = 16, bf16, tiles of 32: both own tiles, of which the second holds 8 tokens."""
    q, starts, counts = torch.empty(1, 40, 4, 16, dtype=torch.bfloat16), torch.tensor([0]), torch.tensor([40])
    tiles = torch.eye(2, dtype=torch.bool)[None, None]
    pairs, loaded = 32 * 33 // 2 + 8 * 9 // 2, 40
    flops, written = 4 * pairs * 4 * 16, 40 * 4 * (16 * 2 + 4)
    read = 2 * loaded * 2 * 16 * 2 + 40 * 4 * 16 * 2 + 8
    assert block_sparse_prefill_cost(q, 2, tiles, starts, counts, (32, 32)) == Cost(flops, read + 4, written)
    shape = (1, 1, 2)
    own = VerticalSlash(
        torch.ones(shape).int(),
        torch.tensor([0, 32]).view(1, 1, 2, 1),
        torch.zeros(shape).int(),
        torch.zeros(1, 1, 2, 0),
    )
    slashes = vertical_slash_prefill_cost(q, 2, own, starts, counts, 32)
    assert slashes == Cost(flops, read + 4 * (2 + 4), written)


def test_dispatchers_record_their_cost(drawn: Drawn) -> None:
    tiles, chosen = torch.ones(1, 1, BLOCKS, BLOCKS, dtype=torch.bool), lists([0], [40, 41])
    with counting.counting() as counter:
        tiled(drawn, tiles)
        slashed(drawn, chosen)
    ints = torch.tensor([0]), torch.tensor([TOKENS])
    assert counter.costs == {
        "block_sparse_prefill": block_sparse_prefill_cost(drawn[0], KV_HEADS, tiles, *ints, (BLOCK, BLOCK)),
        "vertical_slash_prefill": vertical_slash_prefill_cost(drawn[0], KV_HEADS, chosen, *ints, BLOCK),
    }


def test_masks_that_do_not_fit_are_refused(drawn: Drawn) -> None:
    whole = torch.ones(1, 1, BLOCKS, BLOCKS, dtype=torch.bool)
    with pytest.raises(ValueError, match="in blocks of 32"):
        tiled(drawn, whole[:, :, 1:])
    with pytest.raises(ValueError, match="must be bool, not"):
        tiled(drawn, whole.float())
