"""Search figures as metrics: means over requests, shares and speeds over all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.comparison import compare
from analysis.metrics import unit_metrics
from analysis.searches import FIGURES, search_metrics
from reports.tables import COLUMNS, SEARCHING, columns
from tests.analysis.factory import sample, unit
from workloads.schema import SearchFigures

FIGURED = SearchFigures(generated=100, sequential=30, prompt_logical=400, prefilled=120, verifier_passes=4, samples=4)


def searched(turn: int = 0, **changes):
    return sample(f"r{turn}", turn=turn).model_copy(update={"search": replace(FIGURED, **changes)})


def test_without_a_search_there_are_no_figures():
    assert set(search_metrics([[sample()]]).values()) == {None}
    assert set(search_metrics([]).values()) == {None}


def test_means_per_request_and_shares_of_all():
    one, other = searched(0), searched(1, generated=300, cancelled=2, extra={"written": 2.0})
    found = search_metrics([[one, other]])
    assert found["search_generated_tokens"] == 200
    assert found["search_cancelled"] == 1
    kept = len(one.token_ids) + len(other.token_ids) - 2
    assert found["search_discarded_share"] == pytest.approx(1 - kept / 400)
    assert found["search_throughput"] == pytest.approx(400 / ((one.e2el_ms + other.e2el_ms) / 1e3))


def test_searches_side_by_side_share_their_time():
    one, other = searched(0), searched(0)
    assert search_metrics([[one, other]])["search_throughput"] == pytest.approx(200 / (one.e2el_ms / 1e3))


def test_what_one_request_does_not_know_is_unknown():
    found = search_metrics([[searched(0), searched(1, prefilled=None)]])
    assert found["search_prefilled_tokens"] is None
    assert found["search_prompt_tokens"] == 400


def test_a_searched_sample_survives_the_store():
    one = searched(prefilled=None)
    assert type(one).model_validate_json(one.model_dump_json()) == one


def test_all_tokens_of_a_search_come_at_once():
    """It is compared with dense as a whole: there is no first token, and no next one."""
    rows = compare([unit("dense", [sample("r0")]), unit("best_of_n", [searched()])])
    assert rows[1].ratios.keys() == rows[1].speedups.keys() == {"e2el"}
    rows = compare([unit("dense", [sample()]), unit("longheads", [sample()])])
    assert rows[1].speedups.keys() == {"ttft", "tpot"}


def test_columns_of_searches_are_there_where_somebody_searches():
    plain, best = unit("dense", [sample()]), unit("best_of_n", [searched()])
    rows = compare([plain, best])
    assert set(FIGURES.values()) <= rows[1].metrics.keys()
    assert columns(rows) == (*COLUMNS, *SEARCHING)
    assert columns(rows[:1]) == COLUMNS
    drawn = {column.title: column.cell(rows[1]).text for column in SEARCHING}
    assert drawn["Tokens drawn"].startswith("100")


def test_tokens_that_come_all_at_once_have_no_time_each():
    """A search's answer is known at its end: a mean gap of zero would be a decode speed beyond every roofline."""
    found = unit_metrics(unit("best_of_n", [searched()]))
    assert found["median_tpot_ms"] is None
    assert found["prompt_throughput"] is None
    assert found["median_e2el_ms"] is not None
