"""Chunk scoring and selection on the GPU: scores by tiles, then one program per list."""

# No `from __future__ import annotations`: Triton reads the annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, dot, jit, variant

BLOCK_T = 16
BLOCK = 1024
"""Scores that a selecting program looks at together."""


@jit
def score_kernel(
    q: tl.tensor,
    q_outer: tl.tensor,
    q_inner: tl.tensor,
    reps: tl.tensor,
    owner_stride: tl.tensor,
    owners: tl.tensor,
    last: tl.tensor,
    first: tl.tensor,
    chunks: tl.tensor,
    scores: tl.tensor,
    rows: tl.tensor,
    heads: tl.tensor,
    selections: tl.tensor,
    dim: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Program (chunk tile, selection, row tile): scores [rows, selections, chunks] summed over a selection's heads."""
    t = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    c, d = first + tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, DIM)
    selection, group = tl.program_id(1), heads // selections
    stop = tl.minimum(tl.max(tl.load(last + t, t < rows, 0), 0), chunks)
    sums = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for i in range(group):
        head = selection * group + i
        valid_q = (t < rows)[:, None] & (d < dim)[None, :]
        query = tl.load(q + t.to(tl.int64)[:, None] * q_outer + head * q_inner + d[None, :], valid_q, 0.0)
        base = reps + (head * owners // heads).to(tl.int64) * owner_stride
        valid = (c < stop)[:, None] & (d < dim)[None, :]
        rep = tl.load(base + c.to(tl.int64)[:, None] * dim + d[None, :], valid, 0.0)
        sums = dot(query, tl.trans(rep), sums)
    where = (t.to(tl.int64)[:, None] * selections + selection) * chunks + c[None, :]
    tl.store(scores + where, sums, (t < rows)[:, None] & (c < stop)[None, :])


@jit
def keys_at(scores: tl.tensor, c: tl.tensor, stop: tl.tensor) -> tl.tensor:
    """int64 keys of scores c [BLOCK] in the order of the scores; the smallest for NaN, -inf and places from stop on."""
    x = tl.load(scores + c, c < stop, float("-inf")) + 0.0
    bits = x.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(x > float("-inf"), ordered.to(tl.int64), -2147483648)


@jit
def count_at_least(
    scores: tl.tensor, first: tl.tensor, stop: tl.tensor, key: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """How many scores between first and stop have at least this key."""
    counts = tl.zeros((BLOCK,), tl.int32)
    for c in range(first, stop, BLOCK):
        counts += (keys_at(scores, c + tl.arange(0, BLOCK), stop) >= key).to(tl.int32)
    return tl.sum(counts, 0)


@jit
def choose_kernel(
    scores: tl.tensor,
    stride: tl.tensor,
    last: tl.tensor,
    per_row: tl.tensor,
    first: tl.tensor,
    chunks: tl.tensor,
    out: tl.tensor,
    k: tl.tensor,
    HAS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program n: the k best of row n of scores [.., chunks], ascending; `per_row` lists share an entry of `last`."""
    n = tl.program_id(0)
    row = scores + n.to(tl.int64) * stride
    stop = chunks
    if HAS_LAST:
        stop = tl.minimum(tl.load(last + n // per_row), chunks)
    wanted = tl.minimum(count_at_least(row, first, stop, tl.full((), -2147483647, tl.int64), BLOCK), k)
    threshold = tl.full((), -2147483648, tl.int64)
    for bit in range(32):
        trial = threshold + (tl.full((), 1, tl.int64) << (31 - bit))
        reach = count_at_least(row, first, stop, trial, BLOCK)
        threshold = tl.where((reach >= wanted) & (wanted > 0), trial, threshold)
    ties = wanted - count_at_least(row, first, stop, threshold + 1, BLOCK)
    written, equal_before = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    target = out + n.to(tl.int64) * k
    for begin in range(first, tl.where(wanted > 0, stop, first), BLOCK):
        c = begin + tl.arange(0, BLOCK)
        key = keys_at(row, c, stop)
        equal = (key == threshold).to(tl.int32)
        tie = equal_before + tl.cumsum(equal, 0)
        chosen = ((key > threshold) | ((equal > 0) & (tie <= ties))).to(tl.int32)
        place = written + tl.cumsum(chosen, 0) - 1
        tl.store(target + place, c, chosen > 0)
        written += tl.sum(chosen, 0)
        equal_before += tl.sum(equal, 0)
    for begin in range(written, k, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        tl.store(target + place, -1, place < k)


def block_chunks(dim: int) -> int:
    """Chunks that a scoring program takes: as many as leave everything in registers."""
    return 64 if dim <= 64 else 32


def select_top(q: Tensor, reps: Tensor, k: int, last: Tensor, first: int, selections: int, out: Tensor) -> Tensor:
    """The contract of `kernels.select_top.select_top`, into contiguous `out`."""
    (rows, heads, dim), (owners, chunks, _) = q.shape, reps.shape
    scores = torch.empty(rows, selections, max(1, chunks), dtype=torch.float32, device=q.device)
    tiles = triton.cdiv(max(0, chunks - first), block_chunks(dim)), selections, triton.cdiv(rows, BLOCK_T)
    last = last.to(q.device)
    if min(tiles) > 0:
        score_kernel[tiles](
            *(q, q.stride(0), q.stride(1)),
            *(reps, reps.stride(0), owners),
            *(last, first, chunks),
            *(scores, rows, heads, selections, dim),
            DIM=triton.next_power_of_2(dim),
            BLOCK_T=BLOCK_T,
            BLOCK_C=block_chunks(dim),
        )
    return _choose(scores.flatten(0, 1), k, last, selections, first, chunks, out)


def top(scores: Tensor, k: int, last: Tensor | None, first: int, out: Tensor) -> Tensor:
    """The contract of `kernels.select_top.top`, into contiguous `out`."""
    return _choose(scores, k, None if last is None else last.to(scores.device), 1, first, scores.shape[1], out)


def _choose(scores: Tensor, k: int, last: Tensor | None, per_row: int, first: int, chunks: int, out: Tensor) -> Tensor:
    if out.numel():
        limits = last, per_row, first, chunks
        choose_kernel[(len(scores),)](scores, scores.stride(0), *limits, out, k, HAS_LAST=last is not None, BLOCK=BLOCK)
    return out


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16 representations of D = 64 and 128, and the selection."""
    types = "*bf16 i32 i32 *bf16 i64 i32 *i32 i32 i32 *fp32 i32 i32 i32 i32"
    scoring = [
        variant(f"select_top-{dim}", score_kernel, types, DIM=dim, BLOCK_T=BLOCK_T, BLOCK_C=block_chunks(dim))
        for dim in (64, 128)
    ]
    return [*scoring, variant("top", choose_kernel, "*fp32 i32 *i32 i32 i32 i32 *i32 i32", HAS_LAST=1, BLOCK=BLOCK)]
