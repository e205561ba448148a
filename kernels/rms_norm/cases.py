"""The contract and the realistic shapes of rms_norm."""

from __future__ import annotations

import torch

from kernels.contract import Case, Outputs, SpeedCase, Trial, poisoned, strided
from kernels.rms_norm import reference, rms_norm


def rms_case(*shape: int, residual: bool = False, in_place: bool = False, size: float = 1.0) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        given, weight = (size * torch.randn(shape)).to(dtype), torch.randn(shape[-1])
        start = torch.randn(shape).to(dtype)
        summed = (given.double() + start.double()).to(dtype) if residual else given

        def run() -> Outputs:
            x, r = strided(given), strided(start) if residual else None
            out = x if in_place else strided(poisoned(*shape, dtype=dtype))
            outputs = {"y": rms_norm(x, weight, 1e-5, r, out=out)}
            return outputs if r is None else outputs | {"residual": r}

        def expected() -> Outputs:
            outputs = {"y": reference.rms_norm(summed.double(), weight, 1e-5)}
            return outputs | {"residual": summed.double()} if residual else outputs

        return Trial(run, expected)

    flags = ("-residual" if residual else "") + ("-in place" if in_place else "") + ("-large" if size > 1 else "")
    return Case("rms_norm", "x".join(map(str, shape)) + flags, make)


CASES = [
    rms_case(1, 576),
    rms_case(3, 63),
    rms_case(200, 500),
    rms_case(5, 9, 64),
    rms_case(5, 3, 80, in_place=True),
    rms_case(2, 3, 4, 16),
    rms_case(7, 100, residual=True),
    rms_case(2, 3, 16, residual=True),
    rms_case(4, 576, size=1e6),
]
TEAM_CASES = [rms_case(300, 577, residual=True)]
SMALL_CASES = [rms_case(2, 63), rms_case(2, 3, 80, in_place=True), rms_case(3, 100, residual=True)]
SPEED_CASES: list[SpeedCase] = []
