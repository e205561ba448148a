"""The merge of partial attention: exact for any split, and not an average."""

from __future__ import annotations

import itertools
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import counting
from kernels.cost import Cost
from kernels.flash_decode import dense_spans, flash_decode
from kernels.lse_merge import lse_merge
from kernels.lse_merge.cost import lse_merge_cost

TOKENS, HEADS, KV_HEADS, DIM = 60, 4, 2, 16


def attention(q: Tensor, cache: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    spans = torch.tensor([[[[start, stop, 0]]]]).int()
    return flash_decode(q, cache, cache, spans, torch.zeros(1).int(), scale=1.0)


@given(st.lists(st.integers(0, TOKENS), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_any_split_in_any_order_is_exact(cuts: list[int], random: Random) -> None:
    """Empty parts included."""
    q, cache = torch.randn(1, HEADS, DIM), torch.randn(1, KV_HEADS, TOKENS, DIM)
    bounds = [0, *sorted(cuts), TOKENS]
    parts = [attention(q, cache, start, stop) for start, stop in itertools.pairwise(bounds)]
    random.shuffle(parts)
    out, lse = lse_merge(*zip(*parts, strict=True))
    whole, whole_lse = flash_decode(q, cache, cache, dense_spans([TOKENS]), torch.zeros(1).int(), scale=1.0)
    torch.testing.assert_close(out, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, whole_lse, atol=1e-5, rtol=1e-5)


def test_it_is_not_the_mean_of_the_parts() -> None:
    """A part that holds e^4 times the weight of the other counts that much more."""
    outs, lses = torch.tensor([[[[0.0] * 16]], [[[1.0] * 16]]]), torch.tensor([[[4.0]], [[0.0]]])
    out, lse = lse_merge(outs, lses)
    torch.testing.assert_close(out, torch.full((1, 1, 16), 1 / (1 + torch.e**4)))
    torch.testing.assert_close(lse, torch.tensor([[4.0]]) + torch.tensor(1 + torch.e**-4).log())


def test_log_sum_exps_beyond_the_range_of_exp() -> None:
    outs, lses = torch.randn(3, 1, 1, 16), torch.tensor([1e4, 1e4, -1e4])[:, None, None]
    out, _ = lse_merge(outs, lses)
    torch.testing.assert_close(out, outs[:2].mean(0))


def test_costs_by_hand() -> None:
    """3 bf16 parts of 2 rows, 4 heads, D = 8, merged into fp32."""
    assert lse_merge_cost(3, 2, 4, 8, 2, 4) == Cost(3 * 8 * (2 * 8 + 4), 3 * 8 * (8 * 2 + 4), 8 * (8 * 4 + 4))
    with counting.counting() as counter:
        lse_merge(torch.randn(3, 2, 4, 16), torch.randn(3, 2, 4))
    assert counter.costs == {"lse_merge": lse_merge_cost(3, 2, 4, 16, 4, 4)}


@pytest.mark.parametrize(("parts", "lses"), [(0, 0), (2, 3)])
def test_no_parts_or_unequal_ones_are_refused(parts: int, lses: int) -> None:
    with pytest.raises(ValueError, match=f"{parts} partial results and {lses} log-sum-exps"):
        lse_merge([torch.randn(1, 2, 16)] * parts, [torch.randn(1, 2)] * lses)
