"""Cost of chunk scoring and selection (cards longheads and chunkllm, "Kernels")."""

from __future__ import annotations

from collections.abc import Sequence

from kernels.cost import Cost


def select_top_cost(
    scored: int, read: int, shape: Sequence[int], owners: int, selections: int, k: int, element_bytes: int
) -> Cost:
    """`scored` chunks summed over the rows, `read` by some row; shape = [T, H, D] of q. Only products are counted."""
    rows, heads, dim = shape
    moved = (rows * heads + owners * read) * dim * element_bytes + 4 * rows
    return Cost(2 * scored * heads * dim, moved, 4 * rows * selections * k)


def top_cost(rows: int, chunks: int, k: int, element_bytes: int) -> Cost:
    """Scores are read once and lists written; comparisons are no FLOPs."""
    return Cost(0, rows * chunks * element_bytes, 4 * rows * k)
