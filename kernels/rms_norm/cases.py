"""The contract and the realistic shapes of rms_norm."""

from __future__ import annotations

import torch

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.rms_norm import reference, rms_norm
from kernels.rms_norm.cost import rms_norm_cost


def rms_case(
    *shape: int, residual: bool = False, steered: bool = False, in_place: bool = False, size: float = 1.0
) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        given, weight = (size * torch.randn(shape)).to(dtype), torch.randn(shape[-1])
        start = torch.randn(shape).to(dtype)
        steering = torch.randn(shape[-1]) if steered else None
        total = given.double() + start.double() + (0 if steering is None else steering)
        summed = total.to(dtype) if residual else given

        def run() -> Outputs:
            x, r = strided(given), strided(start) if residual else None
            out = x if in_place else strided(poisoned(*shape, dtype=dtype))
            outputs = {"y": rms_norm(x, weight, 1e-5, r, steering=steering, out=out)}
            return outputs if r is None else outputs | {"residual": r}

        def expected() -> Outputs:
            outputs = {"y": reference.rms_norm(summed.double(), weight, 1e-5)}
            return outputs | {"residual": summed.double()} if residual else outputs

        return Trial(run, expected)

    flags = (
        ("-residual" if residual else "")
        + ("-steered" if steered else "")
        + ("-in place" if in_place else "")
        + ("-large" if size > 1 else "")
    )
    return Case("rms_norm", "x".join(map(str, shape)) + flags, make)


def norm_race(rows: int, width: int, dtype: torch.dtype) -> Race:
    """The norm after a sublayer, with its residual addition."""
    x, residual, weight = torch.randn(rows, width).to(dtype), torch.randn(rows, width).to(dtype), torch.randn(width)
    out, narrow = torch.empty_like(x), weight.to(dtype)

    def peer() -> torch.Tensor:
        return torch.nn.functional.rms_norm(residual.add_(x), (width,), narrow, 1e-5)

    cost = rms_norm_cost(rows, width, dtype.itemsize, residual=True)
    return Race(lambda: rms_norm(x, weight, 1e-5, residual, out=out), cost, {"torch add_ + rms_norm": peer})


def steered_race(dtype: torch.dtype) -> Race:
    """What a steering vector adds to the same norm (card asc: less than 2 %)."""
    rows, width = 2048, 4096
    x, residual, weight = torch.randn(rows, width).to(dtype), torch.randn(rows, width).to(dtype), torch.randn(width)
    out, steering = torch.empty_like(x), torch.randn(width)
    cost = rms_norm_cost(rows, width, dtype.itemsize, residual=True, steering=True)
    return Race(
        lambda: rms_norm(x, weight, 1e-5, residual, steering=steering, out=out),
        cost,
        {"kernels.rms_norm without steering": lambda: rms_norm(x, weight, 1e-5, residual, out=out)},
    )


CASES = [
    rms_case(1, 576),
    rms_case(3, 63),
    rms_case(200, 500),
    rms_case(5, 9, 64),
    rms_case(5, 3, 80, in_place=True),
    rms_case(2, 3, 4, 16),
    rms_case(7, 100, residual=True),
    rms_case(2, 3, 16, residual=True),
    rms_case(7, 100, residual=True, steered=True),
    rms_case(2, 3, 80, residual=True, steered=True),
    rms_case(4, 576, size=1e6),
]
TEAM_CASES = [rms_case(300, 577, residual=True, steered=True)]
SMALL_CASES = [rms_case(2, 63), rms_case(2, 3, 80, in_place=True), rms_case(3, 100, residual=True, steered=True)]
SPEED_CASES = [
    SpeedCase("rms_norm", "1x576", lambda dtype: norm_race(1, 576, dtype)),
    SpeedCase("rms_norm", "2048x576", lambda dtype: norm_race(2048, 576, dtype)),
    SpeedCase("rms_norm", "2048x4096", lambda dtype: norm_race(2048, 4096, dtype)),
    SpeedCase("rms_norm", "2048x4096-steered", steered_race),
]
