"""Chunk scoring and selection: exact ties, candidates only, and what a list means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import counting
from kernels.cost import Cost
from kernels.select_top import select_top, top
from kernels.select_top.cost import select_top_cost, top_cost

scores = st.lists(st.floats(width=32), min_size=0, max_size=50)


@given(scores, st.integers(0, 60), st.integers(0, 10), st.integers(0, 60))
def test_it_is_what_sorting_gives(values: list[float], k: int, first: int, last: int) -> None:
    """By falling score, then rising place; NaN and -inf left out; the rest of the list is -1."""
    row = torch.tensor([values])
    places = [c for c in range(first, min(last, len(values))) if values[c] > -float("inf")]
    best = sorted(sorted(places, key=lambda c: (-values[c], c))[:k])
    chosen = top(row.view(1, -1), k, torch.tensor([last]), first=first)
    assert chosen.tolist() == [best + [-1] * (k - len(best))]


def test_ties_go_to_the_lower_place() -> None:
    assert top(torch.tensor([[1.0, 1.0, 1.0, 0.5, 1.0]]), 3).tolist() == [[0, 1, 2]]
    assert top(torch.tensor([[-1.0, -2.0, -1.0, -torch.inf, 0.0, -0.5]]), 3).tolist() == [[0, 4, 5]]
    assert top(torch.tensor([[-0.0, 0.0, -1.0]]), 1).tolist() == [[0]]


def test_every_head_chooses_for_itself() -> None:
    """Head h asks for direction h, which chunk 3 h has."""
    q = torch.eye(16)[None, :4]
    reps = torch.zeros(4, 12, 16)
    for head in range(4):
        reps[head, 3 * head, head] = 1.0
    assert select_top(q, reps, 1, torch.tensor([12])).tolist() == [[[0], [3], [6], [9]]]


def test_a_group_votes_by_the_sum_of_its_scores() -> None:
    """Each of two heads prefers a chunk of its own, but together a third one; their best scores do not count."""
    q = torch.eye(16)[None, :2]
    reps = torch.zeros(1, 3, 16)
    reps[0, 0, 0] = reps[0, 1, 1] = 1.0
    reps[0, 2, :2] = 0.75
    assert select_top(q, reps, 1, torch.tensor([3])).tolist() == [[[0], [1]]]
    assert select_top(q, reps, 1, torch.tensor([3]), selections=1).tolist() == [[[2]]]


def test_query_heads_share_the_representations_of_their_kv_head() -> None:
    q, reps, last = torch.randn(3, 6, 32), torch.randn(2, 50, 32), torch.tensor([50, 20, 3])
    repeated = reps.repeat_interleave(3, dim=0)
    assert torch.equal(select_top(q, reps, 7, last), select_top(q, repeated, 7, last))


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_rows_do_not_depend_on_each_other(rows: int) -> None:
    """Integers, so that the order of sums in one or the other kernel cannot matter."""
    q, reps = torch.randint(-3, 4, (rows, 4, 64)).bfloat16(), torch.randint(-3, 4, (4, 90, 64)).bfloat16()
    last = torch.randint(0, 91, (rows,))
    together = select_top(q, reps, 9, last)
    alone = torch.cat([select_top(q[i : i + 1], reps, 9, last[i : i + 1]) for i in range(rows)])
    assert torch.equal(together, alone)


def test_costs_by_hand() -> None:
    """2 rows of 4 heads, D = 16, bf16; 3 and 5 chunks are scored of those of 2 KV heads, lists of 6 for 4 heads."""
    assert select_top_cost(8, 5, (2, 4, 16), 2, 4, 6, 2) == Cost(2 * 8 * 4 * 16, (8 + 10) * 16 * 2 + 8, 4 * 2 * 4 * 6)
    assert top_cost(2, 50, 6, 4) == Cost(0, 2 * 50 * 4, 4 * 2 * 6)
    with counting.counting() as counter:
        select_top(torch.randn(2, 4, 16), torch.randn(2, 9, 16), 6, torch.tensor([4, 20]), first=1)
        top(torch.randn(2, 50), 6)
    assert counter.costs == {
        "select_top": select_top_cost(3 + 8, 8, (2, 4, 16), 2, 4, 6, 4),
        "top": top_cost(2, 50, 6, 4),
    }


@pytest.mark.parametrize(("owners", "selections", "k"), [(3, None, 1), (2, 3, 1), (2, None, -1)])
def test_what_does_not_fit_is_refused(owners: int, selections: int | None, k: int) -> None:
    with pytest.raises(ValueError, match=f"4 heads, {owners} representations"):
        select_top(torch.randn(1, 4, 16), torch.randn(owners, 9, 16), k, torch.tensor([9]), selections=selections)
    with pytest.raises(ValueError, match="must not be negative"):
        top(torch.randn(1, 4), -1)
