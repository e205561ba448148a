"""Naive product with symmetric int4 weights, one scale per group of 128 inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype
from kernels.lut_gemv import packing

GROUP = 128
ZERO = 8
"""The code of weight 0: codes 0, ..., 15 stand for -8, ..., 7."""


def pack(weight: Tensor) -> Tensor:
    """Integer weights [N, K] in [-8, 8) -> int16 [N, ceil(K / 4)], in the layout of `kernels.lut_gemv.packing`.

    Group g of a row is 32 words; vector j = 0..3 of the group, inputs 128 g + 32 j, ..., + 31, is bits 4 j to 4 j + 3
    of the words, each stored as w + 8. A last group of r < 128 inputs has ceil(r / 4) words and vectors that long.
    """
    if weight.numel() and not -ZERO <= int(weight.min()) <= int(weight.max()) < ZERO:
        raise ValueError("int4 weights must lie in [-8, 8)")
    return packing.pack(weight + ZERO, 4)


def unpack(packed: Tensor, features: int) -> Tensor:
    """int16 [N, ceil(K / 4)] -> weights [N, K = features] int8, the inverse of `pack`."""
    return packing.unpack(packed, 4, features).to(torch.int8) - ZERO


def dequantise(packed: Tensor, scales: Tensor, features: int, dtype: torch.dtype) -> Tensor:
    """int16 [N, ceil(K / 4)], scales [N, ceil(K / 128)] -> weight [N, K = features]."""
    per_input = scales.to(dtype).repeat_interleave(GROUP, dim=1)[:, :features]
    return unpack(packed, features).to(dtype) * per_input


def w4_gemm(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """The contract of `kernels.w4_gemm.w4_gemm`, computed in fp32 (fp64 for fp64 inputs)."""
    dtype = accumulate_dtype(x)
    return (x.to(dtype) @ dequantise(packed, scales, x.shape[1], dtype).T).to(x.dtype)
