"""Other tools' results in the suite's names and units; documents have the fields that the tools' own schemas have."""

from __future__ import annotations

import json

import pytest

from suite.engines.load.driver import Outcome
from suite.engines.load.export import vllm_result
from suite.engines.load.imports.files import read_documents, read_runs
from suite.engines.load.imports.run import NAMES
from suite.engines.load.plan import Item, Plan
from suite.engines.load.records import Record
from suite.engines.load.target import Target
from suite.errors import InputError, NothingMeasuredError

VLLM = {
    "date": "20261128-120000",
    "endpoint_type": "openai",
    "backend": "openai",
    "label": None,
    "model_id": "m",
    "tokenizer_id": "m",
    "num_prompts": 3,
    "request_rate": "inf",
    "burstiness": 1.0,
    "max_concurrency": 4,
    "duration": 2.0,
    "completed": 3,
    "failed": 0,
    "total_input_tokens": 30,
    "total_output_tokens": 60,
    "request_throughput": 1.5,
    "request_goodput": None,
    "output_throughput": 30.0,
    "total_token_throughput": 45.0,
    "mean_ttft_ms": 20.0,
    "median_ttft_ms": 19.0,
    "std_ttft_ms": 1.0,
    "p99_ttft_ms": 24.0,
    "mean_tpot_ms": 0.0,
    "median_tpot_ms": 0.0,
    "mean_e2el_ms": 400.0,
    "mean_e2el_including_client_queue_ms": 450.0,
}
AIPERF = {
    "schema_version": "1.5",
    "aiperf_version": "0.14.0",
    "input_config": {"models": {"items": [{"name": "m"}]}},
    "was_cancelled": True,
    "request_count": {"unit": "requests", "avg": 20.0},
    "request_throughput": {"unit": "requests/sec", "avg": 1.45},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 50.0},
    "benchmark_duration": {"unit": "ms", "avg": 13800.0},
    "total_osl": {"unit": "tokens", "avg": 690.0},
    "request_latency": {"unit": "sec", "avg": 2.5, "p50": 2.4, "p99": 3.5, "std": 0.3, "count": 20, "sum": 50.0},
    "time_to_first_token": {"unit": "ms", "avg": 200.0, "p50": 180.0, "p90": 250.0, "p95": 255.0, "p99": 260.0},
    "inter_token_latency": {"unit": "us", "avg": 35000.0, "p50": 34000.0},
    "inter_chunk_latency": {"unit": "ms", "avg": 36.0},
}


def distribution(mean: float, count: int = 10) -> dict[str, object]:
    """A distribution as GuideLLM dumps it: every percentile another value."""
    keys = ("p001", "p01", "p05", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p999")
    percentiles = {key: mean * (1 + 0.1 * place) for place, key in enumerate(keys)}
    sums = {"count": count, "total_sum": mean * count, "std_dev": 0.0, "mode": mean}
    found = {"mean": mean, "median": 0.9 * mean, **sums, "percentiles": percentiles, "pdf": None}
    errored = {**found, "mean": 1e6, "median": 1e6}
    return {"successful": found, "incomplete": errored, "errored": errored, "total": errored}


def guidellm(**metrics: object) -> dict[str, object]:
    found = {
        "request_totals": {"successful": 10, "incomplete": 2, "errored": 1, "total": 13},
        "requests_per_second": distribution(5.0),
        "request_latency": distribution(0.25),
        "request_scheduled_latency": None,
        "prompt_token_count": distribution(128.0),
        "output_token_count": distribution(64.0),
        "time_to_first_token_ms": distribution(40.0),
        "time_per_output_token_ms": distribution(20.0),
        "inter_token_latency_ms": distribution(15.0),
        "output_tokens_per_second": distribution(320.0),
        "tokens_per_second": distribution(960.0),
        "request_goodput": None,
        **metrics,
    }
    strategy = {"type_": "constant", "rate": 5.0, "max_concurrency": None}
    config = {"run_index": 0, "strategy": strategy, "backend": {"kind": "openai_http", "model": "m"}}
    benchmark = {"type_": "generative_benchmark", "config": config, "duration": 2.0, "metrics": found}
    metadata = {"version": 2, "guidellm_version": "0.7.2"}
    return {"metadata": metadata, "config": {"spec": {}}, "benchmarks": [benchmark]}


def one(document, **changes):
    (run,) = read_runs([{**document, **changes}], "f.json")
    assert tuple(run.metrics) == NAMES
    return run


def held(run):
    return {name: value for name, value in run.metrics.items() if value is not None}


def test_vllm_counts_from_sending_and_its_zero_latencies_are_no_values():
    run = one(VLLM)
    assert (run.tool, run.model, run.load) == ("vllm", "m", "all at once, at most 4 in flight")
    assert held(run) == {
        "completed": 3,
        "failed": 0,
        "duration": 2.0,
        "total_input_tokens": 30,
        "total_output_tokens": 60,
        "request_throughput": 1.5,
        "output_throughput": 30.0,
        "total_token_throughput": 45.0,
        "mean_ttft_send_ms": 20.0,
        "median_ttft_send_ms": 19.0,
        "p99_ttft_send_ms": 24.0,
        "mean_e2el_send_ms": 400.0,
        "mean_e2el_ms": 450.0,
    }
    assert one(VLLM, request_rate=2.5, max_concurrency=None).load == "2.5 requests/s"


def test_our_export_is_read_back_as_vllms():
    record = Record(0, "measure", 0.0, 0.5, 2.0, (1.0, 1.5), n_in=7, n_out=3)
    outcome = Outcome(Plan((Item(0, "x", 1, 0.0, "measure"),), "x", rate=2.0), (record,), False)
    run = one(vllm_result(outcome, Target("u", "m"), {"ttft": 600.0}))
    assert run.metrics["mean_ttft_send_ms"] == pytest.approx(500)
    assert run.metrics["p99_tpot_ms"] == pytest.approx(250)
    assert run.metrics["request_goodput"] == pytest.approx(0.5)


def test_results_appended_to_one_file_are_as_many_runs(tmp_path):
    path = tmp_path / "v.json"
    odd = {**VLLM, "completed": 7, "burstiness": float("inf"), "mean_ttft_ms": float("nan")}
    path.write_text(json.dumps(VLLM) + "\n" + json.dumps(odd))
    runs = read_runs(read_documents(path), "v.json")
    assert [(run.metrics["completed"], run.metrics["mean_ttft_send_ms"]) for run in runs] == [(3, 20), (7, None)]


def test_aiperf_units_are_read_from_the_file():
    run = one(AIPERF)
    assert (run.tool, run.model, run.remarks) == ("aiperf", "m", ("the run was cancelled",))
    assert held(run) == pytest.approx(
        {
            "completed": 20,
            "duration": 13.8,
            "total_output_tokens": 690,
            "request_throughput": 1.45,
            "output_throughput": 50.0,
            "mean_ttft_send_ms": 200,
            "median_ttft_send_ms": 180,
            "p90_ttft_send_ms": 250,
            "p95_ttft_send_ms": 255,
            "p99_ttft_send_ms": 260,
            "mean_tpot_ms": 35,
            "median_tpot_ms": 34,
            "mean_itl_ms": 36,
            "mean_e2el_send_ms": 2500,
            "median_e2el_send_ms": 2400,
            "p99_e2el_send_ms": 3500,
        }
    )


SECOND = 10**9


def line(start: int, end: int, phase: str = "profiling", **metrics: object) -> dict[str, object]:
    """A line of `profile_export.jsonl`; times in seconds."""
    at = 1_759_813_207 * SECOND
    times = {"request_start_ns": at + start * SECOND, "request_end_ns": at + end * SECOND}
    metadata = {"session_num": 0, "worker_id": "w", "benchmark_phase": phase, "was_cancelled": False, **times}
    return {"metadata": metadata, "metrics": metrics, "error": None}


def value(number: object, unit: str = "ms") -> dict[str, object]:
    return {"value": number, "unit": unit}


def test_aiperf_requests_are_summed_up_without_warm_up_and_failures():
    tokens = {"input_sequence_length": value(8, "tokens"), "output_sequence_length": value(12, "tokens")}
    failed = line(0, 9, error_isl=value(8, "tokens")) | {"error": {"code": 500, "type": "X", "message": "no"}}
    (run,) = read_runs(
        [
            line(0, 1, "warmup", request_latency=value(9e9)),
            line(1, 3, request_latency=value(2.0, "sec"), inter_chunk_latency=value([4.0, 6.0]), **tokens),
            line(2, 5, request_latency=value(3000.0), inter_chunk_latency=value([5.0]), **tokens),
            failed,
        ],
        "f.jsonl",
    )
    assert (run.metrics["completed"], run.metrics["failed"], run.metrics["duration"]) == (2, 1, pytest.approx(4))
    assert run.metrics["request_throughput"] == pytest.approx(0.5)
    assert run.metrics["output_throughput"] == pytest.approx(6)
    assert run.metrics["total_token_throughput"] == pytest.approx(10)
    assert run.metrics["mean_e2el_send_ms"] == pytest.approx(2500)
    assert run.metrics["mean_itl_ms"] == pytest.approx(5)
    assert run.metrics["p90_itl_ms"] == pytest.approx(5.8)
    assert run.metrics["mean_ttft_send_ms"] is None


def test_guidellm_counts_what_succeeded_and_its_itl_is_tpot():
    run = one(guidellm())
    assert (run.tool, run.model, run.load) == ("guidellm", "m", "constant, 5 requests/s")
    assert run.remarks[1:] == ("2 requests were cut off at the end and count nowhere",)
    figures = run.metrics
    assert (figures["completed"], figures["failed"], figures["duration"]) == (10, 1, 2.0)
    assert (figures["total_input_tokens"], figures["total_output_tokens"]) == (1280, 640)
    assert (figures["request_throughput"], figures["request_goodput"]) == (5, None)
    assert (figures["output_throughput"], figures["total_token_throughput"]) == (320, 960)
    assert (figures["mean_ttft_send_ms"], figures["mean_tpot_ms"], figures["mean_itl_ms"]) == (40, 15, None)
    assert (figures["mean_e2el_send_ms"], figures["median_e2el_send_ms"]) == pytest.approx((250, 225))
    assert (figures["p99_e2el_send_ms"], figures["p99.9_e2el_send_ms"]) == pytest.approx((475, 500))
    assert figures["mean_e2el_ms"] is None


def test_guidellm_has_the_latency_from_the_due_time_where_it_kept_a_schedule():
    run = one(guidellm(request_scheduled_latency=distribution(0.5), request_goodput=distribution(0.0, count=0)))
    assert run.metrics["mean_e2el_ms"] == pytest.approx(500)
    assert run.metrics["request_goodput"] == 0


def test_what_guidellm_did_not_measure_is_no_zero():
    unknown = {"time_to_first_token_ms": distribution(0.0), "output_tokens_per_second": distribution(0.0, count=0)}
    figures = one(guidellm(**unknown)).metrics
    assert (figures["mean_ttft_send_ms"], figures["p99_ttft_send_ms"], figures["output_throughput"]) == (None,) * 3


def load_report(mode: str) -> dict[str, object]:
    metrics = {"completed": 2, "failed": 1, "lost": 0, "mean_ttft_ms": 9.0, "mean_ttft_send_ms": 7.0, "errors": {}}
    described = {"model": "m", "mode": mode, "load": "x", "metrics": metrics, "remarks": ["r"]}
    return {"schema": "inference-suite.load/1", **described}


def test_a_closed_loop_has_no_latency_from_the_due_time():
    assert one(load_report("open loop")).metrics["mean_ttft_ms"] == 9
    closed = one(load_report("closed loop"))
    assert (closed.metrics["mean_ttft_ms"], closed.metrics["mean_ttft_send_ms"]) == (None, 7)
    assert closed.remarks == ("r",)


def test_a_sweep_is_as_many_runs_as_rates():
    points = [{"rate": 1.0, "failing": "", **load_report("open loop")}] * 2
    assert len(read_runs([{"schema": "inference-suite.load-sweep/1", "points": points}], "s.json")) == 2


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({**VLLM, "completed": "three"}, "damaged at completed"),
        ({**VLLM, "mean_ttft_ms": 1e999}, "damaged at latencies.mean_ttft_ms"),
        ({"model_id": "m", "request_throughput": 1.0}, "damaged at completed"),
        ({**AIPERF, "schema_version": "2.0"}, "schema version 2.0; versions 1.x are read"),
        ({**AIPERF, "request_latency": {"unit": "fortnights", "avg": 1.0}}, "request_latency is in 'fortnights'"),
        ({"aiperf_version": "0.14.0", "metrics": {}}, "no summary of a run"),
        ({**line(0, 1), "metrics": {"request_latency": 3}}, "line 1 is damaged at metrics.request_latency"),
        ({**guidellm(), "metadata": {"version": 1}}, "GuideLLM report of schema version 1; version 2 is read"),
        ({"args": {}, "benchmarks": []}, "GuideLLM report of schema version 1"),
        (guidellm(request_totals={"successful": 1}), "damaged at benchmarks.0.metrics.request_totals.incomplete"),
        ({**load_report("open loop"), "metrics": None}, "damaged at metrics"),
        ({"schema": "inference-suite.load-sweep/2"}, "no known result file"),
    ],
)
def test_a_damaged_or_unknown_document_is_answered_by_one_sentence(document, told):
    with pytest.raises(InputError, match=r"f\.json") as caught:
        read_runs([document], "f.json")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_report_without_a_benchmark_measured_nothing():
    with pytest.raises(NothingMeasuredError, match="no finished run"):
        read_runs([{**guidellm(), "benchmarks": []}], "f.json")
