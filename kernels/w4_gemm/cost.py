"""Cost of int4 linear layers (methods/specmquant.md, "Kernels")."""

from __future__ import annotations

from kernels.cost import Cost


def w4_gemm_cost(rows: int, in_features: int, out_features: int, element_bytes: int) -> Cost:
    """N K (0.5 + 2 / 128) bytes of weights and b T (K + N) of activations; dequantisation is not counted as FLOPs."""
    groups = -(-in_features // 128)
    weights = out_features * (in_features // 2 + in_features % 2 + 2 * groups)
    flops = 2 * rows * in_features * out_features
    return Cost(flops, weights + rows * in_features * element_bytes, rows * out_features * element_bytes)
