"""The ledger of specmquant on a random model, at a size that runs in seconds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from analysis.claims import reproduce_document
from suite.experiments import drafting, specmquant, specmquant_cost
from suite.experiments.base import Workbench
from suite.experiments.drafting import Record, VerifyCost
from suite.experiments.specmquant import SpecMQuantExperiment
from suite.experiments.specmquant_cost import INT4, Parts, at_paper_costs, roofline_ratio
from suite.methods.decoding.specmquant import MiddleFigures, SpecMQuant
from suite.methods.weights import packed
from suite.models import adapters
from tests.methods.support import CONFIG, fresh_adapter, tiny_model

BENCH = Workbench(1, lambda text: None)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        directory, place = tmp_path_factory.mktemp("packed"), packed.place
        patch.setattr(packed, "place", lambda slug, depends_on: directory / place(slug, depends_on).name)
        patch.setattr(adapters, "load", fresh_adapter)
        patch.setattr(specmquant, "load_model", lambda name, dtype: tiny_model())
        patch.setattr(specmquant_cost, "WIDE", replace(CONFIG, layers=1))
        patch.setattr(drafting, "ROUNDS", 3)
        for name, value in {"TESTS": 2, "EXACT": 3, "CHAINS": (2,), "HIERARCHIES": ((3, 6), (2, 4))}.items():
            patch.setattr(specmquant, name, value)
        cut = specmquant.requests
        patch.setattr(
            specmquant, "requests",
            lambda *what: [one.model_copy(update={"max_new_tokens": 12}) for one in cut(*what)],
        )  # fmt: skip
        return list(SpecMQuantExperiment().findings(BENCH))


def test_the_ledger_has_a_row_per_claim(rows):
    assert [row.claim.split(":")[0] for row in rows] == [claim.id for claim in SpecMQuant.card.claims]
    json.dumps(reproduce_document(rows), allow_nan=False)


def test_losslessness_is_counted_at_both_precisions(rows):
    assert (rows[0].measured, rows[0].verdict) == (1.0, "reproduced")
    assert "6 requests of chat-open, 72 greedy tokens" in rows[0].conditions


def test_a_report_tells_both_conventions_and_the_middle_models_prefill(rows):
    """Trap: counting prefill in the baseline only."""
    for row in rows[4:]:
        assert "without prefill; with prefill" in row.conditions
        assert "the middle model's prefill takes" in row.conditions
        assert "tau_t" in row.conditions
        assert "tau_m" in row.conditions


def test_the_tree_is_the_best_of_its_sweep(rows):
    """Trap: comparing against an untuned tree."""
    contenders = rows[4].details["contenders"]
    trees = {name: row["decode_ms_per_token"] for name, row in contenders.items() if name.startswith("tree")}
    assert set(trees) == {f"tree of {nodes}" for nodes in (8, 16, 24, 48)}
    best = min(trees, key=trees.__getitem__)
    assert f"against {best}," in rows[4].conditions
    assert f"{best}: " in rows[4].conditions


def test_every_precision_has_its_ratios(rows):
    assert set(rows[1].details) == {
        f"{name}, {kind}"
        for name in ("smollm2-135m", "two random layers of 4096 x 4096")
        for kind in ("16 bit", "int4")
    }
    assert all(set(found) == set(drafting.WIDTHS) and found[1] == 1.0 for found in rows[1].details.values())
    assert "a100-sxm-80" in rows[1].conditions


def test_the_knee_of_int4_lies_left_of_that_of_16_bit_weights():
    from analysis.roofline.model import Machine, ModelShape

    shape, a100 = ModelShape(2, 4096, 4096, 32, 8, 128, 256), Machine("a100", 312e12, 2.0e12)
    at = {width: [roofline_ratio(shape, a100, size, width) for size in (2.0, INT4)] for width in (16, 64, 128)}
    assert at[16] == pytest.approx([1.0, 1.0], abs=0.1)
    assert at[64][0] < 1.2 < 1.4 < at[64][1]
    assert at[128][1] > 2


def test_a_row_of_the_cost_model_says_what_it_adds_up():
    row = Parts(3.0, 0.5, 1.5, "0.50 + r(10) 1.50")
    assert (row.speedup, str(row)) == (1.5, "3.00 / (0.50 + r(10) 1.50) = 1.50")
    cost = VerifyCost({1: 1.0, 8: 2.0}, {1: 0.0, 8: 0.0})
    assert (cost.step_s, cost.round_ratio(8)) == (1.0, 2.0)


def test_at_the_papers_costs_a_free_tree_pass_leaves_the_taus():
    tree, hier = Record(), Record()
    figures = MiddleFigures(rounds=2, chains=1)
    assert at_paper_costs(tree, hier, figures, lambda width: 1.0) == pytest.approx(1 / (2 / 9 + 1))
