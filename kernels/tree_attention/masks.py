"""Draft trees as bit masks: which nodes a node sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_NODES = 64
"""Of a tree: the bits of a mask."""


def ancestor_masks(parents: Sequence[int]) -> Tensor:
    """parents [N], -1 for the children of the last committed token -> int64 [N]: a node's ancestors and itself as bits.

    A parent must stand before its child. Bit 63 makes a mask negative: masks are bit patterns, not numbers.
    """
    if len(parents) > MOST_NODES:
        raise ValueError(f"a tree has at most {MOST_NODES} nodes, not {len(parents)}")
    masks: list[int] = []
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            raise ValueError(f"node {node} has parent {parent}: a parent stands before its child, and -1 is the root")
        masks.append((masks[parent] if parent >= 0 else 0) | 1 << node)
    return torch.tensor([mask - (1 << 64) if mask >> 63 else mask for mask in masks], dtype=torch.int64)


def visible(masks: Tensor, nodes: int) -> Tensor:
    """masks [...] int64 -> bool [..., nodes]: the bits."""
    return (masks[..., None] >> torch.arange(nodes, device=masks.device) & 1).bool()
