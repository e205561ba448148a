"""Step-level best of N: at every step the verifier picks one of N, and there is no way back."""

from __future__ import annotations

from typing import ClassVar

from suite.methods.base import Card, tunable
from suite.methods.search.base import SearchMethod, VerifiedConfig
from suite.methods.search.dvts import best_steps
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer
from suite.methods.search.verifier import Verifier


class StepBestConfig(VerifiedConfig):
    """`samples`: steps drawn each time; `steps`: the most of an answer."""

    steps: int = tunable(40, low=1, high=200)


class StepBestOfN(SearchMethod):
    """One tree that keeps one branch (`bag_of_tricks`, section 3, method 2)."""

    Config = StepBestConfig
    card: ClassVar[Card] = Card(
        slug="step_best_of_n",
        family="control",
        title="Bag of Tricks for Inference-time Computation of LLM Reasoning: step-level best of N",
        source="arXiv 2502.07191",
        lossless=False,
    )

    async def search(self, policy: Policy, verifier: Verifier, config: StepBestConfig) -> Answer:
        """Draw, score, go on."""
        return await best_steps(policy, verifier, 1, config.samples, config.steps)
