"""Verifiers: a judge scores the steps of traces, and a search reads one figure of each (`_verifiers.md` section 1).

A judge never sees a reference answer; the oracle, which checks the steps exactly, says so in its name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from pydantic import AfterValidator, ValidationError

from suite.errors import InputError
from suite.methods.base import MethodConfig
from suite.methods.search.asks import Sampler, Scoring
from suite.methods.search.ledger import Ledger
from suite.methods.search.trace import Trace
from suite.models.language_model import TextModel
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
        Entry(
            "likelihood",
            "suite.methods.search.judges.likelihood:LikelihoodJudge",
            "process reward",
            "a step's log-likelihood under the lab's strong model",
        ),
        Entry("prm", "suite.methods.search.judges.heads:ProcessJudge", "process reward", "the lab's trained PRM"),
        Entry("orm", "suite.methods.search.judges.heads:OutcomeJudge", "outcome reward", "the lab's trained ORM"),
        Entry("flipped", "suite.methods.search.judges.flipped:FlippedJudge", "degraded", "another one, at times wrong"),
        Entry("llm_judge", "suite.methods.search.judges.asked:YesNoJudge", "policy", "a language model's yes or no"),
        Entry(
            "self_process_value",
            "suite.methods.search.judges.asked:ProcessEvaluation",
            "policy",
            "the policy's written verdict on the solution",
        ),
        Entry(
            "self_result_value",
            "suite.methods.search.judges.asked:ResultEvaluation",
            "policy",
            "the policy's written verdict on the answer",
        ),
        Entry("oracle", "suite.methods.search.judges.oracle:OracleJudge", "ceiling", "the exact check of every step"),
    ),
)  # fmt: skip


class Judge(ABC):
    """Scores steps. One judge serves all searches of a run, so that their traces share its passes."""

    exact: ClassVar[bool] = False
    """An oracle: it knows the right steps, and its rows are labelled so."""
    Options: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, options: Any = None) -> None:
        self.options = options if options is not None else self.Options()

    def refusal(self, policy: TextModel) -> str | None:
        """Why it cannot judge what this model writes, as one sentence; None when it can."""
        return None

    def prepare(self, policy: TextModel) -> None:  # noqa: B027 - most judges need nothing
        """Loads what it needs; `policy` is the model whose traces it will see. Untimed."""

    def begin(self, policy: TextModel) -> None:  # noqa: B027
        """A batch begins: traces of earlier ones will not come again."""

    def lend(self, sampler: Sampler) -> None:  # noqa: B027
        """What draws the policy's tokens in the batch that begins, for a judge that is the policy itself."""

    @abstractmethod
    def score(self, asked: Sequence[Scoring]) -> list[list[Steps]]:
        """The scores in (0, 1) of each step of each trace, in order; tokens that it feeds go to the ask's ledger."""


def make_judge(said: str) -> Judge:
    """The judge `name` or `name:option=value:option=value`, not prepared; `InputError` for one that is not known.

    No commas: they part the options of the method that the judge is an option of.
    """
    name, *listed = said.split(":")
    kind: type[Judge] = JUDGES.load(name)
    options = dict(pair.partition("=")[::2] for pair in listed)
    try:
        return kind(kind.Options(**options))
    except ValidationError as error:
        first, known = error.errors()[0], ", ".join(kind.Options.model_fields) or "none"
        raise InputError(f"verifier {said!r}: {first['loc'][0]}: {first['msg']}; its options: {known}.") from error


def _known(said: str) -> str:
    make_judge(said)
    return said


JudgeName = Annotated[str, AfterValidator(_known)]
"""As `make_judge` reads it."""


class Verifier:
    """One search's handle on a judge. A trace is scored once; one pass is counted for every scored prefix."""

    def __init__(self, aggregate: Aggregate, ledger: Ledger) -> None:
        self.aggregate: Aggregate = aggregate
        self._ledger = ledger
        self._known: WeakKeyDictionary[Trace, Steps] = WeakKeyDictionary()

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
