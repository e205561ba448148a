"""RMS normalisation on the GPU: one program per row."""

# No `from __future__ import annotations`: Triton reads the annotations.
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, jit, variant


@jit
def rms_norm_kernel(
    x: tl.tensor,
    x_outer: tl.tensor,
    x_inner: tl.tensor,
    residual: tl.tensor,
    r_outer: tl.tensor,
    r_inner: tl.tensor,
    out: tl.tensor,
    o_outer: tl.tensor,
    o_inner: tl.tensor,
    steering: tl.tensor,
    weight: tl.tensor,
    eps: tl.tensor,
    inner: tl.tensor,
    width: tl.tensor,
    HAS_RESIDUAL: tl.constexpr,
    HAS_STEERING: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Row (n, h) of x [outer, inner, width]; BLOCK >= width."""
    n, h = tl.program_id(0) // inner, tl.program_id(0) % inner
    i = tl.arange(0, BLOCK)
    valid = i < width
    value = tl.load(x + n * x_outer + h * x_inner + i, valid, 0.0).to(tl.float32)
    if HAS_RESIDUAL:
        where = residual + n * r_outer + h * r_inner + i
        value += tl.load(where, valid, 0.0).to(tl.float32)
        if HAS_STEERING:
            value += tl.load(steering + i, valid, 0.0)
        rounded = value.to(residual.dtype.element_ty)
        tl.store(where, rounded, valid)
        value = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    y = value * inverse * tl.load(weight + i, valid, 0.0).to(tl.float32)
    tl.store(out + n * o_outer + h * o_inner + i, y.to(out.dtype.element_ty), valid)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, steering: Tensor | None, out: Tensor
) -> Tensor:
    """The contract of `kernels.rms_norm.rms_norm` for [N, h] and [N, H, h], into `out`."""
    inner, width = (x.shape[1] if x.dim() == 3 else 1), x.shape[-1]
    block = triton.next_power_of_2(width)
    rms_norm_kernel[(x.shape[0] * inner,)](
        x,
        *_outer_inner(x),
        residual,
        *((0, 0) if residual is None else _outer_inner(residual)),
        out,
        *_outer_inner(out),
        steering,
        weight,
        eps,
        inner,
        width,
        HAS_RESIDUAL=residual is not None,
        HAS_STEERING=steering is not None,
        BLOCK=block,
        num_warps=warps(block),
    )
    return out


def _outer_inner(x: Tensor) -> tuple[int, int]:
    return x.stride(0), x.stride(1) if x.dim() == 3 else 0


def warps(block: int) -> int:
    """Of a program: at most 16 elements of a row in each thread, so that registers do not limit the occupancy."""
    return max(1, min(16, block // 512))


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: the fused bf16 norm of a 4096-wide model."""
    types = "*bf16 i32 i32 *bf16 i32 i32 *bf16 i32 i32 *fp32 *fp32 fp32 i32 i32"
    return [
        variant(
            "rms_norm-residual",
            rms_norm_kernel,
            types,
            HAS_RESIDUAL=1,
            HAS_STEERING=0,
            BLOCK=4096,
            num_warps=warps(4096),
        ),
        variant(
            "rms_norm-steering",
            rms_norm_kernel,
            types,
            HAS_RESIDUAL=1,
            HAS_STEERING=1,
            BLOCK=4096,
            num_warps=warps(4096),
        ),
    ]
