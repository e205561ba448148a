"""Calls every C++ kernel on tensors that end where an unreadable page begins. Run as a program: it may crash."""

from __future__ import annotations

import ctypes
import importlib
import math
import mmap

import torch
from torch import Tensor

from kernels.build import OPS
from kernels.flash_decode import _flash_decode, dense_spans, flash_decode
from kernels.gemv import gated_gemv, gemv
from kernels.rms_norm import rms_norm
from kernels.rope import rotate_and_append

ZERO = torch.zeros(1, dtype=torch.int32)
_kept: list[mmap.mmap] = []


def guarded(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random values at the very end of a readable page."""
    size = math.prod(shape) * dtype.itemsize
    guard = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, guard + mmap.PAGESIZE)
    _kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    tensor = torch.frombuffer(memory, dtype=dtype, offset=guard - size, count=math.prod(shape)).view(shape)
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + guard), mmap.PAGESIZE, 0) == 0
    return tensor.copy_(torch.randn(shape))


def linear_and_norm(n: int, dtype: torch.dtype) -> None:
    x, weight, bias = guarded(n, 63, dtype=dtype), guarded(34, 63, dtype=dtype), guarded(34, dtype=dtype)
    gemv(x, weight, guarded(n, 34, dtype=dtype), bias=bias, out=guarded(n, 34, dtype=dtype))
    gated_gemv(x, weight, "silu", out=guarded(n, 17, dtype=dtype))
    rms_norm(x, guarded(63), 1e-6, guarded(n, 63, dtype=dtype), out=guarded(n, 63, dtype=dtype))


def attention(dtype: torch.dtype) -> None:
    """33 tokens: two whole tiles of 16 and one more token, the last of the cache."""
    cos, sin = guarded(9, 40), guarded(9, 40)
    q, k, v = (guarded(1, heads, 80, dtype=dtype) for heads in (6, 2, 2))
    keys, values = guarded(1, 2, 33, 80, dtype=dtype), guarded(1, 2, 33, 80, dtype=dtype)
    rotate_and_append(q, k, v, cos, sin, ZERO + 8, keys, values, ZERO, ZERO + 32)
    spans, out = dense_spans([33]), guarded(1, 6, 80, dtype=dtype)
    spans[..., 2] = 8
    flash_decode(q, keys, values, spans, ZERO, cos=cos, sin=sin, scale=1.0, out=out)
    assert out.isfinite().all()


def own_calls(dtype: torch.dtype) -> None:
    """What an op's cases bring along for this."""
    for op in OPS:
        calls = getattr(importlib.import_module(f"kernels.{op}.cases"), "guarded_calls", None)
        if calls is not None:
            calls(guarded, dtype)


if __name__ == "__main__":
    for dtype in (torch.float32, torch.bfloat16):
        own_calls(dtype)
        for n in (1, 2, 5):
            linear_and_norm(n, dtype)
        attention(dtype)
    assert any(_flash_decode.values()), "the C++ kernels are not in use"
