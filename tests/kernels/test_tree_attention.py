"""Verification of draft trees: a node sees what it would see if its path were all there is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import counting
from kernels.cost import Cost
from kernels.flash_prefill import flash_prefill
from kernels.tree_attention import ancestor_masks, tree_attention
from kernels.tree_attention.cost import tree_attention_cost
from kernels.tree_attention.masks import visible

HEADS, KV_HEADS, DIM, PREFIX = 6, 2, 32, 70
PARENTS = [-1, 0, 0, 1, 1, 2, -1, 6, 4, 8]
NODES = len(PARENTS)


@st.composite
def trees(draw: st.DrawFn) -> list[int]:
    nodes = draw(st.integers(1, 64))
    return [draw(st.integers(-1, node - 1)) for node in range(nodes)]


def path(parents: list[int], node: int) -> list[int]:
    """From the root to the node."""
    return [*path(parents, parents[node]), node] if node >= 0 else []


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(1, NODES, HEADS, DIM), *torch.randn(2, 1, KV_HEADS, PREFIX + NODES, DIM)


def attend(q: Tensor, keys: Tensor, values: Tensor, parents: list[int] = PARENTS) -> Tensor:
    return tree_attention(q, keys, values, ancestor_masks(parents)[None], [PREFIX], scale=0.2)[0]


@given(trees())
def test_masks_are_the_paths(parents: list[int]) -> None:
    seen = visible(ancestor_masks(parents), len(parents))
    for node in range(len(parents)):
        assert seen[node].nonzero()[:, 0].tolist() == path(parents, node)


@pytest.mark.parametrize("parents", [[0], [-1, 1], [-1, -2], [-1, 5]])
def test_a_parent_stands_before_its_child(parents: list[int]) -> None:
    with pytest.raises(ValueError, match="a parent stands before its child"):
        ancestor_masks(parents)


def test_no_more_nodes_than_bits() -> None:
    with pytest.raises(ValueError, match="at most 64 nodes, not 65"):
        ancestor_masks([-1] * 65)


@settings(max_examples=20)
@given(trees())
def test_every_path_alone_gives_the_same(parents: list[int]) -> None:
    """What makes verification lossless: siblings change nothing."""
    nodes = len(parents)
    q, (keys, values) = torch.randn(1, nodes, HEADS, DIM), torch.randn(2, 1, KV_HEADS, PREFIX + nodes, DIM)
    whole = attend(q, keys, values, parents)
    for node in range(0, nodes, 7):
        line = path(parents, node)
        slots = [*range(PREFIX), *(PREFIX + i for i in line)]
        chain = flash_prefill(q[:, line], keys[:, :, slots], values[:, :, slots], [PREFIX], [len(line)], scale=0.2)[0]
        torch.testing.assert_close(whole[:, node], chain[:, -1], atol=1e-5, rtol=1e-5)


def test_a_chain_is_causal_attention(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    expected = flash_prefill(*drawn, [PREFIX], [NODES], scale=0.2)[0]
    torch.testing.assert_close(attend(*drawn, list(range(-1, NODES - 1))), expected, atol=1e-5, rtol=1e-5)


def test_the_order_of_siblings_does_not_matter(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    """Nodes 1 and 2 change places, with their children."""
    order = [0, 2, 1, 3, 4, 5, 6, 7, 8, 9]
    parents = [-1, 0, 0, 2, 2, 1, -1, 6, 4, 8]
    slots = [*range(PREFIX), *(PREFIX + i for i in order)]
    q, keys, values = drawn
    moved = attend(q[:, order], keys[:, :, slots], values[:, :, slots], parents)
    torch.testing.assert_close(moved, attend(*drawn)[:, order], atol=1e-5, rtol=1e-5)


def test_a_siblings_value_does_not_leak(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    before = attend(*drawn)
    drawn[2][:, :, PREFIX + 2] += 1000  # seen by nodes 2 and 5
    changed = (attend(*drawn) != before).any(-1).any(-1)[0]
    assert changed.nonzero()[:, 0].tolist() == [2, 5]


def test_the_last_of_64_nodes_has_its_bit() -> None:
    """Bit 63 is the sign of an int64."""
    parents = [-1] * 64
    q, (keys, values) = torch.randn(1, 64, 1, DIM), torch.randn(2, 1, 1, 64, DIM)
    out, _ = tree_attention(q, keys, values, ancestor_masks(parents)[None], [0], scale=1.0)
    torch.testing.assert_close(out[0, :, 0], values[0, 0])


def test_costs_by_hand() -> None:
    """Rows of 10 + 3 and 5 + 0 nodes, H = 4, G = 2, D = 16, bf16, up to 4 nodes."""
    cost = tree_attention_cost([10, 5], [3, 0], (2, 4, 4, 16), 2, 2)
    read = (2 * 13 * 2 + 3 * 4) * 16 * 2 + 2 * (4 * 8 + 8)
    assert cost == Cost(4 * 3 * 13 * 4 * 16, read, 2 * 4 * 4 * (16 * 2 + 4))


def test_the_dispatcher_records_its_cost(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    with counting.counting() as counter:
        attend(*drawn)
    expected = tree_attention_cost([PREFIX], [NODES], drawn[0].shape, KV_HEADS, 4)
    assert counter.costs == {"tree_attention": expected}


def test_what_does_not_fit_is_refused(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    masks = ancestor_masks(PARENTS)[None]
    with pytest.raises(ValueError, match="do not fit"):
        tree_attention(*drawn, masks[:, 1:], [PREFIX], scale=1.0)
    with pytest.raises(ValueError, match="slots of the cache"):
        tree_attention(*drawn, masks, [PREFIX + 1], scale=1.0)
