"""The exponential moving average along time of H-Net's dechunking, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.build import Functions
from kernels.ema_scan import reference
from kernels.ema_scan.cost import ema_backward_cost, ema_scan_cost

_F32, _BF16 = torch.float32, torch.bfloat16
_forward = Functions("ema_scan", "piipppiiii", {_F32: "ema_scan_f32", _BF16: "ema_scan_bf16"})
_backward = Functions("ema_scan", "pppiipppppiiii", {_F32: "ema_backward_f32", _BF16: "ema_backward_bf16"})


def ema_scan(z: Tensor, p: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """z [B, M, D], p [B, M] fp32 in [0, 1] -> (y [B, M, D], last [B, D] fp32): y_t = p_t z_t + (1 - p_t) y_{t-1}.

    y_{-1} is `initial` [B, D] fp32, or 0; `last` is y_{M-1} before it is rounded to z's dtype, so a scan goes on where
    another ended, as decoding does step by step. The average is kept in fp32. Nothing is divided by a product of
    (1 - p), so any p is safe, 0 and 1 too. Differentiable in z, p and `initial`. Batch and time strides of z are free;
    M = 0 gives y [B, 0, D] and the initial value. Source: H-Net (arXiv 2507.07955), equation of the smoothing module;
    card hnet, sections 2 and 5.
    """
    batch, steps, dim = z.shape
    if p.shape != (batch, steps) or (initial is not None and initial.shape != (batch, dim)):
        shapes = f"p {list(p.shape)}" + ("" if initial is None else f" and initial {list(initial.shape)}")
        raise ValueError(f"{shapes} do not fit z {list(z.shape)}")
    start = z.new_zeros(batch, dim, dtype=arguments.accumulate_dtype(z)) if initial is None else initial
    y, last = _EmaScan.apply(z, p, start)  # type: ignore[no-untyped-call]
    return y, last


class _EmaScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, p: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
        y, last = _scan(z, p, initial)
        ctx.save_for_backward(z, p, initial, y)
        return y, last

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _gradients(*ctx.saved_tensors, *gradients)


def _scan(z: Tensor, p: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    batch, steps, dim = z.shape
    if counting.active is not None:
        counting.record("ema_scan", ema_scan_cost(batch, steps, dim, z.element_size()))
    matches = z.stride(2) == 1 and p.dtype is _F32 and initial.dtype is _F32
    function = _forward[z.dtype] if z.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(z):
            from kernels.ema_scan import triton as gpu

            return gpu.ema_scan(z, p, initial)
        return reference.ema_scan(z, p, initial)
    y, last = z.new_empty(batch, steps, dim), initial.clone(memory_format=torch.contiguous_format)
    weights = p.contiguous()
    shape = batch, steps, dim, torch.get_num_threads()
    function(z.data_ptr(), z.stride(0), z.stride(1), weights.data_ptr(), y.data_ptr(), last.data_ptr(), *shape)
    return y, last


def _gradients(
    z: Tensor, p: Tensor, initial: Tensor, y: Tensor, dy: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, steps, dim = z.shape
    if counting.active is not None:
        counting.record("ema_backward", ema_backward_cost(batch, steps, dim, z.element_size()))
    matches = z.stride(2) == 1 and p.dtype is _F32 and initial.dtype is _F32
    function = _backward[z.dtype] if z.is_cpu else None
    given = dy.contiguous(), dlast.contiguous()
    if function is None or not matches:
        if matches and arguments.on_gpu(z):
            from kernels.ema_scan import triton as gpu

            return gpu.gradients(z, p.contiguous(), initial.contiguous(), y, *given)
        return reference.gradients(z, p, initial, y, *given)
    dz, dp = z.new_empty(batch, steps, dim), torch.zeros(batch, steps)
    start, weights, dinitial = initial.contiguous(), p.contiguous(), given[1].clone()
    function(
        given[0].data_ptr(),
        y.data_ptr(),
        z.data_ptr(),
        z.stride(0),
        z.stride(1),
        weights.data_ptr(),
        start.data_ptr(),
        dz.data_ptr(),
        dp.data_ptr(),
        dinitial.data_ptr(),
        batch,
        steps,
        dim,
        torch.get_num_threads(),
    )
    return dz, dp, dinitial
