"""Cost of merging partial attention results (methods/qwen2_5_1m, kernel 3: F reads and one write of out)."""

from __future__ import annotations

from kernels.cost import Cost


def lse_merge_cost(parts: int, rows: int, heads: int, head_dim: int, part_bytes: int, out_bytes: int) -> Cost:
    """A multiply-add per element of a part; subtract, exponentiate, add and divide per part and head."""
    items = rows * heads
    read = parts * items * (head_dim * part_bytes + 4)
    return Cost(parts * items * (2 * head_dim + 4), read, items * (head_dim * out_bytes + 4))
