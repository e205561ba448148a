"""Searches on a tree that a test writes down, without a model: a step is one token, its place among its siblings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from suite.methods.search.asks import Ask, Sampling, run
from suite.methods.search.base import SearchMethod
from suite.methods.search.ledger import Ledger
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer, Problem, Trace
from suite.methods.search.verifier import Verifier

Path = tuple[int, ...]


def path(trace: Trace) -> Path:
    """The places of its pieces among their siblings."""
    return trace.all_ids


class Tree:
    """`score` of the steps of a path; a path ends at `depth`, or where `ends` says. The rest is counted."""

    def __init__(
        self,
        score: Callable[[Path], float] = lambda path: 0.5,
        depth: int = 4,
        ends: Callable[[Path], bool] = lambda path: False,
        text: Callable[[Path], str] = lambda path: "",
        siblings: int = 1 << 30,
    ) -> None:
        self.score, self.depth, self.ends, self.text, self.siblings = score, depth, ends, text, siblings
        self.drawn: list[list[Path]] = []
        """The parents of every call of the policy."""
        self.scored: list[Path] = []
        self.temperatures: list[float] = []
        self._children: dict[Path, int] = {}

    def search(self, method: SearchMethod, seed: int = 0, aggregate: str = "last", **options: Any) -> Answer:
        """The answer of one search; `policy` and `ledger` remain."""
        problem = Problem("p", "", (1,), 1 << 20, seed, answer="chain")
        self.ledger = Ledger()
        self.policy = Policy(problem, 1.0, 1.0, self.ledger)
        config = method.Config(**options)
        search = method.search(self.policy, Verifier(aggregate, self.ledger), config)  # type: ignore[arg-type]
        return next(run([search], self.serve))[1]

    def serve(self, asks: Sequence[Ask[Any]]) -> list[Any]:
        return [self._sample(ask) if isinstance(ask, Sampling) else self._steps(ask) for ask in asks]

    def _sample(self, ask: Sampling) -> list[Trace]:
        self.drawn.append([path(parent) for parent in ask.parents])
        self.temperatures.append(ask.temperature)
        ask.ledger.sampled([1] * len(ask.parents), [1] * len(ask.parents), 0)
        return [self._child(parent, whole=ask.until is None) for parent in ask.parents]

    def _child(self, parent: Trace, whole: bool) -> Trace:
        place = self._children.get(path(parent), 0)
        self._children[path(parent)] = place + 1
        where = (*path(parent), place % self.siblings)
        end = "eos" if whole or len(where) == self.depth or self.ends(where) else None
        return Trace(parent.problem, parent, where[-1:], self.text(where), (0.0,), end)

    def _steps(self, ask: Any) -> list[tuple[float, ...]]:
        self.scored += [path(trace) for trace in ask.traces]
        return [tuple(self.score(path(trace)[: i + 1]) for i in range(trace.length)) for trace in ask.traces]
