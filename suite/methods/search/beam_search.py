"""Beam search over steps with a verifier: the best prefixes go on, all others are given up."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from suite.methods.base import Card, tunable
from suite.methods.search.base import SearchMethod, VerifiedConfig, first_best
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer, Trace, distinct
from suite.methods.search.verifier import Verifier


class BeamConfig(VerifiedConfig):
    """`samples`: steps drawn at every depth, `samples // beams` behind each of the `beams` prefixes that are kept."""

    beams: int = tunable(2, low=1, high=64, log=True)
    steps: int = tunable(40, low=1, high=200)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.samples < self.beams:
            raise ValueError(f"{self.samples} samples are too few for {self.beams} beams")
        return self


class BeamSearch(SearchMethod):
    """The standard algorithm; what is finished leaves the beam and waits (`bag_of_tricks`, section 3, method 4)."""

    Config = BeamConfig
    card: ClassVar[Card] = Card(
        slug="beam_search",
        family="control",
        title="Bag of Tricks for Inference-time Computation of LLM Reasoning: beam search",
        source="arXiv 2502.07191",
        lossless=False,
    )

    async def search(self, policy: Policy, verifier: Verifier, config: BeamConfig) -> Answer:
        """Draw, score, keep the best; the best that finished is the answer, or the best that did not."""
        beam, finished = [policy.root], list[Trace]()
        for step in range(config.steps):
            rows = config.samples // (config.beams if step else 1)
            drawn = distinct(await policy.step([trace for trace in beam for _ in range(rows)]))
            scores = dict(zip(drawn, await verifier.scores(drawn), strict=True))
            best = sorted(drawn, key=lambda trace: -scores[trace])[: config.beams]
            finished += [trace for trace in best if trace.finished]
            beam = [trace for trace in best if not trace.finished]
            if not beam:
                break
        pool = finished or beam
        values = await verifier.scores(pool)
        return Answer(pool[first_best(values)], tuple(pool), tuple(values))
