"""The contract and the realistic shapes of gathered_prefill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.flash_prefill import flash_prefill
from kernels.gathered_prefill import gathered_prefill, reference
from kernels.gathered_prefill.cost import gathered_prefill_cost

Row = tuple[int, int]
"""Tokens in the cache before the pass, and new ones."""


def gathered_case(
    batch: Sequence[Row],
    heads: int,
    kv_heads: int,
    dim: int,
    *,
    selections: int = 1,
    block: int = 16,
    listed: int = 24,
    window: int | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
) -> Case:
    """Tokens are listed at random: padding, tokens of the future and, with a window, of the past among them.

    Whatever no query of a block may see, and padding queries, are NaN; cache rows are in another order than q's.
    """

    def make(dtype: torch.dtype) -> Trial:
        width, tokens = max(count for _, count in batch), max(sum(row) for row in batch)
        starts, counts = [row[0] for row in batch], [row[1] for row in batch]
        rows = torch.randperm(len(batch) + 1)[: len(batch)].int()
        indices = torch.randint(-3, tokens + 3, (len(batch), selections, -(-width // block), listed)).int()
        q = poisoned(len(batch), width, heads, dim, dtype=dtype)
        for b, (_, count) in enumerate(batch):
            q[b, :count] = torch.randn(count, heads, dim).to(dtype)
        keys, values = poisoned(2, len(batch) + 1, kv_heads + 1, tokens + 7, dim, dtype=dtype)[:, :, :kv_heads]
        for b, (start, count) in enumerate(batch):
            for first in range(0, count, block):
                fill(
                    (keys, values),
                    int(rows[b]),
                    indices[b, :, first // block],
                    start + first,
                    min(block, count - first),
                    window,
                )
        options: dict[str, Any] = {"block": block, "scale": scale or dim**-0.5, "window": window, "softcap": softcap}

        def run() -> Outputs:
            out = poisoned(*q.shape, dtype=dtype)
            out, lse = gathered_prefill(strided(q), keys, values, indices, starts, counts, rows, out=out, **options)
            return {"out": out, "fp32 lse": lse}

        def expected() -> Outputs:
            ints = torch.tensor(starts), torch.tensor(counts)
            wide = q.double(), keys.double(), values.double()
            out, lse = reference.gathered_prefill(*wide, indices, *ints, rows, **options)
            return {"out": out, "fp32 lse": lse}

        return Trial(run, expected)

    flags = ("-window" if window else "") + ("-softcap" if softcap else "") + ("-extreme" if scale else "")
    shape = "+".join(f"{start}.{count}" for start, count in batch)
    return Case("gathered_prefill", f"{shape}x{heads}x{kv_heads}x{dim}-S{selections}-{block}x{listed}{flags}", make)


def fill(caches: Sequence[Tensor], row: int, lists: Tensor, first: int, queries: int, window: int | None) -> None:
    """Random values for the tokens of lists [S, n] that one of the queries at slots first, first + 1, ... sees."""
    for selection, tokens in enumerate(lists.long()):
        oldest = 0 if window is None else max(0, first - window + 1)
        seen = tokens[(tokens >= oldest) & (tokens < first + queries)].unique()
        for cache in caches:
            kv_heads = cache.shape[1]
            low = selection * kv_heads // len(lists)
            high = max(low + 1, (selection + 1) * kv_heads // len(lists))
            fresh = torch.randn(high - low, len(seen), cache.shape[3]).to(cache.dtype)
            cache[row, low:high, seen] = torch.where(
                cache[row, low:high, seen].isnan(), fresh, cache[row, low:high, seen]
            )


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """33 tokens, the last of them listed."""
    indices = guarded(1, 1, 3, 5, dtype=torch.int32).copy_(torch.tensor([0, 32, 7, 31, -1]).expand(1, 1, 3, 5))
    q, cache = guarded(1, 33, 6, 80, dtype=dtype), guarded(1, 2, 33, 80, dtype=dtype)
    gathered_prefill(q, cache, cache, indices, [0], [33], block=16, scale=1.0, out=guarded(1, 33, 6, 80, dtype=dtype))


def speed_case(name: str, tokens: int, heads: int, kv_heads: int, dim: int, kept: float, block: int = 64) -> SpeedCase:
    """A prompt whose query blocks see themselves and a share `kept` of what is before, one list for all heads."""

    def make(dtype: torch.dtype) -> Race:
        q = torch.randn(1, tokens, heads, dim).to(dtype)
        keys, values = torch.randn(2, 1, kv_heads, tokens, dim).to(dtype)
        indices = random_lists(tokens, block, kept)
        starts, counts = torch.zeros(1).int(), torch.tensor([tokens]).int()
        out, scale = torch.empty_like(q), dim**-0.5
        cost = gathered_prefill_cost(q, kv_heads, indices, starts, counts, block)
        return Race(
            lambda: gathered_prefill(q, keys, values, indices, starts, counts, block=block, scale=scale, out=out),
            cost,
            {"kernels.flash_prefill": lambda: flash_prefill(q, keys, values, starts, counts, scale=scale, out=out)},
        )

    return SpeedCase("gathered_prefill", name, make)


def random_lists(tokens: int, block: int, kept: float) -> Tensor:
    """indices [1, 1, blocks, n], padded with -1: every block's own tokens, and some of those before it."""
    lists = []
    for first in range(0, tokens, block):
        before = torch.randperm(first)[: int(kept * first)].sort().values
        lists.append(torch.cat((before, torch.arange(first, min(first + block, tokens)))))
    longest = max(map(len, lists))
    padded = [torch.cat((tokens_, tokens_.new_full((longest - len(tokens_),), -1))) for tokens_ in lists]
    return torch.stack(padded).int()[None, None]


CASES = [
    gathered_case([(0, 1)], 3, 1, 64),
    gathered_case([(0, 63)], 6, 2, 64, selections=2),
    gathered_case([(0, 100)], 8, 1, 80, selections=8, block=33),
    gathered_case([(300, 200)], 4, 1, 128, block=64, listed=200),
    gathered_case([(0, 100)], 2, 2, 16, selections=2, block=100, listed=300),
    gathered_case([(437, 63)], 9, 3, 64, listed=150, block=32),
    gathered_case([(99, 1)], 4, 4, 128, selections=4, listed=40),
    gathered_case([(0, 100), (37, 63), (5, 0), (0, 1)], 6, 2, 64, selections=6, listed=60),
    gathered_case([(50, 100)], 4, 1, 64, window=33, listed=100),
    gathered_case([(3, 100)], 8, 2, 80, window=1000, softcap=5.0),
    gathered_case([(0, 100)], 4, 2, 64, listed=0),
    gathered_case([(0, 130)], 4, 2, 64, scale=64.0, listed=90),
    gathered_case([(0, 130)], 4, 2, 64, scale=64.0, softcap=30.0, block=128),
]
TEAM_CASES = [
    gathered_case([(0, 200), (100, 100)], 6, 2, 64, listed=100, block=32),
    gathered_case([(0, 200)], 4, 1, 128, selections=4, listed=150),
]
SMALL_CASES = [
    gathered_case([(20, 70)], 2, 1, 64, listed=40),
    gathered_case([(30, 33), (0, 5), (2, 0)], 3, 1, 16, selections=3),
    gathered_case([(0, 80)], 2, 2, 80, selections=2, block=80, window=9, softcap=5.0, listed=70),
]
SPEED_CASES = [
    speed_case("4K 9/3 x 64, 25%", 4096, 9, 3, 64, 0.25),
    speed_case("8K 9/3 x 64, 25%", 8192, 9, 3, 64, 0.25),
    speed_case("8K 32/8 x 128, 25%", 8192, 32, 8, 128, 0.25),
]
