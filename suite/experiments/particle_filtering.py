"""Particle filtering's claims on the lab's chains (card `particle_filtering`, section 6).

Everything is compared at equal generated tokens first. Sequential depth hardly depends on the number of chains, so at
equal depth methods are compared at equal samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch

from analysis.budgets import Curve, budget_ratio, difference
from analysis.statistics import Estimate
from suite.experiments.base import Experiment, Workbench
from suite.experiments.searching import (
    FLIPPED,
    PROBLEMS,
    TASK,
    Lab,
    above,
    differences,
    missed,
    ratios,
    samples,
    table,
    told,
)
from suite.harness.measurement import Finding
from suite.methods.search.particle_filtering import ParticleFiltering

SIZES = (2, 4, 8, 16, 32)
BASES = (4, 8, 16, 32)
WHOLE = (1, 4, 16, 64)  # of best of n, which needs the most samples
ABLATED = (4, 16)
VARIANTS = (16,)
AT = 16  # samples at which methods are compared
SOFT = 8  # the card compares the two softmaxes here
FILTER = "particle_filtering"


class ParticleFilteringExperiment(Experiment):
    """The early policy has most room for search; the middle one shows what becomes of a gain."""

    slug: ClassVar[str] = "particle_filtering"
    shortfalls: ClassVar[Mapping[str, str]] = {
        "rate": "the easier the problems, the sooner best of n is right as well: the ratio grows with n, by size above",
        "robust": "scores are multiplied, so a step that is scored wrongly is lost for good, to particles as to beams; "
        "it does hold where the last step's score counts alone (aggregate=last), which is worse for both",
    }

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        for policy in ("chain-early", "chain-mid"):
            lab = Lab(policy, bench)
            setting = f"{policy}, greedy {lab.greedy():.0f} %, T=1, {PROBLEMS} problems of {TASK}, likelihood PRM, prod"
            found = raced(lab)
            yield from self._race(setting, found)
            yield from self._ablations(setting, found["particle filter"], found["best of n"], ablations(lab))

    def _race(self, setting: str, found: dict[str, Curve]) -> Iterator[Finding]:
        ours, whole = found["particle filter"], found["best of n"]
        rates, curves = ratios(whole, ours, "gen_tokens"), "; ".join(map(told, found.values()))
        said = f"{setting}; against best of {WHOLE[-1]}, by size {rates}; {curves}"
        details = {"curves": table(list(found.values()))}
        yield self._row("rate", budget_ratio(whole, ours, "gen_tokens"), said, null=1.0, details=details)
        for claim, name in (("beam", "beam"), ("dvts", "DVTS"), ("voting", "weighted voting")):
            base = found[name]
            said = (
                f"{setting}; on the tokens of {name} with {AT} samples; by size "
                f"{differences(base, ours, 'gen_tokens')}; its tokens per token at equal accuracy, by size "
                f"{ratios(base, ours, 'gen_tokens')}"
            )
            yield self._row(claim, difference(base, ours, "gen_tokens", base.sizes.index(AT)), said)
        steps = " and ".join(f"{c.budgets('seq_tokens')[c.sizes.index(AT)]:.0f}" for c in (ours, whole))
        yield self._row("depth", above(whole, ours, AT), f"{setting}; {AT} samples each, {steps} sequential steps")

    def _ablations(self, setting: str, ours: Curve, whole: Curve, made: dict[str, Curve]) -> Iterator[Finding]:
        said = f"{setting}; {SOFT} particles; {'; '.join(map(told, made.values()))}"
        details = {"curves": table(list(made.values()))}
        yield self._row("logit", above(made["raw softmax"], ours, SOFT), said, details=details)
        said = f"{setting}, 20 % of its step scores flipped; {AT} samples each"
        yield self._row("robust", above(made["beam, flipped"], made["flipped"], AT), said)
        single = 100 * float(whole.figures("accuracy")[:, 0].mean())
        said = f"{setting}; {AT} particles with and without; {told(made['random'])}, single sample {single:.0f} %"
        yield self._row("signal", above(made["random"], ours, AT), said)

    def _row(self, claim: str, estimate: Estimate | None, said: str, null: float = 0.0, **more: Any) -> Finding:
        claims = {claim.id: claim for claim in ParticleFiltering.card.claims}
        return self.finding(claims[claim], estimate, said, null=null, reason=missed(estimate), **more)


def raced(lab: Lab) -> dict[str, Curve]:
    """The filter and what it is compared with, all with the same verifier."""
    return {
        "particle filter": lab.curve("particle filter", FILTER, SIZES, samples),
        "best of n": lab.curve("best of n", "best_of_n", WHOLE, samples),
        "beam": lab.curve("beam, a quarter kept", "beam_search", BASES, lambda n: {"samples": n, "beams": n // 4}),
        "DVTS": lab.curve("DVTS", "dvts", BASES, samples),
        "weighted voting": lab.curve("weighted voting", "weighted_voting", BASES, samples),
    }


def ablations(lab: Lab) -> dict[str, Curve]:
    """The filter without what makes it work, its variants, and the ceiling. Of Gibbs the size is that of both turns."""
    return {
        "raw softmax": lab.curve("raw softmax", FILTER, (SOFT,), lambda n: {"samples": n, "weights": "raw"}),
        "flipped": lab.curve("flipped", FILTER, ABLATED, samples, FLIPPED),
        "beam, flipped": lab.curve(
            "beam, flipped", "beam_search", ABLATED, lambda n: {"samples": n, "beams": n // 4}, FLIPPED
        ),
        "best of n, flipped": lab.curve("best of n, flipped", "best_of_n", ABLATED, samples, FLIPPED),
        "random": lab.curve("random", FILTER, (AT,), samples, "random"),
        "oracle": lab.curve("oracle", FILTER, (AT,), samples, "oracle"),
        "Gibbs": lab.curve("Gibbs, twice", "particle_gibbs", VARIANTS, lambda n: {"samples": n // 2}),
        "chains": lab.curve(
            "two independent chains", "parallel_tempering", VARIANTS,
            lambda n: {"samples": n, "chains": 2, "iterations": 1, "hottest": 1.0},
        ),
    }  # fmt: skip
