"""Cost of the moving average (card hnet, section 5: bytes s (2 B M D) + 4 B M, FLOPs 3 B M D)."""

from __future__ import annotations

from kernels.cost import Cost


def ema_scan_cost(batch: int, steps: int, dim: int, element_bytes: int) -> Cost:
    """z read, y written, p read; the first and the last state are fp32."""
    elements, state = batch * steps * dim, 4 * batch * dim
    return Cost(3 * elements, elements * element_bytes + 4 * batch * steps + state, elements * element_bytes + state)


def ema_backward_cost(batch: int, steps: int, dim: int, element_bytes: int) -> Cost:
    """dy, z and y are read, dz written. Per element: add, dz, two for dp and its difference, and the decay."""
    elements, state = batch * steps * dim, 4 * batch * dim
    read = 3 * elements * element_bytes + 4 * batch * steps + 2 * state
    return Cost(6 * elements, read, elements * element_bytes + 4 * batch * steps + state)
