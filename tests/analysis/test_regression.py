"""Verdicts between two results, and of a night: what is noise, what is counted, what gets no verdict."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.observations import observe
from analysis.regression import MIN_PAIRS, Verdict, compare, judge_night
from suite.harness.history import Observation
from tests.analysis.factory import sample, unit
from tests.analysis.nights import history, levels, observation
from tests.harness.support import quiet


def _side(slow: float = 1.0, *, seed: int = 0, requests: int = 12, method: str = "dense", **changes) -> Observation:
    rng = np.random.default_rng(seed)
    samples = [
        sample(
            f"q{i}", ttft=(80 + 40 * i) * slow * rng.lognormal(0, 0.02), gaps=(12 * slow * rng.lognormal(0, 0.02),) * 4
        )
        for i in range(requests)
    ]
    return observe(unit(method, changes.pop("samples", samples), **changes), "here")


def _outcomes(verdicts: list[Verdict]) -> dict[str, str]:
    return {one.metric: one.outcome for one in verdicts}


def test_twice_as_slow_is_found_with_its_size_and_interval() -> None:
    verdicts = compare([_side()], [_side(2.0, seed=1)])
    found = {one.metric: one for one in verdicts}
    for metric in ("ttft", "tpot", "e2el"):
        assert found[metric].outcome == "regression"
        change = found[metric].change
        assert change is not None
        assert change.low < 1.0 < change.high
    assert found["model_bytes"].outcome == found["score"].outcome == "same"


def test_faster_is_an_improvement() -> None:
    assert _outcomes(compare([_side()], [_side(0.8, seed=1)]))["tpot"] == "improvement"


def test_a_significant_trifle_is_no_regression() -> None:
    """Pairs make 2 % significant; it stays below what two runs differ by for no reason."""
    assert _outcomes(compare([_side(requests=60)], [_side(1.02, seed=1, requests=60)]))["tpot"] == "same"
    assert _outcomes(compare([_side(requests=60)], [_side(1.02, seed=1, requests=60)], 0.01))["tpot"] == "regression"


def test_the_same_twice_is_the_same() -> None:
    assert set(_outcomes(compare([_side()], [_side()])).values()) == {"same"}


def test_many_clean_comparisons_stay_quiet() -> None:
    """Of 60 units that differ by noise as large as the smallest effect, none is called worse."""
    rng = np.random.default_rng(3)

    def side() -> list[Observation]:
        noise = [[sample(f"q{i}", ttft=100 * rng.lognormal(0, 0.12)) for i in range(8)] for _ in range(60)]
        return [_side(samples=samples, method=f"m{index}") for index, samples in enumerate(noise)]

    verdicts = compare(side(), side())
    assert len(verdicts) > 180
    assert not [one for one in verdicts if one.outcome == "regression"]


def test_an_unstable_unit_gets_no_verdict_on_its_speed_and_one_on_its_cache() -> None:
    noisy = _side(2.0, status="unstable", reasons=("other processes kept 0.9 cores busy",), selected=0.5)
    verdicts = compare([_side()], [noisy])
    assert _outcomes(verdicts)["tpot"] == "no verdict"
    assert "0.9 cores" in next(one.reason for one in verdicts if one.metric == "tpot")
    assert _outcomes(verdicts)["selected_retention"] == "improvement"


def test_other_hardware_gives_no_verdict_on_speed() -> None:
    elsewhere = _side(2.0).model_copy(update={"place": "there"})
    assert _outcomes(compare([_side()], [elsewhere]))["ttft"] == "no verdict"


def test_few_pairs_give_no_verdict() -> None:
    few = MIN_PAIRS - 1
    verdicts = compare([_side(requests=few)], [_side(3.0, requests=few)])
    assert _outcomes(verdicts)["ttft"] == "no verdict"


def test_what_is_counted_needs_no_statistics() -> None:
    verdicts = _outcomes(compare([_side(selected=0.5)], [_side(selected=0.52)]))
    assert verdicts["selected_retention"] == verdicts["kv_read_bytes_per_step"] == "regression"
    assert _outcomes(compare([_side(selected=0.5)], [_side(selected=0.502)]))["selected_retention"] == "same"


def test_quality_is_judged_and_knows_its_direction() -> None:
    def scored(value: float, **changes) -> Observation:
        return _side(samples=[sample(f"q{i}", score=value + i) for i in range(8)], **changes)

    assert _outcomes(compare([scored(60)], [scored(40)]))["score"] == "regression"
    assert _outcomes(compare([scored(60)], [scored(80)]))["score"] == "improvement"
    upside_down = {"higher_is_better": False}
    assert _outcomes(compare([scored(60, **upside_down)], [scored(80, **upside_down)]))["score"] == "regression"


def test_a_gate_that_fails_now_is_a_regression_and_one_that_failed_before_is_none() -> None:
    gated = _side(status="gated", samples=[])
    assert _outcomes(compare([_side()], [gated])) == {"status": "regression"}
    assert _outcomes(compare([gated], [gated])) == {"status": "no verdict"}
    assert _outcomes(compare([gated], [_side()])) == {"status": "improvement"}


def test_what_only_one_side_has_is_told() -> None:
    reasons = [one.reason for one in compare([_side()], [_side(method="streaming")])]
    assert reasons == ["it is not among the earlier results.", "it was not measured again."]


def _judged(nights: list[list[Observation]]) -> dict[tuple[str, str], Verdict]:
    flat = [one for night in nights for one in night]
    return {(one.unit, one.metric): one for one in judge_night(flat, flat[-1].night)}


def test_a_step_is_dated_and_unstable_nights_do_not_count() -> None:
    factors = levels(np.random.default_rng(1), 2, 30)
    factors[:, 26:] *= 1.10
    nights = list(history(factors))
    nights[20] = [
        one.model_copy(update={"status": "unstable", "metrics": {"median_tpot_ms": 99.0}}) for one in nights[20]
    ]
    nights[26] = [one.model_copy(update={"commit": "abcdef0123456789"}) for one in nights[26]]
    verdict = _judged(nights)["unit 0", "tpot"]
    assert verdict.outcome == "regression"
    assert "night-0026 (commit abcdef012345)" in verdict.reason


def test_an_unstable_night_gets_no_verdict() -> None:
    nights = list(history(levels(np.random.default_rng(1), 2, 30)))
    slow = [one.model_copy(update={"status": "unstable", "reasons": ("steal",)}) for one in nights[-1]]
    verdicts = _judged([*nights[:-1], slow])
    assert verdicts["unit 0", "tpot"].outcome == "no verdict"
    assert "steal" in verdicts["unit 0", "tpot"].reason


@pytest.mark.parametrize(
    ("nights", "slower", "outcome"),
    [
        (1, 2.2, "regression"),
        (1, 1.8, "no verdict"),
        (9, 1.4, "regression"),
        (9, 1.3, "no verdict"),
        (50, 1.3, "regression"),
    ],
)
def test_the_fewer_nights_there_are_the_larger_a_jump_must_be(nights: int, slower: float, outcome: str) -> None:
    factors = np.ones((2, nights + 1))
    factors[:, -1] = slower
    assert _judged(list(history(factors)))["unit 0", "tpot"].outcome == outcome


def test_counted_figures_and_scores_are_judged_against_the_usual() -> None:
    nights = list(history(np.ones((2, 5))))
    worse = observation(
        9,
        "unit 0",
        {"ttft": 1.0, "tpot": 1.0},
        metrics={"median_ttft_ms": 120.0, "median_tpot_ms": 12.0, "selected_retention": 0.5, "kv_resident_bytes": 1e6},
        scores={f"q{i}": 20.0 for i in range(4)},
    )
    found = {metric: one.outcome for (_, metric), one in _judged([*nights, [worse]]).items()}
    assert found["selected_retention"] == found["score"] == "regression"
    assert found["kv_resident_bytes"] == "same"


@pytest.mark.parametrize("nights", [1, 2])
def test_the_first_nights_are_no_false_alarm(nights: int) -> None:
    verdicts = _judged(list(history(levels(np.random.default_rng(2), 20, nights))))
    assert not [one for one in verdicts.values() if one.outcome == "regression"]


def test_another_number_of_threads_is_another_question() -> None:
    one, two = (_side(noise=quiet(threads=threads)).question for threads in (1, 2))
    assert one != two
    assert one == _side(seed=1, noise=quiet(threads=1)).question
