"""Budget forcing: a thought that would stop too early is told to wait, and one that goes on too long to answer."""

from __future__ import annotations

from typing import ClassVar

from suite.methods.base import Card, tunable
from suite.methods.search.base import SearchConfig, SearchMethod
from suite.methods.search.policy import Policy
from suite.methods.search.racing import arrived
from suite.methods.search.trace import Answer
from suite.methods.search.verifier import Verifier


class BudgetForcingConfig(SearchConfig):
    """`wait`: what stands in place of an attempted stop; "" lets the model stop. `guide`: what asks for the answer.

    The thinking's budget is what `answer_tokens` leaves of the request's tokens.
    """

    samples: int = tunable(1, low=1, high=1)
    temperature: float = tunable(0.0, low=0.0, high=2.0)
    wait: str = "Wait"
    guide: str = "\nFinal answer:"
    answer_tokens: int = tunable(64, low=0, high=2048)


class BudgetForcing(SearchMethod):
    """One chain that thinks until its budget is used: "Wait" takes the place of its stops, then it has to answer (s1).

    Greedy, as in the paper (2501.19393). The thinking stops at the problem's `closing`, or where the chain would end.
    """

    Config = BudgetForcingConfig
    card: ClassVar[Card] = Card(
        slug="budget_forcing",
        family="control",
        title="s1: Simple test-time scaling",
        source="arXiv 2501.19393",
        lossless=False,
    )

    def gated(self, config: BudgetForcingConfig) -> BudgetForcingConfig:
        """Nothing is written for the model."""
        return config.model_copy(update={"temperature": 0.0, "wait": "", "guide": "", "answer_tokens": 0})

    async def search(self, policy: Policy, verifier: Verifier, config: BudgetForcingConfig) -> Answer:
        """Think to the budget, then write the answer."""
        problem, waits = policy.problem, 0
        budget = max(1, problem.max_new_tokens - config.answer_tokens)
        (thought,) = await policy.first([policy.root], 1, problem.closing, budget)
        while config.wait and arrived(thought, problem.closing) and thought.length < budget:
            waiting = await policy.write(thought, config.wait, problem.closing)
            if waiting.length >= budget:
                break
            (thought,) = await policy.first([waiting], 1, problem.closing, budget - waiting.length)
            waits += 1
        policy.ledger.extra["waits"] = float(waits)
        if config.guide and not thought.finished and not arrived(thought, problem.closing):
            thought = await policy.write(thought, (problem.closing or "") + config.guide)
        (whole,) = await policy.finish([thought])
        return Answer(whole)
