"""Particle Gibbs: the filter again and again, each time beside a whole trace of the time before (2502.01618)."""

from __future__ import annotations

from typing import ClassVar

from suite.methods.base import Card, tunable
from suite.methods.search.base import SearchMethod, first_best
from suite.methods.search.particle_filtering import Cloud, ParticleConfig, filtered, weights
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer
from suite.methods.search.verifier import Verifier


class GibbsConfig(ParticleConfig):
    """`samples` particles in each of `iterations`; from the second on the reference is one of them."""

    iterations: int = tunable(2, low=1, high=16)
    samples: int = tunable(8, low=2, high=256, log=True)


class ParticleGibbs(SearchMethod):
    """The reference is drawn by the final weights; the last iteration's highest reward is the answer."""

    Config = GibbsConfig
    card: ClassVar[Card] = Card(
        slug="particle_gibbs",
        family="search",
        title="Rollout Roulette: particle Gibbs",
        source="arXiv 2502.01618",
        lossless=False,
    )

    async def search(self, policy: Policy, verifier: Verifier, config: GibbsConfig) -> Answer:
        """Filter, draw the reference, filter beside it."""
        cloud = Cloud(config.samples, config.softmax_temperature, [])
        for iteration in range(config.iterations):
            cloud.size = config.samples - (iteration > 0)
            cloud.particles = [policy.root] * cloud.size
            await filtered(policy, verifier, [cloud], config)
            pool = cloud.pool()
            scores = await verifier.scores(pool)
            theta = weights(scores, cloud.temperature, config.weights)
            cloud.reference = pool[int(policy.rng.choice(len(pool), p=theta))]
        return Answer(pool[first_best(scores)], tuple(pool), tuple(scores))
