"""short-m@k: of k chains the m that think shortest vote; the others are called off as soon as these are known."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from suite.methods.base import Card, Claim, tunable
from suite.methods.search.base import SearchConfig, SearchMethod
from suite.methods.search.policy import Policy
from suite.methods.search.racing import Arrival, Race, arrived, elected, race
from suite.methods.search.trace import Answer, Trace
from suite.methods.search.verifier import Verifier
from suite.methods.search.voting import answers


class ShortConfig(SearchConfig):
    """The paper's sampling; `samples` is its k. `require_answer`: a chain that answers nothing gives up its slot.

    `sequential`: one chain after the other, for hardware that runs no two; each is called off when it can no longer be
    among the m shortest.
    """

    samples: int = tunable(5, low=1, high=256, log=True)
    temperature: float = tunable(0.7, low=0.0, high=2.0)
    top_p: float = tunable(0.95, low=0.05, high=1.0)
    m: int = tunable(3, low=1, high=256, log=True)
    require_answer: bool = False
    sequential: bool = False

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.m > self.samples:
            raise ValueError(f"m={self.m} of samples={self.samples} chains cannot be waited for; m is at most samples")
        if self.sequential and self.require_answer:
            raise ValueError("require_answer needs chains that run side by side; leave out sequential")
        return self


class ShortMAtK(SearchMethod):
    """k chains of one prompt; when m have closed their thinking the others stop. The m write their answers and vote.

    Ties go to the shortest thinking, so two answers of m = 2 are the shortest chain's (2505.17813). The thinking ends
    where the problem's `closing` stands; without one, with the chain. A chain that runs out of tokens never counts.
    """

    Config = ShortConfig
    card: ClassVar[Card] = Card(
        slug="short_m_at_k",
        family="search",
        title="Don't Overthink it. Preferring Shorter Thinking Chains for Improved LLM Reasoning",
        source="arXiv 2505.17813 v2",
        lossless=False,
        claims=(
            Claim("shortest", "the shortest of 20 chains is right more often than the longest",
                  "+34.5 points at most (Nemotron-49B), +11.2 to +24.3 elsewhere", "points", 11.2),
            Claim("short-1", "short-1@k is as good as majority voting with fewer tokens",
                  "40 % fewer thinking tokens at equal accuracy", "fewer tokens at equal accuracy, %", 40.0),
            Claim("short-3", "short-3@k is better than majority@k at every compute level", "+2 to +4 points at large k",
                  "points against majority@5", 0.0),
            Claim("time", "short-3@k answers sooner than majority@k", "up to 33 % (R1-32B, k=5)",
                  "less time to answer, k=5, %", 33.0),
            Claim("time-1", "short-1@k answers sooner than majority@k", "almost 50 % (k=5)",
                  "less time to answer, k=5, %", 50.0),
            Claim("collide", "the same where wrong answers meet", "+2 to +4 points at large k",
                  "points against majority@5", 0.0),
            Claim("control", "where length says nothing, nothing is gained", "within-question AUC 0.5",
                  "points against one sample, k=5", 0.0),
            Claim("online", "the stop in the running batch is the offline rule", "chains do not depend on the policy",
                  "share of 20 questions", 1.0),
        ),
    )  # fmt: skip

    async def search(self, policy: Policy, verifier: Verifier, config: ShortConfig) -> Answer:
        """Race to the end of thinking, write the answers, vote."""
        if config.sequential:
            return elected(policy, await _one_by_one(policy, config), "shortest")
        counts = answers if config.require_answer else None
        return elected(policy, await race(policy, config.samples, config.m, policy.problem.closing, counts), "shortest")


async def _one_by_one(policy: Policy, config: ShortConfig) -> Race:
    """The same m chains: one that ties with the m-th shortest so far comes after it."""
    closing, drawn, best = policy.problem.closing, list[Trace](), list[Trace]()
    for _ in range(config.samples):
        most = best[-1].length - 1 if len(best) == config.m else None
        drawn += await policy.first([policy.root], 1, closing, most)
        best = sorted((t for t in drawn if arrived(t, closing)), key=lambda there: there.length)[: config.m]
    return Race([Arrival(*pair) for pair in zip(best, await policy.finish(best), strict=True)], drawn)
