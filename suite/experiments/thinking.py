"""Chains of thought, drawn once and judged offline: what the experiments on early stopping share.

Chains do not depend on who stops them, so one set of them serves all methods and sizes (`short_m_at_k`, section 4).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any, Literal

import numpy as np

from analysis.search import Outcome, Samples, length_auc
from analysis.statistics import Estimate, mean_estimate
from suite.experiments.base import Workbench
from suite.harness.contender import Contender
from suite.harness.meter import RequestMeter
from suite.harness.options import make_workload
from suite.methods.search.asks import run
from suite.methods.search.base import Desk, SearchMethod
from suite.methods.search.ledger import Ledger
from suite.methods.search.marks import Marks
from suite.methods.search.policy import Policy
from suite.methods.search.sampler import NativeSampler
from suite.methods.search.trace import Problem, Trace
from suite.models.language_model import LanguageModel
from suite.spec import WorkloadSpec
from workloads.answers import classes, equivalent, extract
from workloads.schema import Completion, Request

QUESTIONS, CHAINS = 500, 20
TEMPERATURE, TOP_P = 1.0, 1.0
TOGETHER = 20  # questions whose chains share the passes
SUBSETS = 1000  # of a question's chains, where there are more
ONLINE, REPEATS = 20, 3  # questions that are asked again, one by one, and how often

Length = Literal["thinking", "tokens"]


@dataclass(frozen=True)
class Chain:
    """One drawn chain: its tokens up to the end of thinking, and all of them with the end token."""

    text: str
    thinking: int
    tokens: int
    finished: bool


@dataclass(frozen=True)
class Pool:
    """The chains of each request."""

    requests: Sequence[Request]
    chains: Sequence[Sequence[Chain]]

    def samples(self, length: Length, kind: str | None = None) -> list[Samples]:
        """One `Samples` for each question; answers read as `kind`, that of the request if there is none."""
        return [_judged(request, row, length, kind) for request, row in zip(self.requests, self.chains, strict=True)]

    @cached_property
    def thinking(self) -> list[Samples]:
        """By the length of the thinking."""
        return self.samples("thinking")

    @cached_property
    def whole(self) -> list[Samples]:
        """By the length of the whole text."""
        return self.samples("tokens")


def questions(task: str, count: int) -> list[Request]:
    """The first ones of the workload."""
    spec = WorkloadSpec(name="chain", task=task, limit=count, seed=0)
    return list(make_workload(spec).requests(task, count, 0))


def pool(model: LanguageModel, task: str, bench: Workbench, count: int = QUESTIONS, chains: int = CHAINS) -> Pool:
    """`chains` of each of `count` questions, by the family's own sampler."""
    asked, drawn = questions(task, count), list[list[Chain]]()
    for first in range(0, count, TOGETHER):
        bench.tick(f"{model.name}: {chains} chains of each question, {first} of {count}")
        drawn += _drawn(model, asked[first : first + TOGETHER], chains)
    return Pool(asked, drawn)


def _drawn(model: LanguageModel, asked: Sequence[Request], chains: int) -> Iterator[list[Chain]]:
    problems = [Problem.of(request, model.encode(request).ids) for request in asked]
    policies = [Policy(problem, TEMPERATURE, TOP_P, Ledger()) for problem in problems]
    sampler = NativeSampler(model, RequestMeter())
    sampler.prefill([policy.root for policy in policies])
    found = dict(run([policy.finish([policy.root] * chains) for policy in policies], Desk(sampler, None).serve))
    for index, problem in enumerate(problems):
        closing = Marks(model.tokenizer, (problem.closing,)) if problem.closing is not None else None
        yield [_chain(trace, closing) for trace in found[index]]


def _chain(trace: Trace, closing: Marks | None) -> Chain:
    ids, ended = trace.all_ids, trace.end in ("eos", "stop")
    places = range(1, len(ids) + 1) if closing is not None else ()
    thinking = next((place for place in places if closing is not None and closing.found(ids[:place])), len(ids))
    return Chain(trace.text, thinking, len(ids), ended)


def _judged(request: Request, row: Sequence[Chain], length: Length, kind: str | None) -> Samples:
    reading = kind or request.metadata["answer"]
    said = [extract(reading, chain.text) for chain in row]
    right = extract(reading, request.references[0])
    return Samples(
        np.array([getattr(chain, length) for chain in row]),
        np.array(classes(reading, said)),
        np.array([equivalent(reading, one, right) for one in said]),
        np.array([chain.finished for chain in row]),
    )


def single(asked: Sequence[Samples]) -> list[float]:
    """Each question's accuracy of one sample, %."""
    return [100 * float(one.correct.mean()) for one in asked]


def auc(asked: Sequence[Samples]) -> Estimate | None:
    """How often a right chain is shorter than a wrong one of the same question."""
    return mean_estimate([value for one in asked if (value := length_auc(one)) is not None])


def differences(above: Sequence[float], below: Sequence[float]) -> Estimate | None:
    """Mean of above - below, paired by question."""
    return mean_estimate([a - b for a, b in zip(above, below, strict=True)])


def savings(ours: Sequence[float], theirs: Sequence[float]) -> Estimate | None:
    """By how many percent ours are less than theirs, mean over questions."""
    return mean_estimate([100 * (1 - a / b) for a, b in zip(ours, theirs, strict=True)])


def shown(estimate: Estimate | None, digits: int = 1) -> str:
    """With its interval."""
    if estimate is None:
        return "-"
    interval = f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]" if estimate.low is not None else ""
    return f"{estimate.value:.{digits}f}{interval}"


@dataclass(frozen=True)
class Asked:
    """A method's answers to the online questions, each asked alone, and the median wall time of each, ms."""

    completions: list[Completion]
    right: list[bool]
    milliseconds: list[float]


def online(model: LanguageModel, method: SearchMethod, config: Any, asked: Sequence[Request]) -> Asked:
    """The real method, question by question: chains that are called off really stop."""
    contender = Contender(method, config, model)
    contender.prepare()
    rows = [[_timed(contender, request) for _ in range(REPEATS)] for request in asked]
    completions = [row[0][0] for row in rows]
    right = [
        equivalent(kind := request.metadata["answer"], extract(kind, done.text), extract(kind, request.references[0]))
        for request, done in zip(asked, completions, strict=True)
    ]
    return Asked(completions, right, [median(time_ms for _, time_ms in row) for row in rows])


def _timed(contender: Contender, request: Request) -> tuple[Completion, float]:
    start = time.perf_counter()
    (done,) = contender.complete([request], RequestMeter())
    return done, 1e3 * (time.perf_counter() - start)


def agreement(asked: Asked, samples: Sequence[Samples], rule: Callable[[Samples, int], Outcome], k: int) -> Estimate:
    """The share of online answers that are as right, and came as late, as the offline rule says of the same k chains."""
    same = []
    for done, right, pool in zip(asked.completions, asked.right, samples, strict=False):
        outcome = rule(_first(pool, k), k)
        length = done.search.extra["finished_only_tokens"] if done.search else None
        same.append(float(right == (outcome.accuracy == 1) and length == outcome.finished_only_tokens))
    estimate = mean_estimate(same)
    assert estimate is not None
    return estimate


def _first(pool: Samples, k: int) -> Samples:
    return Samples(pool.lengths[:k], pool.classes[:k], pool.correct[:k], pool.finished[:k])
