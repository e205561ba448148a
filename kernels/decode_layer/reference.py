"""Naive decoder layers, from the naive references of their parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype
from kernels.decode_layer.weights import (
    Caches,
    Int4Matrix,
    LayerShape,
    LayerWeights,
    LutMatrix,
    Matrix,
    NewTokens,
    Tables,
)
from kernels.flash_decode import reference as attention
from kernels.gemv import reference as linear
from kernels.lut_gemv import reference as lut
from kernels.rms_norm.reference import rms_norm
from kernels.rope import reference as rope
from kernels.w4_gemm import reference as int4


def run(
    shape: LayerShape,
    layers: Sequence[LayerWeights],
    x: Tensor,
    caches: Caches,
    tables: Tables,
    tokens: NewTokens,
    part: range,
    queries: Tensor | None = None,
) -> None:
    """The contract of `LayerStack.run`."""
    for index in part:
        (cos, sin), keys, values = tables[index], caches.keys[index], caches.values[index]
        q, k, v = heads_of(shape, project(shape, layers[index], x))
        own = rope.rotate(q, cos, sin, tokens.positions)
        rope.append(rope.rotate(k, cos, sin, tokens.positions), v, keys, values, tokens.rows, tokens.slots)
        if queries is not None:
            queries[index] = own.flatten(1)
        angles = {"cos": cos, "sin": sin} if tokens.turned else {}
        spans = spans_of(tokens, layers, index)
        attended, _ = attention.flash_decode(
            q if tokens.turned else own,
            keys,
            values,
            spans,
            tokens.rows,
            scale=shape.scale,
            softcap=shape.softcap,
            **angles,
        )
        finish(shape, layers[index], x, attended.flatten(1))


def project(shape: LayerShape, layer: LayerWeights, x: Tensor) -> Tensor:
    """The contract of `LayerStack.project`."""
    qkv = linear.gemv(rms_norm(x, layer.attention_norm, shape.eps), dense(layer.qkv, x), None, layer.qkv_bias)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k, _ = heads_of(shape, qkv)
        q.copy_(rms_norm(q, layer.q_norm, shape.eps))
        k.copy_(rms_norm(k, layer.k_norm, shape.eps))
    return qkv


def finish(shape: LayerShape, layer: LayerWeights, x: Tensor, attended: Tensor) -> None:
    """The contract of `LayerStack.finish`."""
    _add(shape, x, attended, layer.out, layer.out_bias, layer.post_attention_norm)
    gated = linear.gated_gemv(rms_norm(x, layer.mlp_norm, shape.eps), dense(layer.gate_up, x), shape.activation)
    _add(shape, x, gated, layer.down, None, layer.post_mlp_norm)


def _add(shape: LayerShape, x: Tensor, y: Tensor, matrix: Matrix, bias: Tensor | None, norm: Tensor | None) -> None:
    weight = dense(matrix, y)
    if norm is None:
        x.copy_(linear.gemv(y, weight, x, bias))
    else:
        x += rms_norm(linear.gemv(y, weight, None, bias), norm, shape.eps)


def dense(matrix: Matrix, x: Tensor) -> Tensor:
    """The weights [out, in] that a matrix stands for, as they are multiplied by x [N, in]."""
    features, dtype = x.shape[1], accumulate_dtype(x)
    if isinstance(matrix, LutMatrix):
        return lut.dequantise(*matrix, features, dtype)
    if isinstance(matrix, Int4Matrix):
        return int4.dequantise(*matrix, features, dtype)
    return matrix


def heads_of(shape: LayerShape, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views q [N, H, D], k and v [N, G, D] of the joint projection."""
    heads = qkv.view(qkv.shape[0], -1, shape.head_dim)
    q, k, v = torch.split(heads, [shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
    return q, k, v


def spans_of(tokens: NewTokens, layers: Sequence[LayerWeights], index: int) -> Tensor:
    """What the new tokens see in one layer: spans [N, 1, n, 3]."""
    given = tokens.seen(index)
    return causal(tokens, layers[index].window) if given is None else given[:, None]


def causal(tokens: NewTokens, window: int) -> Tensor:
    """Spans [N, 1, 1, 3]: everything up to the row's own slot, or the last `window` tokens of it."""
    stop = tokens.slots.int() + 1
    start = (stop - window).clamp(min=0) if window else torch.zeros_like(stop)
    return torch.stack((start, stop, torch.zeros_like(stop)), dim=-1)[:, None, None]
