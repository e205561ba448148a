"""The search for the saturation point, against servers whose capacity is known."""

from __future__ import annotations

import pytest

from suite.engines.load import arrivals
from suite.engines.load.records import Record
from suite.engines.load.summary import summarise
from suite.engines.load.sweep import Point, Saturation, backlog_growth, failing, search


def queue(rate, capacity, count=400, seed=1):
    """Records of one server that needs 1 / capacity seconds for each request, in order, on a virtual clock."""
    free, records = 0.0, []
    for index, due in enumerate(arrivals.due_times("constant", rate, count, seed)):
        free = max(free, due) + 1 / capacity
        records.append(Record(index, "measure", due, due, free, (free,), n_out=1))
    return records


def measure(capacity, bounds=None):
    tried = []

    def at(rate):
        tried.append(rate)
        records = queue(rate, capacity)
        metrics = summarise(records, len(records), bounds or {})
        return Point(rate, failing(metrics, records), metrics)

    return at, tried


@pytest.mark.parametrize("start", [1.0, 33.0, 500.0])
def test_the_capacity_of_a_server_is_found_from_below_and_from_above(start):
    at, tried = measure(33.0)
    found = search(at, start, lambda: False)
    assert found.sustained <= found.too_much <= 1.1 * found.sustained
    assert 33 / 1.1 <= found.sustained <= 33 / 0.95  # growth of up to 5 % is taken for noise
    assert len(tried) == len(set(tried)) <= 12


def test_the_backlog_of_an_overloaded_server_grows_by_what_it_cannot_do():
    assert backlog_growth(queue(40.0, 20.0)) == pytest.approx(0.5, abs=0.02)
    assert backlog_growth(queue(10.0, 20.0)) == pytest.approx(0.0, abs=0.01)


def test_a_slow_but_steady_server_is_not_overloaded():
    """Latency alone is no overload: 100 are in flight all the time."""
    records = [
        Record(i, "measure", i / 100, i / 100, i / 100 + 1.0, (i / 100 + 1.0,), n_out=1) for i in range(-200, 800)
    ]
    warm = [r for r in records if r.index >= 0]
    before = [Record(r.index, "warmup", r.t_sched, r.t_send, r.t_done) for r in records if r.index < 0]
    assert backlog_growth([*before, *warm]) == pytest.approx(0, abs=0.001)


def test_objectives_lower_the_rate_that_counts():
    at, _ = measure(33.0, {"ttft": 1.0})  # no request can be that fast
    found = search(at, 1.0, lambda: False)
    assert found.sustained is None
    assert [point.rate for point in found.points] == [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16]


def test_failures_are_never_sustained():
    bad = [Record(0, "measure", 0.0, 0.0, 1.0, error="connection: x"), *queue(1.0, 20.0)]
    assert failing(summarise(bad, len(bad)), bad) == "1 failed, 0 lost"


def test_a_lucky_rate_above_one_that_failed_does_not_count():
    found = Saturation((Point(1.0, "", {}), Point(2.0, "3 failed", {}), Point(4.0, "", {})))
    assert (found.sustained, found.too_much) == (1.0, 2.0)


def test_an_interrupted_search_keeps_what_it_has():
    at, tried = measure(33.0)
    found = search(at, 1.0, lambda: len(tried) >= 3)
    assert [point.rate for point in found.points] == [1.0, 2.0, 4.0]
