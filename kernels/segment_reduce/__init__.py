"""Reductions over ragged token segments: sums and means of rows, pooled probe queries, attention mass per segment."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.arguments import accumulate_dtype, as_int32, view
from kernels.build import Functions
from kernels.segment_reduce import reference
from kernels.segment_reduce.cost import probe_pool_cost, segment_mass_cost, segment_sum_cost

KINDS = {"sum": 0, "mean": 1, "sqrt": 2}
_F32, _BF16 = torch.float32, torch.bfloat16
_segment_sum = Functions("segment_reduce", "piiiiipiiipi", {_F32: "segment_sum_f32", _BF16: "segment_sum_bf16"})
_probe_pool = Functions("segment_reduce", "piiipppi", {_F32: "probe_pool_f32", _BF16: "probe_pool_bf16"})
_segment_mass = Functions(
    "segment_reduce", "piipiippffpiiiiiii", {_F32: "segment_mass_f32", _BF16: "segment_mass_bf16"}
)


def segment_sum(x: Tensor, offsets: Tensor, kind: str = "sum", *, out: Tensor | None = None) -> Tensor:
    """x [B, G, T, D] or [T, D] -> fp32 [B, G, n, D] or [n, D]: rows offsets[i] to offsets[i + 1] reduced to one.

    offsets [n + 1] int32, ascending, within 0 and T; tokens before the first and from the last on belong to no segment.
    `kind` is "sum", "mean" or "sqrt": the sum divided by the root of the length, DHSA's "mean x sqrt n" (arXiv
    2510.24606; card dhsa, step 3). Batch, head and token strides are free. An empty segment gives 0. The rounding error
    does not grow with the length of a segment.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if x.dim() not in (2, 4):
        raise ValueError(f"x must be [B, G, T, D] or [T, D], not {list(x.shape)}")
    *leading, _, dim = x.shape
    segments = offsets.shape[0] - 1
    if out is None:
        out = x.new_empty(*leading, segments, dim, dtype=accumulate_dtype(x))
    if counting.active is not None:
        covered = int(offsets[-1] - offsets[0])
        cost = segment_sum_cost(covered, segments, x[..., 0, 0].numel(), dim, x.element_size())
        counting.record("segment_sum", cost)
    function = _segment_sum[x.dtype] if x.is_cpu else None
    matches = x.stride(-1) == 1 and _takes(out)
    if function is None or not matches:
        if matches and arguments.on_gpu(x):
            from kernels.segment_reduce import triton as gpu

            return gpu.segment_sum(x, as_int32(offsets), kind, out)
        return out.copy_(reference.segment_sum(x, offsets, kind))
    batches, groups = leading or (1, 1)
    strides = x.stride() if leading else (0, 0, x.stride(0))
    index = as_int32(offsets)
    function(
        x.data_ptr(),
        *strides[:3],
        batches,
        groups,
        index.data_ptr(),
        segments,
        dim,
        KINDS[kind],
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def probe_pool(x: Tensor, statistics: tuple[Tensor, Tensor] | None = None, *, out: Tensor | None = None) -> Tensor:
    """x [m, F], F = H D features of a window's queries -> probe fp32 [F], a weighted mean of the rows.

    ActQKV (arXiv 2502.13542; card actqkv, "Probe-query"): row j weighs as mean over k of
    (x_jk - mean_k)^2 / (var_k + mean(var) / 100), weights normalised to 1. `statistics` are fp32 mean and variance [F]
    of the caller (running ones); by default those of the m rows. Rows that do not deviate at all, a single one for
    example, weigh the same; m = 0 gives 0. Rows may be strided.
    """
    rows, columns = x.shape
    x_stride, x_step = x.stride()
    if out is None:
        out = x.new_empty(columns, dtype=accumulate_dtype(x))
    if counting.active is not None:
        counting.record("probe_pool", probe_pool_cost(rows, columns, x.element_size(), given=statistics is not None))
    function = _probe_pool[x.dtype] if x.is_cpu else None
    matches = x_step == 1 and _takes(out) and (statistics is None or all(map(_takes, statistics)))
    if function is None or not matches:
        if matches and arguments.on_gpu(x):
            from kernels.segment_reduce import triton as gpu

            return gpu.probe_pool(x, statistics, out)
        return out.copy_(reference.probe_pool(x, statistics))
    mean, variance = (None, None) if statistics is None else (part.data_ptr() for part in statistics)
    function(x.data_ptr(), x_stride, rows, columns, mean, variance, out.data_ptr(), torch.get_num_threads())
    return out


def segment_mass(
    q: Tensor,
    keys: Tensor,
    offsets: Tensor,
    positions: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """q [N, H, D], keys [G, T, D] -> fp32 [N, H, n]: softmax probabilities of row i summed over each segment.

    Row i sees keys 0 to positions[i] (int32 [N]), also those in no segment: masses are sums of true probabilities and
    may add up to less than 1. ChunkLLM's teacher (arXiv 2510.02361; card chunkllm, "segment-summed attention") divides
    them by their sum over the chunks completed before the row. offsets [n + 1] as in `segment_sum`; an empty segment,
    one that is out of sight, and every segment of a row that sees nothing (position -1) gets 0. Query head h reads KV
    head h G / H. Rows, heads and tokens may be strided. No row of probabilities is written.
    softcap > 0 (Gemma 2): logits = softcap * tanh(logits / softcap).
    """
    rows, heads, dim = q.shape
    kv_heads, tokens, _ = keys.shape
    segments = offsets.shape[0] - 1
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not share {kv_heads} KV heads evenly")
    if out is None:
        out = q.new_empty(rows, heads, segments, dtype=accumulate_dtype(q))
    if counting.active is not None:
        _record_mass(q, keys, positions, segments)
    function = _segment_mass[q.dtype] if q.is_cpu else None
    matches = q.stride(2) == 1 and keys.stride(2) == 1 and keys.dtype is q.dtype and _takes(out)
    if function is None or not matches:
        if matches and arguments.on_gpu(q):
            from kernels.segment_reduce import triton as gpu

            return gpu.segment_mass(q, keys, as_int32(offsets), as_int32(positions), scale, softcap, out)
        return out.copy_(reference.segment_mass(q, keys, offsets, positions, scale=scale, softcap=softcap))
    places, index = as_int32(positions), as_int32(offsets)
    function(
        *view(q),
        *view(keys),
        places.data_ptr(),
        index.data_ptr(),
        scale,
        softcap,
        out.data_ptr(),
        rows,
        heads,
        kv_heads,
        tokens,
        dim,
        segments,
        torch.get_num_threads(),
    )
    return out


def _takes(x: Tensor) -> bool:
    """The kernels read and write statistics and results as contiguous fp32."""
    return x.dtype is _F32 and x.is_contiguous()


def _record_mass(q: Tensor, keys: Tensor, positions: Tensor, segments: int) -> None:
    rows, heads, dim = q.shape
    visible = (positions + 1).clamp(max=keys.shape[1])
    last = int(visible.max()) if rows else 0
    cost = segment_mass_cost(int(visible.sum()), last, segments, rows, heads, keys.shape[0], dim, q.element_size())
    counting.record("segment_mass", cost)
