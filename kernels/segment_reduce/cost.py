"""Cost of reductions over token segments (methods/_roofline.md, section 2)."""

from __future__ import annotations

from kernels.cost import Cost


def segment_sum_cost(tokens: int, segments: int, heads: int, dim: int, element_bytes: int) -> Cost:
    """`tokens` in segments are read and added, for each of B G `heads`; the sums are scaled and written as fp32."""
    read = heads * tokens * dim * element_bytes + 4 * (segments + 1)
    return Cost(heads * (tokens + segments) * dim, read, 4 * heads * segments * dim)


def probe_pool_cost(rows: int, columns: int, element_bytes: int, *, given: bool = False) -> Cost:
    """Per element: 1 FLOP for the mean and 3 for the variance unless they are given, 4 for the weight, 2 to pool."""
    read = rows * columns * element_bytes + 8 * columns * given
    return Cost((6 if given else 10) * rows * columns, read, 4 * columns)


def segment_mass_cost(
    visible: int,
    keys: int,
    segments: int,
    rows: int,
    heads: int,
    kv_heads: int,
    dim: int,
    element_bytes: int,
) -> Cost:
    """`visible` = keys seen, summed over rows; `keys` = keys any row sees, read once. Only products are counted."""
    read = (rows * heads + kv_heads * keys) * dim * element_bytes + 4 * (rows + segments + 1)
    return Cost(2 * visible * heads * dim, read, 4 * rows * heads * segments)
