"""Cost of decoder layers: the sum of their parts, counted under the parts' names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from kernels import counting
from kernels.cost import Cost
from kernels.decode_layer.reference import spans_of
from kernels.decode_layer.weights import Int4Matrix, LayerShape, LayerWeights, LutMatrix, Matrix, NewTokens
from kernels.flash_decode.cost import distinct_tokens, flash_decode_cost
from kernels.gemv.cost import gating, gemv_cost
from kernels.lut_gemv.cost import lut_gemv_cost
from kernels.rms_norm.cost import rms_norm_cost
from kernels.rope.cost import append_cost, rotate_cost
from kernels.w4_gemm.cost import w4_gemm_cost


def layer_costs(
    shape: LayerShape,
    layers: Sequence[LayerWeights],
    part: range,
    x: Tensor,
    tokens: NewTokens | None,
    parts: Sequence[str],
) -> None:
    """Records the parts "project", "attend" (which needs `tokens`) and "finish" of some layers over x [N, hidden]."""
    rows, element = x.shape[0], x.element_size()
    for index in part:
        if "project" in parts:
            _record(_project(shape, layers[index], rows, element))
        if "attend" in parts and tokens is not None:
            _record(_attend(shape, spans_of(tokens, layers, index), tokens, element))
        if "finish" in parts:
            _record(_finish(shape, layers[index], rows, element))


def _record(costs: Iterator[tuple[str, Cost]]) -> None:
    for op, cost in costs:
        counting.record(op, cost)


def _project(shape: LayerShape, layer: LayerWeights, rows: int, element: int) -> Iterator[tuple[str, Cost]]:
    yield "rms_norm", rms_norm_cost(rows, shape.hidden, element)
    yield _product(rows, shape.hidden, shape.qkv_width, layer.qkv, element, bias=layer.qkv_bias is not None)
    if layer.q_norm is not None:
        for heads in (shape.heads, shape.kv_heads):
            yield "rms_norm", rms_norm_cost(rows * heads, shape.head_dim, element)


def _attend(shape: LayerShape, spans: Tensor, tokens: NewTokens, element: int) -> Iterator[tuple[str, Cost]]:
    rows, H, G, D = len(tokens.slots), shape.heads, shape.kv_heads, shape.head_dim
    lengths, distinct = spans[..., 1] - spans[..., 0], distinct_tokens(spans, tokens.rows)
    seen, turns = int(lengths.sum()), int((lengths > 0).sum()) * H if tokens.turned else 0
    yield "rope", rotate_cost(rows, G if tokens.turned else H + G, D, element)
    yield "kv_append", append_cost(rows, G, D, element)
    yield (
        "flash_decode",
        flash_decode_cost(
            seen, 1, rows, H, G, D, element, span_count=spans.shape[2], rotations=turns, distinct=distinct
        ),
    )


def _finish(shape: LayerShape, layer: LayerWeights, rows: int, element: int) -> Iterator[tuple[str, Cost]]:
    h, width, intermediate = shape.hidden, shape.heads * shape.head_dim, shape.intermediate
    norms = layer.post_attention_norm, layer.post_mlp_norm
    yield _product(rows, width, h, layer.out, element, residual=norms[0] is None, bias=layer.out_bias is not None)
    yield "rms_norm", rms_norm_cost(rows, h, element)
    op, both = _product(rows, h, 2 * intermediate, layer.gate_up, element)
    yield "gated_gemv" if op == "gemv" else op, gating(both, rows * intermediate, element)
    yield _product(rows, intermediate, h, layer.down, element, residual=norms[1] is None)
    for norm in norms:
        if norm is not None:
            yield "rms_norm", rms_norm_cost(rows, h, element, residual=True)


def _product(
    rows: int, inputs: int, outputs: int, matrix: Matrix, element: int, *, residual: bool = False, bias: bool = False
) -> tuple[str, Cost]:
    """Under the name of the kernel that multiplies by such a matrix."""
    if not isinstance(matrix, LutMatrix | Int4Matrix):
        return "gemv", gemv_cost(rows, inputs, outputs, element, residual=residual, bias_bytes=element * bias)
    size = rows * outputs
    more = Cost(size * (residual + bias), size * element * residual + outputs * element * bias, 0)
    if isinstance(matrix, Int4Matrix):
        return "w4_gemm", w4_gemm_cost(rows, inputs, outputs, element) + more
    bits, sparse = matrix.tables.shape[1].bit_length() - 1, matrix.outliers
    entries = None if sparse is None else sparse.values.numel()
    return "lut_gemv", lut_gemv_cost(rows, inputs, outputs, bits, element, outliers=entries) + more
