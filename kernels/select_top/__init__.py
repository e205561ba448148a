"""Chunk scoring and the choice of the best: what every selection method does before it reads."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.arguments import as_int32, view
from kernels.build import Functions
from kernels.cost import Cost
from kernels.select_top import reference
from kernels.select_top.cost import select_top_cost, top_cost

_F32, _BF16, _I32 = torch.float32, torch.bfloat16, torch.int32
_select_top = Functions("select_top", "piipiipiipiiiiii", {_F32: "select_top_f32", _BF16: "select_top_bf16"})
_top = Functions("select_top", "piipiipii", {_F32: "top_f32"})


def select_top(
    q: Tensor,
    reps: Tensor,
    k: int,
    last: Tensor,
    *,
    first: int = 0,
    selections: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """q [T, H, D], reps [R, C, D] -> int32 [T, S, k]: the k chunks with the largest q . rep, in ascending order.

    Query head h scores the representations h R / H: R = H of its own, R = G those of its KV head, R = 1 all the same.
    `selections` is S (default H): the scores of H / S heads that follow each other are summed, in fp32. Row t chooses
    among the chunks `first` <= c < last[t] (int32 [T]); no others are read. Equal scores go to the lower chunk; NaN and
    -inf are never chosen. Where there are fewer than k, -1 fills the list up. Heads and rows may be strided.
    Users: LongHeads (arXiv 2402.10685, section 3.2), ChunkLLM, DHSA, ActQKV; cards of these, "Kernels".
    """
    (rows, heads, dim), (owners, chunks, _) = q.shape, reps.shape
    count = heads if selections is None else selections
    if k < 0 or heads % owners or heads % count or last.shape != (rows,):
        raise ValueError(
            f"{heads} heads, {owners} representations, {count} selections, k = {k} and last {list(last.shape)} "
            "do not fit together"
        )
    if out is None:
        out = q.new_empty(rows, count, k, dtype=_I32)
    if counting.active is not None:
        counting.record("select_top", _cost(q, reps, k, last, first, count))
    matches = q.stride(2) == 1 and reps.stride()[1:] == (dim, 1) and reps.dtype is q.dtype and _takes(out)
    function = _select_top[q.dtype] if q.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(q):
            from kernels.select_top import triton as gpu

            return gpu.select_top(q, reps, k, as_int32(last), first, count, out)
        return out.copy_(reference.select_top(q, reps, k, last, first=first, selections=count))
    ends = as_int32(last)
    sizes = rows, heads, count, dim, torch.get_num_threads()
    function(
        *view(q), reps.data_ptr(), reps.stride(0), owners, ends.data_ptr(), first, chunks, out.data_ptr(), k, *sizes
    )
    return out


def top(scores: Tensor, k: int, last: Tensor | None = None, *, first: int = 0, out: Tensor | None = None) -> Tensor:
    """scores [N, C] -> int32 [N, k], by the rules of `select_top`; `last` [N] is C by default. Rows may be strided."""
    rows, chunks = scores.shape
    if k < 0 or (last is not None and last.shape != (rows,)):
        raise ValueError(f"k = {k} must not be negative, and last has one entry for each of {rows} rows")
    if out is None:
        out = scores.new_empty(rows, k, dtype=_I32)
    if counting.active is not None:
        counting.record("top", top_cost(rows, chunks, k, scores.element_size()))
    matches = scores.stride(1) == 1 and _takes(out)
    function = _top[scores.dtype] if scores.is_cpu else None
    if function is None or not matches:
        if matches and arguments.on_gpu(scores):
            from kernels.select_top import triton as gpu

            return gpu.top(scores, k, None if last is None else as_int32(last), first, out)
        return out.copy_(reference.top(scores, k, last, first=first))
    ends = None if last is None else as_int32(last)
    limits = None if ends is None else ends.data_ptr(), first, chunks
    function(scores.data_ptr(), scores.stride(0), rows, *limits, out.data_ptr(), k, torch.get_num_threads())
    return out


def _takes(out: Tensor) -> bool:
    return out.dtype is _I32 and out.is_contiguous()


def _cost(q: Tensor, reps: Tensor, k: int, last: Tensor, first: int, selections: int) -> Cost:
    scored = (last.clamp(max=reps.shape[1]) - first).clamp(min=0)
    read = int(scored.max()) if len(scored) else 0
    return select_top_cost(int(scored.sum()), read, q.shape, reps.shape[0], selections, k, q.element_size())
