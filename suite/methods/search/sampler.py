"""Draws the pieces that searches ask for on the native model: all rows of all searches in one batch, forks for nothing.

A trace's branch holds everything but its last token, which goes into the pass that draws the next one: children of one
parent each feed it again, and no logits are kept for parents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from kernels.sample import sample, statistics
from suite.methods.search.asks import Sampling, Writing
from suite.methods.search.marks import Marks
from suite.methods.search.trace import End, Trace
from suite.models.branches import Branch, Forest
from suite.models.generation import AttentionRead, Meter
from suite.models.language_model import LanguageModel
from suite.models.stops import cut_at_stop


@dataclass(eq=False)
class _Row:
    """A piece that is being drawn."""

    parent: Trace
    branch: Branch
    pending: tuple[int, ...]
    limit: int
    uniform: np.random.Generator
    asked: Sampling
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end: End | None = None
    reached: bool = False


class NativeSampler:
    """The policy's model with the branches of the traces that are still in use."""

    def __init__(self, model: LanguageModel, meter: Meter) -> None:
        self.model, self.meter = model, meter
        self.forest = Forest(model.decoder)
        self._branches: WeakKeyDictionary[Trace, Branch] = WeakKeyDictionary()
        self._eos = set(model.config.eos_ids)
        self._prompt = 0

    def prefill(self, roots: Sequence[Trace]) -> None:
        """The prompts, but for their last tokens."""
        branches = [self.forest.root() for _ in roots]
        self._prompt = max(len(root.problem.ids) for root in roots)
        self._branches.update(zip(roots, branches, strict=True))
        longer = [(branch, root.problem.ids[:-1]) for root, branch in zip(roots, branches, strict=True)]
        self._append([(branch, ids) for branch, ids in longer if ids])

    def draw(self, asked: Sequence[Sampling]) -> list[list[Trace]]:
        """The children of every ask, in the order of its parents."""
        rows = [[self._row(ask, i) for i in range(len(ask.parents))] for ask in asked]
        live = [row for group in rows for row in group]
        while live:
            self._token(live)
            for group in rows:
                _call_off(group)
            live = [row for row in live if row.end is None and not row.reached and not _called_off(row)]
        for ask, group in zip(asked, rows, strict=True):
            _account(ask, group)
        return [[self._child(row) for row in group] for group in rows]

    def write(self, asked: Sequence[Writing]) -> list[Trace]:
        """Texts put behind traces; they are fed like a prompt."""
        children: list[Trace] = []
        for ask in asked:
            ids = tuple(self.model.tokenizer.encode(ask.text))
            branch, last = self._behind(ask.parent)
            self._append([(branch, (*last, *ids[:-1]))])
            ask.ledger.prefilled += len(ids)
            child = Trace(ask.parent.problem, ask.parent, ids, self._text(ask.parent, ids), (0.0,) * len(ids))
            self._branches[child] = branch
            children.append(child)
        return children

    def _row(self, ask: Sampling, index: int) -> _Row:
        parent = ask.parents[index]
        branch, pending = self._behind(parent)
        limit = min(ask.limit, parent.problem.max_new_tokens - parent.length)
        return _Row(parent, branch, pending, limit, np.random.default_rng(ask.seeds[index]), ask)

    def _behind(self, trace: Trace) -> tuple[Branch, tuple[int, ...]]:
        """A branch of everything but the last token of the trace, and that token."""
        return self._branches[trace].fork(), (trace.ids or trace.problem.ids)[-1:]

    def _append(self, fed: Sequence[tuple[Branch, tuple[int, ...]]]) -> Tensor | None:
        if not fed:
            return None
        branches, pieces = [branch for branch, _ in fed], [ids for _, ids in fed]
        self.meter.step(sum(map(len, pieces)), max(b.length + len(p) for b, p in fed))
        logits = self.forest.feed(branches, pieces)
        if self.meter.counting:
            self._tell(branches)
        return logits

    def _tell(self, branches: Sequence[Branch]) -> None:
        """Every row reads all of its text, and all of it is stored."""
        config, element = self.model.config, self.forest.pool.keys[0].element_size()
        for branch in branches:
            kv_bytes = branch.length * config.kv_bytes_per_token(element) // config.layers
            for layer in range(config.layers):
                t = branch.length
                self.meter.attention(AttentionRead(layer, t, self._prompt, t, t, t, t, kv_bytes, 0, 0))
        self.meter.resident(self.forest.pool.used_bytes, 0)

    def _token(self, rows: Sequence[_Row]) -> None:
        """One more token of every row."""
        logits = self._append([(row.branch, row.pending) for row in rows])
        assert logits is not None
        tokens = _choose(logits, rows)
        gained = logits.gather(1, tokens[:, None].long())[:, 0] - statistics(logits).logsumexp
        for row, token, logprob in zip(rows, tokens.tolist(), gained.tolist(), strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
            row.pending = (token,)
            self._judge(row)

    def _judge(self, row: _Row) -> None:
        """Whether the row has come to an end, or to where it was to go."""
        problem, until = row.parent.problem, row.asked.until
        if row.ids[-1] in self._eos:
            row.end = "eos"
        elif problem.stop and self._marks(problem.stop).found(row.ids):
            row.end = "stop"
        elif row.parent.length + len(row.ids) >= problem.max_new_tokens:
            row.end = "length"
        found = until is not None and self._marks((until,)).found(row.ids)
        row.reached = found or row.end in ("eos", "stop") or (row.end is None and len(row.ids) >= row.limit)

    @lru_cache(maxsize=16)  # noqa: B019 - a sampler lives as long as its run
    def _marks(self, texts: tuple[str, ...]) -> Marks:
        return Marks(self.model.tokenizer, texts)

    def _child(self, row: _Row) -> Trace:
        ids = tuple(row.ids)
        child = Trace(
            row.parent.problem, row.parent, ids, self._text(row.parent, ids), tuple(row.logprobs), row.end, row.reached
        )
        self._branches[child] = row.branch
        return child

    def _text(self, parent: Trace, ids: tuple[int, ...]) -> str:
        shown = [token for token in (*parent.all_ids, *ids) if token not in self._eos]
        return cut_at_stop(self.model.tokenizer.decode(shown), parent.problem.stop)


def _choose(logits: Tensor, rows: Sequence[_Row]) -> Tensor:
    """A token of each row: temperature first, then top-p of what is left."""
    drawn = torch.tensor([row.uniform.random() for row in rows], dtype=torch.float32)
    temperature = torch.tensor([row.asked.temperature for row in rows])
    top_p = torch.tensor([row.asked.top_p for row in rows])
    return sample(logits, drawn, temperature=temperature, top_k=torch.zeros(len(rows), dtype=torch.int32), top_p=top_p)


def _call_off(group: Sequence[_Row]) -> None:
    """When enough rows have got there, lower ones first where they tie, the others stop where they are."""
    first = group[0].asked.first
    arrived = [row for row in group if row.reached]
    if first and len(arrived) >= first:
        for row in group:
            row.limit = 0 if row not in arrived[:first] else row.limit
            row.reached = row in arrived[:first]


def _called_off(row: _Row) -> bool:
    return row.limit == 0


def _account(ask: Sampling, group: Sequence[_Row]) -> None:
    lengths = [len(row.ids) for row in group]
    contexts = [len(row.parent.problem.ids) + row.parent.length for row in group]
    ask.ledger.sampled(lengths, contexts, sum(not row.reached and row.end is None for row in group))
