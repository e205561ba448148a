"""Best of N: whole solutions, the verifier picks one."""

from __future__ import annotations

from typing import ClassVar

from suite.methods.base import Card
from suite.methods.search.base import SearchMethod, VerifiedConfig, first_best
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer
from suite.methods.search.verifier import Verifier


class BestOfN(SearchMethod):
    """`samples` chains drawn to their ends, side by side; the highest score wins, the first of equals (2110.14168)."""

    Config = VerifiedConfig
    card: ClassVar[Card] = Card(
        slug="best_of_n",
        family="control",
        title="Training Verifiers to Solve Math Word Problems",
        source="arXiv 2110.14168",
        lossless=False,
    )

    async def search(self, policy: Policy, verifier: Verifier, config: VerifiedConfig) -> Answer:
        """Draw, score, pick."""
        chains = await policy.finish([policy.root] * config.samples)
        scores = await verifier.scores(chains)
        return Answer(chains[first_best(scores)], tuple(chains), tuple(scores))
