"""Texts that share their beginnings, in one cache: a branch is forked without copying a key.

    forest = Forest(model.decoder)
    prompt = forest.root()
    forest.feed([prompt], [prompt_ids])
    chains = [prompt.fork() for _ in range(16)]             # the prompt's pages are stored once
    logits = forest.feed(chains, [[token] for token in drawn])

Pages are of PAGE tokens. A page is held by all branches whose text runs through it and returns to the pool with the
last of them. The first branch that goes on behind a common end fills up its page; the others begin pages of their own,
where a copy of the rest would cost a move of keys (paged attention's copy-on-write, 2309.06180, without the copy).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from kernels import flash_decode, flash_prefill
from kernels.decode_layer import Tables
from suite.models.attention import DenseAttention, Step, store_rotated
from suite.models.cache import KVCache
from suite.models.config import ModelConfig
from suite.models.decoder import Decoder

PAGE = 16  # tokens
PASS_TOKENS = 512  # tokens per forward pass at most
LONG = 32  # tokens of one branch alone, from which on the prefill kernel is the faster one


class Page:
    """PAGE slots of the pool, `filled` of them written; nobody holding it any more, they are free again."""

    __slots__ = ("filled", "index", "pool")

    def __init__(self, pool: Pool, index: int) -> None:
        self.pool, self.index, self.filled = pool, index, 0

    def __del__(self) -> None:
        heappush(self.pool.free, self.index)


class Pool(KVCache):
    """One row of slots that no text owns as a whole: the pages say what is where."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self.free: list[int] = []
        super().__init__(config, 1, dtype, PAGE)
        self._pages = 0

    def page(self) -> Page:
        """A free page, the lowest there is: texts written in one go lie in one piece."""
        if not self.free:
            self.reserve((self._pages + 1) * PAGE)
            self.free = list(range(self._pages, self.capacity // PAGE))
            self._pages = self.capacity // PAGE
        return Page(self, heappop(self.free))

    @property
    def used_bytes(self) -> int:
        """Bytes of the pages that somebody holds."""
        element = torch.empty(0, dtype=self.dtype).element_size()
        return (self._pages - len(self.free)) * PAGE * self.config.kv_bytes_per_token(element)

    def advance(self, counts: Sequence[int]) -> None:
        """Branches know their lengths."""


class Branch:
    """One text in the cache: its pages in order, and the spans [start, stop) of slots that hold it."""

    __slots__ = ("length", "pages", "pool", "spans")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.pages: list[Page] = []
        self.spans: list[tuple[int, int]] = []
        self.length = 0

    def fork(self) -> Branch:
        """Another text with this one as its beginning."""
        other = Branch(self.pool)
        other.pages, other.spans, other.length = self.pages.copy(), self.spans.copy(), self.length
        return other

    def up_to(self, tokens: int) -> Branch:
        """Another text: the first `tokens` tokens of this one. It goes on in a page of its own."""
        other = self.fork()
        other.spans, other.length = _up_to(self.spans, tokens), tokens
        return other

    def grow(self, count: int) -> list[int]:
        """The slots of the next `count` tokens."""
        slots: list[int] = []
        while len(slots) < count:
            first, room = self._open()
            taken = min(room, count - len(slots))
            self.pages[-1].filled += taken
            self._extend(first, first + taken)
            slots += range(first, first + taken)
        self.length += count
        return slots

    def _open(self) -> tuple[int, int]:
        """The slot behind this text and the slots there are; in a new page where another text went on behind it."""
        if self.pages:
            page, end = self.pages[-1], self.spans[-1][1]
            if page.filled < PAGE and end == page.index * PAGE + page.filled:
                return end, PAGE - page.filled
        self.pages.append(self.pool.page())
        return self.pages[-1].index * PAGE, PAGE

    def _extend(self, start: int, stop: int) -> None:
        if self.spans and self.spans[-1][1] == start:
            self.spans[-1] = (self.spans[-1][0], stop)
        else:
            self.spans.append((start, stop))


def slots_of(branches: Iterable[Branch]) -> int:
    """Slots that hold the texts; those that several share count once."""
    count = reached = 0
    for start, stop in sorted({span for branch in branches for span in branch.spans}):
        count += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return count


@dataclass(frozen=True)
class _Placed:
    """A pass over tokens of several branches: slots and positions int32 [1, T]; spans int32 [T, n, 3] they see."""

    slots: Tensor
    positions: Tensor
    spans: Tensor
    seen: int
    alone: int | None
    """The first slot of the one branch there is, if that lies in one piece and brings a long text."""


class BranchAttention(DenseAttention):
    """Dense attention of tokens to the branch they belong to."""

    placed: _Placed

    def plain(self, step: Step) -> Tables | None:
        """Every pass is."""
        self._place(step)
        step.visible = self.placed.spans
        return [self.tables(layer, self.placed.seen) for layer in range(self.config.layers)]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        placed = self.placed
        self._place(step)
        store_rotated(layer, q, k, v, *self.tables(layer, placed.seen), placed.positions, step)
        keys, values = step.cache.keys[layer], step.cache.values[layer]
        scale, softcap = self.config.scale, self.config.attention_softcap
        if placed.alone is not None:
            start, count = placed.seen - q.shape[1], q.shape[1]
            piece = slice(placed.alone, placed.alone + placed.seen)
            out, _ = flash_prefill.flash_prefill(
                q, keys[:, :, piece], values[:, :, piece], [start], [count], scale=scale, softcap=softcap
            )
            return out
        out, _ = flash_decode.flash_decode(
            q[0], keys, values, placed.spans[:, None], step.rows, scale=scale, softcap=softcap
        )
        return out[None]

    def _place(self, step: Step) -> None:
        step.slots, step.positions = self.placed.slots, self.placed.positions


class Forest:
    """The branches of one decoder. Sliding windows are not served: `fits` says so."""

    def __init__(self, decoder: Decoder) -> None:
        decoder.restack()
        self.decoder = decoder
        self.pool = Pool(decoder.config, decoder.dtype)
        self._attention = BranchAttention(decoder.config)

    @staticmethod
    def fits(config: ModelConfig) -> bool:
        """Whether every layer reads the whole text."""
        return all(window is None for window in config.windows)

    def root(self) -> Branch:
        """A text without tokens."""
        return Branch(self.pool)

    def feed(self, branches: Sequence[Branch], pieces: Sequence[Sequence[int]]) -> Tensor:
        """Appends tokens to branches, each named once -> fp32 logits [N, vocab] after each one's last token."""
        ends = [end - 1 for end in accumulate(map(len, pieces))]
        return self._run(branches, pieces, ends)

    def feed_all(self, branches: Sequence[Branch], pieces: Sequence[Sequence[int]]) -> list[Tensor]:
        """The same -> for each branch the logits [tokens of its piece, vocab] after each of them."""
        sizes = list(map(len, pieces))
        return list(torch.split(self._run(branches, pieces, range(sum(sizes))), sizes))

    def _run(self, branches: Sequence[Branch], pieces: Sequence[Sequence[int]], wanted: Sequence[int]) -> Tensor:
        """Logits [len(wanted), vocab] at places of the pieces laid end to end, `wanted` in ascending order."""
        found, done = [], 0
        with torch.inference_mode():
            for group in _passes(pieces):
                states = self._pass([(branches[row], pieces[row][start:stop]) for row, start, stop in group])
                count = states.shape[0]
                here = [place - done for place in wanted if done <= place < done + count]
                if here:
                    found.append(self.decoder.to_logits(self.decoder.norm(states[here])))
                done += count
            return torch.cat(found)

    def _pass(self, fed: Sequence[tuple[Branch, Sequence[int]]]) -> Tensor:
        """One pass -> the last layer's states [T, hidden]."""
        tokens = [token for _, piece in fed for token in piece]
        self._attention.placed = _place(fed)
        x = self.decoder.embed(torch.tensor([tokens]))
        return self.decoder.advance(x, self.pool, self._attention)[0]


def _passes(pieces: Sequence[Sequence[int]]) -> list[list[tuple[int, int, int]]]:
    """The pieces as passes of at most PASS_TOKENS tokens: (row, start, stop), in order."""
    passes: list[list[tuple[int, int, int]]] = [[]]
    room = PASS_TOKENS
    for row, piece in enumerate(pieces):
        start = 0
        while start < len(piece):
            if room == 0:
                passes.append([])
                room = PASS_TOKENS
            stop = min(len(piece), start + room)
            passes[-1].append((row, start, stop))
            start, room = stop, room - (stop - start)
    return passes


def _place(fed: Sequence[tuple[Branch, Sequence[int]]]) -> _Placed:
    """Slots for the new tokens; token i of a piece sees its branch up to itself."""
    slots: list[int] = []
    positions: list[int] = []
    seen: list[list[tuple[int, int]]] = []
    for branch, piece in fed:
        first = branch.length
        new = branch.grow(len(piece))
        slots += new
        positions += range(first, first + len(piece))
        seen += (
            [branch.spans] if len(piece) == 1 else [_up_to(branch.spans, p + 1) for p in range(first, branch.length)]
        )
    branch, piece = fed[0]
    alone = branch.spans[0][0] if len(fed) == 1 and len(branch.spans) == 1 and len(piece) >= LONG else None
    where, when = (torch.tensor([row], dtype=torch.int32) for row in (slots, positions))
    return _Placed(where, when, _tensor(seen), max(positions) + 1, alone)


def _tensor(seen: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
    """Spans of every row as int32 [T, n, 3], filled up with empty ones."""
    counts = np.fromiter(map(len, seen), np.int64, len(seen))
    ends = np.fromiter(chain.from_iterable(chain.from_iterable(seen)), np.int32, 2 * int(counts.sum()))
    first = np.repeat(counts.cumsum() - counts, counts)
    spans = np.zeros((len(seen), int(counts.max()), 3), np.int32)
    spans[np.repeat(np.arange(len(seen)), counts), np.arange(len(first)) - first, :2] = ends.reshape(-1, 2)
    return torch.from_numpy(spans)


def _up_to(spans: Sequence[tuple[int, int]], tokens: int) -> list[tuple[int, int]]:
    """The first `tokens` tokens of a text."""
    kept: list[tuple[int, int]] = []
    for start, stop in spans:
        if tokens <= 0:
            break
        kept.append((start, min(stop, start + tokens)))
        tokens -= stop - start
    return kept
