"""The contract and the realistic shapes of ema_scan."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, strided
from kernels.ema_scan import ema_scan, reference
from kernels.ema_scan.cost import ema_backward_cost, ema_scan_cost

Scan = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def weights(batch: int, steps: int, kind: str) -> Tensor:
    """p [B, M]: "any", "certain" (0 and 1 only), or "tiny": thousands of steps hardly move the average."""
    if kind == "certain":
        return torch.randint(0, 2, (batch, steps)).float()
    return torch.rand(batch, steps) * (1e-4 if kind == "tiny" else 1.0)


def scan_case(
    batch: int, steps: int, dim: int, *, kind: str = "any", gradients: bool = False, first: bool = True
) -> Case:
    """z has rows further apart than D; with `gradients`, what comes back of a random sum of all outputs."""

    def make(dtype: torch.dtype) -> Trial:
        z = strided(torch.randn(batch, steps, dim).to(dtype))
        p, initial = weights(batch, steps, kind), torch.randn(batch, dim) * first
        dy, dlast = torch.randn(batch, steps, dim).to(dtype), torch.randn(batch, dim)

        def outcome(scan: Scan, wide: bool) -> Outputs:
            given = [x.double() if wide else x.clone() for x in (z, p, initial)]
            if not wide:
                given[0] = strided(z)
            if not gradients:
                y, last = scan(*given)
                return {"y": y, "fp32 last": last}
            leaves = [x.detach().requires_grad_() for x in given]
            y, last = scan(*leaves)
            torch.autograd.backward([y, last], [dy.to(y.dtype), dlast.to(last.dtype)])
            dz, dp, dinitial = (x.grad for x in leaves)
            assert dz is not None and dp is not None and dinitial is not None  # noqa: PT018
            return {"dz": dz, "fp32 dp": dp, "fp32 dinitial": dinitial}

        return Trial(lambda: outcome(ema_scan, False), lambda: outcome(reference.ema_scan, True))

    flags = ("" if kind == "any" else f"-{kind}") + ("-gradients" if gradients else "") + ("" if first else "-zero")
    return Case("ema_scan", f"{batch}x{steps}x{dim}{flags}", make)


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """33 features: two whole vectors and one more."""
    z, p, initial = guarded(2, 5, 33, dtype=dtype).requires_grad_(), guarded(2, 5).abs_(), guarded(2, 33)
    y, last = ema_scan(z, p, initial)
    torch.autograd.backward([y, last], [guarded(2, 5, 33, dtype=dtype), guarded(2, 33)])


def scan_race(batch: int, steps: int, dim: int, dtype: torch.dtype, *, backward: bool) -> Race:
    """Chunks of a batch of sequences, as training sees them: forward, or forward and backward."""
    z, p = torch.randn(batch, steps, dim).to(dtype), torch.rand(batch, steps)
    initial, dy = torch.zeros(batch, dim), torch.randn(batch, steps, dim).to(dtype)

    def run(scan: Scan) -> object:
        leaves = [x.detach().requires_grad_(backward) for x in (z, p, initial)]
        y, last = scan(leaves[0], leaves[1], leaves[2])
        if backward:
            torch.autograd.backward([y], [dy])
        return y, last

    cost = ema_scan_cost(batch, steps, dim, dtype.itemsize)
    if backward:
        cost += ema_backward_cost(batch, steps, dim, dtype.itemsize)
    return Race(lambda: run(ema_scan), cost, {"torch, step by step": lambda: run(reference.ema_scan)})


CASES = [
    scan_case(1, 1, 16),
    scan_case(2, 63, 80),
    scan_case(3, 100, 33, first=False),
    scan_case(1, 500, 128),
    scan_case(2, 0, 16),
    scan_case(2, 100, 64, kind="certain"),
    scan_case(1, 4000, 16, kind="tiny"),
    scan_case(1, 1, 16, gradients=True),
    scan_case(2, 63, 80, gradients=True),
    scan_case(3, 100, 33, gradients=True, first=False),
    scan_case(2, 100, 64, kind="certain", gradients=True),
    scan_case(1, 500, 128, gradients=True),
]
TEAM_CASES = [scan_case(1, 300, 200, gradients=True), scan_case(5, 200, 64), scan_case(5, 200, 64, gradients=True)]
SMALL_CASES = [
    scan_case(2, 70, 40),
    scan_case(1, 33, 16, kind="certain"),
    scan_case(2, 70, 40, gradients=True),
    scan_case(1, 5, 70, gradients=True, first=False),
]
SPEED_CASES = [
    SpeedCase("ema_scan", "4x512x1024", lambda dtype: scan_race(4, 512, 1024, dtype, backward=False)),
    SpeedCase("ema_scan", "1x512x1024", lambda dtype: scan_race(1, 512, 1024, dtype, backward=False)),
    SpeedCase("ema_scan", "4x256x1024-backward", lambda dtype: scan_race(4, 256, 1024, dtype, backward=True)),
]
