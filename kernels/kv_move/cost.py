"""Cost of moving tokens in KV caches (cards flover and timrun, and _speculative, section 7: bytes read and written)."""

from __future__ import annotations

from kernels.cost import Cost


def move_cost(tokens: int, heads: int, dim: int, element_bytes: int, index_bytes: int) -> Cost:
    """`tokens` summed over all caches, each of `heads` rows of `dim` elements: read once, written once."""
    moved = tokens * heads * dim * element_bytes
    return Cost(0, moved + index_bytes, moved)
