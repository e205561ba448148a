"""Spans [..., n, 3] of start, stop and query position: counted, made of chunks, those of several rows as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from suite.methods.attention.selection import Selection


@dataclass(frozen=True)
class Read:
    """Positions read by one query row: per KV head as a union over its query heads, per query head, and the largest."""

    union: float
    per_query_head: float
    padded: float

    def __add__(self, other: Read) -> Read:
        """Both of two disjoint stores."""
        return Read(
            self.union + other.union, self.per_query_head + other.per_query_head, self.padded + other.padded
        )  # fmt: skip


def count_read(spans: Tensor, heads: int, kv_heads: int) -> Read:
    """Counts positions in spans [S, n, 2] of one row (definitions: `_kv_retention.md` section 2).

    `union` averages over KV heads, `per_query_head` over query heads, `padded` is the largest union of a KV head.
    """
    ranges = spans.numpy()  # numpy, so that this bookkeeping is not itself counted as the method's work
    read = np.zeros((len(ranges), int(ranges.max()) + 1), dtype=np.bool_)
    for row, selected in zip(read, ranges.tolist(), strict=True):
        for start, stop in selected:
            row[start:stop] = True
    per_head = np.repeat(read, heads // len(read), axis=0)
    unions = per_head.reshape(kv_heads, -1, per_head.shape[1]).any(axis=1).sum(axis=1)
    return Read(float(unions.mean()), float(per_head.sum(axis=1).mean()), float(unions.max()))


def stack(selections: Sequence[Selection]) -> Selection:
    """The selections of batch rows as one: padded with empty spans to the longest, widened to the widest S."""
    if len(selections) == 1:
        return selections[0]
    width = max(s.spans.shape[1] for s in selections)
    longest = max(s.spans.shape[2] for s in selections)
    rows = []
    for selection in selections:
        spans = selection.spans
        spans = spans.repeat_interleave(width // spans.shape[1], dim=1)
        rows.append(functional.pad(spans, (0, 0, 0, longest - spans.shape[2])))
    return Selection(torch.cat(rows))


def spans_of(read: Tensor, starts: Tensor) -> Tensor:
    """read [L, m] of the chunks before the local ones, which begin at starts[m] -> spans int32 [L, n, 3].

    The first span is the local one, its end open; neighbouring chunks are one span; shorter lists are padded.
    """
    edges = functional.pad(read.int(), (1, 1)).diff(dim=-1)
    (layer, first), last = (edges > 0).nonzero(as_tuple=True), (edges < 0).nonzero(as_tuple=True)[1]
    counts = layer.bincount(minlength=len(read))
    rank = torch.arange(len(layer)) - (counts.cumsum(0) - counts)[layer]
    spans = torch.zeros(len(read), 1 + int(counts.max()), 3, dtype=torch.int32)
    spans[:, 0, 0] = starts[read.shape[1]]
    spans[layer, 1 + rank, 0], spans[layer, 1 + rank, 1] = starts[first].int(), starts[last].int()
    return spans
