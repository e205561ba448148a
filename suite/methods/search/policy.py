"""What a search sees of the model: its own problem, and ways to have traces go on. Every call costs what it says."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from suite.methods.search.asks import Sampling, Writing
from suite.methods.search.ledger import Ledger
from suite.methods.search.trace import Problem, Trace


class Policy:
    """One search's handle. Pieces of one call are drawn side by side, each from a seed of its own.

    Traces that are finished come back as they are, and cost nothing.
    """

    def __init__(self, problem: Problem, temperature: float, top_p: float, ledger: Ledger) -> None:
        self.problem, self.ledger = problem, ledger
        self.temperature, self.top_p = temperature, top_p
        self.root = Trace(problem)
        self._pieces = 0

    async def step(self, parents: Sequence[Trace]) -> list[Trace]:
        """One more reasoning step of each."""
        return await self._extend(parents, self.problem.step)

    async def finish(self, parents: Sequence[Trace], most: int | None = None) -> list[Trace]:
        """Each to its end, or `most` tokens further."""
        return await self._extend(parents, None, most=most)

    async def first(self, parents: Sequence[Trace], count: int, until: str | None = None) -> list[Trace]:
        """Each to its end, or to the text `until`; when `count` are there, the others are called off where they are."""
        return await self._extend(parents, until, first=count)

    async def write(self, parent: Trace, text: str) -> Trace:
        """Text behind an open trace that the model did not choose."""
        return await Writing(parent, text, self.ledger)

    async def _extend(
        self, parents: Sequence[Trace], until: str | None, first: int = 0, most: int | None = None
    ) -> list[Trace]:
        opened = [trace for trace in parents if not trace.finished]
        if not opened:
            return list(parents)
        limit = self.problem.max_new_tokens if most is None else most
        asked = Sampling(
            opened, self._seeds(len(opened)), until, limit, self.temperature, self.top_p, first, self.ledger
        )
        children = iter(await asked)
        return [trace if trace.finished else next(children) for trace in parents]

    def _seeds(self, count: int) -> list[tuple[int, ...]]:
        """A seed for each piece: of the request, and of how many the search has drawn before."""
        first, self._pieces = self._pieces, self._pieces + count
        name = crc32(self.problem.id.encode())
        return [(self.problem.seed, name, number) for number in range(first, first + count)]
