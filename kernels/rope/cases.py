"""The contract and the realistic shapes of rope."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels.contract import Case, Outputs, SpeedCase, Trial, poisoned, strided
from kernels.rope import append, apply, reference, rotate_and_append


def tables(positions: int, head_dim: int) -> tuple[Tensor, Tensor]:
    inverse = 10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(positions)[:, None] * inverse
    return angles.cos(), angles.sin()


def rope_case(what: str, tokens: int, heads: int, kv_heads: int, dim: int) -> Case:
    """q, k and v are views of one projection; the caches are slices of a larger, poisoned reservation."""

    def make(dtype: torch.dtype) -> Trial:
        qkv = strided(torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype))
        cos, sin = tables(700, dim)
        positions = torch.randint(0, 700, (tokens,), dtype=torch.int32)
        rows = torch.randint(0, 3, (tokens,))  # int64 on purpose: any integers are taken
        slots = torch.randperm(tokens + 5)[:tokens].int()

        def outcome(x: Tensor, ops: Sequence[Callable[..., None]]) -> Outputs:
            q, k, v = torch.split(x.clone(), [heads * dim, kv_heads * dim, kv_heads * dim], dim=1)
            q, k, v = q.view(tokens, heads, dim), k.view(tokens, kv_heads, dim), v.view(tokens, kv_heads, dim)
            reserved = poisoned(2, 3, kv_heads + 1, tokens + 9, dim, dtype=x.dtype)
            caches = reserved[0, :, :kv_heads, : tokens + 5], reserved[1, :, :kv_heads, : tokens + 5]
            arguments = {
                "rotate_and_append": (q, k, v, cos, sin, positions, *caches, rows, slots),
                "apply": (q, k, cos, sin, positions),
                "append": (k, v, *caches, rows, slots),
            }
            for op in ops:
                op(*arguments[op.__name__])
            return {"q": q, "k": k, "caches": reserved}

        owns: dict[str, Callable[..., None]] = {"fused": rotate_and_append, "apply": apply, "append": append}
        naive = {"fused": ("apply", "append"), "apply": ("apply",), "append": ("append",)}[what]
        theirs: tuple[Callable[..., None], ...] = tuple(getattr(reference, name) for name in naive)
        return Trial(lambda: outcome(qkv, (owns[what],)), lambda: outcome(qkv.double(), theirs))

    return Case("rope", f"{what}-{tokens}x{heads}x{kv_heads}x{dim}", make)


CASES = [
    *(rope_case("fused", *shape) for shape in ((1, 9, 3, 64), (63, 2, 2, 16), (100, 8, 1, 80), (5, 4, 1, 128))),
    *(rope_case("apply", *shape) for shape in ((1, 3, 1, 128), (63, 8, 2, 80))),
    *(rope_case("append", *shape) for shape in ((1, 3, 3, 64), (500, 2, 2, 16))),
]
TEAM_CASES = [rope_case("fused", 300, 3, 1, 64)]
SMALL_CASES = [
    rope_case("fused", 3, 6, 2, 80),
    rope_case("apply", 2, 3, 1, 16),
    rope_case("append", 3, 3, 3, 64),
]
SPEED_CASES: list[SpeedCase] = []
