"""Naive RMS normalisation (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

from torch import Tensor

from kernels.arguments import accumulate_dtype


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, steering: Tensor | None = None
) -> Tensor:
    """x [..., h], weight [h] -> x / rms(x) * weight. A residual becomes x + residual + steering, and is normalised."""
    if residual is not None:
        wide = residual.to(accumulate_dtype(x)) + x
        x = residual.copy_(wide if steering is None else wide + steering)
    wide = x.to(accumulate_dtype(x))
    inverse = (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return (wide * inverse * weight.to(wide.dtype)).to(x.dtype)
