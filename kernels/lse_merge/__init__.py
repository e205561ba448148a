"""Merge of partial attention results through their log-sum-exp (flash-decoding's second step)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.arguments import view
from kernels.build import Functions
from kernels.lse_merge import reference
from kernels.lse_merge.cost import lse_merge_cost

_F32, _BF16 = torch.float32, torch.bfloat16
_lse_merge = Functions(
    "lse_merge",
    "pipiipiiii",
    {
        (_F32, _F32): "lse_merge_f32_f32",
        (_BF16, _BF16): "lse_merge_bf16_bf16",
        (_F32, _BF16): "lse_merge_f32_bf16",
    },
)


def lse_merge(
    outs: Tensor | Sequence[Tensor], lses: Tensor | Sequence[Tensor], *, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention results of F disjoint key sets, outs [F, N, H, D] and lses [F, N, H] fp32 -> those of their union.

    Gives (out [N, H, D], lse [N, H] fp32): out = sum_f exp(lse_f - lse) out_f with lse = log sum_f exp(lse_f), summed
    in fp32. Either argument may be a sequence of F tensors [N, H, D] and [N, H]; all may be strided but in D. A part
    with lse = -inf is not read, so its out may hold anything; where all are -inf, out is 0 and lse -inf. bf16 parts
    give a bf16 out, fp32 parts an fp32 one or, through `out`, a bf16 one. `out` may be one of the parts.
    N = 0 gives empty results, F = 0 a ValueError. Source: actqkv and qwen2_5_1m, sections "Kernels".
    """
    if len(outs) == 0 or len(outs) != len(lses):
        raise ValueError(f"{len(outs)} partial results and {len(lses)} log-sum-exps: need as many, and at least one")
    first = outs[0]
    rows, heads, dim = first.shape
    if out is None:
        out = first.new_empty(rows, heads, dim)
    if counting.active is not None:
        cost = lse_merge_cost(len(outs), rows, heads, dim, first.element_size(), out.element_size())
        counting.record("lse_merge", cost)
    matches = out.stride(2) == 1 and _readable(outs, first.dtype) and _readable(lses, _F32)
    function = _lse_merge[first.dtype, out.dtype] if first.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(first):
            from kernels.lse_merge import triton as gpu

            return gpu.lse_merge(tuple(outs), tuple(lses), out)
        exact, lse = reference.lse_merge(list(outs), list(lses))
        return out.copy_(exact), lse
    lse = first.new_empty(rows, heads, dtype=_F32)
    table = [*_views(outs), *_views(lses)]
    function(
        (ctypes.c_int64 * len(table))(*table),
        len(outs),
        *view(out),
        lse.data_ptr(),
        rows,
        heads,
        dim,
        torch.get_num_threads(),
    )
    return out, lse


def _readable(parts: Tensor | Sequence[Tensor], dtype: torch.dtype) -> bool:
    """One dtype, and the elements of a head side by side."""
    if isinstance(parts, Tensor):
        return parts.dtype is dtype and (parts.dim() == 3 or parts.stride(3) == 1)
    return all(part.dtype is dtype and (part.dim() == 2 or part.stride(2) == 1) for part in parts)


def _views(parts: Tensor | Sequence[Tensor]) -> list[int]:
    """Pointer and strides of N and H for each part, as the kernel's `View`."""
    if not isinstance(parts, Tensor):
        return [number for part in parts for number in view(part)]
    part_stride, outer, inner, *_ = parts.stride()
    start, step = parts.data_ptr(), part_stride * parts.element_size()
    return [number for f in range(len(parts)) for number in (start + f * step, outer, inner)]
