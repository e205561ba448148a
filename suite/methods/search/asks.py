"""Searches as coroutines: what many of them wait for is done in one batch.

    async def search(...): children = await Sampling(...)       # one search, written as if it were alone
    results = run([search(a), search(b)], serve)                # both step together

A search runs until it asks for something. When all have asked, `serve` answers all asks at once, so that the chains of
many problems share the passes of the model. The order of the asks is that of the searches: nothing depends on time.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from suite.methods.search.ledger import Ledger
from suite.methods.search.trace import Trace

R = TypeVar("R")
T = TypeVar("T")


class Ask(Generic[R]):
    """Something a search waits for; awaiting it gives the result."""

    def __await__(self) -> Generator[Ask[R], R, R]:
        return (yield self)


@dataclass
class Sampling(Ask[list[Trace]]):
    """One more piece behind each of the parents, drawn side by side -> the children, in the order of the parents.

    `until`: the text that ends a piece (None: the end of the trace); `limit`: its most tokens. `first`: so many have to
    get there, then the others are called off where they are (0: all go on). `seeds`: one for each piece.
    """

    parents: Sequence[Trace]
    seeds: Sequence[tuple[int, ...]]
    until: str | None
    limit: int
    temperature: float
    top_p: float
    first: int
    ledger: Ledger


@dataclass
class Writing(Ask[Trace]):
    """Text put behind a trace as if the model had written it (a guide, a "Wait"): it costs no decode step."""

    parent: Trace
    text: str
    ledger: Ledger


@dataclass
class Scoring(Ask[list[tuple[float, ...]]]):
    """A verifier's step scores, in (0, 1), of each trace."""

    traces: Sequence[Trace]
    ledger: Ledger


Serve = Callable[[Sequence[Ask[Any]]], Sequence[Any]]


def run(searches: Sequence[Coroutine[Ask[Any], Any, T]], serve: Serve) -> Iterator[tuple[int, T]]:
    """Runs the searches side by side; yields (index, result) as they end."""
    waiting: dict[int, Ask[Any]] = {}
    try:
        yield from _advance(searches, dict.fromkeys(range(len(searches))), waiting)
        while waiting:
            indices, asks = list(waiting), list(waiting.values())
            waiting.clear()
            yield from _advance(searches, dict(zip(indices, serve(asks), strict=True)), waiting)
    finally:
        for search in searches:
            search.close()


def _advance(
    searches: Sequence[Coroutine[Ask[Any], Any, T]], results: dict[int, Any], waiting: dict[int, Ask[Any]]
) -> Iterator[tuple[int, T]]:
    """Hands the results over; the next asks go to `waiting`, what has ended comes out."""
    for index, result in results.items():
        try:
            waiting[index] = searches[index].send(result)
        except StopIteration as ended:
            yield index, ended.value
