"""Decode attention: what one call leaves in a thread's scratch memory must not reach the next."""

from __future__ import annotations

import pytest
import torch

from kernels.flash_decode import dense_spans, flash_decode


@pytest.mark.parametrize("tokens", [1, 10, 16, 33])
def test_a_call_with_nan_leaves_nothing_behind(tokens: int, backend: str) -> None:
    """The few tokens of the second call fill only a part of the blocks that the first one filled with NaN."""
    q, row = torch.randn(1, 6, 64).bfloat16(), torch.zeros(1).int()
    keys, values = torch.randn(2, 1, 2, 256, 64).bfloat16()
    before, _ = flash_decode(q, keys, values, dense_spans([tokens]), row, scale=0.125)
    spoilt, _ = flash_decode(q, keys * torch.nan, values * torch.nan, dense_spans([256]), row, scale=0.125)
    after, _ = flash_decode(q, keys, values, dense_spans([tokens]), row, scale=0.125)
    assert spoilt.isnan().all()
    assert before.isfinite().all()
    assert torch.equal(after, before)
