"""Parallel tempering: filters of several temperatures side by side, which exchange their references (2502.01618)."""

from __future__ import annotations

from itertools import pairwise
from math import exp
from typing import ClassVar, Self

import numpy as np
from pydantic import model_validator

from suite.methods.base import Card, tunable
from suite.methods.search.base import SearchMethod, first_best
from suite.methods.search.particle_filtering import Cloud, filtered, weights
from suite.methods.search.particle_gibbs import GibbsConfig
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer
from suite.methods.search.verifier import Verifier, logit


class TemperingConfig(GibbsConfig):
    """`samples` particles in all, equally many in each of `chains`, whose temperatures fall from `hottest` to
    `softmax_temperature` by equal factors. The paper's own runs are independent filters: `iterations` 1, `hottest` 1.
    """

    chains: int = tunable(2, low=1, high=16)
    hottest: float = tunable(4.0, low=0.05, high=20.0, log=True)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.samples < 2 * self.chains:
            raise ValueError(f"{self.samples} samples are too few for {self.chains} chains of two particles or more")
        return self


class ParallelTempering(SearchMethod):
    """Every chain runs particle Gibbs; the highest reward of all chains in the last iteration is the answer."""

    Config = TemperingConfig
    card: ClassVar[Card] = Card(
        slug="parallel_tempering",
        family="search",
        title="Rollout Roulette: parallel tempering",
        source="arXiv 2502.01618",
        lossless=False,
    )

    async def search(self, policy: Policy, verifier: Verifier, config: TemperingConfig) -> Answer:
        """Filter all chains, draw their references, exchange them, filter beside them."""
        size = config.samples // config.chains
        heats = np.geomspace(config.hottest, config.softmax_temperature, config.chains).tolist()
        clouds = [Cloud(size, heat, []) for heat in heats]
        swaps = 0
        for iteration in range(config.iterations):
            for cloud in clouds:
                cloud.size = size - (iteration > 0)
                cloud.particles = [policy.root] * cloud.size
            await filtered(policy, verifier, clouds, config)
            pools = [cloud.pool() for cloud in clouds]
            scores = [await verifier.scores(pool) for pool in pools]
            for cloud, pool, own in zip(clouds, pools, scores, strict=True):
                theta = weights(own, cloud.temperature, config.weights)
                cloud.reference = pool[int(policy.rng.choice(len(pool), p=theta))]
            swaps += await _exchange(clouds, verifier, policy.rng)
        policy.ledger.extra["swaps"] = swaps
        everyone = [trace for pool in pools for trace in pool]
        everything = [score for own in scores for score in own]
        return Answer(everyone[first_best(everything)], tuple(everyone), tuple(everything))


async def _exchange(clouds: list[Cloud], verifier: Verifier, rng: np.random.Generator) -> int:
    """Neighbours exchange their references with probability min(1, pi_k(y) pi_l(x) / (pi_k(x) pi_l(y)))."""
    swaps = 0
    for hot, cold in pairwise(clouds):
        assert hot.reference is not None
        assert cold.reference is not None
        x, y = await verifier.scores([hot.reference, cold.reference])
        gain = (logit(y) - logit(x)) * (1 / hot.temperature - 1 / cold.temperature)
        if rng.random() < exp(min(0.0, gain)):
            hot.reference, cold.reference = cold.reference, hot.reference
            swaps += 1
    return swaps
