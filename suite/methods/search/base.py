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
from functools import partial
from typing import Any, ClassVar, cast

from suite.cost import MethodCost, Situation
from suite.errors import UnitError
from suite.methods.base import Generator, Method, MethodConfig, tunable
from suite.methods.search.asks import Ask, MakeSampler, Sampler, Sampling, Scoring, Writing, run
from suite.methods.search.ledger import Ledger
from suite.methods.search.policy import Policy
from suite.methods.search.sampler import NativeSampler
from suite.methods.search.trace import Answer, Problem, Trace
from suite.methods.search.verifier import Aggregate, Judge, JudgeName, Verifier, make_judge
from suite.models.attention import DenseAttention
from suite.models.branches import Forest
from suite.models.generation import Meter, generate
from suite.models.language_model import LanguageModel, TextModel
from workloads.schema import Completion, CostLedger, Request

EXACT = "judged by the exact oracle, which no real verifier is"


class SearchConfig(MethodConfig):
    """How pieces are drawn. A request's own temperature does not count: a search without variety is none."""

    samples: int = tunable(8, low=1, high=256, log=True)
    temperature: float = tunable(0.8, low=0.0, high=2.0)
    top_p: float = tunable(1.0, low=0.05, high=1.0)


class VerifiedConfig(SearchConfig):
    """A search with a verifier: which judge, and how its step scores become one figure."""

    verifier: JudgeName = "self"
    aggregate: Aggregate = tunable("prod", choices=("prod", "min", "last", "mean"))


class SearchMethod(Method):
    """A method fills in `search`; one instance serves all problems of a run and keeps nothing between them."""

    Config: ClassVar[type[MethodConfig]] = SearchConfig
    _judge: Judge | None = None

    @staticmethod
    def cost(config: Any, at: Situation) -> MethodCost:
        """`samples` chains side by side behind one prompt. Later forks and the verifier's passes are left out."""
        distinct = at.distinct(config.samples)
        return MethodCost(chains=config.samples, read=distinct, stored=distinct)

    @abstractmethod
    async def search(self, policy: Policy, verifier: Verifier, config: Any) -> Answer:
        """The answer to the policy's problem. What is awaited is all it costs."""

    def refusal(self, model: TextModel, config: Any) -> str | None:
        """Branches know no sliding window, and not every judge reads every model's texts."""
        if isinstance(model, LanguageModel) and not Forest.fits(model.config):
            return f"{model.name} has layers with a sliding window, over which texts cannot be forked yet"
        name = getattr(config, "verifier", None)
        why = None if name is None else make_judge(name).refusal(model)
        return None if why is None else f"verifier {name}: {why}"

    def prepare(self, model: TextModel, config: Any) -> None:
        """Loads the judge, where there is one."""
        name = getattr(config, "verifier", None)
        if name is not None:
            self._judge = make_judge(name)
            self._judge.prepare(model)

    def gated(self, config: Any) -> MethodConfig:
        """Without chance all samples are the greedy text, and so is the answer."""
        return cast(SearchConfig, config).model_copy(update={"temperature": 0.0})

    @contextmanager
    def attach(self, model: LanguageModel, config: MethodConfig) -> Iterator[Generator]:
        """Nothing is installed on the model: a search is another way of calling it."""
        yield SearchGenerator(model, partial(NativeSampler, model), self, config, self._judge)

    def through(self, model: TextModel, config: MethodConfig, sampler: MakeSampler) -> Generator:
        """The same search; only where the tokens come from is another place."""
        return SearchGenerator(model, sampler, self, config, self._judge)


class SearchGenerator:
    """Runs batches of requests through a search."""

    def __init__(
        self, model: TextModel, sampler: MakeSampler, method: SearchMethod, config: Any, judge: Judge | None
    ) -> None:
        self._model, self._sampler = model, sampler
        self._method, self._config, self._judge = method, config, judge

    def generate(self, requests: Sequence[Request], meter: Meter) -> Iterator[Completion]:
        """One batch; completions in the order of the requests. Requests with a `target` are scored, not searched."""
        if any(request.target is not None for request in requests):
            if not isinstance(self._model, LanguageModel):
                raise UnitError(f"{self._model.name} runs in an engine, which scores no given texts.")
            yield from generate(self._model, DenseAttention(self._model.config), requests, meter)
            return
        prompts = [self._model.encode(request) for request in requests]
        problems = [Problem.of(request, prompt.ids) for request, prompt in zip(requests, prompts, strict=True)]
        sampler = self._sampler(meter)
        for problem in problems:
            meter.start(problem.id, len(problem.ids))
        done = dict(self._searched(problems, sampler, meter))
        judged = (EXACT,) if self._judge is not None and self._judge.exact else ()
        for index, prompt in enumerate(prompts):
            yield _completion(requests[index], done[index], (*prompt.notes, *judged), meter)

    def _searched(
        self, problems: Sequence[Problem], sampler: Sampler, meter: Meter
    ) -> Iterator[tuple[int, tuple[Answer, Ledger]]]:
        """All problems side by side; an answer's tokens are known when its search is over."""
        ledgers = [Ledger() for _ in problems]
        if self._judge is not None:
            self._judge.begin(self._model)
            self._judge.lend(sampler)
        policies = [
            Policy(problem, self._config.temperature, self._config.top_p, ledger)
            for problem, ledger in zip(problems, ledgers, strict=True)
        ]
        meter.phase("prefill")
        roots = [policy.root for policy in policies]
        sampler.prefill(roots)
        meter.phase("decode")
        aggregate: Aggregate = getattr(self._config, "aggregate", "prod")
        searches = [
            self._method.search(policy, Verifier(aggregate, policy.ledger), self._config) for policy in policies
        ]
        for index, answer in run(searches, Desk(sampler, self._judge).serve):
            for token in answer.trace.all_ids:
                meter.token(problems[index].id, token)
            yield index, (answer, ledgers[index])
        sampler.settle(roots, ledgers)


class Desk:
    """Answers what the searches of a batch ask for: all of one kind together."""

    def __init__(self, sampler: Sampler, judge: Judge | None) -> None:
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
    ledger.extra["written"] = float(answer.trace.written)
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
            discarded_tokens=ledger.generated - len(ids) + answer.trace.written,
            verifier_passes=ledger.verifier_passes,
            sequential_depth=ledger.sequential,
        ),
        search=ledger.figures(),
        notes=(*notes, *answer.notes),
    )


def open_traces(traces: Sequence[Trace]) -> bool:
    """Whether any of them can go on."""
    return any(not trace.finished for trace in traces)
