"""Exponential moving averages along time on the GPU: associative scans over blocks of steps, with a carry."""

# No `from __future__ import annotations`: Triton reads the annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, jit, variant

BLOCK_M, BLOCK_D = 32, 64


@jit
def combine(a: tl.tensor, x: tl.tensor, b: tl.tensor, y: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Two runs of steps state -> a state + x, one after the other."""
    return a * b, b * x + y


@jit
def last_row(x: tl.tensor, row: tl.tensor, BLOCK_M: tl.constexpr) -> tl.tensor:
    """One row of x [BLOCK_M, ..]."""
    return tl.sum(tl.where((tl.arange(0, BLOCK_M) == row)[:, None], x, 0.0), 0)


@jit
def ema_scan_kernel(
    z: tl.tensor,
    z_batch: tl.tensor,
    z_step: tl.tensor,
    p: tl.tensor,
    y: tl.tensor,
    state: tl.tensor,
    steps: tl.tensor,
    dim: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Program (feature block, batch row): state [B, dim] is the first value and becomes the last one."""
    batch = tl.program_id(1).to(tl.int64)
    d, m = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    average = tl.load(state + batch * dim + d, d < dim, 0.0)
    for first in range(0, steps, BLOCK_M):
        t = first + m
        valid = (t < steps)[:, None] & (d < dim)[None, :]
        weight = tl.load(p + batch * steps + t, t < steps, 0.0)[:, None]
        x = tl.load(z + batch * z_batch + t[:, None] * z_step + d[None, :], valid, 0.0).to(tl.float32)
        decay, added = tl.associative_scan((1 - weight + 0 * x, weight * x), 0, combine)
        values = decay * average[None, :] + added
        tl.store(y + (batch * steps + t[:, None]) * dim + d[None, :], values.to(y.dtype.element_ty), valid)
        average = last_row(values, BLOCK_M - 1, BLOCK_M)  # steps behind the end have weight 0 and keep it
    tl.store(state + batch * dim + d, average, d < dim)


@jit
def ema_backward_kernel(
    dy: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    z_batch: tl.tensor,
    z_step: tl.tensor,
    p: tl.tensor,
    initial: tl.tensor,
    dz: tl.tensor,
    dp: tl.tensor,
    passed: tl.tensor,
    steps: tl.tensor,
    dim: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Program (feature block, batch row): dp [feature blocks, B, steps]; passed [B, dim] as in the C++ kernel."""
    block, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    d, m = block * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    down = tl.load(passed + batch * dim + d, d < dim, 0.0)
    start = tl.load(initial + batch * dim + d, d < dim, 0.0)
    blocks = tl.cdiv(steps, BLOCK_M)
    for i in range(blocks):
        t = (blocks - 1 - i) * BLOCK_M + m
        valid = (t < steps)[:, None] & (d < dim)[None, :]
        weight = tl.load(p + batch * steps + t, t < steps, 0.0)
        # What step t passes down is (1 - p_t) times what arrives there: p of the step above decides what arrives at t.
        above = tl.load(p + batch * steps + t + 1, (t + 1 < steps) & (m < BLOCK_M - 1), 0.0)
        where = (batch * steps + t[:, None]) * dim + d[None, :]
        own = tl.load(dy + where, valid, 0.0).to(tl.float32)
        decay, added = tl.associative_scan(((1 - above)[:, None] + 0 * own, own), 0, combine, reverse=True)
        gradient = decay * down[None, :] + added
        x = tl.load(z + batch * z_batch + t[:, None] * z_step + d[None, :], valid, 0.0).to(tl.float32)
        before = tl.load(y + where - dim, valid & (t > 0)[:, None], 0.0).to(tl.float32)
        before = tl.where((t > 0)[:, None], before, start[None, :])
        tl.store(dz + where, (weight[:, None] * gradient).to(dz.dtype.element_ty), valid)
        share = tl.sum(tl.where(valid, gradient * (x - before), 0.0), 1)
        tl.store(dp + (block.to(tl.int64) * tl.num_programs(1) + batch) * steps + t, share, t < steps)
        down = last_row((1 - weight)[:, None] * gradient, 0, BLOCK_M)
    tl.store(passed + batch * dim + d, down, d < dim)


def ema_scan(z: Tensor, p: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """The forward scan of `kernels.ema_scan`."""
    batch, steps, dim = z.shape
    y, state = z.new_empty(batch, steps, dim), initial.clone(memory_format=torch.contiguous_format)
    if batch * dim:
        ema_scan_kernel[triton.cdiv(dim, BLOCK_D), batch](
            *(z, z.stride(0), z.stride(1), p.contiguous(), y, state, steps, dim), BLOCK_M=BLOCK_M, BLOCK_D=BLOCK_D
        )
    return y, state


def gradients(
    z: Tensor, p: Tensor, initial: Tensor, y: Tensor, dy: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in z, p and initial, from those in y and the last state."""
    batch, steps, dim = z.shape
    blocks = triton.cdiv(dim, BLOCK_D)
    dz, passed = z.new_empty(batch, steps, dim), dlast.clone()
    dp = torch.zeros(blocks, batch, steps, dtype=torch.float32, device=z.device)
    if batch * dim:
        ema_backward_kernel[blocks, batch](
            *(dy, y, z, z.stride(0), z.stride(1), p, initial, dz, dp, passed, steps, dim),
            BLOCK_M=BLOCK_M,
            BLOCK_D=BLOCK_D,
        )
    return dz, dp.sum(dim=0), passed


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16, both directions."""
    blocks = {"BLOCK_M": BLOCK_M, "BLOCK_D": BLOCK_D}
    forward = "*bf16 i64 i64 *fp32 *bf16 *fp32 i32 i32"
    backward = "*bf16 *bf16 *bf16 i64 i64 *fp32 *fp32 *bf16 *fp32 *fp32 i32 i32"
    return [
        variant("ema_scan", ema_scan_kernel, forward, **blocks),
        variant("ema_backward", ema_backward_kernel, backward, **blocks),
    ]
