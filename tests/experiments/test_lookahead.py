"""The pieces of the lookahead experiment at a size that runs in seconds."""

from __future__ import annotations

import json

import pytest

from analysis.claims import reproduce_document
from suite.experiments import drafting, lookahead
from suite.experiments.base import Workbench
from suite.experiments.drafting import VerifyCost, agreeing
from suite.experiments.lookahead import LookaheadExperiment
from suite.methods.decoding.lookahead import Lookahead
from tests.methods.support import tiny_model

BENCH = Workbench(1, lambda text: None)


@pytest.fixture(scope="module")
def rows():
    """The ledger of a random model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookahead, "load_model", lambda name, dtype: tiny_model())
        for name, value in {"WARM_UPS": 4, "TESTS": 4, "EXACT": 8}.items():
            patch.setattr(lookahead, name, value)
        patch.setattr(drafting, "ROUNDS", 2)
        cut = lookahead.requests
        patch.setattr(
            lookahead, "requests",
            lambda *what: [one.model_copy(update={"max_new_tokens": 24, "prompt": one.prompt[-200:], "question": None})
                           for one in cut(*what)],
        )  # fmt: skip
        return list(LookaheadExperiment().findings(BENCH))


def test_the_ledger_has_a_row_per_claim(rows):
    assert [row.claim.split(":")[0] for row in rows] == [claim.id for claim in Lookahead.card.claims]
    json.dumps(reproduce_document(rows), allow_nan=False)


def test_losslessness_is_counted_over_all_tokens(rows):
    assert (rows[0].measured, rows[0].verdict) == (1.0, "reproduced")
    assert "8 requests of both workloads, 192 greedy tokens" in rows[0].conditions


def test_every_contender_is_measured_beside_its_prediction(rows):
    copied, chat = (row.details["contenders"] for row in rows[1:3])
    assert set(chat) == {"dense", "ngram", "D=16", "cold D=16"}
    assert set(copied) > set(chat) | {"D=4", "D=8", "D=32", "D=64", "parallel", "one branch", "prompt only"}
    for row in (*copied.values(), *chat.values()):
        assert row["tokens_per_pass"] >= 1
        assert row["decode_speedup"] > 0
        assert row["predicted_decode_speedup"] > 0
    assert copied["dense"]["tokens_fed_per_pass"] == 1
    assert copied["D=64"]["tokens_fed_per_pass"] >= copied["D=4"]["tokens_fed_per_pass"]
    assert "where the cost model says" in rows[1].conditions


def test_prompts_that_warm_the_tries_are_not_tested():
    warm, tests = lookahead.requests("rag-copy", 40, 1), lookahead.requests("rag-copy", 20, 0)
    lookahead.check_disjoint(warm, tests)
    with pytest.raises(ValueError, match="1 test prompts"):
        lookahead.check_disjoint([*warm, tests[3]], tests)


def test_cold_tries_are_not_taught():
    for name, known in (("D=16", True), ("cold D=16", False), ("prompt only", False)):
        method = Lookahead()
        method.begin(tiny_model(), lookahead.config())
        lookahead._teach([(1, 2, 3)], name, method)
        assert (method.trie.nodes > 0) == known


def test_costs_between_measured_widths_lie_on_straight_lines():
    cost = VerifyCost({1: 1.0, 2: 1.1, 4: 1.5, 8: 3.5}, {1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1})
    assert (cost.ratio(1), cost.ratio(3), cost.ratio(6), cost.ratio(20)) == (1.0, pytest.approx(1.3), 2.5, 3.5)
    assert cost.free_width == 2


def test_texts_agree_up_to_the_first_token_that_differs():
    assert agreeing((1, 2, 3), (1, 2, 3)) == 3
    assert agreeing((1, 2, 3), (1, 5, 3)) == 1
    assert agreeing((1, 2), (1, 2, 3)) == 2
