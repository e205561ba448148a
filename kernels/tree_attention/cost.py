"""Cost of verification attention (methods/_speculative.md, section 7)."""

from __future__ import annotations

from collections.abc import Sequence

from kernels.cost import Cost


def tree_attention_cost(
    lengths: Sequence[int], counts: Sequence[int], shape: Sequence[int], kv_heads: int, element_bytes: int
) -> Cost:
    """4 H D n (S + n) FLOPs for n nodes behind S tokens; keys and values once per KV head; shape = [B, N, H, D].

    The products of a node with its siblings are counted: they are computed and masked.
    """
    batch, nodes, heads, head_dim = shape
    pairs = sum(count * (length + count) for length, count in zip(lengths, counts, strict=True))
    tokens = sum(length + count for length, count in zip(lengths, counts, strict=True) if count)
    read = (2 * tokens * kv_heads + sum(counts) * heads) * head_dim * element_bytes + batch * (nodes * 8 + 8)
    rows = batch * nodes * heads
    return Cost(4 * pairs * heads * head_dim, read, rows * (head_dim * element_bytes + 4))
