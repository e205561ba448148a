"""Linear layers with int4 weights and 16- or 32-bit activations (W4A16), for one row of x up to a verified tree.

methods/specmquant.md, "Kernels" (arXiv 2505.22179): symmetric int4 in groups of 128 inputs with fp16 scales, no zero
points. `pack` and `unpack` convert integer weights to the layout the kernels read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.build import Functions
from kernels.w4_gemm import reference
from kernels.w4_gemm.cost import w4_gemm_cost
from kernels.w4_gemm.reference import GROUP, dequantise, pack, unpack

__all__ = ["GROUP", "dequantise", "pack", "unpack", "w4_gemm"]

_functions = Functions("w4_gemm", "pipppiiiii", {torch.float32: "w4_gemm_f32", torch.bfloat16: "w4_gemm_bf16"})


def w4_gemm(x: Tensor, packed: Tensor, scales: Tensor, *, out: Tensor | None = None) -> Tensor:
    """x [T, K], packed int16 [N, ceil(K / 4)] (see `pack`), scales fp16 [N, ceil(K / 128)] -> y [T, N].

    y[t, n] = sum_g scales[n, g] sum_k x[t, k] w[n, k], k over the group: codes are multiplied as integers and summed in
    fp32, nothing is rounded before the result, so it does not depend on T but for the order of the sums. x is bf16
    or fp32. Any T works; up to 64 rows cost one pass over the weights. Rows of x and out may be strided.
    No rows or no outputs give an empty result.
    """
    rows, features = x.shape
    outputs, words = packed.shape
    if words != -(-features // 4) or scales.shape != (outputs, -(-features // GROUP)):
        _complain(x, packed, scales)
    if out is None:
        out = x.new_empty(rows, outputs)
    if counting.active is not None:
        counting.record("w4_gemm", w4_gemm_cost(rows, features, outputs, x.element_size()))
    matches = _readable(x, packed, scales, out)
    function = _functions[x.dtype] if x.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(x):
            from kernels.w4_gemm import triton as gpu

            return gpu.w4_gemm(x, packed, scales, out)
        return out.copy_(reference.w4_gemm(x, packed, scales))
    function(
        x.data_ptr(),
        x.stride()[0],
        packed.data_ptr(),
        scales.data_ptr(),
        out.data_ptr(),
        out.stride()[0],
        rows,
        features,
        outputs,
        torch.get_num_threads(),
    )
    return out


def _complain(x: Tensor, packed: Tensor, scales: Tensor) -> None:
    features, outputs = x.shape[1], packed.shape[0]
    raise ValueError(
        f"{features} inputs want packed [{outputs}, {-(-features // 4)}] and "
        f"scales [{outputs}, {-(-features // GROUP)}], "
        f"not {list(packed.shape)} and {list(scales.shape)}"
    )


def _readable(x: Tensor, packed: Tensor, scales: Tensor, out: Tensor) -> bool:
    """The kernels read whole rows of codes and scales, and convert nothing else."""
    if packed.dtype is not torch.int16 or scales.dtype is not torch.float16 or out.dtype is not x.dtype:
        return False
    return x.stride()[1] == 1 and out.stride()[1] == 1 and packed.is_contiguous() and scales.is_contiguous()
