"""Cost of rotary embedding and of the KV append."""

from __future__ import annotations

from kernels.cost import Cost


def rotate_cost(tokens: int, heads: int, head_dim: int, element_bytes: int) -> Cost:
    """Heads = query plus KV heads. Four multiplications and two additions per pair: 3 FLOPs per element.

    Elements are read and written once; each token reads its fp32 row of the cos and sin tables.
    """
    elements = tokens * heads * head_dim
    return Cost(3 * elements, elements * element_bytes + tokens * head_dim * 4, elements * element_bytes)


def shift_cost(tokens: int, kv_heads: int, head_dim: int, element_bytes: int) -> Cost:
    """Rotation of cached keys, and the delta, row and slot of each token."""
    return rotate_cost(tokens, kv_heads, head_dim, element_bytes) + Cost(0, 12 * tokens, 0)


def append_cost(tokens: int, kv_heads: int, head_dim: int, element_bytes: int) -> Cost:
    """Keys and values read once, written once."""
    moved = 2 * tokens * kv_heads * head_dim * element_bytes
    return Cost(0, moved, moved)
