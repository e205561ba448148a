"""The experiments of the search family at a size that runs in seconds, with reward models before their training."""

from __future__ import annotations

import pytest

from analysis import statistics
from suite.experiments import astar_decoding, particle_filtering, searching
from suite.experiments.astar_decoding import AStarExperiment
from suite.experiments.base import Workbench
from suite.experiments.particle_filtering import ParticleFilteringExperiment
from suite.models.loaders import lab
from suite.models.rewards import LikelihoodPRM
from suite.registry import METHODS

SMALL = {
    particle_filtering: {
        "SIZES": (2, 4), "BASES": (4,), "WHOLE": (1, 2, 4), "ABLATED": (4,), "VARIANTS": (4,), "AT": 4, "SOFT": 4
    },
    astar_decoding: {
        "CHILDREN": (2, 4), "TOKENS": (60, 120), "FILTERS": (2, 4), "WHOLE": (1, 2), "WORSE": (4,), "PRINTED": 4,
        "DELTAS": (0.3,), "COSTS": ("zero",), "POLICIES": {"chain-mid": 4},
    },
    searching: {"PROBLEMS": 10},
    statistics: {"RESAMPLES": 50},
}  # fmt: skip


@pytest.fixture
def bench():
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "reward", lambda name: LikelihoodPRM(lab.chain_strong("fp32").decoder))
        for module, values in SMALL.items():
            for name, value in values.items():
                patch.setattr(module, name, value)
        yield Workbench(1, said.append)
    assert any("problem 0 of 10" in line for line in said)


@pytest.mark.parametrize("experiment", [ParticleFilteringExperiment, AStarExperiment])
def test_every_claim_has_its_row(experiment, bench):
    findings = list(experiment().findings(bench))
    claims = [claim.id for claim in METHODS.load(experiment.slug).card.claims]
    assert {finding.claim.partition(":")[0] for finding in findings} == set(claims)
    assert all("greedy" in finding.conditions for finding in findings)
    assert all(finding.measured is not None or finding.reason for finding in findings)


def test_curves_hold_what_the_ledgers_say(bench):
    made = searching.Lab("chain-mid", bench).curve("best of n", "best_of_n", (1, 4), searching.samples)
    tokens = made.budgets("gen_tokens")
    assert tokens[1] == pytest.approx(4 * tokens[0], rel=0.1)
    assert list(made.budgets("verifier_passes")) == [1, 4]
    assert made.figures("accuracy").shape == (10, 2)
    assert "at 1/4" in searching.told(made)
