"""Traces in, vLLM's result JSON out: values worked out by hand."""

from __future__ import annotations

import pytest

from suite.engines.load.driver import Outcome
from suite.engines.load.export import vllm_result
from suite.engines.load.plan import Item, Plan
from suite.engines.load.records import Record
from suite.engines.load.target import Target
from suite.engines.load.traces import Trace, read_trace
from suite.errors import InputError


def exported(records, bounds=None):
    items = tuple(Item(r.index, "x", 1, r.t_sched, r.phase) for r in records)
    return vllm_result(Outcome(Plan(items, "x", rate=2.0), tuple(records), False), Target("u", "m"), bounds or {})


RECORDS = (
    Record(0, "measure", 1.0, 1.5, 4.0, (2.0, 2.5, 3.5), n_in=7, n_out=5),
    Record(1, "measure", 2.0, 2.0, 2.2, (2.1,), n_in=3, n_out=1),
    Record(2, "measure", 3.0, 3.0, 5.0, (3.1,), error="connection: x"),
)


def test_latencies_count_from_sending_and_failures_only_as_failed():
    found = exported(RECORDS)
    assert found["ttfts"] == pytest.approx([0.5, 0.1, 0.0])
    assert found["latencies"] == pytest.approx([2.0, 0.1, 0.0])
    assert found["queue_times"] == pytest.approx([0.5, 0.0, 0.0])
    assert (found["mean_ttft_ms"], found["mean_tpot_ms"]) == pytest.approx((300, 375))
    assert (found["mean_itl_ms"], found["mean_e2el_ms"]) == pytest.approx((750, 1050))
    assert (found["completed"], found["failed"], found["num_prompts"]) == (2, 1, 3)
    assert found["output_lens"] == [5, 1, 0]
    assert found["errors"] == ["", "", "connection: x"]


def test_the_duration_has_the_drain_tail_and_divides_everything():
    found = exported(RECORDS, {"ttft": 200.0, "tpot": 1.0})
    assert found["duration"] == pytest.approx(5.0)
    assert found["output_throughput"] == pytest.approx(6 / 5)
    assert found["request_goodput"] == pytest.approx(1 / 5)  # one token passes TPOT, as in vLLM


def test_peaks():
    found = exported(RECORDS)
    assert found["max_concurrent_requests"] == 2
    assert found["max_output_tokens_per_s"] == 2  # 2.0 and 2.1 in the first second after 1.5; later 2.5 and 3.5


def test_unknown_tokens_are_null():
    found = exported([Record(0, "measure", 0.0, 0.0, 1.0, (0.5,))])
    assert found["output_throughput"] is None
    assert found["output_lens"] == [None]


def test_azure_times_are_dates(tmp_path):
    path = tmp_path / "azure.csv"
    rows = ["2023-11-16 18:17:03.9799600,4808,10", "2023-11-16 18:17:04.0319600,110,27"]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    trace = read_trace(path)
    assert trace.due == pytest.approx((0, 0.052))
    assert trace.lengths == ((4808, 10), (110, 27))


def test_the_new_burstgpt_columns_are_found_by_name(tmp_path):
    path = tmp_path / "burst.csv"
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
    path.write_text(f"{header}\n5.5,9,1.2,GPT-4,417,276,693,Conversation log\n")
    assert read_trace(path).lengths == ((417, 276),)


def test_own_lines_are_sorted(tmp_path):
    path = tmp_path / "own.jsonl"
    lines = [f'{{"timestamp": {at}, "input_length": {at + 1}, "output_length": 2}}' for at in (7, 3)]
    path.write_text("\n".join(lines))
    assert read_trace(path) == Trace((0.0, 4.0), ((4, 2), (8, 2)), 0)


def test_a_trace_at_one_moment_has_no_rate():
    with pytest.raises(InputError, match="no rate to scale"):
        Trace((0.0, 0.0), ((1, 1), (1, 1)), 0).at_rate(2.0)
