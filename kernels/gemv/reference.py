"""Naive few-row linear layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.arguments import accumulate_dtype


def gemv(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x [N, in], weight [out, in], residual [N, out], bias [out] -> x weight^T + bias + residual [N, out]."""
    dtype = accumulate_dtype(x)
    y = x.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        y = y + bias.to(dtype)
    if residual is not None:
        y = y + residual.to(dtype)
    return y.to(out_dtype or x.dtype)


def gated_gemv(x: Tensor, weight_gate_up: Tensor, activation: str) -> Tensor:
    """x [N, in], weight_gate_up [2 I, in] (gate rows first) -> activation(gate) * up [N, I]."""
    dtype = accumulate_dtype(x)
    gate, up = (x.to(dtype) @ weight_gate_up.to(dtype).T).chunk(2, dim=-1)
    activated = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    return (activated * up).to(x.dtype)
