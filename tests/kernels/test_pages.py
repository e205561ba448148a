"""Decode attention over a pool of pages: a table instead of a contiguous cache, and no copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.flash_decode import dense_spans, flash_decode, page_spans, paged

KV_HEADS, DIM, ZERO = 3, 64, torch.zeros(2).int()


def scattered(cache: Tensor, page: int) -> tuple[Tensor, Tensor]:
    """cache [B, G, T, D] -> (a pool of pages [P, G, page, D] in random order with NaN pages between, table [B, n])."""
    batch, kv_heads, tokens, dim = cache.shape
    n = -(-tokens // page)
    pool = torch.full((2 * batch * n, kv_heads, page, dim), torch.nan)
    table = torch.randperm(len(pool))[: batch * n].view(batch, n).int()
    for row in range(batch):
        for i, place in enumerate(table[row].tolist()):
            part = cache[row, :, i * page : (i + 1) * page]
            pool[place, :, : part.shape[1]] = part
    return pool, table


@pytest.mark.parametrize("page", [1, 5, 16, 64])
def test_pages_give_what_a_contiguous_cache_gives(page: int) -> None:
    """Pages that no row uses, and what lies behind the last token of a page, are NaN."""
    lengths = torch.tensor([100, 37]).int()
    q, keys, values = torch.randn(2, 9, DIM), *torch.randn(2, 2, KV_HEADS, 100, DIM)
    keys[1, :, 37:] = values[1, :, 37:] = torch.nan
    (key_pool, table), cos = scattered(keys, page), torch.randn(100, DIM // 2)
    value_pool = torch.full_like(key_pool, torch.nan)
    for row in range(2):
        for i, place in enumerate(table[row].tolist()):
            part = values[row, :, i * page : (i + 1) * page]
            value_pool[place, :, : part.shape[1]] = part
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
