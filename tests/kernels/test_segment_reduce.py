"""Segment reductions: costs by hand, and the shortcuts that dhsa, actqkv and chunkllm must not take."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import counting
from kernels.cost import Cost
from kernels.segment_reduce import probe_pool, segment_mass, segment_sum
from kernels.segment_reduce.cost import probe_pool_cost, segment_mass_cost, segment_sum_cost


def offsets_of(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)]).int()


def test_costs_by_hand() -> None:
    """10 tokens in 3 segments, 2 heads, D = 8, bf16; 5 rows of 6 features; 4 queries that see 1, 2, 3 and 4 keys."""
    assert segment_sum_cost(10, 3, 2, 8, 2) == Cost(2 * 13 * 8, 2 * 10 * 8 * 2 + 16, 2 * 3 * 8 * 4)
    assert probe_pool_cost(5, 6, 2) == Cost(10 * 30, 30 * 2, 6 * 4)
    assert probe_pool_cost(5, 6, 2, given=True) == Cost(6 * 30, 30 * 2 + 2 * 6 * 4, 6 * 4)
    mass = segment_mass_cost(10, 4, 3, 4, 6, 2, 8, 2)
    assert mass == Cost(2 * 10 * 6 * 8, (4 * 6 + 2 * 4) * 8 * 2 + 4 * (4 + 4), 4 * 6 * 3 * 4)


def test_dispatchers_record_what_they_read() -> None:
    x, offsets = torch.randn(1, 2, 12, 8), torch.tensor([1, 4, 11]).int()
    positions = torch.tensor([0, 20]).int()
    with counting.counting() as counter:
        segment_sum(x, offsets)
        probe_pool(torch.randn(5, 6), (torch.zeros(6), torch.ones(6)))
        segment_mass(torch.randn(2, 4, 8), x[0], offsets, positions, scale=1.0)
    assert counter.costs == {
        "segment_sum": segment_sum_cost(10, 2, 2, 8, 4),
        "probe_pool": probe_pool_cost(5, 6, 4, given=True),
        "segment_mass": segment_mass_cost(1 + 12, 12, 2, 2, 4, 2, 8, 4),
    }


@pytest.mark.parametrize("length", [2, 9, 100])
def test_root_n_lies_between_mean_and_sum(length: int) -> None:
    """DHSA divides by the root of the length: neither the mean, which favours short chunks, nor the sum."""
    x, offsets = torch.ones(length, 16), offsets_of(length)
    values = {kind: segment_sum(x, offsets, kind)[0, 0].item() for kind in ("mean", "sqrt", "sum")}
    assert values == pytest.approx({"mean": 1.0, "sqrt": length**0.5, "sum": length})


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_sums_of_segments_add_up(lengths: list[int]) -> None:
    x = torch.randn(sum(lengths), 16)
    torch.testing.assert_close(segment_sum(x, offsets_of(*lengths)).sum(0), x.sum(0), atol=1e-4, rtol=1e-5)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of sum, mean, sqrt, not 'max'"):
        segment_sum(torch.randn(3, 8), offsets_of(3), "max")


def test_the_probe_is_not_the_mean_of_the_window() -> None:
    """ActQKV's point: a query that stands out weighs more than the average one."""
    x = torch.randn(64, 32) * 0.1
    x[17] += 5
    probe = probe_pool(x)
    assert torch.dist(probe, x[17]) < 0.2 * torch.dist(x.mean(0), x[17])


def test_running_statistics_are_those_of_the_caller() -> None:
    """A window that deviates from what went before as a whole: against its own mean it would not stand out."""
    x = torch.randn(16, 32) + 3
    ours, running = probe_pool(x), probe_pool(x, (torch.zeros(32), torch.ones(32)))
    assert not torch.allclose(ours, running)


def test_mass_is_a_true_probability() -> None:
    """Segments that cover everything hold all of it; without the last keys, what they hold is missing."""
    q, keys = torch.randn(3, 4, 16), torch.randn(2, 30, 16)
    positions = torch.tensor([29, 12, 0]).int()
    whole = segment_mass(q, keys, offsets_of(7, 13, 10), positions, scale=0.25)
    torch.testing.assert_close(whole.sum(-1), torch.ones(3, 4))
    part = segment_mass(q, keys, offsets_of(7, 13), positions, scale=0.25)
    torch.testing.assert_close(part, whole[..., :2])
    assert (part[0].sum(-1) < 1).all()


def test_mass_ignores_the_future() -> None:
    q, keys, positions = torch.randn(1, 4, 16), torch.randn(2, 30, 16), torch.tensor([9]).int()
    before = segment_mass(q, keys, offsets_of(10, 20), positions, scale=1.0)
    keys[:, 10:] += 100
    torch.testing.assert_close(segment_mass(q, keys, offsets_of(10, 20), positions, scale=1.0), before)
    assert before[0, :, 1].eq(0).all()


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="5 query heads"):
        segment_mass(torch.randn(1, 5, 16), torch.randn(2, 9, 16), offsets_of(9), torch.tensor([8]), scale=1.0)
