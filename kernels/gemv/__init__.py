"""Linear layers for a few rows: the whole of batch-1 decoding, bound by the bandwidth of reading the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import arguments, build, counting
from kernels.build import Functions
from kernels.gemv import reference
from kernels.gemv.cost import gated_gemv_cost, gemv_cost

MAX_ROWS = 16
LANE_ROWS, LANE_FEATURES = 128, 128  # up to which, and from which on, lanes of rows are faster than torch (Zen 4)
_F32, _BF16 = torch.float32, torch.bfloat16
_gemv = Functions(
    "gemv",
    "pippipipiiiii",
    {(_F32, _F32): "gemv_f32_f32", (_BF16, _BF16): "gemv_bf16_bf16", (_BF16, _F32): "gemv_bf16_f32"},
)
_gated = Functions("gemv", "pippiiiiii", {_F32: "gated_gemv_f32", _BF16: "gated_gemv_bf16"})


def gemv(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x [N, in], weight [out, in], residual [N, out], bias [out] -> x weight^T + bias + residual [N, out].

    Any N works; up to 16 rows cost about one pass over the weights. Rows of x, residual and out may be strided.
    `out` may be `residual` (an update in place) but not x. `out_dtype=torch.float32` keeps the fp32 sums of a bf16
    product, as logits want. The bias has the dtype of x or is fp32; the residual has the dtype of the result.
    """
    rows, features = x.shape
    x_stride, x_step = x.stride()
    outputs = weight.shape[0]
    if out is None:
        out = x.new_empty(rows, outputs, dtype=out_dtype or x.dtype)
    if counting.active is not None:
        _record(x, weight, residual, bias, out)
    function = _gemv[x.dtype, out.dtype] if x.is_cpu else None
    matches = x_step == 1 and _matches(x, weight, residual, out)
    if function is None or not matches:
        if matches and arguments.on_gpu(x):
            from kernels.gemv import triton as gpu

            return gpu.gemv(x, weight, residual, bias, out)
        return out.copy_(reference.gemv(x, weight, residual, bias, out.dtype))
    function(
        x.data_ptr(),
        x_stride,
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        bias is not None and bias.dtype is _F32,
        None if residual is None else residual.data_ptr(),
        0 if residual is None else residual.stride(0),
        out.data_ptr(),
        out.stride()[0],
        rows,
        features,
        outputs,
        torch.get_num_threads(),
    )
    return out


def gated_gemv(x: Tensor, weight_gate_up: Tensor, activation: str, *, out: Tensor | None = None) -> Tensor:
    """x [N, in], weight_gate_up [2 I, in] (gate rows first) -> activation(gate) * up [N, I].

    `activation` is "silu" or "gelu_tanh".
    """
    rows, features = x.shape
    x_stride, x_step = x.stride()
    intermediate = weight_gate_up.shape[0] // 2
    if out is None:
        out = x.new_empty(rows, intermediate)
    if counting.active is not None:
        counting.record("gated_gemv", gated_gemv_cost(rows, features, intermediate, x.element_size()))
    function = _gated[x.dtype] if x.is_cpu else None
    matches = x_step == 1 and _matches(x, weight_gate_up, None, out)
    if function is None or not matches:
        if matches and arguments.on_gpu(x):
            from kernels.gemv import triton as gpu

            return gpu.gated_gemv(x, weight_gate_up, activation, out)
        return out.copy_(reference.gated_gemv(x, weight_gate_up, activation))
    function(
        x.data_ptr(),
        x_stride,
        weight_gate_up.data_ptr(),
        out.data_ptr(),
        out.stride()[0],
        arguments.ACTIVATIONS.index(activation),
        rows,
        features,
        intermediate,
        torch.get_num_threads(),
    )
    return out


def lanes(dtype: torch.dtype) -> bool:
    """Whether many rows are multiplied with one in each lane: where a CPU has registers for that and no matrix unit."""
    return build.level() == "avx512" and (dtype is _F32 or build.multiplies_bf16())


def fast(x: Tensor) -> bool:
    """Whether gemv is for x [..., in]: a few rows, or on a CPU as many as lanes are faster for than torch."""
    features = x.shape[-1]
    rows = x.numel() // max(1, features)
    if rows <= MAX_ROWS:  # every decode step asks, and finding out what serves takes microseconds
        return True
    served = rows <= LANE_ROWS and features >= LANE_FEATURES and features % 32 == 0
    return served and x.is_cpu and lanes(x.dtype)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x [..., in], weight [out, in] -> x weight^T + bias + residual [..., out], by the faster of gemv and torch.

    A wider `out_dtype` always takes gemv: torch would round the result to the dtype of x first, so that logits
    would depend on the number of rows they are computed with.
    """
    *leading, features = x.shape
    rows = math.prod(leading)
    widens = out_dtype is not None and out_dtype is not x.dtype
    if (widens or fast(x)) and x.is_cpu and not _needs_grad(x, weight):
        if len(leading) == 1:
            return gemv(x, weight, residual, bias=bias, out_dtype=out_dtype)
        outputs = weight.shape[0]
        flat = None if residual is None else residual.reshape(rows, outputs)
        y = gemv(x.reshape(rows, features), weight, flat, bias=bias, out_dtype=out_dtype)
        return y.view(*leading, outputs)
    if counting.active is not None:
        _record(x, weight, residual, bias, weight)
    slow = x.is_cpu and x.dtype is _BF16 and not build.multiplies_bf16()
    dtype = _F32 if slow else x.dtype
    y = F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)).to(out_dtype or x.dtype)
    if residual is None:
        return y
    return y + residual if torch.is_grad_enabled() else y.add_(residual)


def _matches(x: Tensor, weight: Tensor, residual: Tensor | None, out: Tensor) -> bool:
    """The kernels read whole rows of weights and convert only where their name says so."""
    if residual is not None and residual.dtype is not out.dtype:
        return False
    return weight.dtype is x.dtype and weight.is_contiguous()


def _needs_grad(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def _record(x: Tensor, weight: Tensor, residual: Tensor | None, bias: Tensor | None, out: Tensor) -> None:
    cost = gemv_cost(
        x.numel() // x.size(-1),
        weight.size(1),
        weight.size(0),
        x.element_size(),
        out_bytes=out.element_size(),
        residual=residual is not None,
        bias_bytes=0 if bias is None else bias.element_size(),
    )
    counting.record("gemv", cost)
