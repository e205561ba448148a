"""The contract and the realistic shapes of gemv."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.gemv import gated_gemv, gemv, reference
from kernels.gemv.cost import gated_gemv_cost, gemv_cost


def gemv_case(n: int, features: int, outputs: int, bias: bool = False, residual: str = "none", size: float = 1) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        x, w = strided(size * torch.randn(n, features).to(dtype)), torch.randn(outputs, features).to(dtype)
        b = torch.randn(outputs) if bias else None
        r = None if residual == "none" else strided(torch.randn(n, outputs).to(dtype))
        wide_r = None if r is None else r.double()

        def run() -> Outputs:
            out = strided(poisoned(n, outputs, dtype=dtype))
            if r is None or residual == "apart":
                return {"y": gemv(x, w, r, bias=b, out=out)}
            updated = strided(r)
            return {"y": gemv(x, w, updated, bias=b, out=updated)}

        return Trial(run, lambda: {"y": reference.gemv(x.double(), w.double(), wide_r, b)})

    flags = ("-bias" if bias else "") + ("" if residual == "none" else f"-residual {residual}")
    return Case("gemv", f"{n}x{features}x{outputs}{flags}{'-large' if size > 1 else ''}", make)


def logits_case(n: int) -> Case:
    """fp32 logits from the model's dtype, and a bias in that dtype."""

    def make(dtype: torch.dtype) -> Trial:
        x, w, b = torch.randn(n, 64).to(dtype), torch.randn(500, 64).to(dtype), torch.randn(500).to(dtype)
        run = lambda: {"fp32 y": gemv(x, w, bias=b, out=poisoned(n, 500, dtype=torch.float32))}  # noqa: E731
        return Trial(run, lambda: {"fp32 y": reference.gemv(x.double(), w.double(), None, b)})

    return Case("gemv", f"logits-{n}", make)


def gated_case(n: int, features: int, intermediate: int, activation: str, size: float = 1.0) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        x = strided(size * torch.randn(n, features).to(dtype))
        w = torch.randn(2 * intermediate, features).to(dtype)

        def run() -> Outputs:
            return {"y": gated_gemv(x, w, activation, out=strided(poisoned(n, intermediate, dtype=dtype)))}

        return Trial(run, lambda: {"y": reference.gated_gemv(x.double(), w.double(), activation)})

    return Case("gated_gemv", f"{n}x{features}x{intermediate}-{activation}{'-large' if size > 1 else ''}", make)


CASES = [
    *(gemv_case(*shape) for shape in ((1, 576, 576), (1, 63, 49), (2, 500, 100), (2, 5000, 17))),
    *(gemv_case(*shape) for shape in ((4, 31, 3), (17, 100, 63))),
    gemv_case(1, 100, 63, bias=True, residual="apart"),
    gemv_case(3, 500, 33, bias=True, residual="in place"),
    gemv_case(5, 2100, 18, bias=True),
    gemv_case(16, 1100, 40, residual="in place"),
    gemv_case(3, 100, 63, size=1e15),
    *(gemv_case(*shape) for shape in ((12, 64, 35), (16, 576, 16), (29, 96, 50))),
    gemv_case(27, 320, 33, bias=True, residual="in place"),
    gemv_case(16, 96, 32, size=1e15),
    logits_case(1),
    logits_case(7),
    logits_case(16),
    *(gated_case(*shape, "silu") for shape in ((1, 576, 1536), (3, 63, 49), (16, 100, 17))),
    *(gated_case(*shape, "gelu_tanh") for shape in ((1, 100, 63), (4, 500, 16))),
    gated_case(16, 576, 100, "silu"),
    gated_case(2, 63, 100, "silu", size=1e4),
    gated_case(2, 63, 100, "gelu_tanh", size=1e4),
]
TEAM_CASES = [gemv_case(1, 577, 577), gemv_case(16, 576, 577), gated_case(3, 576, 100, "silu")]
SMALL_CASES = [
    gemv_case(1, 300, 33, bias=True, residual="apart"),
    gemv_case(3, 63, 17, bias=True, residual="in place"),
    gemv_case(17, 100, 20),
    logits_case(2),
    gated_case(1, 100, 17, "silu"),
    gated_case(3, 63, 20, "gelu_tanh"),
]


def speed_case(n: int, features: int, outputs: int) -> SpeedCase:
    def make(dtype: torch.dtype) -> Race:
        x, w, out = torch.randn(n, features).to(dtype), weights(outputs, features, dtype), torch.empty(n, outputs)
        out = out.to(dtype)
        cost = gemv_cost(n, features, outputs, x.element_size())
        return Race(lambda: gemv(x, w, out=out), cost, {"torch linear": lambda: F.linear(x, w)})

    return SpeedCase("gemv", f"{n} x {features} -> {outputs}", make)


def gated_speed_case(n: int, features: int, intermediate: int) -> SpeedCase:
    def make(dtype: torch.dtype) -> Race:
        x, w = torch.randn(n, features).to(dtype), weights(2 * intermediate, features, dtype)

        def peer() -> Tensor:
            gate, up = F.linear(x, w).chunk(2, dim=-1)
            return F.silu(gate) * up

        cost = gated_gemv_cost(n, features, intermediate, x.element_size())
        return Race(lambda: gated_gemv(x, w, "silu"), cost, {"torch linear, silu, product": peer})

    return SpeedCase("gated_gemv", f"{n} x {features} -> {intermediate}", make)


def weights(outputs: int, features: int, dtype: torch.dtype) -> Tensor:
    """Values do not matter to the clock, and drawing millions of normal ones takes longer than timing them."""
    return torch.full((outputs, features), 0.5, dtype=dtype)


SPEED_CASES = [
    speed_case(1, 576, 576),
    speed_case(1, 576, 49152),
    speed_case(16, 576, 49152),
    *(speed_case(n, 2048, 2048) for n in (1, 4, 16)),
    speed_case(1, 4096, 4096),
    gated_speed_case(1, 576, 1536),
    gated_speed_case(1, 4096, 11008),
]
