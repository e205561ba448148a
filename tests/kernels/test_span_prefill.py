"""Attention of new tokens to spans of their own: sharing loads changes no result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import counting
from kernels.cost import Cost
from kernels.flash_decode import flash_decode
from kernels.flash_prefill import flash_prefill
from kernels.rope.cases import tables
from kernels.span_prefill import span_prefill
from kernels.span_prefill.cases import random_spans
from kernels.span_prefill.cost import span_prefill_cost

TOKENS, HEADS, KV_HEADS, DIM = 90, 6, 2, 32
COS, SIN = tables(100, DIM)
Drawn = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def drawn() -> Drawn:
    return torch.randn(1, TOKENS, HEADS, DIM), *torch.randn(2, 1, KV_HEADS, TOKENS, DIM)


def attend(drawn: Drawn, spans: Tensor) -> tuple[Tensor, Tensor]:
    return span_prefill(*drawn, spans, [0], [TOKENS], cos=COS, sin=SIN, scale=0.2)


@pytest.mark.parametrize("selections", [1, KV_HEADS, HEADS])
def test_everything_unrotated_is_dense_attention(drawn: Drawn, selections: int) -> None:
    """Tokens behind the query are ignored."""
    spans = torch.tensor([0, TOKENS, 0]).int().expand(1, TOKENS, selections, 1, 3)
    expected = flash_prefill(*drawn, [0], [TOKENS], scale=0.2)
    torch.testing.assert_close(attend(drawn, spans), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("selections", [1, KV_HEADS, HEADS])
@pytest.mark.parametrize("grid", [32, 11])
def test_every_query_and_head_is_decoded_as_if_alone(drawn: Drawn, selections: int, grid: int) -> None:
    q, keys, values = drawn
    spans = random_spans((1, TOKENS, selections), TOKENS, grid, 0.5, 100)
    spans[..., :2] = spans[..., :2].minimum(torch.arange(1, TOKENS + 1).int()[None, :, None, None, None])
    rows = torch.zeros(TOKENS).int()
    out, lse = flash_decode(q[0], keys, values, spans[0], rows, cos=COS, sin=SIN, scale=0.2)
    torch.testing.assert_close(attend(drawn, spans), (out[None], lse[None]), atol=1e-5, rtol=1e-5)


def test_costs_by_hand() -> None:
    """One row of 2 queries, H = 4, G = 2, D = 16, bf16: [0, 3) is cut to 1 and 2 tokens, [0, 0) is padding."""
    q, ints = torch.empty(1, 2, 4, 16, dtype=torch.bfloat16), (torch.tensor([0]), torch.tensor([2]))
    spans = torch.tensor([[0, 3, 5], [0, 0, 5]]).int().expand(1, 2, 1, 2, 3)
    read = 2 * 2 * 2 * 16 * 2 + 2 * 4 * 16 * 2 + 2 * 2 * 12 + 8
    flops = 4 * 3 * 4 * 16 + 3 * 2 * 4 * 16
    assert span_prefill_cost(q, 2, spans, *ints) == Cost(flops, read, 8 * (16 * 2 + 4))


def test_the_dispatcher_records_its_cost(drawn: Drawn) -> None:
    spans = random_spans((1, TOKENS, 1), TOKENS, 32, 0.5, 100)
    with counting.counting() as counter:
        attend(drawn, spans)
    expected = span_prefill_cost(drawn[0], KV_HEADS, spans, torch.tensor([0]), torch.tensor([TOKENS]))
    assert counter.costs == {"span_prefill": expected}


def test_lists_for_another_number_of_queries_are_refused(drawn: Drawn) -> None:
    spans = random_spans((1, TOKENS, 1), TOKENS, 32, 0.5, 100)
    with pytest.raises(ValueError, match="a list for every query"):
        attend(drawn, spans[:, 1:])
    with pytest.raises(ValueError, match="3 selections"):
        attend(drawn, spans.expand(1, TOKENS, 3, -1, 3))
