"""The contract and the realistic shapes of span_prefill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.flash_prefill import flash_prefill
from kernels.gathered_prefill.cases import Row, fill
from kernels.rope.cases import tables
from kernels.span_prefill import reference, span_prefill
from kernels.span_prefill.cost import span_prefill_cost

POSITIONS = 700


def random_spans(shape: Sequence[int], tokens: int, grid: int, kept: float, positions: int) -> Tensor:
    """Lists [*shape, n, 3]: cells of a grid kept at random, most of them whole, some empty; any of the positions."""
    start = torch.arange(0, tokens, grid).expand(*shape, -1)
    whole = torch.rand(start.shape) < 0.7
    length = torch.where(whole, grid, torch.randint(0, grid + 1, start.shape))
    stop = start + length * (torch.rand(start.shape) < kept)
    return torch.stack((start, stop, torch.randint(0, positions, start.shape)), dim=-1).int()


def span_case(
    batch: Sequence[Row],
    heads: int,
    kv_heads: int,
    dim: int,
    *,
    selections: int = 1,
    grid: int = 32,
    kept: float = 0.4,
    softcap: float = 0.0,
    scale: float | None = None,
) -> Case:
    """Cells of a grid, whole or in part: what no query sees, and padding queries, are NaN, as are other cache rows."""

    def make(dtype: torch.dtype) -> Trial:
        width, tokens = max(count for _, count in batch), max(sum(row) for row in batch)
        starts, counts = [row[0] for row in batch], [row[1] for row in batch]
        rows = torch.randperm(len(batch) + 1)[: len(batch)].int()
        positions = POSITIONS if scale is None else 1  # a rotated query is rounded, which extreme logits multiply
        spans = random_spans((len(batch), width, selections), tokens, grid, kept, positions)
        q = poisoned(len(batch), width, heads, dim, dtype=dtype)
        keys, values = poisoned(2, len(batch) + 1, kv_heads + 1, tokens + 7, dim, dtype=dtype)[:, :, :kv_heads]
        seen = seen_tokens(spans, starts, counts, tokens)
        for b, (start, count) in enumerate(batch):
            q[b, :count] = torch.randn(count, heads, dim).to(dtype)
            fill((keys, values), int(rows[b]), seen[b], 0, start + count, None)
        cos, sin = tables(POSITIONS, dim)
        options: dict[str, Any] = {"cos": cos, "sin": sin, "scale": scale or dim**-0.5, "softcap": softcap}

        def run() -> Outputs:
            out = poisoned(*q.shape, dtype=dtype)
            out, lse = span_prefill(strided(q), keys, values, spans, starts, counts, rows, out=out, **options)
            return {"out": out, "fp32 lse": lse}

        def expected() -> Outputs:
            ints = torch.tensor(starts), torch.tensor(counts)
            wide = q.double(), keys.double(), values.double()
            out, lse = reference.span_prefill(*wide, spans, *ints, rows, **options)
            return {"out": out, "fp32 lse": lse}

        return Trial(run, expected)

    flags = f"-{kept:.0%}" + ("-softcap" if softcap else "") + ("-extreme" if scale else "")
    shape = "+".join(f"{start}.{count}" for start, count in batch)
    return Case("span_prefill", f"{shape}x{heads}x{kv_heads}x{dim}-S{selections}-{grid}{flags}", make)


def seen_tokens(spans: Tensor, starts: Sequence[int], counts: Sequence[int], tokens: int) -> Tensor:
    """[B, S, tokens]: the tokens that may be read (spans from multiples of 32 on are rounded up), -1 elsewhere."""
    begin, stop, _ = reference.visible_spans(spans, torch.tensor(starts), torch.tensor(counts)).unbind(-1)
    rounded = torch.where((begin % 32 == 0) & (stop > begin), (stop + 31) // 32 * 32, stop)
    token = torch.arange(tokens)
    seen = ((token >= begin[..., None]) & (token < rounded[..., None])).any(3).any(1)
    return token.where(seen, -1)


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """33 tokens, the last of them in a span from a multiple of 32 on, and in one that is not."""
    q, cache, out = (guarded(1, n, h, 80, dtype=dtype) for n, h in ((33, 6), (2, 33), (33, 6)))
    cos, sin = (guarded(3, 40, dtype=torch.float32) for _ in range(2))
    for start in (32, 7):
        spans = guarded(1, 33, 1, 1, 3, dtype=torch.int32).copy_(torch.tensor([start, 33, 2]))
        span_prefill(q, cache, cache, spans, [0], [33], cos=cos, sin=sin, scale=1.0, out=out)


def speed_case(name: str, tokens: int, heads: int, kv_heads: int, dim: int, chunk: int = 64, k: int = 16) -> SpeedCase:
    """A pass of 512 tokens of LongHeads behind `tokens` cached ones, at w = 64 and A = 1024, chunks drawn at random.

    Random choices are the worst case: real neighbours agree on most chunks. Its FLOPs are those of dense attention at
    2 A tokens, so it pays beyond.
    """

    def make(dtype: torch.dtype) -> Race:
        new = 512
        q = torch.randn(1, new, heads, dim).to(dtype)
        keys, values = torch.randn(2, 1, kv_heads, tokens + new, dim).to(dtype)
        spans = slot_spans(torch.arange(tokens, tokens + new), heads, chunk, k)
        starts, counts = torch.tensor([tokens]).int(), torch.tensor([new]).int()
        (cos, sin), out, scale = tables((k + 1) * chunk, dim), torch.empty_like(q), dim**-0.5
        return Race(
            lambda: span_prefill(q, keys, values, spans, starts, counts, cos=cos, sin=sin, scale=scale, out=out),
            span_prefill_cost(q, kv_heads, spans, starts, counts),
            {"kernels.flash_prefill": lambda: flash_prefill(q, keys, values, starts, counts, scale=scale, out=out)},
        )

    return SpeedCase("span_prefill", name, make)


def slot_spans(slots: Tensor, heads: int, chunk: int, k: int) -> Tensor:
    """Lists [1, T, H, k, 3] as LongHeads makes them: first chunk, k - 3 drawn ones, the last full one and the tail."""
    full = slots // chunk
    drawn = torch.rand(len(slots), heads, int(full.max()))
    drawn[torch.arange(drawn.shape[2]).expand_as(drawn) >= (full - 1)[:, None, None]] = -1
    middle = drawn[..., 1:].topk(k - 3).indices.sort().values + 1
    ends = torch.stack((full - 1, full), dim=-1)[:, None].expand(-1, heads, -1)
    chunks = torch.cat((torch.zeros_like(middle[..., :1]), middle, ends), dim=-1)
    start = chunks * chunk
    stop = torch.minimum(start + chunk, slots[:, None, None] + 1)
    position = ((k - 1) * chunk + slots % chunk)[:, None, None] - torch.arange(k) * chunk
    return torch.stack((start, stop, position.expand_as(start)), dim=-1).int()[None]


CASES = [
    span_case([(0, 1)], 3, 1, 64),
    span_case([(0, 63)], 6, 2, 64, selections=2),
    span_case([(0, 100)], 8, 1, 80, selections=8, grid=17),
    span_case([(300, 200)], 4, 1, 128, grid=64),
    span_case([(0, 100)], 2, 2, 16, selections=2, grid=8, kept=1.0),
    span_case([(437, 63)], 9, 3, 64, selections=9, grid=160),
    span_case([(99, 1)], 4, 4, 128, selections=4, kept=0.9),
    span_case([(0, 100), (37, 63), (5, 0), (0, 1)], 6, 2, 64, selections=6),
    span_case([(0, 100)], 4, 2, 64, kept=0.0),
    span_case([(3, 100)], 8, 2, 80, softcap=5.0, grid=48),
    span_case([(0, 130)], 4, 2, 64, scale=64.0),
    span_case([(0, 130)], 4, 2, 64, scale=64.0, softcap=30.0, selections=4, grid=1, kept=0.2),
]
TEAM_CASES = [
    span_case([(0, 200), (100, 100)], 6, 2, 64, selections=2, grid=64),
    span_case([(100, 100)], 4, 1, 128, selections=4, grid=16),
]
SMALL_CASES = [
    span_case([(20, 70)], 2, 1, 64),
    span_case([(30, 33), (0, 5), (2, 0)], 3, 1, 16, selections=3, grid=17),
    span_case([(0, 40)], 2, 2, 80, selections=2, grid=64, softcap=5.0),
]
SPEED_CASES = [
    *(speed_case(f"512 behind {size}K 9/3 x 64, A = 1K", size << 10, 9, 3, 64) for size in (2, 4, 8, 16)),
    speed_case("512 behind 8K 32/8 x 128, A = 1K", 8192, 32, 8, 128),
]
