"""Cost of RMS normalisation (methods/_roofline.md, section 2)."""

from __future__ import annotations

from kernels.cost import Cost


def rms_norm_cost(rows: int, width: int, element_bytes: int, *, residual: bool = False, steering: bool = False) -> Cost:
    """Square, add, scale twice: 4 FLOPs per element, one more for the residual and one for the steering vector.

    The weight and the steering vector are fp32 and read once.
    """
    elements = rows * width
    streams = 1 + residual
    moved = elements * element_bytes * streams
    return Cost((4 + residual + steering) * elements, moved + 4 * width * (1 + steering), moved)
