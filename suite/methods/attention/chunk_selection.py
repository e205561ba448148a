"""What DHSA (arXiv 2510.24606, first version) decides: where chunks end, and which tokens a block of queries reads.

Shapes: L tokens, N_b the budget in tokens, H query heads, G KV heads, D head dim. `config` is a `DHSAConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.segment_reduce import segment_sum

APART = 8  # two boundaries are farther apart than this (non-maximum suppression)
PER_BLOCK = 8  # beta: at most so many boundaries for each query block


@dataclass(frozen=True)
class Rows:
    """The rows of a pass: `lead` at first that see no more than the budget, `sparse` ones in blocks, `tail` at last."""

    first: int
    lead: int
    sparse: int
    tail: int
    block: int

    @property
    def edges(self) -> Tensor:
        """Where the blocks begin and where the last one ends, int32 [blocks + 1], rows of the pass."""
        stop = self.lead + self.sparse
        return torch.cat((torch.arange(self.lead, stop, self.block), torch.tensor([stop]))).int()


def split_rows(config: Any, first: int, count: int) -> Rows | None:
    """The rows of a pass of `count` tokens from slot `first`; `None` where none would read less than all it may see."""
    N_b, tail = config.tokens(first + count), min(config.instruction, count)
    if first + count - tail <= N_b:
        return None
    lead = max(0, (N_b - first) // config.block * config.block)
    return Rows(first, lead, count - tail - lead, tail, config.block) if count - tail > lead else None


def boundaries(logits: Tensor, config: Any) -> Tensor:
    """Chunk edges int32 [chunks + 1], from 0 to L, by logits [L] of a boundary after each token.

    Best first, farther than APART from every one accepted; the one before the instruction is always accepted, and
    nothing behind it is.
    """
    length, most = len(logits), len(logits) // config.block * PER_BLOCK
    forced = length - config.instruction
    free = bytearray(b"\1") * length
    accepted = [forced]
    free[max(0, forced - APART) :] = bytes(length - max(0, forced - APART))
    order = torch.where(logits > config.threshold, logits, -torch.inf).argsort(descending=True, stable=True)
    for token in order[: int((logits > config.threshold).sum())].tolist():
        if len(accepted) >= most:
            break
        if free[token]:
            accepted.append(token)
            near = slice(max(0, token - APART), min(length, token + APART + 1))
            free[near] = bytes(near.stop - near.start)
    inner = sorted(token + 1 for token in accepted if token + 1 < length)
    return torch.tensor([0, *inner, length], dtype=torch.int32)


def choose(q: Tensor, keys: Tensor, edges: Tensor, rows: Rows, config: Any) -> Tensor:
    """Slots that each block reads, int32 [1, 1, blocks, N_b] ascending; q [T, H, D], keys [G, L, D]."""
    blocks = segment_sum(q.transpose(0, 1)[None], rows.edges, kind="sqrt")[0].mean(dim=0)
    chunks = segment_sum(keys[None], edges, kind=config.chunk_vector)[0].mean(dim=0)
    ends = rows.edges[1:].long() + rows.first
    indices = best_tokens(blocks @ chunks.T, edges.long(), ends, config.local, config.tokens(keys.shape[1]))
    indices[:, : config.sinks] = torch.arange(config.sinks)
    return indices.int()[None, None]


def best_tokens(scores: Tensor, edges: Tensor, ends: Tensor, local: int, budget: int) -> Tensor:
    """`budget` slots per block, int64 [blocks, budget] ascending: the `local` last ones before ends[b], and the best.

    A token scores as its chunk does, scores [blocks, chunks]; equal scores go to the lower slot. So whole chunks are
    taken, best first, until the last one is cut. Every block has more than `budget` slots before its end.
    """
    old = (ends - local)[:, None]  # slots before it compete
    starts = edges[:-1].expand_as(scores)
    sizes = (edges[1:].minimum(old) - starts).clamp(min=0)
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranked = sizes.gather(1, order)
    room = budget - local - (ranked.cumsum(dim=1) - ranked)
    taken = torch.zeros_like(sizes).scatter_(1, order, ranked.minimum(room.clamp(min=0)))
    first = torch.cat((starts, old), dim=1).flatten()
    count = torch.cat((taken, torch.full_like(old, local)), dim=1).flatten()
    shift = first - (count.cumsum(dim=0) - count)
    slots = torch.arange(len(ends) * budget) + shift.repeat_interleave(count, output_size=len(ends) * budget)
    return slots.view(len(ends), budget)
