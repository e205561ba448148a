"""Cost of span attention in decoding (methods/_roofline.md, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cost import Cost


def flash_decode_cost(
    tokens: int,
    selections: int,
    query_rows: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    element_bytes: int,
    *,
    span_count: int = 1,
    rotations: int = 0,
    distinct: int | None = None,
) -> Cost:
    """`tokens` = sum of all span lengths over [N, S], S = `selections` in {1, G, H}.

    With S = 1 or G a selected token is loaded once per KV head and serves its H/G query heads; with S = H each query
    head loads its own. `span_count` = n spans per row and selection; `rotations` = rotated query vectors.
    `distinct` of the tokens (all by default) have to be read: the others are those of another query row.
    """
    per_head = heads if selections == heads else kv_heads
    loaded = tokens * per_head // selections
    flops = 4 * loaded * (heads // per_head) * head_dim + 3 * rotations * head_dim
    read = loaded if distinct is None else distinct * per_head // selections
    kv_bytes = 2 * read * head_dim * element_bytes
    query_bytes = query_rows * heads * head_dim * element_bytes
    index_bytes = query_rows * (selections * span_count * 12 + 4)
    return Cost(flops, kv_bytes + query_bytes + index_bytes, query_bytes + query_rows * heads * 4)


def distinct_tokens(spans: Tensor, rows: Tensor) -> int:
    """Slots that spans [N, S, n, 3] of query rows in cache rows [N] cover, summed over S, each counted once."""
    total = 0
    for selection in spans.unbind(dim=1):
        for row in set(rows.tolist()):
            own = selection[rows == row].flatten(0, 1).long()
            start, stop = own[own[:, 0].argsort(), :2].unbind(dim=1)
            seen = torch.cat((start.new_zeros(1), stop.cummax(dim=0).values[:-1]))
            total += int((stop - torch.maximum(start, seen)).clamp(min=0).sum())
    return total
