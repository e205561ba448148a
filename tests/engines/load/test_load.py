"""The load generator against its own server: golden streams, stalls, failures, and the schedule it keeps."""

from __future__ import annotations

import math
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from suite.engines.load import arrivals, driver
from suite.engines.load.null_server import null_server
from suite.engines.load.plan import Item, Plan
from suite.engines.load.records import Record
from suite.engines.load.sse import Answer, StreamError
from suite.engines.load.streams import Stream
from suite.engines.load.summary import gaps_ms, latencies, summarise, token_gaps_ms
from suite.engines.load.target import Target, probe
from suite.errors import InputError

GOLDEN = {
    "plain": Stream(),
    "chunked": Stream(write_bytes=7),
    "multi": Stream(tokens_per_event=3, usage="each"),
    "multi-end": Stream(tokens_per_event=3),
    "usageless": Stream(usage="none"),
    "picky": Stream(rejects_usage_options=True),
    "error": Stream(fail_after=2),
    "drop": Stream(fail_after=2, drop=True),
    "refusing": Stream(status=503),
    "timed": Stream(tokens_per_event=3, usage="each", pauses=(0.2, 0.02, 0.5), gap_s=0.02),
    "frozen": Stream(freeze_at=10, freeze_s=1.0),
    "slow": Stream(pauses=(30.0,)),
}


@pytest.fixture(scope="module")
def server():
    with null_server(GOLDEN) as (url, _):
        yield url


def ask(
    url, folder, model, count=4, rate=100.0, *, endpoint="completions", timeout_s=20.0, workers=1, tokens=10, **plan
):
    """Sends `count` requests for `tokens` tokens at a constant rate, and returns their records."""
    target = Target(url, model, endpoint, (("include_usage", True),))
    due = None if plan.get("concurrency") else arrivals.due_times("constant", rate, count, 0)
    items = tuple(Item(i, "four words of text", tokens, None if due is None else due[i]) for i in range(count))
    made = Plan(items, "test", **plan)
    return driver.run(made, target, Path(folder) / "records.jsonl", timeout_s=timeout_s, workers=workers).records


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize(("model", "events"), [("plain", 10), ("chunked", 10), ("multi", 4), ("multi-end", 4)])
def test_tokens_are_counted_exactly_however_they_are_cut(server, tmp_path, model, events, endpoint):
    for record in ask(server, tmp_path, model, endpoint=endpoint):
        assert record.ok, record.error
        assert (record.n_in, record.n_out, record.source) == (4, 10, "usage")
        assert len(record.chunks) == events
        assert len(record.text.split()) == 10


def test_tokens_of_each_event_are_known_when_the_server_tells_them(server, tmp_path):
    assert {r.chunk_tokens for r in ask(server, tmp_path, "multi")} == {(3, 3, 3, 1)}
    assert {r.chunk_tokens for r in ask(server, tmp_path, "multi-end")} == {None}


def test_events_are_never_taken_for_tokens(server, tmp_path):
    records = ask(server, tmp_path, "usageless")
    found = summarise(records, len(records))
    assert {r.n_out for r in records} == {None}
    assert found["completed"] == 4
    assert found["output_throughput"] is None
    assert found["mean_tpot_ms"] is None


@pytest.mark.parametrize(
    ("model", "kind"), [("error", "server: out of memory"), ("drop", "connection"), ("refusing", "http 503")]
)
def test_failures_are_records_that_say_why(server, tmp_path, model, kind):
    records = ask(server, tmp_path, model)
    assert len(records) == 4
    assert all(record.error.startswith(kind) for record in records)


def test_a_request_that_takes_too_long_is_cut_off_and_counted(server, tmp_path):
    found = summarise(ask(server, tmp_path, "slow", timeout_s=0.3), 4, {"ttft": 1e9})
    assert (found["failed"], found["errors"], found["slo_attainment"]) == (4, {"timeout": 4}, 0.0)


def test_probe_finds_the_options_a_server_accepts(server):
    assert dict(probe(Target(server, "plain")).usage_options) == {"include_usage": True, "continuous_usage_stats": True}
    assert probe(Target(server + "/v1/", "picky")).usage_options == ()
    with pytest.raises(InputError, match="no model 'nonsense'"):
        probe(Target(server, "nonsense"))
    with pytest.raises(InputError, match="no OpenAI-compatible server answers"):
        probe(Target("http://127.0.0.1:9"))


def test_scripted_timings_come_back(server, tmp_path):
    """Card section 9.1: first event after 200 ms, gaps of 20 ms and one of 500 ms, three tokens an event."""
    (record,) = ask(server, tmp_path, "timed", count=1, tokens=12)
    gaps = gaps_ms([record])
    values = latencies(record)
    assert record.chunk_tokens == (3, 3, 3, 3)
    assert values["ttft_send"] == pytest.approx(200, abs=50)
    assert max(gaps) == pytest.approx(500, abs=50)
    assert token_gaps_ms([record]) == pytest.approx([gap / 3 for gap in gaps])
    assert values["e2el_send"] == pytest.approx(values["ttft_send"] + 11 * values["tpot"])


def test_a_stalled_server_shows_in_every_request_due_during_the_stall(tmp_path):
    """Coordinated omission: 50 requests/s, frozen for 1 s: about 50 requests wait, not only the one in flight."""
    with null_server({"frozen": GOLDEN["frozen"]}) as (url, _):
        records = ask(url, tmp_path, "frozen", count=90, rate=50.0)
    waited = [r for r in records if latencies(r)["ttft"] > 200]
    assert all(record.ok for record in records)
    assert 30 <= len(waited) <= 60


def test_a_late_client_shows_in_the_latency(tmp_path):
    late = Record(0, "measure", t_sched=1.0, t_send=1.5, t_done=2.0, chunks=(1.6, 1.8), n_out=2)
    values = latencies(late)
    assert (values["ttft"], values["ttft_send"]) == pytest.approx((600, 100))
    assert summarise([late], 1)["mean_client_queue_time_ms"] == pytest.approx(500)


def test_nothing_is_sent_before_it_is_due_and_workers_share_one_clock(server, tmp_path):
    records = ask(server, tmp_path, "plain", count=60, rate=100.0, workers=2)
    assert [r.index for r in records] == list(range(60))
    assert all(r.t_send >= r.t_sched for r in records)
    assert [r.t_sched for r in records] == pytest.approx([(i + 1) / 100 for i in range(60)])


def test_closed_loop_keeps_its_number_in_flight(server, tmp_path):
    records = ask(server, tmp_path, "timed", count=6, concurrency=2)
    overlaps = [sum(o.t_send <= r.t_send < o.t_done for o in records) for r in records]
    assert max(overlaps) == 2


def test_a_session_sends_its_turns_in_order_with_the_answers_before(server, tmp_path):
    items = [Item(i, "two words", 5, 0.01 if i == 0 else None, session="a", turn=i) for i in range(3)]
    target = Target(server, "plain", "chat", (("include_usage", True),))
    done = driver.run(Plan(tuple(items), "turns"), target, tmp_path / "r.jsonl", timeout_s=10, workers=1).records
    assert [r.n_in for r in done] == [2, 2 + 5 + 2, 2 + 5 + 2 + 5 + 2]
    assert all(b.t_sched >= a.t_done for a, b in pairwise(done))


def test_server_killed_in_the_middle_gives_one_report(tmp_path):
    with null_server() as (url, process):
        killer = threading.Timer(2.5, process.kill)
        killer.start()
        begun = time.monotonic()
        records = ask(url, tmp_path, "null", count=400, rate=100.0, timeout_s=5.0)
        killer.join()
    found = summarise(records, 400)
    assert time.monotonic() - begun < 30
    assert found["completed"] > 0
    assert found["failed"] > 0
    assert found["completed"] + found["failed"] == 400
    assert found["lost"] == 0
    assert found["errors"] == {"connection": found["failed"]}


def test_a_worker_that_vanished_is_counted_as_lost():
    record = Record(0, "measure", 0.0, 0.0, 1.0, (1.0,), n_out=1)
    assert summarise([record], 10)["lost"] == 9


def test_failed_requests_count_against_the_objective():
    good = Record(0, "measure", 0.0, 0.0, 1.0, (0.1, 0.2), n_out=2)
    bad = Record(1, "measure", 0.5, 0.5, 1.0, error="timeout: x")
    assert summarise([good, bad], 2, {"ttft": 200})["slo_attainment"] == 0.5


def test_an_answer_without_a_second_token_passes_tpot_but_one_without_any_fails_ttft():
    one = Record(0, "measure", 0.0, 0.0, 1.0, (0.1,), n_out=1)
    none = Record(1, "measure", 0.0, 0.0, 1.0, (), n_out=0)
    assert summarise([one], 1, {"tpot": 1.0})["slo_attainment"] == 1.0
    assert summarise([none], 1, {"ttft": 1e9})["slo_attainment"] == 0.0


def test_totals_are_divided_by_the_window_not_averaged():
    records = [
        Record(0, "measure", 0.0, 0.0, 1.0, (0.5, 1.0), n_out=10),
        Record(1, "measure", 0.0, 0.0, 4.0, (0.5, 4.0), n_out=10),
    ]
    assert summarise(records, 2)["output_throughput"] == pytest.approx(20 / 4)


def test_mean_itl_is_not_mean_tpot():
    records = [
        Record(0, "measure", 0.0, 0.0, 1.0, (0.0, 1.0), n_out=2),
        Record(1, "measure", 0.0, 0.0, 0.4, (0.0, 0.1, 0.2, 0.3, 0.4), n_out=5),
    ]
    found = summarise(records, 2)
    assert found["mean_itl_ms"] == pytest.approx(1400 / 5)
    assert found["mean_tpot_ms"] == pytest.approx((1000 + 100) / 2)


def test_warm_up_and_cool_down_are_not_measured():
    records = [Record(i, phase, i, i, i + 1, (i + 0.5,), n_out=1) for i, phase in enumerate(("warmup", "measure"))]
    assert summarise(records, 1)["completed"] == 1


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_mean_and_spread_asked_for(burstiness):
    found = arrivals.gaps("gamma", 5.0, 20_000, 1, burstiness)
    assert found.mean() == pytest.approx(0.2, rel=0.02)
    assert found.std() / found.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.02)


@pytest.mark.parametrize(("arrival", "burstiness"), [("poisson", 1.0), ("gamma", 0.25), ("gamma", 4.0)])
def test_gaps_pass_a_kolmogorov_smirnov_test(arrival, burstiness):
    found = arrivals.gaps(arrival, 20.0, 5000, 3, burstiness)
    law = stats.gamma(burstiness, scale=1 / (20.0 * burstiness))
    assert stats.kstest(found, law.cdf).pvalue > 0.01
    assert stats.kstest(arrivals.gaps("constant", 20.0, 5000, 3), law.cdf).pvalue < 1e-6


def test_delivered_gaps_pass_a_kolmogorov_smirnov_test(server, tmp_path):
    """The requests as sent, not as planned, are still a Poisson process; so slow that a busy machine does not show."""
    due = arrivals.due_times("poisson", 30.0, 150, 5)
    items = tuple(Item(i, "x", 1, at) for i, at in enumerate(due))
    target = Target(server, "plain")
    sent = driver.run(Plan(items, "ks"), target, tmp_path / "r.jsonl", timeout_s=10, workers=1).records
    gaps = np.diff(sorted(record.t_send for record in sent))
    assert stats.kstest(gaps, stats.expon(scale=1 / 30).cdf).pvalue > 0.01


def test_last_arrival_is_exactly_at_the_end_and_a_seed_is_a_schedule():
    first, again = (arrivals.due_times("gamma", 4.0, 100, 7, 0.5) for _ in range(2))
    assert first[-1] == pytest.approx(25.0, abs=1e-12)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, arrivals.due_times("gamma", 4.0, 100, 8, 0.5))


def test_a_character_cut_in_two_and_events_in_one_block():
    body = 'data: {"choices": [{"text": "é"}]}\n\ndata: {"choices": [{"text": "b"}]}\n\ndata: [DONE]\n\n'.encode()
    cut = body.index("é".encode()) + 1
    answer = Answer()
    answer.feed(body[:cut], 1.0)
    answer.feed(body[cut:], 2.0)
    assert (answer.text, answer.arrivals, answer.finished) == ("éb", [2.0, 2.0], True)


def test_announcing_the_role_is_no_first_token():
    answer = Answer()
    answer.feed(b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n', 1.0)
    answer.feed(b'data: {"choices": [{"delta": {"content": "a"}}]}\n', 2.0)
    answer.feed(b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n', 3.0)
    assert answer.arrivals == [2.0]


def test_an_error_inside_the_stream_is_raised():
    with pytest.raises(StreamError, match="server: too long"):
        Answer().feed(b'data: {"error": {"message": "too long"}}\n', 0.0)
