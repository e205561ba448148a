"""Small checks that every dispatcher shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Ints = Sequence[int] | Tensor
"""A number per row, or an index."""
ACTIVATIONS = ("silu", "gelu_tanh")
"""Of gated networks; the C++ kernels know them by their place here."""


def as_int32(index: Ints) -> Tensor:
    """Integers as the kernels read them: int32 and contiguous. Free if they already are."""
    if not isinstance(index, Tensor):
        return torch.tensor(index, dtype=torch.int32)
    if index.dtype is torch.int32 and index.is_contiguous():
        return index
    return index.to(torch.int32).contiguous()


def accumulate_dtype(x: Tensor) -> torch.dtype:
    """What a reference computes in: fp64 for fp64 inputs, else fp32."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def view(x: Tensor) -> tuple[int, int, int]:
    """What a kernel needs to find the rows of x [N, H, D]: pointer and the strides of N and H."""
    strides = x.stride()
    return x.data_ptr(), strides[0], strides[1]


triton_serves_cpu = False
"""Set by `kernels.backends.serving`: the interpreter of Triton takes tensors on the CPU."""


def on_gpu(x: Tensor) -> bool:
    """Whether the Triton kernels serve x."""
    return (x.is_cuda or triton_serves_cpu) and x.dtype in (torch.float32, torch.bfloat16)
