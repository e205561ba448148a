"""Diverse verifier tree search: independent trees, in each of which the best step goes on (2502.01618's baseline)."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from suite.methods.base import Card, tunable
from suite.methods.search.base import SearchMethod, VerifiedConfig, first_best, open_traces
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer, Trace
from suite.methods.search.verifier import Aggregate, Verifier


class DVTSConfig(VerifiedConfig):
    """`samples // width` trees, each of which draws `width` steps and keeps one."""

    width: int = tunable(4, low=1, high=64, log=True)
    aggregate: Aggregate = tunable("last", choices=("prod", "min", "last", "mean"))
    steps: int = tunable(40, low=1, high=200)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.samples < self.width:
            raise ValueError(f"{self.samples} samples are too few for one tree of width {self.width}")
        return self


class DVTS(SearchMethod):
    """The answer is the best of the steps that were drawn last in every tree."""

    Config = DVTSConfig
    card: ClassVar[Card] = Card(
        slug="dvts",
        family="control",
        title="Diverse verifier tree search, as in Rollout Roulette",
        source="arXiv 2502.01618",
        lossless=False,
    )

    async def search(self, policy: Policy, verifier: Verifier, config: DVTSConfig) -> Answer:
        """All trees side by side."""
        return await best_steps(policy, verifier, config.samples // config.width, config.width, config.steps)


async def best_steps(policy: Policy, verifier: Verifier, trees: int, width: int, steps: int) -> Answer:
    """In each tree `width` steps are drawn and the best one goes on, the first of equals, until it is finished."""
    kept = [policy.root] * trees
    last: list[list[Trace]] = [[] for _ in kept]
    for _ in range(steps):
        growing = [tree for tree in range(trees) if not kept[tree].finished]
        drawn = await policy.step([kept[tree] for tree in growing for _ in range(width)])
        scores = await verifier.scores(drawn)
        for place, tree in enumerate(growing):
            mine = slice(place * width, (place + 1) * width)
            last[tree] = drawn[mine]
            kept[tree] = drawn[mine][first_best(scores[mine])]
        if not open_traces(kept):
            break
    pool = [trace for candidates in last for trace in candidates if trace.finished] or kept
    values = await verifier.scores(pool)
    return Answer(pool[first_best(values)], tuple(pool), tuple(values))
