"""RMS normalisation: the residual and the steering vector in the same pass."""

from __future__ import annotations

import pytest
import torch

from kernels import counting
from kernels.cost import Cost
from kernels.rms_norm import rms_norm
from kernels.rms_norm.cost import rms_norm_cost


def test_costs_by_hand() -> None:
    """3 rows of 8 in bf16: square, add, two scalings, then one addition each for the residual and the steering."""
    assert rms_norm_cost(3, 8, 2) == per_element(4, streams=1, vectors=1)
    assert rms_norm_cost(3, 8, 2, residual=True) == per_element(5, streams=2, vectors=1)
    assert rms_norm_cost(3, 8, 2, residual=True, steering=True) == per_element(6, streams=2, vectors=2)


def per_element(flops: int, *, streams: int, vectors: int) -> Cost:
    """For 3 x 8 bf16 elements: FLOPs per element, rows read and written, fp32 vectors read."""
    return Cost(flops * 24, streams * 24 * 2 + vectors * 8 * 4, streams * 24 * 2)


def test_the_dispatcher_records_what_it_was_asked() -> None:
    x, residual, vector = torch.randn(3, 8).bfloat16(), torch.randn(3, 8).bfloat16(), torch.randn(8)
    with counting.counting() as counter:
        rms_norm(x, torch.ones(8), 1e-6, residual, steering=vector)
    assert counter.costs == {"rms_norm": rms_norm_cost(3, 8, 2, residual=True, steering=True)}


def test_later_layers_see_the_steered_stream() -> None:
    """Steering changes the residual stream, not only what this norm returns (card asc, "Injection")."""
    x, residual, vector = torch.randn(2, 16), torch.randn(2, 16), torch.randn(16)
    expected = x + residual + vector
    y = rms_norm(x, torch.ones(16), 0.0, residual, steering=vector)
    torch.testing.assert_close(residual, expected)
    torch.testing.assert_close(y, expected / expected.square().mean(-1, keepdim=True).sqrt())


def test_steering_is_added_before_the_sum_is_rounded() -> None:
    """1/512 is lost when it is added to a bf16 1, but not when all three are added first."""
    x, residual = torch.full((1, 16), 1 / 512).bfloat16(), torch.ones(1, 16).bfloat16()
    rms_norm(x, torch.ones(16), 0.0, residual, steering=torch.full((16,), 3 / 512))
    assert residual.eq(1 + 1 / 128).all()


def test_steering_without_a_residual_is_refused() -> None:
    with pytest.raises(ValueError, match="residual"):
        rms_norm(torch.randn(2, 16), torch.ones(16), 1e-6, steering=torch.ones(16))
