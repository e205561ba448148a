"""Few-row linear layers on the GPU. A program makes BLOCK_O outputs for all rows; weights are read once."""

# No `from __future__ import annotations`: Triton reads the annotations.
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, dot, jit, variant

BLOCK_O, BLOCK_I = 16, 256
ROWS = 16  # the least a tensor core takes; a single row is multiplied without it


@jit
def products(
    x: tl.tensor,
    x_stride: tl.tensor,
    weight: tl.tensor,
    o: tl.tensor,
    n: tl.tensor,
    rows: tl.tensor,
    features: tl.tensor,
    outputs: tl.tensor,
    BLOCK_I: tl.constexpr,
) -> tl.tensor:
    """Rows n [N] of x times rows o [O] of weight -> fp32 [N, O]."""
    sums = tl.zeros((n.shape[0], o.shape[0]), tl.float32)
    for start in range(0, features, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        inside = i[None, :] < features
        w = tl.load(weight + o[:, None].to(tl.int64) * features + i[None, :], inside & (o[:, None] < outputs), 0.0)
        a = tl.load(x + n[:, None] * x_stride + i[None, :], inside & (n[:, None] < rows), 0.0)
        if n.shape[0] == 1:
            sums += tl.sum(w.to(tl.float32) * a.to(tl.float32), 1)[None, :]
        else:
            sums = dot(a, tl.trans(w), sums)
    return sums


@jit
def gemv_kernel(
    x: tl.tensor,
    x_stride: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    residual_stride: tl.tensor,
    out: tl.tensor,
    out_stride: tl.tensor,
    rows: tl.tensor,
    features: tl.tensor,
    outputs: tl.tensor,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
) -> None:
    """x [rows, features], weight [outputs, features] -> out [rows, outputs]."""
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    y = products(x, x_stride, weight, o, n, rows, features, outputs, BLOCK_I)
    valid = (n[:, None] < rows) & (o[None, :] < outputs)
    if HAS_BIAS:
        y += tl.load(bias + o, o < outputs, 0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual + n[:, None] * residual_stride + o[None, :], valid, 0.0).to(tl.float32)
    tl.store(out + n[:, None] * out_stride + o[None, :], y.to(out.dtype.element_ty), valid)


@jit
def gated_gemv_kernel(
    x: tl.tensor,
    x_stride: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    out_stride: tl.tensor,
    rows: tl.tensor,
    features: tl.tensor,
    intermediate: tl.tensor,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
) -> None:
    """x [rows, features], weight [2 intermediate, features] -> activation(gate) * up [rows, intermediate]."""
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    up_weight = weight + intermediate.to(tl.int64) * features
    gate = products(x, x_stride, weight, o, n, rows, features, intermediate, BLOCK_I)
    up = products(x, x_stride, up_weight, o, n, rows, features, intermediate, BLOCK_I)
    if GELU:  # tanh(z) = 2 sigmoid(2 z) - 1
        gate *= tl.sigmoid(2 * 0.7978845608 * (gate + 0.044715 * gate * gate * gate))
    else:
        gate *= tl.sigmoid(gate)
    valid = (n[:, None] < rows) & (o[None, :] < intermediate)
    tl.store(out + n[:, None] * out_stride + o[None, :], (gate * up).to(out.dtype.element_ty), valid)


def gemv(x: Tensor, weight: Tensor, residual: Tensor | None, bias: Tensor | None, out: Tensor) -> Tensor:
    """The contract of `kernels.gemv.gemv`, into `out`."""
    (rows, features), outputs = x.shape, weight.shape[0]
    block_rows = 1 if rows == 1 else ROWS
    gemv_kernel[triton.cdiv(outputs, BLOCK_O), triton.cdiv(rows, block_rows)](
        x,
        x.stride(0),
        weight,
        bias,
        residual,
        0 if residual is None else residual.stride(0),
        out,
        out.stride(0),
        rows,
        features,
        outputs,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        ROWS=block_rows,
        BLOCK_O=BLOCK_O,
        BLOCK_I=BLOCK_I,
    )
    return out


def gated_gemv(x: Tensor, weight_gate_up: Tensor, activation: str, out: Tensor) -> Tensor:
    """The contract of `kernels.gemv.gated_gemv`, into `out`."""
    (rows, features), intermediate = x.shape, weight_gate_up.shape[0] // 2
    block_rows = 1 if rows == 1 else ROWS
    gated_gemv_kernel[triton.cdiv(intermediate, BLOCK_O), triton.cdiv(rows, block_rows)](
        x,
        x.stride(0),
        weight_gate_up,
        out,
        out.stride(0),
        rows,
        features,
        intermediate,
        GELU=activation == "gelu_tanh",
        ROWS=block_rows,
        BLOCK_O=BLOCK_O,
        BLOCK_I=BLOCK_I,
    )
    return out


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16 decoding of one row and of sixteen."""
    blocks = {"BLOCK_O": BLOCK_O, "BLOCK_I": BLOCK_I}
    types = "*bf16 i32 *bf16 *bf16 *bf16 i32 *bf16 i32 i32 i32 i32"
    gated = "*bf16 i32 *bf16 *bf16 i32 i32 i32 i32"
    return [
        made
        for rows in (1, ROWS)
        for made in (
            variant(f"gemv-{rows}", gemv_kernel, types, HAS_BIAS=1, HAS_RESIDUAL=1, ROWS=rows, **blocks),
            variant(f"gated_gemv-{rows}", gated_gemv_kernel, gated, GELU=0, ROWS=rows, **blocks),
        )
    ]
