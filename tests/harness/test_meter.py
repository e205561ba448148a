"""The unit-test vectors of `_kv_retention.md` section 7, and the clock."""

from __future__ import annotations

import time
from typing import Any

import pytest

from suite.harness.meter import CountingMeter, RequestMeter, Step
from suite.models.generation import AttentionRead


def read(layer: int = 0, **changes: Any) -> AttentionRead:
    """A dense read of 1000 tokens, 10 of them generated."""
    dense: dict[str, Any] = {
        "layer": layer, "tokens": 1000, "prompt_tokens": 990, "stored": 1000, "union": 1000, "per_query_head": 1000,
        "padded": 1000, "kv_bytes": 0, "index_bytes": 0, "copy_bytes": 0,
    }  # fmt: skip
    return AttentionRead(**(dense | changes))


def counted(*steps: list[AttentionRead], per_token: int = 0) -> CountingMeter:
    """A meter that has seen one request with these decode steps."""
    meter = CountingMeter(per_token)
    meter.start("r", 990)
    meter.phase("prefill")
    meter.step(990, 990)
    meter.phase("decode")
    for reads in steps:
        meter.step(1, reads[0].tokens)
        for one in reads:
            meter.attention(one)
    return meter


def test_vector_1_a_quarter_selected_and_everything_stored() -> None:
    (kv,) = counted([read(layer, union=250, per_query_head=250) for layer in range(2)]).kv_samples()
    assert kv.selected_retention == 0.25
    assert kv.stored_retention == 1.0


def test_vector_2_union_and_per_query_head_differ_under_gqa() -> None:
    (kv,) = counted([read(tokens=100, prompt_tokens=90, union=(15 + 10) / 2, per_query_head=10)]).kv_samples()
    assert kv.selected_retention == 0.125
    assert kv.selected_retention_per_query_head == 0.10


def test_vector_3_generated_tokens_belong_in_the_denominator() -> None:
    (kv,) = counted([read(tokens=1100, prompt_tokens=1000, stored=800)]).kv_samples()
    assert kv.stored_retention_last == pytest.approx(0.727, abs=5e-4)


def test_vector_4_layers_are_averaged_by_tokens_and_their_extremes_kept() -> None:
    (kv,) = counted([read(0, union=100, padded=100), read(1, union=500, padded=500)]).kv_samples()
    assert kv.selected_retention == pytest.approx(0.30)
    assert kv.selected_retention_layer_max == 0.50
    assert kv.selected_retention_layer_min == 0.10
    assert kv.padded_retention == pytest.approx(0.30)


def test_layers_of_unequal_length_are_not_a_mean_of_ratios() -> None:
    (kv,) = counted([read(0, union=100, tokens=1000), read(1, union=100, tokens=100)]).kv_samples()
    assert kv.selected_retention == pytest.approx(200 / 1100)


def test_steps_are_averaged_and_the_last_one_is_reported() -> None:
    (kv,) = counted([read(union=1000)], [read(union=500)]).kv_samples()
    assert kv.selected_retention == 0.75
    assert kv.selected_retention_last == 0.5


def test_the_prompt_column_divides_by_the_prompt_only() -> None:
    (kv,) = counted([read(tokens=1000, prompt_tokens=500, union=250)]).kv_samples()
    assert kv.selected_retention_prompt == 0.5


def test_bytes_are_means_per_step_and_index_and_copies_count() -> None:
    meter = counted([read(kv_bytes=100, index_bytes=10)], [read(kv_bytes=100, copy_bytes=200)], per_token=48)
    meter.resident(48_000, 77)
    (kv,) = meter.kv_samples()
    assert kv.read_bytes_per_step == (110 + 300) / 2
    assert (kv.resident_bytes, kv.index_bytes) == (48_000, 77)
    assert kv.full_bytes == 48 * 1000


def test_prefill_reads_are_not_retention_and_a_request_without_decode_has_none() -> None:
    meter = CountingMeter(1)
    meter.start("r", 3)
    meter.phase("prefill")
    meter.step(3, 3)
    meter.attention(read(union=1))
    assert meter.kv_samples() == ()
    assert meter.steps == {"prefill": [Step(3, 3)], "decode": []}


def test_requests_are_kept_apart() -> None:
    meter = counted([read(union=1000)])
    meter.start("s", 990)
    meter.phase("decode")
    meter.step(1, 1000)
    meter.attention(read(union=250))
    assert [kv.selected_retention for kv in meter.kv_samples()] == [1.0, 0.25]


def test_the_clock_starts_at_start_and_stamps_every_token() -> None:
    meter = RequestMeter()
    before = time.perf_counter_ns()
    meter.start("r", 7)
    time.sleep(0.01)
    meter.token("r", 42)
    meter.token("r", 43)
    start, stamps = meter.times("r")
    assert before <= start <= stamps[0] - 10_000_000
    assert stamps[0] <= stamps[1] <= time.perf_counter_ns()
    assert meter.token_ids("r") == (42, 43)
    assert meter.token_ids("unknown") == ()
    assert meter.prompt_tokens("r") == 7
    assert not meter.counting


def test_a_token_costs_about_a_microsecond_at_most() -> None:
    best = min(_microseconds_per_token() for _ in range(5))
    assert best < 3.0, f"{best:.2f} us; the aim is 1 us on an idle machine"


def _microseconds_per_token() -> float:
    meter = RequestMeter()
    meter.start("r", 1)
    start = time.perf_counter()
    for token in range(10_000):
        meter.token("r", token)
    return (time.perf_counter() - start) * 100
