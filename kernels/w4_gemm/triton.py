"""int4 linear layers on the GPU: a program makes BLOCK_N outputs of its share of the groups, weights in registers."""

# No `from __future__ import annotations`: Triton reads the annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, dot, jit, variant

BLOCK_N = {1: 16, 2: 16, 4: 16, 16: 64, 32: 64, 64: 64}
"""Outputs of a program by rows of x; sixteen rows and more are multiplied by tensor cores."""
LEAST_GROUPS = 4  # per split; less does not pay for the merge
PROGRAMS_PER_PROCESSOR = 4


@jit
def w4_gemm_kernel(
    x: tl.tensor,
    x_stride: tl.tensor,
    packed: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    out_stride: tl.tensor,
    rows: tl.tensor,
    features: tl.tensor,
    outputs: tl.tensor,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Program (outputs, rows, split): the sums over its share of the groups, at row split * rows + t of out."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    split, splits = tl.program_id(2), tl.num_programs(2)
    columns, groups = (features + 3) // 4, (features + 127) // 128
    words = packed + n.to(tl.int64)[:, None] * columns
    if ROWS < 16:  # noqa: SIM108 - known when compiling
        sums = tl.zeros((BLOCK_N, 32, ROWS), tl.float32)
    else:
        sums = tl.zeros((BLOCK_N, ROWS), tl.float32)
    lane = tl.arange(0, 32)
    for g in range(groups * split // splits, groups * (split + 1) // splits):
        width = tl.minimum(columns - g * 32, 32)
        valid = (n[:, None] < outputs) & (lane[None, :] < width)
        word = tl.load(words + g * 32 + lane[None, :], valid, 0)
        scale = tl.load(scales + n.to(tl.int64) * groups + g, n < outputs, 0.0).to(tl.float32)
        products = tl.zeros_like(sums)
        for j in tl.static_range(4):
            weight = ((word >> 4 * j) & 15) - 8
            i = g * 128 + j * width + lane
            inside = (lane < width) & (i < features)
            a = tl.load(x + t[None, :] * x_stride + i[:, None], inside[:, None] & (t[None, :] < rows), 0.0)
            if ROWS < 16:
                products += weight.to(tl.float32)[:, :, None] * a.to(tl.float32)[None, :, :]
            else:
                products = dot(weight.to(tl.float32).to(a.dtype), a, products)
        sums += (scale[:, None, None] if ROWS < 16 else scale[:, None]) * products
    y = tl.sum(sums, 1) if ROWS < 16 else sums
    where = (split * rows + t)[None, :] * out_stride + n[:, None]
    tl.store(out + where, y.to(out.dtype.element_ty), (n[:, None] < outputs) & (t[None, :] < rows))


@jit
def merge_kernel(
    partial: tl.tensor,
    out: tl.tensor,
    out_stride: tl.tensor,
    splits: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    BLOCK_N: tl.constexpr,
) -> None:
    """partial [splits, rows, outputs] -> out [rows, outputs]; always in the same order."""
    n, t = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.program_id(1)
    y = tl.zeros((BLOCK_N,), tl.float32)
    for split in range(splits):
        y += tl.load(partial + (split * rows + t).to(tl.int64) * outputs + n, n < outputs, 0.0)
    tl.store(out + t * out_stride + n, y.to(out.dtype.element_ty), n < outputs)


def split_count(programs: int, groups: int, device: torch.device) -> int:
    """Enough splits to fill the GPU, if there are the groups for them."""
    if device.type != "cuda":
        return min(2, groups)  # the interpreter: enough to test the merge
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(PROGRAMS_PER_PROCESSOR * processors // programs, groups // LEAST_GROUPS))


def w4_gemm(x: Tensor, packed: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """The contract of `kernels.w4_gemm.w4_gemm`, into `out`."""
    (rows, features), outputs = x.shape, packed.shape[0]
    if not out.numel():
        return out
    block_rows = next((r for r in BLOCK_N if r >= rows), max(BLOCK_N))
    block_n = BLOCK_N[block_rows]
    programs = triton.cdiv(outputs, block_n), triton.cdiv(rows, block_rows)
    splits = split_count(programs[0] * programs[1], scales.shape[1], x.device)
    sums = out if splits == 1 else x.new_empty(splits * rows, outputs, dtype=torch.float32)
    w4_gemm_kernel[(*programs, splits)](
        x,
        x.stride(0),
        packed,
        scales,
        sums,
        sums.stride(0),
        rows,
        features,
        outputs,
        ROWS=block_rows,
        BLOCK_N=block_n,
    )
    if splits > 1:
        merge_kernel[triton.cdiv(outputs, 256), rows](sums, out, out.stride(0), splits, rows, outputs, BLOCK_N=256)
    return out


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16, every number of rows of a tile."""
    types = "*bf16 i32 *i16 *fp16 *fp32 i32 i32 i32 i32"
    made = [
        variant(f"w4_gemm-{rows}", w4_gemm_kernel, types, ROWS=rows, BLOCK_N=outputs)
        for rows, outputs in BLOCK_N.items()
    ]
    return [*made, variant("w4_gemm-merge", merge_kernel, "*fp32 *bf16 i32 i32 i32 i32", BLOCK_N=256)]
