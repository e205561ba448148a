"""Naive gate of a feed-forward network."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kernels.arguments import accumulate_dtype


def gate(gate_up: Tensor, activation: str) -> Tensor:
    """gate_up [N, 2 I] -> activation(gate) * up [N, I]."""
    gated, up = gate_up.to(accumulate_dtype(gate_up)).chunk(2, dim=-1)
    activated = F.silu(gated) if activation == "silu" else F.gelu(gated, approximate="tanh")
    return (activated * up).to(gate_up.dtype)
