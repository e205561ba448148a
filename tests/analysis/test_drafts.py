"""Draft figures over many requests, and the cost model of speculation."""

from __future__ import annotations

import pytest

from analysis.comparison import compare
from analysis.drafts import draft_metrics, predicted_speedup, roofline_speedup
from analysis.placement import _pass_ms
from analysis.roofline.ceilings import Ceilings
from tests.analysis.factory import calibration, sample, unit
from workloads.schema import DraftFigures


def drafted(**fields: object) -> object:
    figures = {
        "rounds": 10, "emitted": 30, "drafted": 80, "accepted": 20, "offered_at": (10, 8), "accepted_at": (8, 4),
        "draft_ns": 10, "decode_ns": 100,
    }  # fmt: skip
    return sample().model_copy(update={"drafts": DraftFigures(**{**figures, **fields})})


def test_figures_are_micro_averages_over_all_rounds():
    few = drafted(rounds=30, emitted=30, drafted=20, accepted=0, offered_at=(10,), accepted_at=(0,), draft_ns=0)
    metrics = draft_metrics([drafted(), few])
    assert metrics["tau"] == pytest.approx(60 / 40)
    assert metrics["draft_acceptance_rate"] == pytest.approx(20 / 100)
    assert metrics["draft_time_share"] == pytest.approx(10 / 200)
    assert [metrics[f"draft_acceptance_at_{place}"] for place in (1, 2, 3, 4)] == [0.4, 0.5, None, None]


def test_without_drafts_there_are_no_figures():
    assert set(draft_metrics([sample()]).values()) == {None}
    assert set(draft_metrics([]).values()) == {None}


def test_a_drafted_sample_survives_the_store():
    one = drafted()
    assert type(one).model_validate_json(one.model_dump_json()) == one


def test_a_round_is_timed_as_a_pass_not_as_its_tokens():
    """Else a method that emits three tokens per pass would seem to read three times as many bytes per second."""
    plain = sample(gaps=[10.0] * 30)
    quick = plain.model_copy(update={"drafts": drafted(rounds=10, emitted=30).drafts})
    assert _pass_ms("decode", [plain]) == pytest.approx(10.0)
    assert _pass_ms("decode", [quick]) == pytest.approx(30.0)
    assert _pass_ms("prefill", [quick]) == _pass_ms("prefill", [plain])


def test_the_rooflines_speed_up_is_tau_over_what_a_round_costs():
    dense, own = {"tau": None, "predicted_tpot_ms": 8.0}, {"tau": 3.0, "predicted_tpot_ms": 12.0}
    assert roofline_speedup(own, dense) == pytest.approx(3.0 / 1.5)
    assert roofline_speedup(dense, dense) is None
    assert roofline_speedup(own, {"predicted_tpot_ms": None}) is None


def test_a_row_of_drafts_has_a_predicted_speed_up_and_others_have_none():
    plain = unit("dense", [sample()])
    quick = unit("lookahead", [drafted(rounds=10, emitted=25)])
    dense, own = compare([plain, quick], Ceilings(calibration()))
    assert dense.metrics["predicted_decode_speedup"] is None
    assert own.metrics["predicted_decode_speedup"] == pytest.approx(2.5)  # both were counted over the same passes


def test_the_cost_model_is_plain_decoding_without_a_draft():
    assert predicted_speedup(1.0, 0.0, 1.0) == 1.0
    assert predicted_speedup(3.0, 4 * 0.1, 1.2, 0.15) == pytest.approx(3 / 1.75)
