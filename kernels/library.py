"""The kernels as operators of torch: `import kernels.library` registers `torch.ops.suite.*`.

`torch.compile` then traces through a function that uses them, and a dispatch mode sees them. In eager code the plain
functions (`kernels.gemv.gemv`, ...) are the ones to call: the operator's own dispatch costs some 10 us a call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import flash_decode, flash_prefill, gemv, rms_norm

NAMESPACE = "suite"


@torch.library.custom_op("suite::gemv", mutates_args=())
def _gemv(x: Tensor, weight: Tensor, residual: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return gemv.gemv(x, weight, residual, bias=bias)


@_gemv.register_fake
def _(x: Tensor, weight: Tensor, residual: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("suite::gated_gemv", mutates_args=())
def _gated_gemv(x: Tensor, weight_gate_up: Tensor, activation: str) -> Tensor:
    return gemv.gated_gemv(x, weight_gate_up, activation)


@_gated_gemv.register_fake
def _(x: Tensor, weight_gate_up: Tensor, activation: str) -> Tensor:
    return x.new_empty(x.shape[0], weight_gate_up.shape[0] // 2)


@torch.library.custom_op("suite::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm.rms_norm(x, weight, eps)


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("suite::flash_decode", mutates_args=())
def _flash_decode(
    q: Tensor, key_cache: Tensor, value_cache: Tensor, spans: Tensor, rows: Tensor, scale: float, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
    return flash_decode.flash_decode(q, key_cache, value_cache, spans, rows, scale=scale, softcap=softcap)


@_flash_decode.register_fake
def _(
    q: Tensor, key_cache: Tensor, value_cache: Tensor, spans: Tensor, rows: Tensor, scale: float, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op("suite::flash_prefill", mutates_args=())
def _flash_prefill(
    q: Tensor, key_cache: Tensor, value_cache: Tensor, starts: Tensor, counts: Tensor, scale: float, window: int = 0
) -> tuple[Tensor, Tensor]:
    return flash_prefill.flash_prefill(q, key_cache, value_cache, starts, counts, scale=scale, window=window or None)


@_flash_prefill.register_fake
def _(
    q: Tensor, key_cache: Tensor, value_cache: Tensor, starts: Tensor, counts: Tensor, scale: float, window: int = 0
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)
