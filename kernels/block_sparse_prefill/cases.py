"""The contract and the realistic shapes of block_sparse_prefill: tile masks and vertical-slash lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.block_sparse_prefill import VerticalSlash, block_sparse_prefill, reference, vertical_slash_prefill
from kernels.block_sparse_prefill.cost import block_sparse_prefill_cost, vertical_slash_prefill_cost
from kernels.block_sparse_prefill.lists import tile_tokens
from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.flash_prefill import flash_prefill
from kernels.gathered_prefill.cases import Row, fill

Inputs = tuple[Tensor, Tensor, Tensor, list[int], list[int], Tensor]
"""q, keys, values, starts, counts, cache rows."""


def inputs(
    batch: Sequence[Row], heads: int, kv_heads: int, dim: int, lists: Tensor, block: int, dtype: torch.dtype
) -> Inputs:
    """Tokens that no query block of lists [B, S, blocks, n] sees, and padding queries, are NaN."""
    width, tokens = max(count for _, count in batch), max(sum(row) for row in batch)
    rows = torch.randperm(len(batch) + 1)[: len(batch)].int()
    q = poisoned(len(batch), width, heads, dim, dtype=dtype)
    keys, values = poisoned(2, len(batch) + 1, kv_heads + 1, tokens + 7, dim, dtype=dtype)[:, :, :kv_heads]
    for b, (start, count) in enumerate(batch):
        q[b, :count] = torch.randn(count, heads, dim).to(dtype)
        for first in range(0, count, block):
            end = start + min(first + block, count)
            read = min(-(-end // 32) * 32, start + count)  # of the last tile
            chosen = lists[b, :, first // block]
            fill((keys, values), int(rows[b]), chosen, start + first, read - start - first, None)
    return q, keys, values, [row[0] for row in batch], [row[1] for row in batch], rows


def trial(
    op: Callable[..., tuple[Tensor, Tensor]],
    naive: Callable[..., tuple[Tensor, Tensor]],
    given: Inputs,
    chosen: object,
    **options: object,
) -> Trial:
    """`op` against `naive` with the `chosen` tiles or lists."""
    q, keys, values, starts, counts, rows = given

    def run() -> Outputs:
        out = poisoned(*q.shape, dtype=q.dtype)
        out, lse = op(strided(q), keys, values, chosen, starts, counts, rows, out=out, **options)
        return {"out": out, "fp32 lse": lse}

    def expected() -> Outputs:
        ints = torch.tensor(starts), torch.tensor(counts)
        out, lse = naive(q.double(), keys.double(), values.double(), chosen, *ints, rows, **options)
        return {"out": out, "fp32 lse": lse}

    return Trial(run, expected)


def tile_case(
    batch: Sequence[Row],
    heads: int,
    kv_heads: int,
    dim: int,
    *,
    selections: int = 1,
    block: tuple[int, int] = (64, 64),
    kept: float = 0.4,
    softcap: float = 0.0,
    scale: float | None = None,
) -> Case:
    """Tiles kept at random, own ones too."""

    def make(dtype: torch.dtype) -> Trial:
        width, tokens = max(count for _, count in batch), max(sum(row) for row in batch)
        tiles = torch.rand(len(batch), selections, -(-width // block[0]), -(-tokens // block[1])) < kept
        given = inputs(batch, heads, kv_heads, dim, tile_tokens(tiles, block[1]), block[0], dtype)
        options: dict[str, Any] = {"block": block, "scale": scale or dim**-0.5, "softcap": softcap}
        return trial(block_sparse_prefill, reference.block_sparse_prefill, given, tiles, **options)

    flags = ("-softcap" if softcap else "") + ("-extreme" if scale else "") + f"-{kept:.0%}"
    shape = "+".join(f"{start}.{count}" for start, count in batch)
    return Case(
        "block_sparse_prefill", f"{shape}x{heads}x{kv_heads}x{dim}-S{selections}-{block[0]}x{block[1]}{flags}", make
    )


def slash_case(
    batch: Sequence[Row],
    heads: int,
    kv_heads: int,
    dim: int,
    *,
    selections: int = 1,
    block: int = 64,
    shift: int = 0,
    softcap: float = 0.0,
) -> Case:
    """Some blocks, `shift` tokens off their grid, and columns between them."""

    def make(dtype: torch.dtype) -> Trial:
        width, tokens = max(count for _, count in batch), max(sum(row) for row in batch)
        lists = random_slashes((len(batch), selections, -(-width // block)), tokens, block, shift)
        given = inputs(batch, heads, kv_heads, dim, lists.tokens(block), block, dtype)
        options: dict[str, Any] = {"block": block, "scale": dim**-0.5, "softcap": softcap}
        return trial(vertical_slash_prefill, reference.vertical_slash_prefill, given, lists, **options)

    flags = (f"-off {shift}" if shift else "") + ("-softcap" if softcap else "")
    shape = "+".join(f"{start}.{count}" for start, count in batch)
    return Case("block_sparse_prefill", f"slash-{shape}x{heads}x{kv_heads}x{dim}-S{selections}-{block}{flags}", make)


def random_slashes(shape: Sequence[int], tokens: int, block: int, shift: int) -> VerticalSlash:
    """Disjoint blocks and columns for every list; unused entries of the lists are garbage."""
    grid = torch.arange(0, tokens, block)
    blocks, columns = torch.full((*shape, len(grid)), 10**6).int(), torch.full((*shape, 20), 10**6).int()
    block_count, column_count = torch.zeros(shape).int(), torch.zeros(shape).int()
    for place in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        chosen = torch.rand(len(grid)) < 0.4
        offsets = grid[chosen] - shift
        taken = (offsets[:, None] + torch.arange(block)).flatten()
        free = torch.arange(tokens)
        free = free[~torch.isin(free, taken)]
        free = free[torch.randperm(len(free))[: int(torch.randint(0, 20, ()))]]
        where = tuple(place)
        blocks[where][: len(offsets)], columns[where][: len(free)] = offsets.int(), free.int()
        block_count[where], column_count[where] = len(offsets), len(free)
    return VerticalSlash(block_count, blocks, column_count, columns)


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """33 tokens: one whole tile of keys, and one with a single token."""
    tiles = guarded(1, 1, 1, 2).gt(-torch.inf)
    q, cache, out = (
        guarded(1, 33, 6, 80, dtype=dtype),
        guarded(1, 2, 33, 80, dtype=dtype),
        guarded(1, 33, 6, 80, dtype=dtype),
    )
    block_sparse_prefill(q, cache, cache, tiles, [0], [33], block=(64, 32), scale=1.0, out=out)
    one = [guarded(1, 1, 1, dtype=torch.int32).fill_(1) for _ in range(2)]
    offset, column = (guarded(1, 1, 1, 1, dtype=torch.int32).fill_(i) for i in (-32, 32))
    lists = VerticalSlash(one[0], offset, one[1], column)
    vertical_slash_prefill(q, cache, cache, lists, [0], [33], block=64, scale=1.0, out=out)


def speed_case(name: str, tokens: int, heads: int, kv_heads: int, dim: int, *, slashes: bool = False) -> SpeedCase:
    """A prompt of which a quarter of the tiles is kept, one mask for all heads of a KV head; or lists of as much."""

    def make(dtype: torch.dtype) -> Race:
        q = torch.randn(1, tokens, heads, dim).to(dtype)
        keys, values = torch.randn(2, 1, kv_heads, tokens, dim).to(dtype)
        starts, counts = torch.zeros(1).int(), torch.tensor([tokens]).int()
        out, scale, blocks = torch.empty_like(q), dim**-0.5, tokens // 64
        dense: dict[str, Callable[[], object]] = {
            "kernels.flash_prefill": lambda: flash_prefill(q, keys, values, starts, counts, scale=scale, out=out)
        }
        tiles = torch.rand(1, kv_heads, blocks, blocks) < 0.25
        tiles |= torch.eye(blocks, dtype=torch.bool)
        if not slashes:
            cost = block_sparse_prefill_cost(q, kv_heads, tiles, starts, counts, (64, 64))
            run = lambda: block_sparse_prefill(q, keys, values, tiles, starts, counts, scale=scale, out=out)  # noqa: E731
            return Race(run, cost, dense)
        lists = causal_lists(tiles, columns=tokens // 32)
        cost = vertical_slash_prefill_cost(q, kv_heads, lists, starts, counts, 64)
        return Race(
            lambda: vertical_slash_prefill(q, keys, values, lists, starts, counts, scale=scale, out=out), cost, dense
        )

    return SpeedCase("block_sparse_prefill", name, make)


def causal_lists(tiles: Tensor, columns: int) -> VerticalSlash:
    """The kept tiles up to the diagonal as blocks, fewer of them, and `columns` tokens of the tiles left out."""
    kept = tiles.tril() & ((torch.rand(tiles.shape) < 0.8) | torch.eye(tiles.shape[-1], dtype=torch.bool))
    order = kept.int().argsort(dim=-1, descending=True, stable=True)
    count = kept.sum(-1).int()
    tokens = torch.arange(tiles.shape[-1] * 64)
    free = (~kept & torch.ones_like(kept).tril()).repeat_interleave(64, -1)
    noise = torch.rand(free.shape).masked_fill(~free, -1)
    chosen = noise.topk(columns, dim=-1)
    column_count = (chosen.values >= 0).sum(-1).int()
    return VerticalSlash(count, (order * 64).int(), column_count, tokens[chosen.indices].int())


CASES = [
    tile_case([(0, 1)], 3, 1, 64, kept=1.0),
    tile_case([(0, 63)], 6, 2, 64, selections=2, block=(16, 32)),
    tile_case([(0, 100)], 8, 1, 80, selections=8, block=(33, 32)),
    tile_case([(300, 200)], 4, 1, 128),
    tile_case([(0, 100)], 2, 2, 16, selections=2, block=(100, 128), kept=0.7),
    tile_case([(437, 63)], 9, 3, 64, block=(32, 96)),
    tile_case([(0, 100), (37, 63), (5, 0), (0, 1)], 6, 2, 64, selections=6, block=(16, 32)),
    tile_case([(0, 100)], 4, 2, 64, kept=0.0),
    tile_case([(0, 100)], 4, 2, 64, block=(16, 10)),
    tile_case([(3, 100)], 8, 2, 80, softcap=5.0),
    tile_case([(0, 130)], 4, 2, 64, scale=64.0, kept=0.6),
    slash_case([(0, 100)], 4, 2, 64, selections=2, block=16),
    slash_case([(0, 300)], 3, 1, 64, block=32),
    slash_case([(200, 150), (0, 63)], 6, 2, 80, selections=6),
    slash_case([(0, 200)], 4, 1, 128, block=32, shift=5),
    slash_case([(0, 100)], 2, 2, 16, selections=2, softcap=5.0),
]
TEAM_CASES = [
    tile_case([(0, 300), (100, 200)], 6, 2, 64, block=(32, 32)),
    slash_case([(0, 300)], 4, 1, 64, selections=4, block=32),
]
SMALL_CASES = [
    tile_case([(20, 70)], 2, 1, 64, block=(32, 32)),
    tile_case([(30, 33), (0, 5), (2, 0)], 3, 1, 16, selections=3, block=(80, 32)),
    tile_case([(0, 70)], 2, 2, 80, selections=2, block=(32, 96), softcap=5.0),
    slash_case([(20, 70)], 2, 1, 64, block=32),
    slash_case([(0, 70), (9, 3)], 2, 1, 16, selections=2, block=32, shift=5),
]
SPEED_CASES = [
    speed_case("4K 9/3 x 64, 25%", 4096, 9, 3, 64),
    speed_case("8K 9/3 x 64, 25%", 8192, 9, 3, 64),
    speed_case("8K 32/8 x 128, 25%", 8192, 32, 8, 128),
    speed_case("slash 8K 9/3 x 64", 8192, 9, 3, 64, slashes=True),
]
