"""Reductions over token segments on the GPU."""

# No `from __future__ import annotations`: Triton reads the annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, dot, jit, variant

BLOCK_T, BLOCK_D = 32, 128
ROWS = 32  # query vectors of a program of segment_mass


@jit
def add_compensated(total: tl.tensor, lost: tl.tensor, block: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Kahan's sum (1965), so that rounding cannot build up over many blocks."""
    corrected = block - lost
    larger = total + corrected
    return larger, (larger - total) - corrected


@jit
def segment_sum_kernel(
    x: tl.tensor,
    batch_stride: tl.tensor,
    group_stride: tl.tensor,
    token_stride: tl.tensor,
    groups: tl.tensor,
    offsets: tl.tensor,
    out: tl.tensor,
    dim: tl.tensor,
    KIND: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Program (segment, batch x group, columns). KIND: 0 sum, 1 mean, 2 sum / sqrt(length)."""
    segment, outer = tl.program_id(0), tl.program_id(1).to(tl.int64)
    d, t = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_T)
    start, stop = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    base = x + outer // groups * batch_stride + outer % groups * group_stride
    total, lost = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    for tile in range(start, stop, BLOCK_T):
        rows = (tile + t).to(tl.int64)[:, None] * token_stride
        valid = (tile + t < stop)[:, None] & (d < dim)[None, :]
        block = tl.sum(tl.load(base + rows + d[None, :], valid, 0.0).to(tl.float32), 0)
        total, lost = add_compensated(total, lost, block)
    length = tl.maximum(stop - start, 1).to(tl.float32)
    if KIND == 1:
        total /= length
    if KIND == 2:
        total /= tl.sqrt(length)
    tl.store(out + (outer * tl.num_programs(0) + segment) * dim + d, total, d < dim)


@jit
def statistics_kernel(
    x: tl.tensor,
    stride: tl.tensor,
    mean: tl.tensor,
    variance: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Mean and variance of columns of x [rows, columns]."""
    d, t = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_T)
    total, lost = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    for tile in range(0, rows, BLOCK_T):
        valid = (tile + t < rows)[:, None] & (d < columns)[None, :]
        value = tl.load(x + (tile + t).to(tl.int64)[:, None] * stride + d[None, :], valid, 0.0).to(tl.float32)
        total, lost = add_compensated(total, lost, tl.sum(value, 0))
    centre = total / rows
    total, lost = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    for tile in range(0, rows, BLOCK_T):
        valid = (tile + t < rows)[:, None] & (d < columns)[None, :]
        value = tl.load(x + (tile + t).to(tl.int64)[:, None] * stride + d[None, :], valid, 0.0).to(tl.float32)
        deviation = tl.where(valid, value - centre[None, :], 0.0)
        total, lost = add_compensated(total, lost, tl.sum(deviation * deviation, 0))
    tl.store(mean + d, centre, d < columns)
    tl.store(variance + d, total / rows, d < columns)


@jit
def weights_kernel(
    x: tl.tensor,
    stride: tl.tensor,
    mean: tl.tensor,
    inverse: tl.tensor,
    weights: tl.tensor,
    columns: tl.tensor,
    BLOCK_D: tl.constexpr,
) -> None:
    """One row of x per program: its squared deviations times `inverse`, summed."""
    row = tl.program_id(0).to(tl.int64)
    sums = tl.zeros((BLOCK_D,), tl.float32)
    for first in range(0, columns, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        value = tl.load(x + row * stride + d, d < columns, 0.0).to(tl.float32)
        deviation = value - tl.load(mean + d, d < columns, 0.0)
        sums += deviation * deviation * tl.load(inverse + d, d < columns, 0.0)
    tl.store(weights + row, tl.sum(sums, 0) / columns)


@jit
def pool_kernel(
    x: tl.tensor,
    stride: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Columns of the weighted mean of the rows of x."""
    d, t = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_T)
    sums, weight = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_T,), tl.float32)
    for tile in range(0, rows, BLOCK_T):
        valid = (tile + t < rows)[:, None] & (d < columns)[None, :]
        value = tl.load(x + (tile + t).to(tl.int64)[:, None] * stride + d[None, :], valid, 0.0).to(tl.float32)
        w = tl.load(weights + tile + t, tile + t < rows, 0.0)
        sums += tl.sum(value * w[:, None], 0)
        weight += w
    tl.store(out + d, sums / tl.sum(weight, 0), d < columns)


@jit
def mass_kernel(
    q: tl.tensor,
    q_outer: tl.tensor,
    q_inner: tl.tensor,
    keys: tl.tensor,
    key_head: tl.tensor,
    key_token: tl.tensor,
    positions: tl.tensor,
    offsets: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    mass: tl.tensor,
    peaks: tl.tensor,
    largest: tl.tensor,
    totals: tl.tensor,
    rows: tl.tensor,
    group: tl.tensor,
    heads: tl.tensor,
    tokens: tl.tensor,
    dim: tl.tensor,
    segments: tl.tensor,
    SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    """Program (block of query vectors, KV head): sums of weights per segment, relative to the largest logit so far.

    mass and peaks [rows, heads, segments], largest and totals [rows, heads]. The loop over segments begins with the
    keys before the first and ends with those behind the last, which only count in the totals.
    """
    kv_head = tl.program_id(1).to(tl.int64)
    vector, d, t = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, BLOCK_T)
    row, head = (vector // group).to(tl.int64), kv_head * group + vector % group
    exists = row < rows
    visible = tl.minimum(tl.load(positions + row, exists, -1) + 1, tokens)
    last = tl.max(visible, 0)
    where = row[:, None] * q_outer + head[:, None] * q_inner + d[None, :]
    query = tl.load(q + where, exists[:, None] & (d < dim)[None, :], 0.0)
    peak = tl.full((ROWS,), -3.0e38, tl.float32)  # finite, so that a row without keys gives weights of 0
    total = tl.zeros((ROWS,), tl.float32)
    for segment in range(-1, segments + 1):
        start = tl.load(offsets + segment, segment >= 0, 0)
        stop = tl.minimum(tl.load(offsets + segment + 1, segment < segments, tokens), last)
        part = tl.zeros((ROWS,), tl.float32)
        for tile in range(start, stop, BLOCK_T):
            token = tile + t
            inside = (token < stop)[:, None] & (d < dim)[None, :]
            address = keys + kv_head * key_head + token.to(tl.int64)[:, None] * key_token + d[None, :]
            k = tl.load(address, inside, 0.0)
            logit = dot(query, tl.trans(k), tl.zeros((ROWS, BLOCK_T), tl.float32)) * scale
            if SOFTCAP:
                logit = softcap * (2 * tl.sigmoid(2 * logit / softcap) - 1)
            seen = (token < stop)[None, :] & (token[None, :] < visible[:, None])
            logit = tl.where(seen, logit * 1.4426950408889634, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(logit, 1))
            shrink = tl.exp2(peak - new_peak)
            part = part * shrink + tl.sum(tl.exp2(logit - new_peak[:, None]), 1)
            total *= shrink
            peak = new_peak
        total += part
        if (segment >= 0) & (segment < segments):
            place = (row * heads + head) * segments + segment
            tl.store(mass + place, part, exists)
            tl.store(peaks + place, peak, exists)
    tl.store(largest + row * heads + head, peak, exists)
    tl.store(totals + row * heads + head, total, exists)


@jit
def normalise_kernel(
    mass: tl.tensor,
    peaks: tl.tensor,
    largest: tl.tensor,
    totals: tl.tensor,
    segments: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Program (row x head, block of segments): sums relative to their own logit become probabilities."""
    item, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(totals + item)
    part = tl.load(mass + item * segments + i, i < segments, 0.0)
    peak = tl.load(peaks + item * segments + i, i < segments, 0.0)
    y = part * tl.exp2(peak - tl.load(largest + item)) / tl.where(total > 0, total, 1.0)
    tl.store(mass + item * segments + i, y, i < segments)


def segment_sum(x: Tensor, offsets: Tensor, kind: str, out: Tensor) -> Tensor:
    """The contract of `kernels.segment_reduce.segment_sum`, into `out`."""
    wide = x if x.dim() == 4 else x[None, None]
    batches, groups, _, dim = wide.shape
    block = min(BLOCK_D, triton.next_power_of_2(dim))
    grid = (len(offsets) - 1, batches * groups, triton.cdiv(dim, block))
    if 0 not in grid:
        segment_sum_kernel[grid](
            wide,
            *wide.stride()[:3],
            groups,
            offsets,
            out,
            dim,
            KIND=("sum", "mean", "sqrt").index(kind),
            BLOCK_T=BLOCK_T,
            BLOCK_D=block,
        )
    return out


def probe_pool(x: Tensor, statistics: tuple[Tensor, Tensor] | None, out: Tensor) -> Tensor:
    """The contract of `kernels.segment_reduce.probe_pool`, into `out`."""
    rows, columns = x.shape
    if rows == 0:
        return out.zero_()
    block = min(BLOCK_D, triton.next_power_of_2(columns))
    panels, blocks = triton.cdiv(columns, block), {"BLOCK_T": BLOCK_T, "BLOCK_D": block}
    if statistics is None:
        statistics = torch.empty_like(out), torch.empty_like(out)
        statistics_kernel[(panels,)](x, x.stride(0), *statistics, rows, columns, **blocks)
    mean, variance = statistics
    inverse = (variance + variance.mean() / 100).reciprocal().nan_to_num(posinf=0.0)
    weights = out.new_empty(rows)
    weights_kernel[(rows,)](x, x.stride(0), mean, inverse, weights, columns, BLOCK_D=block)
    weights = torch.where(weights.sum() > 0, weights, 1.0)  # rows that do not deviate at all weigh the same
    pool_kernel[(panels,)](x, x.stride(0), weights, out, rows, columns, **blocks)
    return out


def segment_mass(
    q: Tensor, keys: Tensor, offsets: Tensor, positions: Tensor, scale: float, softcap: float, out: Tensor
) -> Tensor:
    """The contract of `kernels.segment_reduce.segment_mass`, into `out`."""
    (rows, heads, dim), (kv_heads, tokens, _), segments = q.shape, keys.shape, out.shape[2]
    if out.numel() == 0:
        return out
    group, peaks = heads // kv_heads, torch.empty_like(out)
    largest, totals = out.new_empty(rows, heads), out.new_empty(rows, heads)
    mass_kernel[triton.cdiv(rows * group, ROWS), kv_heads](
        *(q, q.stride(0), q.stride(1)),
        *(keys, keys.stride(0), keys.stride(1)),
        positions,
        offsets,
        scale,
        softcap,
        out,
        peaks,
        largest,
        totals,
        rows,
        group,
        heads,
        tokens,
        dim,
        segments,
        SOFTCAP=softcap > 0,
        ROWS=ROWS,
        DIM=max(16, triton.next_power_of_2(dim)),
        BLOCK_T=mass_tokens(dim),
    )
    normalise_kernel[rows * heads, triton.cdiv(segments, 256)](out, peaks, largest, totals, segments, BLOCK=256)
    return out


def mass_tokens(dim: int) -> int:
    """Keys per tile of segment_mass: as many as leave everything in registers on every target."""
    return BLOCK_T if dim <= 64 else BLOCK_T // 2


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16 caches with D = 64 and 128, probes of any width."""
    sums = "*bf16 i64 i64 i32 i32 *i32 *fp32 i32"
    mass = "*bf16 i32 i32 *bf16 i64 i32 *i32 *i32 fp32 fp32 *fp32 *fp32 *fp32 *fp32 " + "i32 " * 6
    made = []
    for dim in (64, 128):
        tiles = {"BLOCK_T": BLOCK_T, "BLOCK_D": dim}
        made.append(variant(f"segment_sum-{dim}", segment_sum_kernel, sums, KIND=2, **tiles))
    for dim, cap in ((64, 0), (128, 0), (128, 1)):
        sizes = {"SOFTCAP": cap, "ROWS": ROWS, "DIM": dim, "BLOCK_T": mass_tokens(dim)}
        made.append(variant(f"segment_mass-{dim}{'-softcap' * cap}", mass_kernel, mass, **sizes))
    tiles = {"BLOCK_T": BLOCK_T, "BLOCK_D": BLOCK_D}
    return [
        *made,
        variant("segment_mass-normalise", normalise_kernel, "*fp32 *fp32 *fp32 *fp32 i32", BLOCK=256),
        variant("probe_pool-statistics", statistics_kernel, "*bf16 i32 *fp32 *fp32 i32 i32", **tiles),
        variant("probe_pool-weights", weights_kernel, "*bf16 i32 *fp32 *fp32 *fp32 i32", BLOCK_D=BLOCK_D),
        variant("probe_pool-pool", pool_kernel, "*bf16 i32 *fp32 *fp32 i32 i32", **tiles),
    ]
