"""Rotary embedding: keys that move inside the cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import counting
from kernels.cost import Cost
from kernels.rope import apply, shift
from kernels.rope.cases import tables
from kernels.rope.cost import shift_cost

HEADS, TOKENS, DIM = 2, 40, 64


def rotated(keys: Tensor, positions: Tensor) -> Tensor:
    """keys [T, G, D], as a cache [1, G, T, D] of keys rotated to `positions`."""
    out = keys.clone()
    apply(out, keys.new_empty(TOKENS, 0, DIM), *tables(2000, DIM), positions)
    return out.transpose(0, 1)[None].contiguous()


def moved(cache: Tensor, deltas: Tensor) -> Tensor:
    cache = cache.clone()
    shift(cache, *tables(2000, DIM), deltas, torch.zeros(TOKENS).int(), torch.arange(TOKENS).int())
    return cache


@pytest.mark.parametrize("delta", [700, -700, 0, 1234, -1])
def test_a_shifted_key_is_one_rotated_to_the_new_position(delta: int) -> None:
    keys, positions = torch.randn(TOKENS, HEADS, DIM), torch.arange(701, 701 + TOKENS).int()
    deltas = torch.full((TOKENS,), delta).int()
    expected = rotated(keys, positions + deltas)
    torch.testing.assert_close(moved(rotated(keys, positions), deltas), expected, atol=2e-3, rtol=0)


def test_every_token_has_its_own_delta() -> None:
    """TIMRUN's B removed from A B C: the keys of A stay, those of C move back by the length of B."""
    keys, positions = torch.randn(TOKENS, HEADS, DIM), torch.arange(TOKENS).int()
    positions[10:] += 5
    deltas = torch.where(torch.arange(TOKENS) < 10, 0, -5).int()
    result = moved(rotated(keys, positions), deltas)
    torch.testing.assert_close(result, rotated(keys, torch.arange(TOKENS).int()), atol=1e-4, rtol=0)


def test_there_and_back() -> None:
    cache, deltas = torch.randn(1, HEADS, TOKENS, DIM), torch.randint(-1999, 2000, (TOKENS,)).int()
    torch.testing.assert_close(moved(moved(cache, deltas), -deltas), cache, atol=1e-5, rtol=0)


def test_the_cost_of_a_shift_by_hand() -> None:
    """5 tokens, 2 KV heads, D = 8, bf16: 3 FLOPs an element; a table row of 8 fp32 and three integers a token."""
    assert shift_cost(5, 2, 8, 2) == Cost(3 * 80, 80 * 2 + 5 * (8 * 4 + 12), 80 * 2)
    with counting.counting() as counter:
        moved(torch.randn(1, HEADS, TOKENS, DIM), torch.ones(TOKENS).int())
    assert counter.costs == {"rope_shift": shift_cost(TOKENS, HEADS, DIM, 4)}
