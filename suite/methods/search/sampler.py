"""Draws the pieces that searches ask for on the native model: all rows of all searches in one batch, forks for nothing.

A trace's branch holds everything but its last token, which goes into the pass that draws the next one: children of one
parent each feed it again, and no logits are kept for parents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from kernels.sample import sample, statistics
from suite.methods.search.asks import Sampling, Writing
from suite.methods.search.ledger import Ledger
from suite.methods.search.trace import Trace
from suite.methods.search.writing import Ends, Piece, call_off, text_of, without_end
from suite.models.branches import Branch, Forest, slots_of
from suite.models.generation import AttentionRead, Meter
from suite.models.language_model import LanguageModel


@dataclass(eq=False, kw_only=True)
class _Row(Piece):
    """A piece in the cache: its branch, the tokens that the next pass feeds, and the numbers that chance takes."""

    branch: Branch
    pending: tuple[int, ...]
    uniform: np.random.Generator


class NativeSampler:
    """The policy's model with the branches of the traces that are still in use."""

    def __init__(self, model: LanguageModel, meter: Meter) -> None:
        self.model, self.meter = model, meter
        self.forest = Forest(model.decoder)
        self._branches: WeakKeyDictionary[Trace, Branch] = WeakKeyDictionary()
        self._ends = Ends(model)
        self._prompt = 0

    def prefill(self, roots: Sequence[Trace]) -> None:
        """The prompts, but for their last tokens."""
        branches = [self.forest.root() for _ in roots]
        self._prompt = max(len(root.problem.ids) for root in roots)
        self._branches.update(zip(roots, branches, strict=True))
        longer = [(branch, root.problem.ids[:-1]) for root, branch in zip(roots, branches, strict=True)]
        self._append([(branch, ids) for branch, ids in longer if ids])

    def settle(self, roots: Sequence[Trace], ledgers: Sequence[Ledger]) -> None:
        """Every prompt was fed once."""
        for root, ledger in zip(roots, ledgers, strict=True):
            ledger.prefill(len(root.problem.ids))
            ledger.compute(self.model.config.flops(len(root.problem.ids) - 1, 0))

    def draw(self, asked: Sequence[Sampling]) -> list[list[Trace]]:
        """The children of every ask, in the order of its parents."""
        rows = [[self._row(ask, i) for i in range(len(ask.parents))] for ask in asked]
        live = [row for group in rows for row in group]
        while live:
            self._token(live)
            for group in rows:
                call_off(group)
            live = [row for row in live if row.open]
        for ask, group in zip(asked, rows, strict=True):
            self._account(ask, group)
        return [[self._child(row) for row in group] for group in rows]

    def write(self, asked: Sequence[Writing]) -> list[Trace]:
        """Texts put behind traces; they are fed like a prompt."""
        children: list[Trace] = []
        for ask in asked:
            ids = tuple(self.model.tokenizer.encode(ask.text))
            parent = self._without_end(ask.parent, ask.instead)
            branch, last = self._behind(parent)
            ask.ledger.prefill(len(ids))
            ask.ledger.compute(self.model.config.flops(len(ids), branch.length))
            self._append([(branch, (*last, *ids[:-1]))])
            child = Trace(parent.problem, parent, ids, text_of(self.model, parent, ids), (0.0,) * len(ids), drawn=False)
            self._branches[child] = branch
            children.append(child)
        return children

    def _without_end(self, trace: Trace, instead: str | None) -> Trace:
        """The trace as it was before it wrote its end, with a branch of its own."""
        shorter, dropped = without_end(self.model, trace, instead)
        if dropped:
            branch = self._branches[trace]
            self._branches[shorter] = branch.up_to(branch.length - dropped)
        return shorter

    def _row(self, ask: Sampling, index: int) -> _Row:
        branch, pending = self._behind(ask.parents[index])
        uniform = np.random.default_rng(ask.seeds[index])
        return _Row.of(ask, index, branch=branch, pending=pending, uniform=uniform)

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
        """Every row sees all of its text; of bytes, what rows share has to be read once, and each bears its part."""
        config, element = self.model.config, self.forest.pool.keys[0].element_size()
        part = slots_of(branches) / sum(branch.length for branch in branches)
        for branch in branches:
            kv_bytes = round(part * branch.length * config.kv_bytes_per_token(element) / config.layers)
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
            self._ends.look(row)

    def _account(self, ask: Sampling, group: Sequence[_Row]) -> None:
        """Each drawn token took a pass of the token before it."""
        lengths = [len(row.ids) for row in group]
        contexts = [len(row.parent.problem.ids) + row.parent.length for row in group]
        ask.ledger.sampled(lengths, contexts, sum(row.cancelled and row.end is None for row in group))
        pieces = zip(lengths, contexts, strict=True)
        ask.ledger.compute(sum(self.model.config.flops(length, context - 1) for length, context in pieces))

    def _child(self, row: _Row) -> Trace:
        child = row.child(self.model)
        self._branches[child] = row.branch
        return child


def _choose(logits: Tensor, rows: Sequence[_Row]) -> Tensor:
    """A token of each row: temperature first, then top-p of what is left."""
    drawn = torch.tensor([row.uniform.random() for row in rows], dtype=torch.float32)
    temperature = torch.tensor([row.asked.temperature for row in rows])
    top_p = torch.tensor([row.asked.top_p for row in rows])
    return sample(logits, drawn, temperature=temperature, top_k=torch.zeros(len(rows), dtype=torch.int32), top_p=top_p)
