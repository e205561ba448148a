"""What a shortcut in prefill attention would get wrong."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import counting
from kernels.cost import Cost
from kernels.flash_decode import dense_spans, flash_decode
from kernels.flash_prefill import flash_prefill
from kernels.flash_prefill.cost import causal_pairs, flash_prefill_cost

H, G, D = 6, 2, 64


def drawn(batch: int, tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(batch, tokens, H, D).to(dtype)
    return q, torch.randn(batch, G, tokens, D).to(dtype), torch.randn(batch, G, tokens, D).to(dtype)


def test_pairs_by_hand() -> None:
    assert causal_pairs([0], [4]) == (1 + 2 + 3 + 4, 4)
    assert causal_pairs([10], [2]) == (11 + 12, 12)
    assert causal_pairs([0, 5], [4, 0], window=2) == (1 + 2 + 2 + 2, 4)
    assert causal_pairs([10], [3], window=2) == (6, 4)


def test_cost_by_hand() -> None:
    cost = flash_prefill_cost(10, 4, 4, (1, 4, 6, 16), 2, 2)
    read = 2 * 4 * 2 * 16 * 2 + 4 * 6 * 16 * 2 + 8
    assert cost == Cost(4 * 10 * 6 * 16, read, 4 * 6 * (16 * 2 + 4))


def test_the_dispatcher_records_its_cost() -> None:
    q, keys, values = drawn(1, 30)
    with counting.counting() as counter:
        flash_prefill(q, keys, values, [10], [20], scale=1.0)
    pairs, tokens = causal_pairs([10], [20])
    assert counter.costs == {"flash_prefill": flash_prefill_cost(pairs, tokens, 20, q.shape, G, 4)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_later_keys_change_nothing(dtype: torch.dtype) -> None:
    q, keys, values = drawn(1, 300, dtype)
    before, _ = flash_prefill(q, keys, values, [0], [300], scale=0.125)
    keys[:, :, 200:], values[:, :, 200:] = 7.0, 1e6
    after, _ = flash_prefill(q, keys, values, [0], [300], scale=0.125)
    assert torch.equal(before[:, :200], after[:, :200])


def test_chunks_behind_a_prefix_equal_one_pass() -> None:
    q, keys, values = drawn(1, 300)
    whole, _ = flash_prefill(q, keys, values, [0], [300], scale=0.125)
    parts = [
        flash_prefill(q[:, start:stop], keys, values, [start], [stop - start], scale=0.125)[0]
        for start, stop in ((0, 100), (100, 163), (163, 300))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_a_ragged_batch_equals_its_rows_and_padding_is_zero() -> None:
    q, keys, values = drawn(3, 100)
    out, lse = flash_prefill(q, keys, values, [0, 40, 7], [100, 60, 0], scale=0.125)
    for row, (start, count) in enumerate(((0, 100), (40, 60))):
        one, _ = flash_prefill(q[row, None, :count], keys[row, None], values[row, None], [start], [count], scale=0.125)
        torch.testing.assert_close(out[row, None, :count], one)
    assert not out[1, 60:].any()
    assert not out[2].any()
    assert bool((lse[2] == -torch.inf).all())


def test_the_window_counts_the_query_itself() -> None:
    q, keys, values = drawn(1, 90)
    out, _ = flash_prefill(q, keys, values, [0], [90], scale=0.125, window=1)
    torch.testing.assert_close(out, values.transpose(1, 2).repeat_interleave(H // G, dim=2))
    wide, _ = flash_prefill(q, keys, values, [0], [90], scale=0.125, window=90)
    torch.testing.assert_close(wide, flash_prefill(q, keys, values, [0], [90], scale=0.125)[0])


def test_the_last_row_is_what_decoding_gives() -> None:
    q, keys, values = drawn(1, 130)
    out, lse = flash_prefill(q, keys, values, [0], [130], scale=0.125)
    peer = flash_decode(q[:, -1], keys, values, dense_spans([130]), torch.zeros(1).int(), scale=0.125)
    torch.testing.assert_close((out[:, -1], lse[:, -1]), peer)


def test_no_square_of_the_length_is_allocated() -> None:
    """40,000 tokens through a window of 64: a table of pairs alone would take gigabytes."""
    tokens = 40_000
    q, keys, values = torch.randn(1, tokens, 1, 16), torch.randn(1, 1, tokens, 16), torch.randn(1, 1, tokens, 16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, _ = flash_prefill(q, keys, values, [0], [tokens], scale=0.25, window=64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    tail = F.scaled_dot_product_attention(q[:, -1:].transpose(1, 2), keys[:, :, -64:], values[:, :, -64:], scale=0.25)
    torch.testing.assert_close(out[:, -1:], tail.transpose(1, 2))


@pytest.mark.parametrize(
    ("starts", "counts", "options", "message"),
    [
        ([0, 0], [5, 5], {}, "one entry for each of the 1 rows"),
        ([0], [6], {}, "counts exceed the 5 queries"),
        ([3], [5], {}, "counts exceed"),
        ([0], [5], {"window": 0}, "must be positive"),
        ([0], [5], {"scale": 0.0}, "must be positive"),
    ],
    ids=["rows", "queries", "slots", "window", "scale"],
)
def test_bad_arguments_are_named(starts: list[int], counts: list[int], options: dict, message: str) -> None:
    q, keys, values = drawn(1, 5)
    with pytest.raises(ValueError, match=message):
        flash_prefill(q, keys, values, starts, counts, **{"scale": 1.0, **options})
