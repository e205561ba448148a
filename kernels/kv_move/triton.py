"""Moves of tokens in KV caches on the GPU: one program per token and cache row."""

# No `from __future__ import annotations`: Triton reads the annotations.
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, jit, variant


@jit
def move_kernel(
    source: tl.tensor,
    source_row: tl.tensor,
    source_head: tl.tensor,
    target: tl.tensor,
    target_row: tl.tensor,
    target_head: tl.tensor,
    places: tl.tensor,
    heads: tl.tensor,
    dim: tl.tensor,
    ZEROS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """Program n: places [.., 4] holds row and token of the source, row and token of the target.

    Where a token is negative nothing happens or, with ZEROS and a negative source, zeros are written.
    """
    place = places + tl.program_id(0) * 4
    from_row, from_token = tl.load(place).to(tl.int64), tl.load(place + 1).to(tl.int64)
    to_row, to_token = tl.load(place + 2).to(tl.int64), tl.load(place + 3).to(tl.int64)
    h, d = tl.arange(0, HEADS)[:, None], tl.arange(0, DIM)[None, :]
    read, written = tl.where(from_token >= 0, heads, 0), tl.where(to_token >= 0, heads, 0)
    if not ZEROS:
        written = tl.minimum(read, written)
    where = source + from_row * source_row + h * source_head + from_token * dim + d
    x = tl.load(where, (h < read) & (d < dim), 0.0)
    where = target + to_row * target_row + h * target_head + to_token * dim + d
    tl.store(where, x, (h < written) & (d < dim))


def move(source: Tensor, target: Tensor, places: Tensor, *, zeros: bool = False) -> None:
    """Tokens of source [B, G, C, D] to target, by places [n, 4]."""
    _, heads, _, dim = source.shape
    if len(places):
        move_kernel[(len(places),)](
            *(source, source.stride(0), source.stride(1)),
            *(target, target.stride(0), target.stride(1)),
            *(places.int().contiguous(), heads, dim),
            ZEROS=zeros,
            HEADS=triton.next_power_of_2(heads),
            DIM=triton.next_power_of_2(dim),
        )


def gather(source: Tensor, index: Tensor, out: Tensor) -> Tensor:
    """The contract of `kernels.kv_move.gather` for index [B, n], into contiguous `out`."""
    rows, order = _grid(index)
    move(source, out, torch.stack((rows, index, rows, order), dim=-1).flatten(0, 1), zeros=True)
    return out


def compact(caches: Sequence[Tensor], index: Tensor, starts: Tensor) -> None:
    """The contract of `kernels.kv_move.compact`."""
    index = index.to(caches[0].device)
    rows, order = _grid(index)
    real = (index >= 0).int().cumprod(1) > 0
    targets = (starts.to(index.device)[:, None] + order).where(real, -1)
    _through_scratch(caches, rows.flatten(), index.where(real, -1).flatten(), rows.flatten(), targets.flatten())


def copy_slots(caches: Sequence[Tensor], pairs: Tensor, lengths: Tensor) -> None:
    """The contract of `kernels.kv_move.copy_slots`."""
    device = caches[0].device
    pairs, lengths = pairs.to(device), lengths.to(device).long()
    which = torch.repeat_interleave(torch.arange(len(pairs), device=device), lengths)
    tokens = torch.arange(len(which), device=device) - (lengths.cumsum(0) - lengths)[which]
    _through_scratch(caches, pairs[which, 0], tokens, pairs[which, 1], tokens)


def _grid(index: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every entry of index [B, n]."""
    batch, n = index.shape
    rows, columns = torch.arange(batch, device=index.device), torch.arange(n, device=index.device)
    return rows[:, None].expand(batch, n), columns.expand(batch, n)


def _through_scratch(
    caches: Sequence[Tensor], rows: Tensor, tokens: Tensor, to_rows: Tensor, to_tokens: Tensor
) -> None:
    """Reads everything before the first is written."""
    order = torch.arange(len(tokens), device=tokens.device)
    zero = torch.zeros_like(order)
    for cache in caches:
        _, heads, _, dim = cache.shape
        scratch = cache.new_empty(1, heads, len(tokens), dim)
        move(cache, scratch, torch.stack((rows, tokens, zero, order), dim=-1))
        move(scratch, cache, torch.stack((zero, order, to_rows, to_tokens), dim=-1))


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: 8 KV heads of D = 128 in bf16."""
    types = "*bf16 i64 i64 *bf16 i64 i64 *i32 i32 i32"
    return [variant("kv_move", move_kernel, types, ZEROS=0, HEADS=8, DIM=128)]
