"""Blocks of a KV cache on two tiers: all full ones on the host, and a pool of pages on the device that caches some.

One store serves one layer of one batch row. Pages hold `block` tokens. The first `sinks` pages and those still being
filled or pending stay in the pool; a flushed page is copied to the host and from then on is subject to eviction, least
recently used first. On a machine without a device both tiers are ordinary memory, and the copies are real all the same.
Shapes: G KV heads, D head dim, P pages of the pool.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.flash_decode import paged


class BlockStore:
    """Tokens enter by `append`; `flush` copies the oldest pending page to the host; `fetch` brings pages back."""

    def __init__(self, kv_heads: int, head_dim: int, block: int, sinks: int, pinned: int, cached: int) -> None:
        """`pinned`: most pages that are sinks or pending at a time; `cached`: most flushed ones kept on the device."""
        self.block, self.sinks, self.cached = block, sinks, cached
        self.tokens = 0
        self.flushed = sinks  # pages on the host, and the sinks
        self._shape = (kv_heads, block, head_dim)
        self._pages = pinned + cached
        self._pool: tuple[Tensor, Tensor] | None = None
        self._host: list[Tensor] = []
        self._slots: dict[int, int] = {}
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._free = list(range(self._pages - 1, -1, -1))

    @property
    def keys(self) -> Tensor:
        """The pool's keys as a cache [1, G, C, D]; spans come from `spans`."""
        assert self._pool is not None
        return paged(self._pool[0])

    @property
    def values(self) -> Tensor:
        """The pool's values."""
        assert self._pool is not None
        return paged(self._pool[1])

    @property
    def page_bytes(self) -> int:
        """Of keys and values of one page."""
        return 0 if self._pool is None else 2 * self._pool[0][0].numel() * self._pool[0].element_size()

    @property
    def host_bytes(self) -> int:
        """Of the pages on the host."""
        return (self.flushed - self.sinks) * self.page_bytes

    @property
    def device_bytes(self) -> int:
        """Of the pages in use in the pool."""
        return len(self._slots) * self.page_bytes

    def append(self, k: Tensor, v: Tensor) -> None:
        """New tokens k, v [T, G, D], as projected."""
        if self._pool is None:
            shape = (self._pages, *self._shape)
            self._pool = k.new_empty(shape), k.new_empty(shape)
        done = 0
        while done < len(k):
            page, offset = divmod(self.tokens, self.block)
            count = min(len(k) - done, self.block - offset)
            slot = self._slots[page] if page in self._slots else self._place(page)
            for pool, fresh in zip(self._pool, (k, v), strict=True):
                pool[slot, :, offset : offset + count] = fresh[done : done + count].transpose(0, 1)
            self.tokens += count
            done += count

    def flush(self) -> Tensor:
        """The oldest pending page goes to the host; returns its keys [G, block, D]."""
        assert self._pool is not None
        page = self.flushed
        slot = self._slots[page]
        self._reserve(page - self.sinks + 1)
        for host, pool in zip(self._host, self._pool, strict=True):
            host[page - self.sinks] = pool[slot]
        self.flushed += 1
        keys = self._pool[0][slot].clone()
        self._use(page)
        return keys

    def fetch(self, pages: Sequence[int]) -> int:
        """Makes sure that these flushed pages are in the pool; returns how many had to be copied from the host."""
        assert self._pool is not None
        missing = [page for page in pages if page not in self._slots]
        for page in pages:  # first those that are there, lest they make room for the others
            if page in self._slots:
                self._use(page)
        for page in missing:
            self._use(page)
            slot = self._place(page)
            for host, pool in zip(self._host, self._pool, strict=True):
                pool[slot] = host[page - self.sinks]
        return len(missing)

    def spans(self, pages: Sequence[int], stop: int, position: int) -> Tensor:
        """int32 [1, 1, n, 3] over `keys`: the sinks, these flushed pages, and what is pending before token `stop`."""
        pending = range(self.flushed, -(-stop // self.block))
        chosen = [*range(self.sinks), *pages, *pending]
        starts = torch.tensor([self._slots[page] for page in chosen], dtype=torch.int32) * self._shape[0] * self.block
        lengths = torch.full_like(starts, self.block)
        if stop % self.block and pending:
            lengths[-1] = stop % self.block
        return torch.stack((starts, starts + lengths, torch.full_like(starts, position)), dim=-1)[None, None]

    def _use(self, page: int) -> None:
        """A flushed page is the most recent one now; beyond `cached` of them the oldest leaves the pool."""
        self._recent[page] = None
        self._recent.move_to_end(page)
        if len(self._recent) > self.cached:
            oldest, _ = self._recent.popitem(last=False)
            self._free.append(self._slots.pop(oldest))

    def _place(self, page: int) -> int:
        """A free slot of the pool becomes the page's."""
        self._slots[page] = self._free.pop()
        return self._slots[page]

    def _reserve(self, blocks: int) -> None:
        """Room on the host; a copy happens only when it doubles."""
        assert self._pool is not None
        capacity = len(self._host[0]) if self._host else 0
        if blocks <= capacity:
            return
        grown = [self._pool[0].new_empty(max(8, blocks, 2 * capacity), *self._shape) for _ in range(2)]
        for new, old in zip(grown, self._host, strict=False):
            new[:capacity] = old
        self._host = grown
