"""Cost of table-lookup linear layers (methods/squeezellm.md, section 5)."""

from __future__ import annotations

from kernels.cost import ZERO, Cost


def lut_gemv_cost(
    rows: int,
    in_features: int,
    out_features: int,
    bits: int,
    element_bytes: int,
    *,
    outliers: int | None = None,
    bias_bytes: int = 0,
) -> Cost:
    """Codes, tables, x and bias once, outputs once; the lookups are not FLOPs.

    `outliers` is the number of sparse entries (a value and a 4-byte column each, and 4 bytes per row pointer), None
    without a sparse part; `*_bytes` is the size of one element.
    """
    outputs = rows * out_features
    flops = 2 * outputs * in_features + outputs * bool(bias_bytes)
    read = out_features * (in_features * bits // 8 + (2**bits) * element_bytes + bias_bytes)
    read += rows * in_features * element_bytes
    sparse = ZERO if outliers is None else sparse_cost(rows, out_features, outliers, element_bytes)
    return Cost(flops, read, outputs * element_bytes) + sparse


def sparse_cost(rows: int, out_features: int, outliers: int, element_bytes: int) -> Cost:
    """The compressed sparse rows; x and y are those of the dense part."""
    return Cost(2 * rows * outliers, outliers * (4 + element_bytes) + (out_features + 1) * 4, 0)
