"""From samples to metrics: the definitions, the unit's status, and the place on the roofline."""

from __future__ import annotations

import pytest

from analysis.metrics import unit_metrics
from analysis.placement import placements
from analysis.roofline.ceilings import Ceilings, human_bytes
from analysis.samples import method_label, pair_times, tpot_ms
from suite.harness.measurement import Energy, Gate, Memory
from suite.spec import MethodSpec
from tests.analysis.factory import SIZES, calibration, sample, unit

SPEED = ("mean_ttft_ms", "median_tpot_ms", "p99_itl_ms", "output_throughput", "prompt_throughput", "decode_gb_per_s")


def test_tpot_is_the_mean_gap_and_needs_two_tokens() -> None:
    assert tpot_ms(sample(gaps=(10.0, 20.0))) == pytest.approx(15.0)
    assert tpot_ms(sample(gaps=())) is None


def test_latency_names_and_values() -> None:
    metrics = unit_metrics(unit(samples=[sample(ttft=100, gaps=(10, 20)), sample("q1", ttft=300, gaps=(40,), turn=1)]))
    assert metrics["mean_ttft_ms"] == 200
    assert metrics["median_tpot_ms"] == pytest.approx((15 + 40) / 2)
    assert metrics["mean_itl_ms"] == pytest.approx(70 / 3)
    assert metrics["p99_ttft_ms"] == pytest.approx(298)
    assert metrics["mean_e2el_ms"] == pytest.approx((130 + 340) / 2)


def test_throughput_counts_the_time_the_engine_was_busy() -> None:
    """Two turns of one request: times add. One turn of two requests: a batch, its longest request counts."""
    apart = unit_metrics(unit(samples=[sample(turn=0), sample("q1", turn=1)]))
    together = unit_metrics(unit(samples=[sample(turn=0), sample("q1", turn=0)]))
    assert apart["output_throughput"] == pytest.approx(8 / 0.26)
    assert together["output_throughput"] == pytest.approx(8 / 0.13)
    assert apart["prompt_throughput"] == pytest.approx(2000 / 0.2)


def test_a_repeat_is_no_new_evidence_for_a_score() -> None:
    samples = [sample("q0", 0, score=100), sample("q0", 1, score=100), sample("q1", 0, score=0)]
    metrics = unit_metrics(unit(samples=samples))
    assert metrics["score"] == 50
    assert metrics["score_standard_error"] == pytest.approx(50)


def test_no_score_is_none_not_zero() -> None:
    metrics = unit_metrics(unit(samples=[sample(score=None)]))
    assert metrics["score"] is None
    assert metrics["score_standard_error"] is None


@pytest.mark.parametrize("status", ["gated", "failed"])
def test_a_unit_that_is_not_timed_has_no_speed_but_keeps_its_quality(status: str) -> None:
    gate = Gate(name="parity", passed=False, detail="off by 1")
    metrics = unit_metrics(unit(samples=[sample()], status=status, gates=(gate,)), Ceilings(calibration()))
    assert [metrics[name] for name in SPEED] == [None] * len(SPEED)
    assert metrics["score"] == 50
    assert metrics["selected_retention"] == 1.0


def test_kv_memory_and_energy() -> None:
    energy = Energy(joules=8.0, source="rapl")
    memory = Memory(process_peak_bytes=10, model_bytes=4)
    metrics = unit_metrics(unit("longheads", [sample()], selected=0.25, energy=energy, memory=memory))
    assert metrics["selected_retention"] == 0.25
    assert metrics["kv_read_bytes_per_step"] == pytest.approx(0.25 * 23_040_000)
    assert metrics["joules_per_token"] == 2.0
    assert (metrics["process_peak_bytes"], metrics["device_peak_bytes"]) == (10, None)
    assert unit_metrics(unit(samples=[sample()]))["joules_per_token"] is None


def test_decode_is_placed_by_counted_bytes_and_time() -> None:
    place = placements(unit(samples=[sample(gaps=(10.0, 10.0, 10.0))]), None)["decode"]
    assert place.gb_per_s == pytest.approx(place.counted_bytes / 0.010 / 1e9)
    assert place.counted_bytes == pytest.approx(1.03 * place.modelled_bytes)
    assert 0.9 < place.intensity < 1.5
    assert place.predicted_ms is None
    assert place.ceiling_fraction is None


def test_prediction_is_a_bound_with_calls() -> None:
    place = placements(unit(samples=[sample(gaps=(12.0,) * 3)]), Ceilings(calibration()))["decode"]
    assert place.machine is not None
    assert place.machine.bytes_per_s == pytest.approx(32e9)
    assert place.launch_ms == pytest.approx(200 * 1.5e-3 / 3)
    assert place.predicted_ms == pytest.approx(1e3 * place.counted_bytes / 32e9 + place.launch_ms)
    assert place.unexplained_ms == pytest.approx(12.0 - place.predicted_ms)
    assert place.ceiling_fraction == pytest.approx(place.gb_per_s / 32)


def test_prefill_is_placed_by_the_counted_request_only() -> None:
    """The counted request is the first; the other one is four times as long and must not be mixed in."""
    samples = [sample("q0", ttft=500.0), sample("q1", ttft=4000.0, prompt_tokens=4000, turn=1)]
    place = placements(unit(samples=samples), Ceilings(calibration()))["prefill"]
    assert place.measured_ms == 500.0
    assert place.gflop_per_s == pytest.approx(place.flops / 0.5 / 1e9)
    assert place.ceiling_fraction == pytest.approx(place.gflop_per_s / 500)


def test_a_small_working_set_is_judged_by_the_cache() -> None:
    ceilings = Ceilings(calibration())
    assert ceilings.read(2, 3_000_000).value == pytest.approx(190)
    assert ceilings.read(2, 1e12).value == ceilings.memory(2).value == pytest.approx(32)
    assert ceilings.read(1, 1e12).value == pytest.approx(16)
    assert [ceiling.size for ceiling in ceilings.streams("read", 2)] == sorted(SIZES)


def test_a_ceiling_that_was_refused_leaves_no_machine() -> None:
    whole = calibration()
    no_gemm = whole.model_copy(update={"ceilings": tuple(c for c in whole.ceilings if c.kind != "gemm")})
    assert Ceilings(no_gemm).machine("bf16", 2, 1e9) is None
    assert Ceilings(whole).machine("bf16", 3, 1e9) is None
    assert Ceilings(whole).gemm("fp32", 2).value == pytest.approx(120)


def test_labels_and_pairs() -> None:
    assert method_label(MethodSpec(name="longheads", options={"w": 8, "a": 1})) == "longheads(a=1, w=8)"
    assert pair_times([sample("q", 2, gaps=())]) == {"ttft": {("q", 2): 100.0}, "tpot": {}, "e2el": {("q", 2): 100.0}}
    assert (human_bytes(16 << 10), human_bytes(256 << 20)) == ("16 KiB", "256 MiB")
