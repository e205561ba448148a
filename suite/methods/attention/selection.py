"""What an attention method decides: which tokens a query reads, and at which distance it sees them.

Keys stay in the cache as they were stored; queries are rotated. `Selection` names spans for every query row and serves
decode and any prefill; the other plans name what many rows of a prefill read together, so that a key is loaded once for
all of them. Shapes: B batch, T new tokens, H query heads, G KV heads, D head dim, N query rows, n spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from kernels import flash_decode, flash_prefill, gathered_prefill, lse_merge, span_prefill
from kernels import rope as rope_kernel
from kernels.block_sparse_prefill import VerticalSlash, block_sparse_prefill, vertical_slash_prefill

LIST_BLOCK = 64
"""Queries per list, and keys per listed block, of a `Listed` plan."""


@dataclass(frozen=True)
class Site:
    """One layer of one batch row: its keys and values [1, G, C, D] as stored, and the slot `first` of the first query.

    `scale` and `softcap` are the model's; cos and sin its tables [P, D/2].
    """

    keys: Tensor
    values: Tensor
    first: int
    cos: Tensor
    sin: Tensor
    scale: float
    softcap: float = 0.0

    def turned(self, q: Tensor, positions: Tensor) -> Tensor:
        """q [T, H, D] rotated to `positions` [T], as a copy."""
        turned = q.clone(memory_format=torch.contiguous_format)
        rope_kernel.apply(turned, turned[:, :0], self.cos, self.sin, positions)
        return turned


class Plan(Protocol):
    """How the rows of a prefill pass are read in one layer; partial results are merged by their log-sum-exp."""

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """q [T, H, D], not rotated, at slots site.first, ... -> (out [T, H, D], lse [T, H] fp32)."""
        ...


@dataclass(frozen=True)
class Elsewhere:
    """Tokens that a selection reads outside the cache: keys and values [1, G, C, D], spans as in `Selection`."""

    keys: Tensor
    values: Tensor
    spans: Tensor


@dataclass(frozen=True)
class Selection:
    """What every query row reads in one layer; several spans of a row are one softmax.

    spans: int32 [N, S, n, 3], S = 1 (all heads alike), G or H; the columns are start, stop (cache slots, stop excluded;
    start == stop is padding) and the position the query is rotated to. Bytes are those of making the selection;
    `fetch_bytes` are those brought from the host tier for it.
    """

    spans: Tensor
    index_bytes: int = 0
    copy_bytes: int = 0
    fetch_bytes: int = 0
    elsewhere: Elsewhere | None = None

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """Row by row: exact for any spans, but nothing is shared between rows."""
        rows = torch.zeros(len(q), dtype=torch.int32)
        return _read(q, site.keys, site.values, self.spans, rows, site)


@dataclass(frozen=True)
class Shared:
    """Spans [T, S, n, 3] as in `Selection`, no later than their query, many of which begin at the same slots."""

    spans: Tensor

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """The result of `Selection`; rows that read the same span load it once."""
        out, lse = span_prefill.span_prefill(
            q[None], site.keys, site.values, self.spans[None], [site.first], [len(q)],
            cos=site.cos, sin=site.sin, scale=site.scale, softcap=site.softcap,
        )  # fmt: skip
        return out[0], lse[0]


@dataclass(frozen=True)
class Listed:
    """Blocks of queries read listed blocks and columns of keys [1, S, blocks, ...] (`kernels.block_sparse_prefill`).

    Lists hold for LIST_BLOCK queries each and name blocks of LIST_BLOCK slots. `positions` [T]: what each query is
    rotated to.
    """

    lists: VerticalSlash
    positions: Tensor

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """Exact causal attention to what is listed."""
        out, lse = vertical_slash_prefill(
            site.turned(q, self.positions)[None], site.keys, site.values, self.lists, [site.first], [len(q)],
            block=LIST_BLOCK, scale=site.scale, softcap=site.softcap,
        )  # fmt: skip
        return out[0], lse[0]


@dataclass(frozen=True)
class Gathered:
    """Blocks of `block` queries read listed tokens, indices [1, S, blocks, n] (negative: padding)."""

    indices: Tensor
    block: int
    positions: Tensor

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """Exact causal attention to what is listed."""
        out, lse = gathered_prefill.gathered_prefill(
            site.turned(q, self.positions)[None], site.keys, site.values, self.indices, [site.first], [len(q)],
            block=self.block, scale=site.scale, softcap=site.softcap,
        )  # fmt: skip
        return out[0], lse[0]


@dataclass(frozen=True)
class Tiles:
    """Blocks of block[0] queries read the kept blocks of block[1] slots, bool [1, S, query blocks, key blocks]."""

    kept: Tensor
    block: tuple[int, int]
    positions: Tensor

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """Exact causal attention inside the kept tiles."""
        out, lse = block_sparse_prefill(
            site.turned(q, self.positions)[None], site.keys, site.values, self.kept, [site.first], [len(q)],
            block=self.block, scale=site.scale, softcap=site.softcap,
        )  # fmt: skip
        return out[0], lse[0]


@dataclass(frozen=True)
class Causal:
    """Every query reads all slots from `start` up to its own, within the last `window` of them."""

    positions: Tensor
    start: int = 0
    window: int | None = None

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """Flash attention over the tail of the cache."""
        out, lse = flash_prefill.flash_prefill(
            site.turned(q, self.positions)[None], site.keys[:, :, self.start :], site.values[:, :, self.start :],
            [site.first - self.start], [len(q)], scale=site.scale, window=self.window, softcap=site.softcap,
        )  # fmt: skip
        return out[0], lse[0]


@dataclass(frozen=True)
class Beside:
    """A plan over keys and values [1, G, C, D] that are not the cache's; the first query stands at slot `first`."""

    keys: Tensor
    values: Tensor
    first: int
    plan: Plan

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """As the plan does there."""
        return self.plan.attend(q, replace(site, keys=self.keys, values=self.values, first=self.first))


@dataclass(frozen=True)
class Merged:
    """Plans whose keys are disjoint, as one softmax."""

    parts: Sequence[Plan]

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """All parts, merged by their log-sum-exp."""
        outs, lses = zip(*(part.attend(q, site) for part in self.parts), strict=True)
        return (outs[0], lses[0]) if len(outs) == 1 else lse_merge.lse_merge(outs, lses)


@dataclass(frozen=True)
class Segments:
    """Rows one after the other: `parts` are (number of rows, plan)."""

    parts: Sequence[tuple[int, Plan]]

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """Each segment's plan sees its own rows only."""
        results, start = [], 0
        for count, plan in self.parts:
            results.append(plan.attend(q[start : start + count], replace(site, first=site.first + start)))
            start += count
        outs, lses = zip(*results, strict=True)
        return torch.cat(outs), torch.cat(lses)


def read_spans(q: Tensor, selection: Selection, rows: Tensor, site: Site) -> Tensor:
    """Decode: exact attention of q [N, H, D], not rotated, over its spans in batch rows `rows`, and what is elsewhere.

    Here `site` is the whole cache [B, G, C, D]; what is elsewhere belongs to the only row there is.
    """
    out, lse = _read(q, site.keys, site.values, selection.spans, rows, site)
    far = selection.elsewhere
    if far is None:
        return out
    beyond = _read(q, far.keys, far.values, far.spans, torch.zeros_like(rows), site)
    return lse_merge.lse_merge((out, beyond[0]), (lse, beyond[1]), out=out)[0]


def _read(q: Tensor, keys: Tensor, values: Tensor, spans: Tensor, rows: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    return flash_decode.flash_decode(
        q, keys, values, spans, rows, cos=site.cos, sin=site.sin, scale=site.scale, softcap=site.softcap
    )
