"""Cost of causal attention of many new tokens (methods/_roofline.md, section 2)."""

from __future__ import annotations

from collections.abc import Sequence

from kernels.cost import Cost


def causal_pairs(starts: Sequence[int], counts: Sequence[int], window: int | None = None) -> tuple[int, int]:
    """(pairs of a query and a key it sees, tokens that some query of their row sees), summed over the rows."""
    pairs = tokens = 0
    for start, count in zip(starts, counts, strict=True):
        stop = start + count
        if count == 0:
            continue
        limit = stop if window is None else window
        first_full = min(max(limit, start + 1), stop + 1)  # queries that would see more are cut to the window
        growing = first_full - 1 - start
        pairs += growing * start + growing * (growing + 1) // 2 + (count - growing) * limit
        tokens += min(stop, limit + count - 1)
    return pairs, tokens


def flash_prefill_cost(
    pairs: int, tokens: int, queries: int, shape: Sequence[int], kv_heads: int, element_bytes: int
) -> Cost:
    """`pairs` and `tokens` per head as `causal_pairs` gives them; shape = [B, T, H, D] of the queries.

    Keys and values are read once per KV head, the `queries` that are no padding once; the output is written whole.
    """
    batch, width, heads, head_dim = shape
    read = 2 * tokens * kv_heads * head_dim * element_bytes + queries * heads * head_dim * element_bytes
    outputs = batch * width * heads
    return Cost(4 * pairs * heads * head_dim, read + batch * 8, outputs * (head_dim * element_bytes + 4))
