"""Cost of the gate of a feed-forward network (methods/_roofline.md, section 2)."""

from __future__ import annotations

from kernels.cost import Cost


def gate_cost(rows: int, intermediate: int, element_bytes: int) -> Cost:
    """Five FLOPs per result; two elements are read for it and one is written."""
    elements = rows * intermediate
    return Cost(5 * elements, 2 * elements * element_bytes, elements * element_bytes)
