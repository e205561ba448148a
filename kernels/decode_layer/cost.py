"""Cost of decoder layers: the sum of their parts, counted under the parts' names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from kernels import counting
from kernels.cost import Cost
from kernels.decode_layer.weights import LayerShape, LayerWeights, NewTokens
from kernels.flash_decode.cost import flash_decode_cost
from kernels.gemv.cost import gated_gemv_cost, gemv_cost
from kernels.rms_norm.cost import rms_norm_cost
from kernels.rope.cost import append_cost, rotate_cost


def layer_costs(
    shape: LayerShape, layers: Sequence[LayerWeights], x: Tensor, tokens: NewTokens | None, parts: Sequence[str]
) -> None:
    """Records the parts "project", "attend" (which needs `tokens`) and "finish" of layers over x [N, hidden]."""
    rows, element = x.shape[0], x.element_size()
    for layer in layers:
        if "project" in parts:
            _record(_project(shape, layer, rows, element))
        if "attend" in parts and tokens is not None:
            _record(_attend(shape, layer, tokens, element))
        if "finish" in parts:
            _record(_finish(shape, layer, rows, element))


def _record(costs: Iterator[tuple[str, Cost]]) -> None:
    for op, cost in costs:
        counting.record(op, cost)


def _project(shape: LayerShape, layer: LayerWeights, rows: int, element: int) -> Iterator[tuple[str, Cost]]:
    bias = 0 if layer.qkv_bias is None else element
    yield "rms_norm", rms_norm_cost(rows, shape.hidden, element)
    yield "gemv", gemv_cost(rows, shape.hidden, shape.qkv_width, element, bias_bytes=bias)
    if layer.q_norm is not None:
        for heads in (shape.heads, shape.kv_heads):
            yield "rms_norm", rms_norm_cost(rows * heads, shape.head_dim, element)


def _attend(shape: LayerShape, layer: LayerWeights, tokens: NewTokens, element: int) -> Iterator[tuple[str, Cost]]:
    rows, H, G, D = len(tokens.slots), shape.heads, shape.kv_heads, shape.head_dim
    spans = 1 if tokens.spans is None else tokens.spans.shape[1]
    yield "rope", rotate_cost(rows, H + G, D, element)
    yield "kv_append", append_cost(rows, G, D, element)
    yield "flash_decode", flash_decode_cost(_seen(layer, tokens), 1, rows, H, G, D, element, span_count=spans)


def _seen(layer: LayerWeights, tokens: NewTokens) -> int:
    """Slots read, summed over the query rows."""
    if tokens.spans is not None:
        return int((tokens.spans[..., 1] - tokens.spans[..., 0]).sum())
    seen = tokens.slots + 1
    return int((seen.clamp(max=layer.window) if layer.window else seen).sum())


def _finish(shape: LayerShape, layer: LayerWeights, rows: int, element: int) -> Iterator[tuple[str, Cost]]:
    h, width = shape.hidden, shape.heads * shape.head_dim
    bias = 0 if layer.out_bias is None else element
    yield "gemv", gemv_cost(rows, width, h, element, residual=layer.post_attention_norm is None, bias_bytes=bias)
    yield "rms_norm", rms_norm_cost(rows, h, element)
    yield "gated_gemv", gated_gemv_cost(rows, h, shape.intermediate, element)
    yield "gemv", gemv_cost(rows, shape.intermediate, h, element, residual=layer.post_mlp_norm is None)
    for norm in (layer.post_attention_norm, layer.post_mlp_norm):
        if norm is not None:
            yield "rms_norm", rms_norm_cost(rows, h, element, residual=True)
