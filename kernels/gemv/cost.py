"""Cost of few-row linear layers (methods/_roofline.md, section 2)."""

from __future__ import annotations

from kernels.cost import Cost


def gemv_cost(
    rows: int,
    in_features: int,
    out_features: int,
    element_bytes: int,
    *,
    out_bytes: int | None = None,
    residual: bool = False,
    bias_bytes: int = 0,
) -> Cost:
    """Weights, inputs and residual once, outputs once. `*_bytes` is the size of one element."""
    out_bytes = element_bytes if out_bytes is None else out_bytes
    outputs = rows * out_features
    flops = 2 * outputs * in_features + outputs * (residual + bool(bias_bytes))
    read = (in_features * out_features + rows * in_features) * element_bytes
    read += outputs * out_bytes * residual + out_features * bias_bytes
    return Cost(flops, read, outputs * out_bytes)


def gated_gemv_cost(rows: int, in_features: int, intermediate: int, element_bytes: int) -> Cost:
    """Gate and up in one pass."""
    return gating(gemv_cost(rows, in_features, 2 * intermediate, element_bytes), rows * intermediate, element_bytes)


def gating(both: Cost, outputs: int, element_bytes: int) -> Cost:
    """A product that gives gates and ups and writes what they make; the gating itself counts 5 FLOPs per output."""
    return Cost(both.flops + 5 * outputs, both.read_bytes, outputs * element_bytes)
