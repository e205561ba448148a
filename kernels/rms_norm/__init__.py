"""RMS normalisation over the last dimension, optionally fused with the residual addition and steering before it."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.build import Functions
from kernels.rms_norm import reference
from kernels.rms_norm.cost import rms_norm_cost

_rms_norm = Functions("rms_norm", "piipiipiippfiiii", {torch.float32: "rms_norm_f32", torch.bfloat16: "rms_norm_bf16"})


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    steering: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x [..., h], weight [h] fp32 -> x / rms(x) * weight [..., h].

    With `residual` [..., h]: it is updated in place to x + residual (rounded to its dtype) and that sum is what is
    normalised. `steering` [h] fp32 is added to that sum in the same pass, before it is rounded: the vector gamma v of
    activation-steered compression, inserted after a block (arXiv 2507.04742; card asc, section 5). Two- and
    three-dimensional x may be strided views (of a fused qkv projection, for q and k norms); `out` may be x itself.
    """
    if steering is not None and residual is None:
        raise ValueError("steering changes the residual stream: give the residual too")
    *_, width = shape = x.shape
    *_, step = strides = x.stride()
    if out is None:
        out = x.new_empty(*shape)
    if counting.active is not None:
        _record(x, residual, steering)
    function = _rms_norm[x.dtype] if x.is_cpu and weight.dtype is torch.float32 else None
    matches = step == 1 and 2 <= len(shape) <= 3 and (steering is None or _is_vector(steering))
    if function is None or not matches:
        if matches and arguments.on_gpu(x):
            from kernels.rms_norm import triton as gpu

            return gpu.rms_norm(x, weight, eps, residual, steering, out)
        return out.copy_(reference.rms_norm(x, weight, eps, residual, steering))
    function(
        x.data_ptr(),
        *_outer_inner(strides),
        None if residual is None else residual.data_ptr(),
        *((0, 0) if residual is None else _outer_inner(residual.stride())),
        out.data_ptr(),
        *_outer_inner(out.stride()),
        None if steering is None else steering.data_ptr(),
        weight.data_ptr(),
        eps,
        shape[0],
        shape[1] if len(shape) == 3 else 1,
        width,
        torch.get_num_threads(),
    )
    return out


def _outer_inner(strides: tuple[int, ...]) -> tuple[int, int]:
    """Strides of the two leading dimensions of [N, H, h], where [N, h] stands for [N, 1, h]."""
    return (strides[0], strides[1]) if len(strides) == 3 else (strides[0], 0)


def _is_vector(steering: Tensor) -> bool:
    return steering.dtype is torch.float32 and steering.is_contiguous()


def _record(x: Tensor, residual: Tensor | None, steering: Tensor | None) -> None:
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    summed = {"residual": residual is not None, "steering": steering is not None}
    counting.record("rms_norm", rms_norm_cost(rows, width, x.element_size(), **summed))
