"""The studies of parallel search at a size that runs in seconds, with a policy of the lab."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest

from analysis.claims import reproduce_document
from analysis.search import Samples, first_finish
from suite.commands.sweep_spec import read_spec
from suite.experiments import bag_of_tricks, first_finish_search, short_m_at_k, thinking
from suite.experiments.base import Workbench
from suite.experiments.first_finish_search import FirstFinishExperiment, theory_error
from suite.experiments.short_m_at_k import ShortMAtKExperiment, less
from suite.methods.search.first_finish_search import FirstFinishSearch
from suite.methods.search.short_m_at_k import ShortMAtK
from suite.models.loaders import load_model

BENCH = Workbench(1, lambda text: None)
POLICY, TASK = "chain-mid", "arithmetic-24"


@pytest.fixture(scope="module")
def chains():
    return thinking.pool(load_model(POLICY, "fp32"), TASK, BENCH, count=4, chains=9)


@pytest.fixture(scope="module")
def patched(chains):
    """Every policy is the same one, and its chains are drawn once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thinking, "REPEATS", 1)
        for module in (short_m_at_k, first_finish_search):
            patch.setattr(module, "load_model", lambda name, dtype: load_model(POLICY, dtype))
            patch.setattr(module, "pool", lambda *what: chains)
            patch.setattr(module, "TASK", TASK)
            patch.setattr(module, "ONLINE", 3)
        patch.setattr(short_m_at_k, "SIZES", (1, 2, 3, 5, 8))
        patch.setattr(first_finish_search, "RESAMPLES", 3)
        patch.setattr(first_finish_search, "SIZES", (1, 2, 8))
        patch.setattr(FirstFinishExperiment, "_processes", lambda self, claim, *rest: self.finding(claim, None, ""))
        yield


def test_chains_hold_their_thinking_and_their_whole(chains):
    for thinks, whole in zip(chains.thinking, chains.whole, strict=True):
        assert (whole.lengths - thinks.lengths == 3).all()  # ANS, a number, the end
        assert whole.finished.all()
        assert (thinks.classes == whole.classes).all()


def test_short_m_at_k_has_a_row_per_claim_and_stops_as_the_rule_says(patched):
    rows = {row.claim.split(":")[0]: row for row in ShortMAtKExperiment().findings(BENCH)}
    assert list(rows) == [claim.id for claim in ShortMAtK.card.claims]
    json.dumps(reproduce_document(rows.values()), allow_nan=False)
    assert rows["online"].measured == 1.0
    assert "chains called off" in rows["online"].conditions
    assert set(rows["shortest"].details) == {"short-1", "short-3", "majority"}


def test_first_finish_search_has_a_row_per_claim_and_stops_as_the_rule_says(patched):
    rows = {row.claim.split(":")[0]: row for row in FirstFinishExperiment().findings(BENCH)}
    assert sorted(rows) == sorted(claim.id for claim in FirstFinishSearch.card.claims)
    json.dumps(reproduce_document(rows.values()), allow_nan=False)
    assert rows["online"].measured == 1.0
    assert "finished chains alone would be" in rows["tokens"].conditions


def test_the_theory_is_close_on_lengths_that_are_normal():
    rng = np.random.default_rng(0)

    def question(gap: float) -> Samples:
        right = rng.random(20) < 0.5
        lengths = np.maximum(1, rng.normal(100 + gap * ~right, 15)).round().astype(np.int64)
        return Samples(lengths, np.where(right, 0, np.arange(20)), right, np.ones(20, dtype=bool))

    bins = [[question(gap) for _ in range(60)] for gap in (30.0, -30.0)]
    gains = [np.mean([first_finish(one, 8).accuracy - one.correct.mean() for one in group]) for group in bins]
    assert gains[0] > 0.2
    assert gains[1] < -0.2
    assert theory_error(bins).value < 4


def test_a_ratio_of_budgets_as_percent_saved():
    from analysis.statistics import Estimate

    saved = less(Estimate(2.0, 1.25, 4.0, 10))
    assert saved is not None
    assert (saved.low, saved.value, saved.high) == pytest.approx((20, 50, 75))
    assert less(None) is None


def test_the_sweep_is_valid_and_holds_what_the_study_reads():
    spec = read_spec(bag_of_tricks.SWEEP)
    axes = tomllib.loads(bag_of_tricks.SWEEP.read_text())["axes"]
    assert len(spec.runs) == len(axes["task"]) * len(axes["method"])
    wanted = {
        *map(bag_of_tricks.tempered, bag_of_tricks.TEMPERATURES),
        *map(bag_of_tricks.nucleus, bag_of_tricks.TOP_PS),
    }
    wanted |= {bag_of_tricks.best_of(16, name) for name in ("random", "self", "likelihood", "prm", "flipped", "oracle")}
    assert wanted <= set(axes["method"])
    six = {"best_of_n", "step_best_of_n", "self_consistency", "beam_search", "mcts", "self_refine"}
    assert six <= {method.partition(":")[0] for method in axes["method"]}


def test_what_is_tuned_is_tuned_on_other_questions(monkeypatch):
    study = bag_of_tricks.Study(POLICY, 3, BENCH)
    monkeypatch.setattr(bag_of_tricks, "DEV_QUESTIONS", 3)
    asked = []
    complete = bag_of_tricks.Contender.complete

    def seen(self, requests, meter):
        asked.append({request.prompt for request in requests})
        return complete(self, requests, meter)

    monkeypatch.setattr(bag_of_tricks.Contender, "complete", seen)
    method = "self_consistency:samples=2,temperature=0.7,top_p=0.9"
    cell = study.run(TASK, method)
    assert study.best(TASK, [method]) == method
    assert not asked[0] & asked[1]
    assert len(cell.scores) == 3
    assert all(tokens >= depth for tokens, depth in zip(cell.tokens, cell.sequential, strict=True))
