"""The contract and the realistic shapes of kv_move."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned
from kernels.kv_move import compact, copy_slots, gather, reference
from kernels.kv_move.cost import move_cost
from kernels.kv_move.reference import raw

Move = Callable[[Sequence[Tensor]], object]


def reserved(count: int, *shape: int, dtype: torch.dtype) -> list[Tensor]:
    """Caches of `shape` [B, G, C, D] as slices of larger reservations."""
    batch, heads, tokens, dim = shape
    wide = [torch.randn(batch + 1, heads + 1, tokens + 5, dim).to(dtype) for _ in range(count)]
    return [x[:batch, :heads, :tokens] for x in wide]


def in_place(caches: Sequence[Tensor], ours: Move, naive: Move) -> Trial:
    """The bits of whole reservations after a move: nothing outside the targets may change."""

    def outcome(move: Move) -> Outputs:
        bases = [cache._base for cache in caches]
        copies = [base.clone() for base in bases if base is not None]
        move([x.as_strided(c.shape, c.stride()) for x, c in zip(copies, caches, strict=True)])
        return {f"cache {i}": raw(x) for i, x in enumerate(copies)}

    return Trial(lambda: outcome(ours), lambda: outcome(naive))


def gather_case(batch: int, heads: int, tokens: int, dim: int, n: int) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        (source,) = reserved(1, batch, heads, tokens, dim, dtype=dtype)
        index = torch.randint(-2, tokens, (batch, n)).int()
        return Trial(
            lambda: {"bits": raw(gather(source, index, out=poisoned(batch, heads, n, dim, dtype=dtype)))},
            lambda: {"bits": raw(reference.gather(source, index))},
        )

    return Case("kv_move", f"gather-{batch}x{heads}x{tokens}x{dim}-{n}", make)


def compact_case(batch: int, heads: int, tokens: int, dim: int, n: int, *, kind: str = "path", layers: int = 2) -> Case:
    """`kind`: a "path" of a draft tree, ascending and behind its target, or "any" order, from before it too."""

    def make(dtype: torch.dtype) -> Trial:
        caches = reserved(layers, batch, heads, tokens, dim, dtype=dtype)
        starts = torch.randint(0, tokens - 2 * n + 1, (batch,)).int()
        index = torch.stack([torch.randperm(2 * n)[:n].sort().values + start for start in starts.tolist()])
        if kind == "any":
            index = torch.stack([torch.randperm(tokens)[:n] for _ in range(batch)])
        index[-1, n // 2 :] = -1
        return in_place(
            caches, lambda x: compact(x, index, starts), lambda x: reference.compact(x, index.int(), starts)
        )

    return Case("kv_move", f"compact-{batch}x{heads}x{tokens}x{dim}-{n}-{kind}", make)


def copy_case(slots: int, heads: int, tokens: int, dim: int, pairs: Sequence[tuple[int, int]], layers: int = 2) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        caches = reserved(layers, slots, heads, tokens, dim, dtype=dtype)
        table = torch.tensor(pairs).view(-1, 2)
        lengths = torch.randint(0, tokens + 1, (len(pairs),)).int()
        return in_place(
            caches,
            lambda x: copy_slots(x, table, lengths),
            lambda x: reference.copy_slots(x, table.int(), lengths),
        )

    moves = " ".join(f"{source}>{target}" for source, target in pairs)
    return Case("kv_move", f"copy-{slots}x{heads}x{tokens}x{dim}-{moves}", make)


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Up to the last token of the last row."""
    index = guarded(2, 3, dtype=torch.int32).copy_(torch.tensor([[0, 8, 2], [8, 7, -1]]))
    cache = guarded(2, 3, 9, 80, dtype=dtype)
    gather(cache, index, out=guarded(2, 3, 3, 80, dtype=dtype))
    compact([cache], index, guarded(2, dtype=torch.int32).fill_(6))
    copy_slots([cache], guarded(1, 2, dtype=torch.int32).copy_(torch.tensor([[0, 1]])), [9])


def commit_race(dtype: torch.dtype) -> Race:
    """Five accepted of 16 drafted tokens behind 2K, in keys and values of the 30 layers of SmolLM2-135M."""
    caches = [torch.randn(1, 3, 2100, 64).to(dtype) for _ in range(60)]
    index, starts = torch.tensor([[2048, 2050, 2053, 2057, 2060]]).int(), torch.tensor([2048]).int()
    chosen = index[0].long()

    def peer() -> None:
        for cache in caches:
            cache[:, :, 2048:2053] = cache.index_select(2, chosen)

    cost = move_cost(5 * 60, 3, 64, dtype.itemsize, 24)
    return Race(lambda: compact(caches, index, starts), cost, {"torch index_select per layer": peer})


def gather_race(dtype: torch.dtype) -> Race:
    """A quarter of 32K tokens into a compact buffer."""
    cache, index = torch.randn(1, 3, 32768, 64).to(dtype), torch.randperm(32768)[:8192].sort().values.int()
    out, chosen = torch.empty(1, 3, 8192, 64, dtype=dtype), index.long()
    cost = move_cost(8192, 3, 64, dtype.itemsize, 4 * 8192)
    return Race(
        lambda: gather(cache, index, out=out),
        cost,
        {"torch index_select": lambda: torch.index_select(cache, 2, chosen, out=out)},
    )


def slot_race(dtype: torch.dtype) -> Race:
    """Flover fills four gaps: 1K tokens each, in keys and values of four layers."""
    caches = [torch.randn(16, 3, 1024, 64).to(dtype) for _ in range(8)]
    pairs, lengths = torch.tensor([[12, 0], [13, 3], [14, 5], [15, 6]]).int(), torch.full((4,), 1024).int()
    sources, targets = pairs.long().unbind(1)

    def peer() -> None:
        for cache in caches:
            cache.index_copy_(0, targets, cache[sources])

    cost = move_cost(4 * 1024 * 8, 3, 64, dtype.itemsize, 48)
    return Race(lambda: copy_slots(caches, pairs, lengths), cost, {"torch index_copy": peer})


CASES = [
    gather_case(1, 1, 1, 16, 1),
    gather_case(2, 3, 63, 80, 100),
    gather_case(3, 2, 500, 64, 63),
    gather_case(2, 2, 10, 128, 0),
    compact_case(1, 3, 100, 64, 5),
    compact_case(3, 2, 63, 80, 12),
    compact_case(2, 2, 100, 16, 30, kind="any"),
    compact_case(2, 1, 500, 128, 100, kind="any", layers=5),
    copy_case(4, 3, 63, 64, [(3, 0)]),
    copy_case(6, 2, 100, 80, [(1, 2), (2, 4), (5, 5)]),
    copy_case(4, 2, 16, 16, [(0, 1), (1, 0), (3, 2)]),
    copy_case(3, 2, 16, 16, []),
]
TEAM_CASES = [
    gather_case(2, 3, 500, 64, 300),
    compact_case(2, 3, 500, 64, 100, kind="any", layers=4),
    copy_case(6, 3, 200, 64, [(0, 1), (1, 0), (3, 2)], layers=4),
]
SMALL_CASES = [
    gather_case(2, 3, 20, 80, 9),
    compact_case(2, 2, 40, 16, 6),
    compact_case(2, 1, 40, 64, 6, kind="any"),
    copy_case(4, 2, 8, 16, [(0, 1), (1, 0), (3, 2)]),
]
SPEED_CASES = [
    SpeedCase("kv_move", "commit 5 of 16, 30 layers", commit_race),
    SpeedCase("kv_move", "gather 8K of 32K", gather_race),
    SpeedCase("kv_move", "copy 4 slots of 1K, 4 layers", slot_race),
]
