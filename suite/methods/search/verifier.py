"""Verifiers: a judge scores the steps of traces, and a search reads one figure of each (`_verifiers.md` section 1).

A judge never sees a reference answer; the oracle, which checks the steps exactly, says so in its name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import ClassVar, Literal

from suite.methods.search.asks import Scoring
from suite.methods.search.ledger import Ledger
from suite.methods.search.trace import Trace
from suite.models.language_model import LanguageModel
from suite.registry import Entry, Registry

Aggregate = Literal["prod", "min", "last", "mean"]
Steps = tuple[float, ...]
TINY = 1e-7
"""Scores are kept so far from 0 and 1: their logits are finite."""

JUDGES = Registry(
    "verifier",
    (
        Entry("random", "suite.methods.search.judges.random:RandomJudge", "floor", "a number that says nothing"),
        Entry("self", "suite.methods.search.judges.confidence:SelfJudge", "policy", "the policy's own probability"),
    ),
)  # fmt: skip


class Judge(ABC):
    """Scores steps. One judge serves all searches of a run, so that their traces share its passes."""

    exact: ClassVar[bool] = False
    """An oracle: it knows the right steps, and its rows are labelled so."""

    def prepare(self, policy: LanguageModel) -> None:  # noqa: B027 - most judges need nothing
        """Loads what it needs; `policy` is the model whose traces it will see. Untimed."""

    def begin(self, policy: LanguageModel) -> None:  # noqa: B027
        """A batch begins: traces of earlier ones will not come again."""

    @abstractmethod
    def score(self, asked: Sequence[Scoring]) -> list[list[Steps]]:
        """The scores in (0, 1) of each step of each trace, in order; tokens that it feeds go to the ask's ledger."""


class Verifier:
    """One search's handle on a judge. A trace is scored once; one pass is counted for every scored prefix."""

    def __init__(self, aggregate: Aggregate, ledger: Ledger) -> None:
        self.aggregate: Aggregate = aggregate
        self._ledger = ledger
        self._known: dict[Trace, Steps] = {}

    async def step_scores(self, traces: Sequence[Trace]) -> list[Steps]:
        """The judge's scores of each trace's steps."""
        new = [trace for trace in dict.fromkeys(traces) if trace not in self._known]
        if new:
            self._known.update(zip(new, await Scoring(new, self._ledger), strict=True))
            self._ledger.verifier_passes += len(new)
        return [self._known[trace] for trace in traces]

    async def scores(self, traces: Sequence[Trace]) -> list[float]:
        """One figure of each trace, in (0, 1)."""
        return [aggregated(steps, self.aggregate) for steps in await self.step_scores(traces)]


_AGGREGATES: dict[Aggregate, Callable[[Steps], float]] = {
    "prod": math.prod, "min": min, "last": lambda steps: steps[-1], "mean": fmean,
}  # fmt: skip


def aggregated(steps: Steps, how: Aggregate) -> float:
    """One figure of the step scores; kept away from 0 and 1. A trace without steps is as good as any: 1/2."""
    if not steps:
        return 0.5
    value = _AGGREGATES[how](steps)
    return min(max(value, TINY), 1 - TINY)


def logit(score: float) -> float:
    """ln(r / (1 - r)): what a resampling weight is made of."""
    return math.log(score) - math.log1p(-score)
