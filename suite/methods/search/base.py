"""The search family: a method says which traces to go on with, the family draws and scores them.

A search is a coroutine over its own problem, as if it were alone:

    async def search(self, policy, verifier, config):
        chains = await policy.finish([policy.root] * config.samples)
        scores = await verifier.scores(chains)
        ...
        return Answer(best, chains, scores)

All requests of a batch are searched side by side, and what they wait for at the same time is done in the same passes
(`asks`). Traces are immutable, so a fork is two children of one trace, and costs no copy (`suite.models.branches`).
Every sampled token is counted once, those that nobody reads again included (`ledger`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, cast

from suite.methods.base import Generator, Method, MethodConfig, tunable
from suite.methods.search.asks import Ask, Sampling, Scoring, Writing, run
from suite.methods.search.ledger import Ledger
from suite.methods.search.policy import Policy
from suite.methods.search.sampler import NativeSampler
from suite.methods.search.trace import Answer, Problem, Trace
from suite.methods.search.verifier import JUDGES, Aggregate, Judge, Verifier
from suite.models.attention import DenseAttention
from suite.models.branches import Forest
from suite.models.generation import Meter, generate
from suite.models.language_model import LanguageModel
from workloads.schema import Completion, CostLedger, Request

JudgeName = Literal["random", "self"]


class SearchConfig(MethodConfig):
    """How pieces are drawn. A request's own temperature does not count: a search without variety is none."""

    samples: int = tunable(8, low=1, high=256, log=True)
    temperature: float = tunable(0.8, low=0.0, high=2.0)
    top_p: float = tunable(1.0, low=0.05, high=1.0)


class VerifiedConfig(SearchConfig):
    """A search with a verifier: which judge, and how its step scores become one figure."""

    verifier: JudgeName = tunable("self", choices=("random", "self"))
    aggregate: Aggregate = tunable("prod", choices=("prod", "min", "last", "mean"))


class SearchMethod(Method):
    """A method fills in `search`; one instance serves all problems of a run and keeps nothing between them."""

    Config: ClassVar[type[MethodConfig]] = SearchConfig
    _judge: Judge | None = None

    @abstractmethod
    async def search(self, policy: Policy, verifier: Verifier, config: Any) -> Answer:
        """The answer to the policy's problem. What is awaited is all it costs."""

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        """Branches know no sliding window."""
        if not Forest.fits(model.config):
            return f"{model.name} has layers with a sliding window, over which texts cannot be forked yet"
        return None

    def prepare(self, model: LanguageModel, config: Any) -> None:
        """Loads the judge, where there is one."""
        name = getattr(config, "verifier", None)
        if name is not None:
            self._judge = cast(Judge, JUDGES.load(name)())
            self._judge.prepare(model)

    def gated(self, config: Any) -> MethodConfig:
        """Without chance all samples are the greedy text, and so is the answer."""
        return cast(SearchConfig, config).model_copy(update={"temperature": 0.0})

    @contextmanager
    def attach(self, model: LanguageModel, config: MethodConfig) -> Iterator[Generator]:
        """Nothing is installed on the model: a search is another way of calling it."""
        yield SearchGenerator(model, self, config, self._judge)


class SearchGenerator:
    """Runs batches of requests through a search."""

    def __init__(self, model: LanguageModel, method: SearchMethod, config: Any, judge: Judge | None) -> None:
        self._model, self._method, self._config, self._judge = model, method, config, judge

    def generate(self, requests: Sequence[Request], meter: Meter) -> Iterator[Completion]:
        """One batch; completions in the order of the requests. A request with a `target` is scored, not searched."""
        if any(request.target is not None for request in requests):
            yield from generate(self._model, DenseAttention(self._model.config), requests, meter)
            return
        prompts = [self._model.encode(request) for request in requests]
        problems = [Problem.of(request, prompt.ids) for request, prompt in zip(requests, prompts, strict=True)]
        for problem in problems:
            meter.start(problem.id, len(problem.ids))
        done = dict(self._searched(problems, meter))
        for index, prompt in enumerate(prompts):
            yield _completion(requests[index], done[index], prompt.notes, meter)

    def _searched(self, problems: Sequence[Problem], meter: Meter) -> Iterator[tuple[int, tuple[Answer, Ledger]]]:
        """All problems side by side; an answer's tokens are known when its search is over."""
        sampler, ledgers = NativeSampler(self._model, meter), [Ledger() for _ in problems]
        if self._judge is not None:
            self._judge.begin(self._model)
        policies = [
            Policy(problem, self._config.temperature, self._config.top_p, ledger)
            for problem, ledger in zip(problems, ledgers, strict=True)
        ]
        meter.phase("prefill")
        sampler.prefill([policy.root for policy in policies])
        meter.phase("decode")
        aggregate: Aggregate = getattr(self._config, "aggregate", "prod")
        searches = [
            self._method.search(policy, Verifier(aggregate, policy.ledger), self._config) for policy in policies
        ]
        for index, answer in run(searches, Desk(sampler, self._judge).serve):
            for token in answer.trace.all_ids:
                meter.token(problems[index].id, token)
            ledgers[index].prefilled += len(problems[index].ids)
            yield index, (answer, ledgers[index])


class Desk:
    """Answers what the searches of a batch ask for: all of one kind together."""

    def __init__(self, sampler: NativeSampler, judge: Judge | None) -> None:
        self._sampler, self._judge = sampler, judge

    def serve(self, asks: Sequence[Ask[Any]]) -> list[Any]:
        """The results in the order of the asks."""
        results: dict[int, Any] = {}
        for kind, work in ((Sampling, self._sampler.draw), (Writing, self._sampler.write), (Scoring, self._score)):
            mine = [(index, ask) for index, ask in enumerate(asks) if isinstance(ask, kind)]
            if mine:
                answers = cast(Any, work)([ask for _, ask in mine])
                results.update(zip((index for index, _ in mine), answers, strict=True))
        return [results[index] for index in range(len(asks))]

    def _score(self, asked: Sequence[Scoring]) -> list[list[tuple[float, ...]]]:
        assert self._judge is not None, "a search without a verifier asked for scores"
        return self._judge.score(asked)


def first_best(scores: Sequence[float]) -> int:
    """The highest score, the first where several are."""
    return max(range(len(scores)), key=lambda index: scores[index])


def _completion(request: Request, found: tuple[Answer, Ledger], notes: tuple[str, ...], meter: Meter) -> Completion:
    answer, ledger = found
    ids, (start_ns, token_ns) = answer.trace.all_ids, meter.times(request.id)
    return Completion(
        request_id=request.id,
        token_ids=ids,
        text=answer.trace.text,
        start_ns=start_ns,
        token_ns=token_ns,
        stop_reason=answer.trace.end or "length",
        cost=CostLedger(
            prompt_tokens=len(answer.trace.problem.ids),
            generated_tokens=len(ids),
            discarded_tokens=max(0, ledger.generated - len(ids)),
            verifier_passes=ledger.verifier_passes,
            sequential_depth=ledger.sequential,
        ),
        search=ledger.figures(),
        notes=(*notes, *answer.notes),
    )


def open_traces(traces: Sequence[Trace]) -> bool:
    """Whether any of them can go on."""
    return any(not trace.finished for trace in traces)
