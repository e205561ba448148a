"""Self-refine: the model answers, criticises its answer and improves it, until it finds no error."""

from __future__ import annotations

from typing import ClassVar

from suite.methods.base import Card, tunable
from suite.methods.search.base import SearchConfig, SearchMethod
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer, Trace
from suite.methods.search.verifier import Verifier


class SelfRefineConfig(SearchConfig):
    """`review` asks for the criticism, `accepted` in it ends the loop, `revise` asks for the better answer.

    A criticism has at most `review_tokens`; all rounds together have the request's tokens.
    """

    samples: int = tunable(1, low=1, high=1)
    rounds: int = tunable(3, low=0, high=3)
    review_tokens: int = tunable(128, low=1, high=2048)
    review: str = '\n\nIs there a mistake above? Name the first wrong step, or write "No error".\nReview:'
    accepted: str = "No error"
    revise: str = "\n\nSolve the problem again without that mistake.\nBetter solution:"


class SelfRefine(SearchMethod):
    """One conversation: answer, criticism, next answer, at most `rounds` times; each reads all before it (2303.17651).

    The last answer counts. `bag_of_tricks`, method 6, with prompts in the suite's own words.
    """

    Config = SelfRefineConfig
    card: ClassVar[Card] = Card(
        slug="self_refine",
        family="control",
        title="Self-Refine: Iterative Refinement with Self-Feedback",
        source="arXiv 2303.17651",
        lossless=False,
    )

    def gated(self, config: SelfRefineConfig) -> SelfRefineConfig:
        """The first answer."""
        return config.model_copy(update={"temperature": 0.0, "rounds": 0})

    async def search(self, policy: Policy, verifier: Verifier, config: SelfRefineConfig) -> Answer:
        """Answer, then criticise and answer again."""
        (answer,) = await policy.finish([policy.root])
        pool = [answer]
        for _ in range(config.rounds):
            if _room(answer) <= 0:
                break
            asked = await policy.write(answer, config.review)
            (review,) = await policy.finish([asked], most=config.review_tokens)
            if config.accepted in review.text[len(asked.text) :] or _room(review) <= 0:
                break
            asked = await policy.write(review, config.revise)
            (answer,) = await policy.finish([asked])
            pool.append(answer)
        policy.ledger.extra["rounds"] = float(len(pool) - 1)
        return Answer(answer, tuple(pool))


def _room(trace: Trace) -> int:
    """Tokens that may still be written."""
    return trace.problem.max_new_tokens - trace.length
