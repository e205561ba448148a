"""Weighted voting: whole solutions, of which each adds its score to its answer."""

from __future__ import annotations

from typing import ClassVar

from suite.methods.base import Card
from suite.methods.search.base import SearchMethod, VerifiedConfig, first_best
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer
from suite.methods.search.verifier import Verifier
from suite.methods.search.voting import min_max, vote


class VotingConfig(VerifiedConfig):
    """`min_max`: scores are stretched to [0, 1] among the samples first, as in `bag_of_tricks`."""

    min_max: bool = False


class WeightedVoting(SearchMethod):
    """The answer with the largest sum of scores, as its best solution gives it (2502.01618's WBoN)."""

    Config = VotingConfig
    card: ClassVar[Card] = Card(
        slug="weighted_voting",
        family="control",
        title="Weighted best of N, as in Rollout Roulette",
        source="arXiv 2502.01618",
        lossless=False,
    )

    async def search(self, policy: Policy, verifier: Verifier, config: VotingConfig) -> Answer:
        """Draw, score, vote."""
        chains = await policy.finish([policy.root] * config.samples)
        scores = await verifier.scores(chains)
        ballot = vote(chains, min_max(scores) if config.min_max else scores)
        policy.ledger.extra["tied"] = float(ballot.tied)
        best = ballot.members[first_best([scores[i] for i in ballot.members])]
        return Answer(chains[best], tuple(chains), tuple(scores))
