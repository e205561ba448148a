"""The contract and the realistic shapes of rope."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.rope import append, apply, reference, rotate_and_append, shift
from kernels.rope.cost import append_cost, rotate_cost, shift_cost


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


def shift_case(tokens: int, kv_heads: int, dim: int) -> Case:
    """Some tokens of a slice of a larger reservation; the others are NaN."""

    def make(dtype: torch.dtype) -> Trial:
        cos, sin = tables(300, dim)
        slots, rows = torch.randperm(tokens + 5)[:tokens], torch.randint(0, 3, (tokens,), dtype=torch.int32)
        deltas = torch.randint(-299, 300, (tokens,), dtype=torch.int32)
        reserved = poisoned(3, kv_heads + 1, tokens + 9, dim, dtype=dtype)
        reserved[rows.long(), :kv_heads, slots] = torch.randn(tokens, kv_heads, dim).to(dtype)

        def outcome(x: Tensor, op: Callable[..., None]) -> Outputs:
            caches = x.clone()
            op(caches[:, :kv_heads, : tokens + 5], cos, sin, deltas, rows, slots)
            return {"caches": caches}

        return Trial(lambda: outcome(reserved, shift), lambda: outcome(reserved.double(), reference.shift))

    return Case("rope", f"shift-{tokens}x{kv_heads}x{dim}", make)


def fused_race(dtype: torch.dtype) -> Race:
    """A prefill chunk of SmolLM2-135M: rotation and append in one call, against both in torch."""
    tokens, heads, kv_heads, dim = 512, 9, 3, 64
    q, k, v = (torch.randn(tokens, n, dim).to(dtype) for n in (heads, kv_heads, kv_heads))
    cos, sin = tables(tokens, dim)
    positions, rows = torch.arange(tokens).int(), torch.zeros(tokens).int()
    keys, values = (torch.zeros(1, kv_heads, tokens, dim, dtype=dtype) for _ in range(2))
    wide = [torch.cat((table, table), dim=1)[:, None].to(dtype) for table in (cos, sin)]

    def rotated(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * wide[0] + torch.cat((-second, first), dim=-1) * wide[1]

    def peer() -> Tensor:
        keys[0, :, :tokens] = rotated(k).transpose(0, 1)
        values[0, :, :tokens] = v.transpose(0, 1)
        return rotated(q)

    cost = rotate_cost(tokens, heads + kv_heads, dim, dtype.itemsize)
    cost += append_cost(tokens, kv_heads, dim, dtype.itemsize)
    run = lambda: rotate_and_append(q, k, v, cos, sin, positions, keys, values, rows, positions)  # noqa: E731
    return Race(run, cost, {"torch": peer})


def shift_race(dtype: torch.dtype) -> Race:
    """32K cached keys of one layer of SmolLM2-135M move up by 100 positions."""
    tokens, kv_heads, dim = 32768, 3, 64
    cache = torch.randn(1, kv_heads, tokens, dim).to(dtype)
    cos, sin = tables(128, dim)
    deltas, rows, slots = torch.full((tokens,), 100).int(), torch.zeros(tokens).int(), torch.arange(tokens).int()
    c, s = (torch.cat((table[100], table[100])).to(dtype) for table in (cos, sin))

    def peer() -> Tensor:
        first, second = cache.chunk(2, dim=-1)
        return cache.copy_(cache * c + torch.cat((-second, first), dim=-1) * s)

    cost = shift_cost(tokens, kv_heads, dim, dtype.itemsize)
    return Race(lambda: shift(cache, cos, sin, deltas, rows, slots), cost, {"torch": peer})


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """The last token of a cache behind which nothing may be read or written."""
    ints = guarded(3, 1, dtype=torch.int32).copy_(torch.tensor([[-8], [0], [32]]))
    shift(guarded(1, 2, 33, 80, dtype=dtype), guarded(9, 40), guarded(9, 40), *ints)


CASES = [
    *(rope_case("fused", *shape) for shape in ((1, 9, 3, 64), (63, 2, 2, 16), (100, 8, 1, 80), (5, 4, 1, 128))),
    *(rope_case("apply", *shape) for shape in ((1, 3, 1, 128), (63, 8, 2, 80))),
    *(rope_case("append", *shape) for shape in ((1, 3, 3, 64), (500, 2, 2, 16))),
    *(shift_case(*shape) for shape in ((1, 3, 64), (63, 1, 16), (100, 8, 80), (0, 2, 64), (7, 2, 128))),
]
TEAM_CASES = [rope_case("fused", 300, 3, 1, 64), shift_case(300, 3, 64)]
SMALL_CASES = [
    rope_case("fused", 3, 6, 2, 80),
    rope_case("apply", 2, 3, 1, 16),
    rope_case("append", 3, 3, 3, 64),
    shift_case(5, 3, 80),
    shift_case(0, 3, 16),
]
SPEED_CASES = [
    SpeedCase("rope", "fused-512", fused_race),
    SpeedCase("rope", "shift-32K", shift_race),
]
