"""The contract and the realistic shapes of tree_attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.tree_attention import reference, tree_attention
from kernels.tree_attention.cost import tree_attention_cost
from kernels.tree_attention.masks import ancestor_masks, visible

Row = tuple[int, int]
"""Committed tokens, and nodes of the tree behind them."""


def tree(nodes: int, kind: str) -> Tensor:
    """Masks [nodes] of a "chain", a "star" of single nodes, or a "random" tree."""
    draws = torch.randint(-1, 1 << 30, (nodes,)).tolist()
    parents = {
        "chain": range(-1, nodes - 1),
        "star": [-1] * nodes,
        "random": [draw % (node + 1) - 1 for node, draw in enumerate(draws)],
    }[kind]
    return ancestor_masks(list(parents))


def tree_case(
    batch: Sequence[Row],
    heads: int,
    kv_heads: int,
    dim: int,
    *,
    kind: str = "random",
    softcap: float = 0.0,
    scale: float | None = None,
    blind: bool = False,
) -> Case:
    """What lies behind a row's nodes, and queries that are no nodes, are NaN. `blind`: some nodes see no node."""

    def make(dtype: torch.dtype) -> Trial:
        nodes, tokens = max(count for _, count in batch), max(sum(row) for row in batch)
        q = poisoned(len(batch), nodes, heads, dim, dtype=dtype)
        reserved = poisoned(2, len(batch), kv_heads + 1, tokens + 9, dim, dtype=dtype)
        keys, values = reserved[:, :, :kv_heads, : tokens + 5]
        masks = torch.zeros(len(batch), nodes, dtype=torch.int64)
        for b, (length, count) in enumerate(batch):
            q[b, :count] = torch.randn(count, heads, dim).to(dtype)
            for cache in (keys, values):
                cache[b, :, : length + count] = torch.randn(kv_heads, length + count, dim).to(dtype)
            masks[b, :count] = tree(count, kind)
        if blind:
            masks[:, ::2] = 0
        lengths, counts = (torch.tensor(column).int() for column in zip(*batch, strict=True))
        options: dict[str, Any] = {"scale": scale or dim**-0.5, "softcap": softcap}

        def run() -> Outputs:
            out = poisoned(*q.shape, dtype=dtype)
            out, lse = tree_attention(strided(q), keys, values, masks, lengths, counts, out=out, **options)
            return {"out": out, "fp32 lse": lse}

        def expected() -> Outputs:
            wide = q.double(), keys.double(), values.double()
            out, lse = reference.tree_attention(*wide, masks, lengths, counts, **options)
            return {"out": out, "fp32 lse": lse}

        return Trial(run, expected)

    flags = ("-softcap" if softcap else "") + ("-extreme" if scale else "") + ("-blind" if blind else "")
    shape = "+".join(f"{length}.{count}" for length, count in batch)
    return Case("tree_attention", f"{shape}x{heads}x{kv_heads}x{dim}-{kind}{flags}", make)


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """30 tokens and 3 nodes, the last of them at the end of the cache."""
    masks = guarded(1, 3, dtype=torch.int64).copy_(ancestor_masks([-1, 0, 0]))
    for dim in (64, 80):
        q, cache = guarded(1, 3, 6, dim, dtype=dtype), guarded(1, 2, 33, dim, dtype=dtype)
        tree_attention(q, cache, cache, masks, [30], scale=1.0, out=guarded(1, 3, 6, dim, dtype=dtype))


def speed_case(nodes: int, tokens: int, heads: int, kv_heads: int, dim: int) -> SpeedCase:
    """A random tree behind a long cache, against SDPA with the mask written out."""

    def make(dtype: torch.dtype) -> Race:
        q, masks = torch.randn(1, nodes, heads, dim).to(dtype), tree(nodes, "random")[None]
        keys, values = torch.randn(2, 1, kv_heads, tokens + nodes, dim).to(dtype)
        allowed = torch.cat((torch.ones(nodes, tokens, dtype=torch.bool), visible(masks[0], nodes)), dim=1)
        out, lengths = torch.empty_like(q), torch.tensor([tokens]).int()

        def peer() -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(
                q.transpose(1, 2), keys, values, attn_mask=allowed, enable_gqa=True
            )

        cost = tree_attention_cost([tokens], [nodes], q.shape, kv_heads, dtype.itemsize)
        run = lambda: tree_attention(q, keys, values, masks, lengths, scale=dim**-0.5, out=out)  # noqa: E731
        return Race(run, cost, {"torch SDPA, dense mask": peer})

    return SpeedCase("tree_attention", f"{nodes} nodes, {tokens >> 10}K {heads}/{kv_heads} x {dim}", make)


CASES = [
    tree_case([(0, 1)], 3, 1, 64),
    tree_case([(0, 16)], 6, 2, 64),
    tree_case([(1, 2)], 4, 4, 16),
    tree_case([(63, 5)], 8, 1, 80),
    tree_case([(100, 63)], 4, 1, 128),
    tree_case([(500, 64)], 9, 3, 64),
    tree_case([(500, 16)], 6, 2, 64, kind="chain"),
    tree_case([(63, 30)], 6, 2, 64, kind="star"),
    tree_case([(100, 20), (37, 5), (5, 0), (0, 33)], 6, 2, 64),
    tree_case([(0, 40)], 4, 2, 64, blind=True),
    tree_case([(77, 9)], 8, 2, 80, softcap=5.0),
    tree_case([(100, 30)], 4, 2, 64, scale=64.0),
]
TEAM_CASES = [tree_case([(300, 20), (100, 7)], 6, 2, 64), tree_case([(500, 64)], 4, 1, 128)]
SMALL_CASES = [
    tree_case([(40, 5)], 2, 1, 64),
    tree_case([(20, 17), (0, 3)], 3, 1, 16),
    tree_case([(9, 3), (4, 5)], 2, 1, 16),
    tree_case([(70, 20)], 2, 2, 80, softcap=5.0),
    tree_case([(0, 6)], 2, 1, 16, blind=True),
]
SPEED_CASES = [
    *(speed_case(nodes, tokens << 10, 9, 3, 64) for nodes in (1, 16, 64) for tokens in (8, 32)),
    speed_case(16, 8192, 32, 8, 128),
]
