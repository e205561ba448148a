"""The contract and the realistic shapes of flash_prefill."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.flash_prefill import flash_prefill, reference
from kernels.flash_prefill.cost import causal_pairs, flash_prefill_cost

Row = tuple[int, int]
"""Tokens in the cache before the pass, and new ones."""


def prefill_case(
    batch: Sequence[Row],
    heads: int,
    kv_heads: int,
    dim: int,
    *,
    window: int | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
) -> Case:
    """Rows in another order than the cache's; what lies behind a row's tokens, and padding queries, are NaN."""

    def make(dtype: torch.dtype) -> Trial:
        starts, counts = [start for start, _ in batch], [count for _, count in batch]
        width, longest = max(counts), max(start + count for start, count in batch)
        rows = torch.randperm(len(batch) + 1)[: len(batch)].int()
        q = strided(poisoned(len(batch), width, heads, dim, dtype=dtype))
        stored = poisoned(2, len(batch) + 1, kv_heads + 1, longest + 7, dim, dtype=dtype)
        keys, values = stored[0, :, :kv_heads], stored[1, :, :kv_heads]
        for b, (row, (start, count)) in enumerate(zip(rows.tolist(), batch, strict=True)):
            q[b, :count] = torch.randn(count, heads, dim).to(dtype)
            for cache in (keys, values):
                cache[row, :, : start + count] = torch.randn(kv_heads, start + count, dim).to(dtype)
        factor = scale or dim**-0.5
        ints = torch.tensor(starts, dtype=torch.int32), torch.tensor(counts, dtype=torch.int32)

        def run() -> Outputs:
            out = poisoned(*q.shape, dtype=dtype)
            out, lse = flash_prefill(
                q, keys, values, starts, counts, rows, scale=factor, window=window, softcap=softcap, out=out
            )
            return {"out": out, "fp32 lse": lse}

        def expected() -> Outputs:
            out, lse = reference.flash_prefill(
                q.double(), keys.double(), values.double(), *ints, rows, scale=factor, window=window, softcap=softcap
            )
            return {"out": out, "fp32 lse": lse}

        return Trial(run, expected)

    sizes = "+".join(f"{start}:{count}" for start, count in batch)
    flags = (f"-window {window}" if window else "") + ("-softcap" if softcap else "") + ("-extreme" if scale else "")
    return Case("flash_prefill", f"{sizes}x{heads}x{kv_heads}x{dim}{flags}", make)


def speed_case(name: str, past: int, new: int, heads: int, kv_heads: int, dim: int) -> SpeedCase:
    """One row of new tokens behind `past` cached ones."""

    def make(dtype: torch.dtype) -> Race:
        q = torch.randn(1, new, heads, dim).to(dtype)
        keys, values = (torch.randn(1, kv_heads, past + new, dim).to(dtype) for _ in range(2))
        pairs, tokens = causal_pairs([past], [new])
        cost = flash_prefill_cost(pairs, tokens, new, q.shape, kv_heads, q.element_size())
        turned, mask = q.transpose(1, 2), None
        if past:
            mask = torch.arange(past + new) <= torch.arange(past, past + new)[:, None]
        peers: dict[str, Callable[[], object]] = {
            "torch SDPA, mask" if past else "torch SDPA": lambda: F.scaled_dot_product_attention(
                turned, keys, values, mask, is_causal=mask is None, enable_gqa=True
            )
        }
        starts, counts = (torch.tensor([number], dtype=torch.int32) for number in (past, new))
        return Race(lambda: flash_prefill(q, keys, values, starts, counts, scale=dim**-0.5)[0], cost, peers)

    return SpeedCase("flash_prefill", name, make)


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """33 keys, the last of them at the end of the cache."""
    q = guarded(1, 17, 6, 80, dtype=dtype)
    keys, values = guarded(1, 2, 33, 80, dtype=dtype), guarded(1, 2, 33, 80, dtype=dtype)
    out, _ = flash_prefill(q, keys, values, [16], [17], scale=1.0, out=guarded(1, 17, 6, 80, dtype=dtype))
    assert out.isfinite().all()


CASES = [
    prefill_case([(0, 1)], 3, 1, 16),
    prefill_case([(0, 63)], 6, 2, 64),
    prefill_case([(0, 100)], 8, 1, 80),
    prefill_case([(0, 500)], 4, 1, 128),
    prefill_case([(0, 500)], 2, 2, 16),
    prefill_case([(437, 63)], 9, 3, 64),
    prefill_case([(99, 1)], 4, 4, 128),
    prefill_case([(0, 100), (37, 63), (5, 0), (0, 1)], 6, 2, 64),
    prefill_case([(0, 200), (150, 50)], 4, 1, 64, window=33),
    prefill_case([(0, 100)], 8, 2, 64, window=1),
    prefill_case([(3, 100)], 8, 2, 80, window=1000, softcap=5.0),
    prefill_case([(0, 130)], 4, 2, 64, scale=64.0),
    prefill_case([(0, 130)], 4, 2, 64, scale=64.0, softcap=30.0),
]
TEAM_CASES = [prefill_case([(0, 300), (100, 200)], 6, 2, 64), prefill_case([(0, 200)], 1, 1, 128)]
SMALL_CASES = [
    prefill_case([(0, 70)], 2, 1, 64),
    prefill_case([(30, 33), (0, 5), (2, 0)], 3, 1, 16),
    prefill_case([(0, 70)], 2, 2, 80, window=9, softcap=5.0),
]
SPEED_CASES = [
    *(speed_case(f"{size}K 9/3 x 64", 0, size << 10, 9, 3, 64) for size in (2, 4, 8, 16)),
    speed_case("4K 32/8 x 128", 0, 4096, 32, 8, 128),
    speed_case("512 behind 8K 9/3 x 64", 8192, 512, 9, 3, 64),
]
