"""Rows of the ledger: what an experiment says where a claim does not hold."""

from __future__ import annotations

from typing import ClassVar

import pytest

from analysis.statistics import Estimate
from suite.experiments.astar_decoding import AStarExperiment
from suite.experiments.bag_of_tricks import CLAIMS, BagOfTricksExperiment
from suite.experiments.base import Experiment
from suite.experiments.first_finish_search import FirstFinishExperiment
from suite.experiments.particle_filtering import ParticleFilteringExperiment
from suite.experiments.short_m_at_k import ShortMAtKExperiment
from suite.methods.base import Claim
from suite.registry import METHODS

CLAIM = Claim("faster", "it is faster", "4 x", "x", 4.0)


class Short(Experiment):
    slug = "short"
    shortfalls: ClassVar = {"faster": "the problems are easy"}

    def findings(self, bench):
        yield from ()


@pytest.mark.parametrize(
    ("estimate", "verdict", "reason"),
    [
        (Estimate(5.0, 4.5, 5.5, 9), "reproduced", ""),
        (Estimate(2.0, 1.5, 2.5, 9), "partly", "the problems are easy"),
        (Estimate(1.0, 0.5, 1.5, 9, "few"), "not reproduced", "the problems are easy; few"),
        (None, "not measurable here", "no machine"),
    ],
)
def test_a_row_says_why_where_the_claim_falls_short(estimate, verdict, reason):
    row = Short().finding(CLAIM, estimate, "", reason="" if estimate else "no machine")
    assert (row.verdict, row.reason) == (verdict, reason)


@pytest.mark.parametrize(
    "kind", [AStarExperiment, FirstFinishExperiment, ParticleFilteringExperiment, ShortMAtKExperiment]
)
def test_a_shortfall_is_of_a_claim_on_the_card(kind):
    assert set(kind.shortfalls) <= {claim.id for claim in METHODS.load(kind.slug).card.claims}


def test_a_shortfall_of_the_study_is_of_a_claim():
    assert set(BagOfTricksExperiment.shortfalls) <= {claim.id for claim in CLAIMS}
