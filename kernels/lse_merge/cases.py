"""The contract and the realistic shapes of lse_merge."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.lse_merge import lse_merge, reference
from kernels.lse_merge.cost import lse_merge_cost


def merge_case(
    parts: int, n: int, heads: int, dim: int, *, kind: str = "all", size: float = 5, listed: bool = False
) -> Case:
    """`kind`: "some" leaves out random parts (their out is NaN), "none" every part of the even rows."""

    def make(dtype: torch.dtype) -> Trial:
        outs = strided(torch.randn(parts, n, heads, dim).to(dtype))
        lses = strided(size * torch.randn(parts, n, heads))
        if kind != "all":
            absent = torch.rand(parts, n, heads) < 0.5
            absent[:, ::2] |= kind == "none"
            lses[absent], outs[absent] = -torch.inf, torch.nan
        own_outs, own_lses = (list(outs), list(lses)) if listed else (outs, lses)

        def run() -> Outputs:
            out, lse = lse_merge(own_outs, own_lses, out=strided(poisoned(n, heads, dim, dtype=dtype)))
            return {"out": out, "fp32 lse": lse}

        def expected() -> Outputs:
            out, lse = reference.lse_merge(list(outs.double()), list(lses.double()))
            return {"out": out, "fp32 lse": lse}

        return Trial(run, expected)

    flags = ("-list" if listed else "") + ("-extreme" if size > 1000 else "")
    return Case("lse_merge", f"{parts}x{n}x{heads}x{dim}-{kind}{flags}", make)


def widening_case(n: int, heads: int, dim: int) -> Case:
    """fp32 parts merged in place (fp32), or into bf16."""

    def make(dtype: torch.dtype) -> Trial:
        outs, lses = torch.randn(2, n, heads, dim), torch.randn(2, n, heads)

        def run() -> Outputs:
            parts = outs.clone()
            out = parts[1] if dtype is torch.float32 else poisoned(n, heads, dim, dtype=dtype)
            return {"out": lse_merge(parts, lses, out=out)[0]}

        return Trial(run, lambda: {"out": reference.lse_merge(list(outs.double()), list(lses))[0]})

    return Case("lse_merge", f"fp32 parts-{n}x{heads}x{dim}", make)


def speed_case(parts: int, n: int, heads: int, dim: int) -> SpeedCase:
    def make(dtype: torch.dtype) -> Race:
        outs, lses = torch.randn(parts, n, heads, dim).to(dtype), torch.randn(parts, n, heads)
        out = torch.empty(n, heads, dim, dtype=dtype)
        cost = lse_merge_cost(parts, n, heads, dim, outs.element_size(), outs.element_size())
        return Race(lambda: lse_merge(outs, lses, out=out), cost, {"torch logsumexp": lambda: merged(outs, lses)})

    return SpeedCase("lse_merge", f"{parts}x{n}x{heads}x{dim}", make, (torch.bfloat16, torch.float32))


def merged(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """The peer: what one writes in torch."""
    lse = torch.logsumexp(lses, 0)
    weights = torch.exp(lses - lse)
    return (weights[..., None] * outs.float()).sum(0).to(outs.dtype), lse


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """The last head of the last part ends where the page does."""
    out, lse = lse_merge(guarded(2, 3, 5, 63, dtype=dtype), guarded(2, 3, 5), out=guarded(3, 5, 63, dtype=dtype))
    assert out.isfinite().all()
    assert lse.isfinite().all()


CASES = [
    merge_case(1, 1, 3, 64),
    merge_case(2, 63, 2, 80),
    merge_case(3, 100, 4, 128, kind="some"),
    merge_case(5, 9, 3, 63, kind="none"),
    merge_case(17, 7, 2, 16, kind="some"),
    merge_case(3, 5, 8, 64, size=1e6),
    merge_case(4, 5, 8, 100, kind="some", listed=True),
    widening_case(5, 3, 80),
]
TEAM_CASES = [merge_case(3, 101, 9, 64, kind="some")]
SMALL_CASES = [
    merge_case(3, 2, 3, 80, kind="some"),
    merge_case(2, 2, 2, 16, kind="none", listed=True),
    widening_case(2, 1, 64),
]
SPEED_CASES = [speed_case(3, 1, 9, 64), speed_case(3, 512, 9, 64), speed_case(2, 512, 32, 128)]
