"""Self-consistency: whole solutions, the answer that most of them come to."""

from __future__ import annotations

from typing import ClassVar

from suite.methods.base import Card, Claim, tunable
from suite.methods.search.base import SearchConfig, SearchMethod
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer
from suite.methods.search.verifier import Verifier
from suite.methods.search.voting import Tie, answers, vote


class SelfConsistencyConfig(SearchConfig):
    """`tie`: whose answer counts where several have most votes. `rounds`: so often are samples drawn if none answers."""

    tie: Tie = tunable("first", choices=("first", "random", "shortest"))
    rounds: int = tunable(1, low=1, high=5)


class SelfConsistency(SearchMethod):
    """`samples` chains drawn to their ends, one vote each; who answers nothing has none (2203.11171)."""

    Config = SelfConsistencyConfig
    card: ClassVar[Card] = Card(
        slug="self_consistency",
        family="control",
        title="Self-Consistency Improves Chain of Thought Reasoning in Language Models",
        source="arXiv 2203.11171",
        lossless=False,
        claims=(
            Claim("throughput", "16 chains side by side make more tokens per second than one",
                  "at least 6 times on two cores (the suite's own bar)", "ratio of tokens/s", 6.0),
            Claim("shared", "chains of one prompt hold its cache once", "forked caches share the prompt's pages",
                  "memory of 16 chains apart / together", None),
        ),
    )  # fmt: skip

    async def search(self, policy: Policy, verifier: Verifier, config: SelfConsistencyConfig) -> Answer:
        """Draw and count; fresh samples where nobody answers."""
        for _ in range(config.rounds):
            chains = await policy.finish([policy.root] * config.samples)
            if any(map(answers, chains)):
                break
        ballot = vote(chains, tie=config.tie)
        policy.ledger.extra["tied"] = float(ballot.tied)
        return Answer(chains[ballot.winner], tuple(chains))
