"""Attention of query blocks to listed tokens: what a list may hold, and that nothing else counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels import counting
from kernels.cost import Cost
from kernels.flash_prefill import flash_prefill
from kernels.gathered_prefill import gathered_prefill
from kernels.gathered_prefill.cost import gathered_prefill_cost

TOKENS, HEADS, KV_HEADS, DIM, BLOCK = 90, 6, 2, 32, 20
BLOCKS = -(-TOKENS // BLOCK)


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(1, TOKENS, HEADS, DIM), *torch.randn(2, 1, KV_HEADS, TOKENS, DIM)


def attend(drawn: tuple[Tensor, Tensor, Tensor], indices: Tensor, window: int | None = None) -> tuple[Tensor, Tensor]:
    return gathered_prefill(*drawn, indices, [0], [TOKENS], block=BLOCK, scale=0.2, window=window)


def every_token(selections: int = 1) -> Tensor:
    return torch.arange(TOKENS).int().expand(1, selections, BLOCKS, TOKENS)


@pytest.mark.parametrize("selections", [1, KV_HEADS, HEADS])
@pytest.mark.parametrize("window", [None, 7])
def test_all_tokens_are_dense_attention(
    drawn: tuple[Tensor, Tensor, Tensor], selections: int, window: int | None
) -> None:
    """Future tokens in the list are ignored."""
    expected = flash_prefill(*drawn, [0], [TOKENS], scale=0.2, window=window)
    torch.testing.assert_close(attend(drawn, every_token(selections), window), expected, atol=1e-5, rtol=1e-5)


def test_the_order_of_a_list_does_not_matter(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    indices = torch.stack([torch.randperm(TOKENS)[:30] for _ in range(BLOCKS)]).int()[None, None]
    shuffled = indices[..., torch.randperm(30)]
    torch.testing.assert_close(attend(drawn, shuffled), attend(drawn, indices), atol=1e-5, rtol=1e-5)


def test_every_block_and_head_follows_its_own_list(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    """One token each: the output is its value."""
    indices = torch.randint(0, BLOCK, (1, HEADS, BLOCKS, 1)).int()
    out, _ = attend(drawn, indices)
    for head in range(HEADS):
        for block in range(1, BLOCKS):  # the first block does not see all of its tokens
            value = drawn[2][0, head * KV_HEADS // HEADS, int(indices[0, head, block, 0])]
            rows = out[0, block * BLOCK : (block + 1) * BLOCK, head]
            torch.testing.assert_close(rows, value.expand_as(rows))


def test_a_token_listed_twice_counts_twice(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    once, twice = (attend(drawn, torch.zeros(1, 1, BLOCKS, n).int())[1] for n in (1, 2))
    torch.testing.assert_close(twice - once, torch.full_like(once, math.log(2)))


def test_costs_by_hand() -> None:
    """One row of 3 queries in a block of 4, H = 4, G = 2, D = 16, bf16. Seen: token 0 by 3, 2 by 1, padding by none."""
    q, indices = torch.empty(1, 3, 4, 16, dtype=torch.bfloat16), torch.tensor([[[[0, 2, 5, -1]]]])
    starts, counts = torch.tensor([0]), torch.tensor([3])
    read = 2 * 2 * 2 * 16 * 2 + 3 * 4 * 16 * 2 + 4 * 4 + 8
    assert gathered_prefill_cost(q, 2, indices, starts, counts, 4) == Cost(4 * 4 * 4 * 16, read, 12 * (16 * 2 + 4))
    own_lists = gathered_prefill_cost(q, 2, indices.expand(1, 4, 1, 4), starts, counts, 4)
    assert own_lists.read_bytes - read == 2 * 2 * (4 - 2) * 16 * 2 + 3 * 16


def test_the_dispatcher_records_its_cost(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    with counting.counting() as counter:
        attend(drawn, every_token())
    ints = torch.tensor([0]), torch.tensor([TOKENS])
    expected = gathered_prefill_cost(drawn[0], KV_HEADS, every_token(), *ints, BLOCK)
    assert counter.costs == {"gathered_prefill": expected}


def test_lists_for_another_number_of_blocks_are_refused(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="in blocks of 20"):
        attend(drawn, every_token()[:, :, 1:])
    with pytest.raises(ValueError, match="3 selections"):
        attend(drawn, every_token(3))
