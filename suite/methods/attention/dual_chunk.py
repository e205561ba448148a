"""Dual chunk attention (ChunkLlama, arXiv 2402.17463): where a query stands as it looks at each region of the past."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.block_sparse_prefill import VerticalSlash
from suite.methods.attention.selection import LIST_BLOCK, Causal, Listed, Merged, Plan


@dataclass(frozen=True)
class Region:
    """Slots [start, stop) as the queries of one segment see them, the last of them causally if it is their own chunk.

    `positions` [T]: what the queries are rotated to; `critical` [T]: the continuous positions for estimates.
    """

    start: int
    stop: int
    own: bool
    positions: Tensor
    critical: Tensor

    def whole(self, first: int, count: int) -> Plan:
        """All of the region, for `count` queries from slot `first`."""
        if self.own:
            return Causal(self.positions, self.start)
        return Listed(_every_slot(self.start, self.stop, -(-count // LIST_BLOCK)), self.positions)


@dataclass(frozen=True)
class DualChunk:
    """Chunk size s and local size l in tokens; keys are rotated by position mod c, c = s - l.

    A query at u = p mod c stands at u in its own chunk, at min(u + c, s) for the chunk before (exact for pairs closer
    than l), and at the constant min(2c - 1, s) for all before that.
    """

    size: int
    local: int

    @property
    def period(self) -> int:
        """c."""
        return self.size - self.local

    def spans(self, position: int) -> Tensor:
        """What one query reads: int32 [1, 1, n, 3], all regions with its places."""
        regions = self.regions(position, 1)
        return torch.tensor([[[[r.start, r.stop, int(r.positions[0])] for r in regions]]], dtype=torch.int32)

    def segments(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """(first slot, queries) of runs that lie in one chunk."""
        while count:
            here = min(count, self.period - first % self.period)
            yield first, here
            first, count = first + here, count - here

    def regions(self, first: int, count: int) -> list[Region]:
        """The regions of `count` queries from slot `first`, all in one chunk; those without slots are left out."""
        c, s = self.period, self.size
        chunk = first // c
        inside = torch.arange(first % c, first % c + count, dtype=torch.int32)
        own = Region(chunk * c, first + count, True, inside, inside)
        before = Region((chunk - 1) * c, chunk * c, False, (inside + c).clamp(max=s), inside + c)
        far = torch.full_like(inside, min(2 * c - 1, s))
        beyond = Region(0, (chunk - 1) * c, False, far, inside + s)
        return [own, *([before] if chunk > 0 else []), *([beyond] if chunk > 1 else [])]


def whole(regions: Sequence[Region], first: int, count: int) -> Plan:
    """All of the regions as one softmax, for `count` queries from slot `first`."""
    return Merged([region.whole(first, count) for region in regions])


def _every_slot(start: int, stop: int, blocks: int) -> VerticalSlash:
    """Lists [1, 1, blocks, ...] of all slots: whole blocks, and the slots behind them as columns."""
    whole = (stop - start) // LIST_BLOCK
    offsets = torch.arange(start, start + whole * LIST_BLOCK, LIST_BLOCK, dtype=torch.int32)
    rest = torch.arange(start + whole * LIST_BLOCK, stop, dtype=torch.int32)
    counts = [torch.full((1, 1, blocks), len(x), dtype=torch.int32) for x in (offsets, rest)]
    lists = [x.expand(1, 1, blocks, -1).contiguous() for x in (offsets, rest)]
    return VerticalSlash(counts[0], lists[0], counts[1], lists[1])
