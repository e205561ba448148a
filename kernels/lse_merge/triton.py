"""Merge of partial attention results on the GPU: one program per row and head."""

# No `from __future__ import annotations`: Triton reads the annotations.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, jit


@jit
def lse_merge_kernel(
    outs: tl.tuple,
    out_strides: tl.tuple,
    lses: tl.tuple,
    lse_strides: tl.tuple,
    out: tl.tensor,
    outer: tl.tensor,
    inner: tl.tensor,
    lse: tl.tensor,
    heads: tl.tensor,
    dim: tl.tensor,
    PARTS: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """Head h of row n. The strides are those of N and H for each part in turn."""
    n, h, d = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.arange(0, DIM)
    peak = tl.full((), -3.0e38, tl.float32)  # finite, so that parts without weight alone give factors of 0
    for f in tl.static_range(PARTS):
        peak = tl.maximum(peak, tl.load(lses[f] + n * lse_strides[2 * f] + h * lse_strides[2 * f + 1]))
    sums, total = tl.zeros((DIM,), tl.float32), tl.zeros((), tl.float32)
    for f in tl.static_range(PARTS):
        own = tl.load(lses[f] + n * lse_strides[2 * f] + h * lse_strides[2 * f + 1])
        weight = tl.exp2((own - peak) * 1.4426950408889634)
        part = outs[f] + n * out_strides[2 * f] + h * out_strides[2 * f + 1]
        readable = tl.where(own > float("-inf"), dim, 0)
        sums += weight * tl.load(part + d, d < readable, 0.0).to(tl.float32)
        total += weight
    divisor = tl.where(total > 0, total, 1.0)
    tl.store(out + n * outer + h * inner + d, (sums / divisor).to(out.dtype.element_ty), d < dim)
    tl.store(lse + n * heads + h, tl.where(total > 0, peak + tl.log(divisor), float("-inf")))


def lse_merge(outs: tuple[Tensor, ...], lses: tuple[Tensor, ...], out: Tensor) -> tuple[Tensor, Tensor]:
    """The contract of `kernels.lse_merge.lse_merge` for tuples, into `out`."""
    rows, heads, dim = out.shape
    lse = out.new_empty(rows, heads, dtype=torch.float32)
    lse_merge_kernel[rows, heads](
        outs,
        _strides(outs),
        lses,
        _strides(lses),
        out,
        out.stride(0),
        out.stride(1),
        lse,
        heads,
        dim,
        PARTS=len(outs),
        DIM=triton.next_power_of_2(dim),
        num_warps=1 if dim <= 128 else 4,
    )
    return out, lse


def _strides(parts: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(stride for part in parts for stride in part.stride()[:2])


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: three bf16 parts of a D = 128 model."""
    strides = ("i32",) * 6
    signature: dict[str, Any] = {
        "outs": ("*bf16",) * 3,
        "out_strides": strides,
        "lses": ("*fp32",) * 3,
        "lse_strides": strides,
        "out": "*bf16",
        "lse": "*fp32",
    }
    signature |= dict.fromkeys(("outer", "inner", "heads", "dim"), "i32")
    signature |= dict.fromkeys(("PARTS", "DIM"), "constexpr")
    return [Variant("lse_merge-3", lse_merge_kernel, signature, {"PARTS": 3, "DIM": 128})]
