"""Judges with a model of their own, which reads every token of a trace once, however often traces fork."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from suite.methods.search.asks import Scoring
from suite.methods.search.judges.oracle import speaks_chain
from suite.methods.search.ledger import Ledger
from suite.methods.search.marks import Marks
from suite.methods.search.trace import Trace
from suite.methods.search.verifier import Judge, Steps
from suite.models.branches import Branch, Forest
from suite.models.decoder import Decoder
from suite.models.language_model import TextModel

GROUP = 256  # traces read at a time: their logits are held at once


@dataclass(frozen=True)
class _Read:
    """What was read of a trace, a value of each token behind the prompt, and which of these end a step."""

    branch: Branch
    values: tuple[float, ...] = ()
    ends: tuple[int, ...] = ()


class ReadingJudge(Judge):
    """A value of each token, of which the scores of steps are made.

    `behind`: whether a token's value comes from the logits that predict it; its own logits are then not needed, and
    the last token of a trace is fed with the tokens that follow.
    """

    behind: ClassVar[bool]
    _decoder: Decoder

    def refusal(self, policy: TextModel) -> str | None:
        """The lab's reward models read the tokens of chains."""
        return None if speaks_chain(policy) else f"it reads workload chain only, which {policy.name} cannot do"

    def begin(self, policy: TextModel) -> None:
        self._forest = Forest(self._decoder)
        self._known: WeakKeyDictionary[Trace, _Read] = WeakKeyDictionary()
        self._tokenizer = policy.tokenizer
        self._marks: dict[str, Marks] = {}

    def score(self, asked: Sequence[Scoring]) -> list[list[Steps]]:
        wanted = [(trace, ask.ledger) for ask in asked for trace in ask.traces]
        self._read([(_root(trace), ledger) for trace, ledger in wanted])
        self._read(wanted)
        return [[self._scored(self._known[trace]) for trace in ask.traces] for ask in asked]

    @abstractmethod
    def _values(self, logits: Tensor, ids: Sequence[int]) -> Tensor:
        """Logits [T, vocab] that belong to tokens `ids` -> [T]."""

    @abstractmethod
    def _steps(self, values: Sequence[float], ends: Sequence[int]) -> Steps:
        """The scores of steps that end with the tokens at `ends`."""

    def _read(self, wanted: Sequence[tuple[Trace, Ledger]]) -> None:
        new = {trace: ledger for trace, ledger in wanted if trace not in self._known}
        traces = list(new)
        for first in range(0, len(traces), GROUP):
            self._read_group(traces[first : first + GROUP], new)

    def _read_group(self, traces: Sequence[Trace], ledgers: dict[Trace, Ledger]) -> None:
        """The tokens that follow what is known of each trace, or of the nearest one it goes on from."""
        lag = int(self.behind)
        befores = [self._before(trace) for trace in traces]
        texts = [(*trace.problem.ids, *trace.all_ids) for trace in traces]
        branches = [before.branch.fork() for before in befores]
        starts = [branch.length for branch in branches]
        pieces = [text[start : len(text) - lag] for text, start in zip(texts, starts, strict=True)]
        logits = torch.cat(self._forest.feed_all(branches, pieces))
        read = [token for text, start in zip(texts, starts, strict=True) for token in text[start + lag :]]
        values, end = self._values(logits, read).tolist(), 0
        for i, trace in enumerate(traces):
            ledgers[trace].judged(len(pieces[i]), self._decoder.config.flops(len(pieces[i]), starts[i]))
            known, end = befores[i], end + len(pieces[i])
            mine = values[end - (trace.length - len(known.values)) : end]  # without those of the prompt
            self._known[trace] = _Read(branches[i], (*known.values, *mine), self._ends(trace, known))

    def _before(self, trace: Trace) -> _Read:
        above = trace.parent
        while above is not None:
            if (known := self._known.get(above)) is not None:
                return known
            above = above.parent
        return _Read(self._forest.root())

    def _ends(self, trace: Trace, known: _Read) -> tuple[int, ...]:
        """The tokens that end a step; a mark may be of several tokens, but none of them is of the step before."""
        step, ids = trace.problem.step, trace.all_ids
        marks = self._marks.setdefault(step, Marks(self._tokenizer, [step]))
        ends = list(known.ends)
        for place in range(len(known.values), len(ids)):
            begun = ends[-1] + 1 if ends else 0
            if marks.found(ids[begun : place + 1]):
                ends.append(place)
        return tuple(ends)

    def _scored(self, read: _Read) -> Steps:
        """What follows the last end is a step too."""
        last = len(read.values) - 1
        ends = read.ends if last in (-1, *read.ends[-1:]) else (*read.ends, last)
        return self._steps(read.values, ends) if ends else ()


def sigmoid(logit: float) -> float:
    """A probability of its logit, also where that is far below zero."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def _root(trace: Trace) -> Trace:
    while trace.parent is not None:
        trace = trace.parent
    return trace
