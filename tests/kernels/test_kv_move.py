"""Moves of tokens in KV caches: bits, overlaps, what stays, and the bytes they cost."""

from __future__ import annotations

import pytest
import torch

from kernels import counting
from kernels.cost import Cost
from kernels.kv_move import compact, copy_slots, gather
from kernels.kv_move.cost import move_cost
from kernels.kv_move.reference import raw

HEADS, TOKENS, DIM = 3, 40, 16


def numbered(batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A cache whose token t holds t everywhere."""
    return torch.arange(TOKENS).to(dtype)[None, None, :, None].expand(batch, HEADS, TOKENS, DIM).clone()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int8])
def test_any_dtype_moves(dtype: torch.dtype) -> None:
    index = torch.tensor([[5, 0, -1, 39]])
    assert gather(numbered(1, dtype), index)[0, 1, :, 3].tolist() == [5, 0, 0, 39]


def test_nan_payloads_are_kept() -> None:
    """Bits are moved: a conversion on the way would make every NaN the same."""
    cache = torch.zeros(1, 1, 4, 16, dtype=torch.bfloat16)
    raw(cache)[0, 0, 3] = torch.arange(0x7F81, 0x7F91, dtype=torch.int16)
    moved = gather(cache, torch.tensor([[3]]))
    assert torch.equal(raw(moved)[0, 0, 0], raw(cache)[0, 0, 3])


def test_an_accepted_path_moves_behind_the_prefix() -> None:
    """Sources and targets overlap: moved in the wrong order, 12 would be lost before it is read."""
    cache = numbered(1)
    pointer = cache.data_ptr()
    compact([cache], torch.tensor([[10, 12, 13, 17]]), [10])
    assert cache[0, 2, 8:15, 0].tolist() == [8, 9, 10, 12, 13, 17, 14]
    assert cache.data_ptr() == pointer


def test_tokens_that_move_backwards_through_each_other() -> None:
    cache = numbered(1)
    compact([cache], torch.tensor([[3, 2, 1, 0]]), [1])
    assert cache[0, 0, :6, 0].tolist() == [0, 3, 2, 1, 0, 5]


def test_rows_have_lists_of_their_own() -> None:
    keys, values = numbered(2), numbered(2)
    compact([keys, values], torch.tensor([[7, 9], [30, -1]]), torch.tensor([5, 20]))
    for cache in (keys, values):
        assert cache[0, 0, 4:8, 0].tolist() == [4, 7, 9, 7]
        assert cache[1, 0, 19:23, 0].tolist() == [19, 30, 21, 22]


def test_slots_change_places() -> None:
    """Only the prefixes: what lies behind stays."""
    cache = numbered(3) + 100 * torch.arange(3)[:, None, None, None]
    copy_slots([cache], torch.tensor([[0, 2], [2, 0]]), [2, 3])
    assert cache[0, 1, :4, 5].tolist() == [200, 201, 202, 3]
    assert cache[2, 1, :4, 5].tolist() == [0, 1, 202, 203]
    assert cache[1, 1, :2, 5].tolist() == [100, 101]


def test_moved_bytes_are_twice_the_prefix() -> None:
    """Flover's account (card flover): 2 x moves x prefix bytes, here in keys and values of one layer."""
    caches = [torch.zeros(4, HEADS, TOKENS, DIM, dtype=torch.bfloat16) for _ in range(2)]
    with counting.counting() as counter:
        copy_slots(caches, torch.tensor([[3, 0], [2, 1]]), [10, 10])
    prefix = 10 * HEADS * DIM * 2
    assert counter.total.bytes - 2 * 12 == 2 * 2 * (2 * prefix)
    assert counter.total.flops == 0


def test_costs_by_hand() -> None:
    assert move_cost(5, 3, 16, 2, 20) == Cost(0, 5 * 3 * 16 * 2 + 20, 5 * 3 * 16 * 2)
    with counting.counting() as counter:
        gather(numbered(1), torch.tensor([[1, -1, 4]]))
        compact([numbered(1)] * 2, torch.tensor([[8, 9, -1, 9]]), [3])
    assert counter.costs == {
        "kv_gather": move_cost(2, HEADS, DIM, 4, 12),
        "kv_compact": move_cost(2 * 2, HEADS, DIM, 4, 4 * 5),
    }


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no cache"):
        compact([], torch.zeros(1, 1), [0])
    with pytest.raises(ValueError, match="one shape, dtype and strides"):
        compact([numbered(1), numbered(2)], torch.zeros(1, 1), [0])
    with pytest.raises(ValueError, match="do not fit 1 cache rows"):
        compact([numbered(1)], torch.zeros(2, 1), [0])
    with pytest.raises(ValueError, match="2 lengths do not fit"):
        copy_slots([numbered(1)], torch.zeros(1, 2), [1, 1])
    with pytest.raises(ValueError, match="does not fit 1 cache rows"):
        gather(numbered(1), torch.zeros(2, 1))
