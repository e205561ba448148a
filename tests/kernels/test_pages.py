"""Decode attention over a pool of pages: a table instead of a contiguous cache, and no copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.flash_decode import dense_spans, flash_decode, page_spans, paged

KV_HEADS, DIM, ZERO = 3, 64, torch.zeros(2).int()


def page_table(cache: Tensor, page: int) -> Tensor:
    """[B, n]: different pages of a pool twice as large as the cache needs, in random order."""
    batch, _, tokens, _ = cache.shape
    n = -(-tokens // page)
    return torch.randperm(2 * batch * n)[: batch * n].view(batch, n).int()


def scattered(cache: Tensor, table: Tensor, page: int) -> Tensor:
    """The pool [P, G, page, D] that holds a cache [B, G, T, D]; whatever else it holds is NaN."""
    pool = torch.full((2 * table.numel(), cache.shape[1], page, cache.shape[3]), torch.nan)
    for row, places in enumerate(table.tolist()):
        for i, place in enumerate(places):
            part = cache[row, :, i * page : (i + 1) * page]
            pool[place, :, : part.shape[1]] = part
    return pool


@pytest.mark.parametrize("page", [1, 5, 16, 64])
def test_pages_give_what_a_contiguous_cache_gives(page: int) -> None:
    """Pages that no row uses, and what lies behind the last token of a page, are NaN."""
    lengths = torch.tensor([100, 37]).int()
    q, keys, values = torch.randn(2, 9, DIM), *torch.randn(2, 2, KV_HEADS, 100, DIM)
    keys[1, :, 37:] = values[1, :, 37:] = torch.nan
    table, cos = page_table(keys, page), torch.randn(100, DIM // 2)
    key_pool, value_pool = scattered(keys, table, page), scattered(values, table, page)
    spans = page_spans(table, lengths, page, KV_HEADS)
    out, lse = flash_decode(q, paged(key_pool), paged(value_pool), spans, ZERO, cos=cos, sin=cos, scale=0.1)
    expected = flash_decode(q, keys, values, dense_spans(lengths), torch.arange(2).int(), cos=cos, sin=cos, scale=0.1)
    torch.testing.assert_close((out, lse), expected, atol=1e-5, rtol=1e-5)


def test_the_view_of_a_pool_moves_nothing() -> None:
    pool = torch.randn(5, KV_HEADS, 16, DIM)
    cache = paged(pool)
    assert cache.data_ptr() == pool.data_ptr()
    assert torch.equal(cache[0, 2, 4 * 48 : 4 * 48 + 16], pool[4, 2])


def test_a_table_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="2 pages of 16 tokens do not hold 33"):
        page_spans(torch.zeros(1, 2).int(), torch.tensor([33]), 16, KV_HEADS)


def test_a_strided_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        paged(torch.randn(5, 16, KV_HEADS, DIM).transpose(1, 2))
