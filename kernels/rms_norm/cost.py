"""Cost of RMS normalisation (methods/_roofline.md, section 2)."""

from __future__ import annotations

from kernels.cost import Cost


def rms_norm_cost(rows: int, width: int, element_bytes: int, *, residual: bool = False) -> Cost:
    """Square, add, scale twice: 4 FLOPs per element, 5 with the residual; the weight is fp32 and read once."""
    elements = rows * width
    streams = 1 + residual
    moved = elements * element_bytes * streams
    return Cost((4 + residual) * elements, moved + 4 * width, moved)
