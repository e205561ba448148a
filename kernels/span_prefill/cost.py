"""Cost of attention of new tokens to spans of their own (card longheads.md, "Kernels" 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cost import Cost
from kernels.span_prefill.reference import visible_spans


def span_prefill_cost(q: Tensor, kv_heads: int, spans: Tensor, starts: Tensor, counts: Tensor) -> Cost:
    """4 D FLOPs for every token a query head sees, 3 D to rotate it for a span; what any query sees is read once."""
    (batch, width, heads, dim), (selections, count) = q.shape, spans.shape[2:4]
    begin, stop, _ = visible_spans(spans, starts, counts).unbind(-1)
    lengths = stop - begin
    each = heads // selections
    queries, size = int(counts.sum()), q.element_size()
    flops = 4 * int(lengths.sum()) * each * dim + 3 * int((lengths > 0).sum()) * each * dim
    keys = loaded(begin, stop, kv_heads) * dim * size
    index_bytes = queries * selections * count * 12 + batch * 8
    outputs = batch * width * heads
    return Cost(flops, 2 * keys + queries * heads * dim * size + index_bytes, outputs * (dim * size + 4))


def loaded(begin: Tensor, stop: Tensor, kv_heads: int) -> int:
    """Tokens that some query of a batch row sees, summed over its KV heads; begin, stop [B, T, S, n]."""
    batch, _, selections, _ = begin.shape
    groups = min(selections, kv_heads)
    some = (stop > begin).int()
    edges = torch.zeros(batch, groups, int(stop.max()) + 1 if stop.numel() else 1, dtype=torch.int32)
    for where, sign in ((begin, 1), (stop, -1)):
        by_group = [x.transpose(1, 2).reshape(batch, groups, -1).cpu() for x in (where, some)]
        edges.scatter_add_(2, (by_group[0] * by_group[1]).long(), sign * by_group[1])
    return int((edges.cumsum(2) > 0).sum()) * kv_heads // groups
