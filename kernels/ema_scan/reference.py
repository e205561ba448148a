"""Naive exponential moving average along time, and its gradients: one step after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype


def ema_scan(z: Tensor, p: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """The contract of `kernels.ema_scan.ema_scan`, in fp32 (fp64 for fp64 inputs); autograd can follow it."""
    dtype = accumulate_dtype(z)
    state, outputs = initial.to(dtype), []
    for t in range(z.shape[1]):
        weight = p[:, t, None].to(dtype)
        state = weight * z[:, t].to(dtype) + (1 - weight) * state
        outputs.append(state)
    y = torch.stack(outputs, dim=1) if outputs else z.new_empty(z.shape)
    return y.to(z.dtype), state.clone()


def gradients(
    z: Tensor, p: Tensor, initial: Tensor, y: Tensor, dy: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in z, p and initial, from those in y and the last state."""
    dtype = accumulate_dtype(z)
    gradient, dz, dp = dlast.to(dtype), torch.empty_like(z), torch.empty_like(p)
    for t in reversed(range(z.shape[1])):
        weight = p[:, t, None].to(dtype)
        gradient = gradient + dy[:, t].to(dtype)
        before = (y[:, t - 1] if t else initial).to(dtype)
        dz[:, t] = (weight * gradient).to(z.dtype)
        dp[:, t] = (gradient * (z[:, t].to(dtype) - before)).sum(dim=-1).to(p.dtype)
        gradient = (1 - weight) * gradient
    return dz, dp, gradient.to(initial.dtype)
