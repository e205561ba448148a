"""Particle filtering: traces as particles, resampled after every step by the odds of their rewards (2502.01618)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from suite.methods.base import Card, Claim, tunable
from suite.methods.search.base import SearchMethod, VerifiedConfig, first_best, open_traces
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer, Trace
from suite.methods.search.verifier import Verifier, logit

FloatArray = npt.NDArray[np.float64]


class ParticleConfig(VerifiedConfig):
    """`samples`: particles. `softmax_temperature`: of the rewards' logits, above 1 they decide less.

    `weights`: "logit" is what the code does, "raw", a softmax of the rewards themselves, what the paper prints, which
    hardly selects. `resample_finished`: without it what is finished can neither multiply nor be replaced.
    """

    softmax_temperature: float = tunable(1.0, low=0.05, high=20.0, log=True)
    weights: Literal["logit", "raw"] = tunable("logit", choices=("logit", "raw"))
    resample_finished: bool = True
    steps: int = tunable(40, low=1, high=200)


@dataclass
class Cloud:
    """The particles of one filter. `reference`: a whole trace that competes up to the filter's step and stays."""

    size: int
    temperature: float
    particles: list[Trace]
    reference: Trace | None = None

    def pool(self, step: int | None = None) -> list[Trace]:
        """All that compete: the particles, and the reference up to a step, or all of it."""
        if self.reference is None:
            return list(self.particles)
        pieces = self.reference.lineage
        return [*self.particles, pieces[min(step or len(pieces), len(pieces)) - 1]]


class ParticleFiltering(SearchMethod):
    """One filter; the answer is the particle with the highest reward in the end."""

    Config = ParticleConfig
    card: ClassVar[Card] = Card(
        slug="particle_filtering",
        family="search",
        title="Rollout Roulette: A Probabilistic Inference Approach to Inference-Time Scaling of LLMs",
        source="arXiv 2502.01618",
        lossless=False,
        claims=(
            Claim("rate", "it needs fewer generated tokens than best of n for the same accuracy", "4-16x fewer",
                  "tokens of best of n per token", 4.0),
            Claim("beam", "it is more accurate than beam search on as many tokens", "better", "accuracy points"),
            Claim("dvts", "it is more accurate than diverse verifier tree search on as many tokens",
                  "+6.8 points, Llama-3.2-1B, MATH500", "accuracy points", 6.8),
            Claim("voting", "it is more accurate than weighted voting on as many tokens",
                  "+11.8 points, Llama-3.2-1B, MATH500", "accuracy points", 11.8),
            Claim("depth", "it is more accurate than best of n in as many sequential steps", "+13.0 points at 64",
                  "accuracy points", 13.0),
            Claim("logit", "odds select better than a softmax of probabilities", "only in the code",
                  "accuracy points"),
            Claim("robust", "wrong scores harm it less than beam search", "more robust", "accuracy points"),
            Claim("signal", "its gain is the verifier's: with random scores it is gone", "(control)",
                  "accuracy points"),
        ),
    )  # fmt: skip

    async def search(self, policy: Policy, verifier: Verifier, config: ParticleConfig) -> Answer:
        """Step, score, resample, until all are finished."""
        cloud = Cloud(config.samples, config.softmax_temperature, [policy.root] * config.samples)
        await filtered(policy, verifier, [cloud], config)
        scores = await verifier.scores(cloud.particles)
        return Answer(cloud.particles[first_best(scores)], tuple(cloud.particles), tuple(scores))


async def filtered(policy: Policy, verifier: Verifier, clouds: Sequence[Cloud], config: ParticleConfig) -> None:
    """All clouds, from wherever their particles are, step by step to the end; their steps are drawn side by side."""
    seen: list[tuple[float, int, float]] = []
    for step in range(1, config.steps + 1):
        stepped = iter(await policy.step([particle for cloud in clouds for particle in cloud.particles]))
        for cloud in clouds:
            cloud.particles = [next(stepped) for _ in range(cloud.size)]
        if step == config.steps or not any(open_traces(cloud.particles) for cloud in clouds):
            break
        scores = await verifier.scores([trace for cloud in clouds for trace in cloud.pool(step)])
        for cloud in clouds:
            count = len(cloud.pool(step))
            mine, scores = scores[:count], scores[count:]
            seen.append(_resample(cloud, cloud.pool(step), mine, config, policy.rng))
    for name, values in zip(("ess", "ancestors", "moved"), zip(*seen, strict=True), strict=False):
        policy.ledger.extra[name] = fmean(values)


def _resample(
    cloud: Cloud, pool: Sequence[Trace], scores: Sequence[float], config: ParticleConfig, rng: np.random.Generator
) -> tuple[float, int, float]:
    """New particles by their weights -> effective sample size, unique ancestors, share of rows that moved."""
    places = [i for i, particle in enumerate(cloud.particles) if config.resample_finished or not particle.finished]
    if not places:
        return float(cloud.size), cloud.size, 0.0
    rivals = range(len(pool)) if config.resample_finished else [*places, *range(cloud.size, len(pool))]
    theta = weights([scores[i] for i in rivals], cloud.temperature, config.weights)
    drawn = [rivals[i] for i in rng.choice(len(rivals), size=len(places), p=theta).tolist()]
    for place, parent in zip(places, drawn, strict=True):
        cloud.particles[place] = pool[parent]
    moved = fmean(parent != place for place, parent in zip(places, drawn, strict=True))
    return 1 / float((theta**2).sum()), len(set(drawn)), moved


def weights(scores: Sequence[float], temperature: float, kind: Literal["logit", "raw"] = "logit") -> FloatArray:
    """softmax(logit(r) / T) [N], odds: rewards of 0.9 and 0.1 weigh 81 to 1, where their softmax is 2.2 to 1."""
    values = np.array([logit(score) if kind == "logit" else score for score in scores]) / temperature
    odds = np.exp(values - values.max())
    theta: FloatArray = odds / odds.sum()
    return theta
