"""Cost of span attention in decoding (methods/_roofline.md, section 2)."""

from __future__ import annotations

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
) -> Cost:
    """`tokens` = sum of all span lengths over [N, S], S = `selections` in {1, G, H}.

    With S = 1 or G a selected token is loaded once per KV head and serves its H/G query heads; with S = H each query
    head loads its own. `span_count` = n spans per row and selection; `rotations` = rotated query vectors.
    """
    per_head = heads if selections == heads else kv_heads
    loaded = tokens * per_head // selections
    flops = 4 * loaded * (heads // per_head) * head_dim + 3 * rotations * head_dim
    kv_bytes = 2 * loaded * head_dim * element_bytes
    query_bytes = query_rows * heads * head_dim * element_bytes
    index_bytes = query_rows * (selections * span_count * 12 + 4)
    return Cost(flops, kv_bytes + query_bytes + index_bytes, query_bytes + query_rows * heads * 4)
