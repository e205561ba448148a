"""The moving average of H-Net: its recursion, its gradients, and where it may not be cut short."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import counting
from kernels.cost import Cost
from kernels.ema_scan import ema_scan, reference
from kernels.ema_scan.cost import ema_backward_cost, ema_scan_cost

BATCH, STEPS, DIM = 2, 20, 24


def test_the_recursion_by_hand() -> None:
    z = torch.tensor([[[8.0] * 16, [4.0] * 16, [0.0] * 16]])
    y, last = ema_scan(z, torch.tensor([[1.0, 0.5, 0.25]]))
    assert y[0, :, 3].tolist() == [8.0, 6.0, 4.5]
    assert torch.equal(last, y[:, -1])


def test_a_sure_boundary_is_no_average_and_an_unsure_one_is() -> None:
    """Card hnet: P = 1 gives the chunk itself, P = 0.6 does not, P = 0 repeats what was before."""
    z = torch.randn(1, 2, 16)
    for p, expected in ((1.0, z[:, 1]), (0.6, 0.6 * z[:, 1] + 0.4 * z[:, 0]), (0.0, z[:, 0])):
        torch.testing.assert_close(ema_scan(z, torch.tensor([[1.0, p]]))[0][:, 1], expected)


@settings(max_examples=30)
@given(st.integers(0, STEPS))
def test_two_scans_are_one(cut: int) -> None:
    """Decoding goes on from the state of the prefill; in bf16 too, where y itself is rounded."""
    z, p = torch.randn(BATCH, STEPS, DIM).bfloat16(), torch.rand(BATCH, STEPS)
    whole, last = ema_scan(z, p)
    first, state = ema_scan(z[:, :cut], p[:, :cut])
    second, end = ema_scan(z[:, cut:], p[:, cut:], state)
    assert torch.equal(torch.cat((first, second), dim=1), whole)
    assert torch.equal(end, last)


def test_gradients_are_those_of_the_definition() -> None:
    """In fp64, by finite differences."""
    z, p = torch.randn(1, 6, 5, dtype=torch.float64), torch.rand(1, 6, dtype=torch.float64)
    initial = torch.randn(1, 5, dtype=torch.float64)
    leaves = tuple(x.requires_grad_() for x in (z, p, initial))
    assert torch.autograd.gradcheck(ema_scan, leaves)


def test_the_router_learns_through_the_average() -> None:
    """Card hnet: no gradient to the router is the trap; each p has one unless a chunk equals the average so far."""
    p = torch.rand(BATCH, STEPS, requires_grad=True)
    y, _ = ema_scan(torch.randn(BATCH, STEPS, DIM), p)
    torch.autograd.backward(y.square().sum())
    assert p.grad is not None
    assert p.grad.ne(0).all()


def test_thousands_of_tiny_weights_do_not_vanish() -> None:
    """A product of (1 - p) underflows in no place: the average of ones is 1 - (1 - p)^n."""
    p = torch.full((1, 20_000), 0.01)
    y, _ = ema_scan(torch.ones(1, 20_000, 16), p)
    assert y.isfinite().all()
    torch.testing.assert_close(y[0, -1], torch.ones(16))
    torch.testing.assert_close(y[0, 99, 0].item(), 1 - 0.99**100, atol=1e-5, rtol=0)


def test_the_reference_follows_autograd() -> None:
    z, p, initial = torch.randn(2, 9, 7), torch.rand(2, 9), torch.randn(2, 7)
    leaves = [x.clone().requires_grad_() for x in (z, p, initial)]
    y, last = reference.ema_scan(*leaves)
    dy, dlast = torch.randn_like(y), torch.randn_like(last)
    torch.autograd.backward([y, last], [dy, dlast])
    ours = reference.gradients(z, p, initial, y.detach(), dy, dlast)
    torch.testing.assert_close(ours, tuple(x.grad for x in leaves), atol=1e-5, rtol=1e-5)


def test_costs_by_hand() -> None:
    """2 rows of 3 steps of 8 features in bf16."""
    assert ema_scan_cost(2, 3, 8, 2) == Cost(3 * 48, 48 * 2 + 24 + 64, 48 * 2 + 64)
    assert ema_backward_cost(2, 3, 8, 2) == Cost(6 * 48, 3 * 48 * 2 + 24 + 2 * 64, 48 * 2 + 24 + 64)
    with counting.counting() as counter:
        torch.autograd.backward(ema_scan(torch.randn(2, 3, 8).requires_grad_(), torch.rand(2, 3))[0].sum())
    assert counter.costs == {
        "ema_scan": ema_scan_cost(2, 3, 8, 4),
        "ema_backward": ema_backward_cost(2, 3, 8, 4),
    }


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"p \[2, 4\] do not fit z \[2, 3, 8\]"):
        ema_scan(torch.randn(2, 3, 8), torch.rand(2, 4))
    with pytest.raises(ValueError, match="initial"):
        ema_scan(torch.randn(2, 3, 8), torch.rand(2, 3), torch.randn(2, 9))
