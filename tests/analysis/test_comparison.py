"""Ratios within a block, rows over tasks, and what unstable, gated and failed units do to them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from analysis.comparison import Comparison, baselines, compare, unit_ratios
from suite.harness.measurement import Sample, UnitResult
from tests.analysis.factory import longbench_units, sample, unit


def samples(factor: float = 1.0, score: float = 50.0, repeats: int = 3) -> list[Sample]:
    return [
        sample(f"q{item}", repeat, ttft=100.0 * (item + 1) * factor, gaps=[10.0 * factor] * 4, score=score + item)
        for item in range(3)
        for repeat in range(repeats)
    ]


def row(units: Sequence[UnitResult], label: str) -> Comparison:
    return next(found for found in compare(units) if found.label == label)


def test_a_method_twice_as_fast_has_ratio_two() -> None:
    dense, fast = unit(samples=samples()), unit("fast", samples(0.5))
    ratios = unit_ratios(fast, dense)
    assert {name: estimate.value for name, estimate in ratios.items()} == pytest.approx(
        {"ttft": 2.0, "tpot": 2.0, "e2el": 2.0}
    )
    assert ratios["ttft"].n == 9
    assert unit_ratios(dense, dense) == {}
    assert unit_ratios(fast, None) == {}


def test_a_unit_meets_the_baseline_of_its_own_block_only() -> None:
    """The other block ran while the machine was slow: mixing them would double the speed-up."""
    units = [
        unit(samples=samples(), block="a"),
        unit("fast", samples(0.5), block="a"),
        unit(samples=samples(2.0), block="b", task="trec"),
        unit("fast", samples(1.0), block="b", task="trec"),
    ]
    assert row(units, "fast").ratios["tpot"].value == pytest.approx(2.0)
    assert row(units, "fast").ratios["tpot"].n == 18


def test_the_native_dense_unit_is_the_baseline() -> None:
    ours = unit(samples=samples())
    theirs = unit(samples=samples(3.0), engine="transformers")
    assert baselines([ours, theirs])["block"] is ours
    other = row([ours, theirs], "dense · transformers")
    assert other.ratios["tpot"].value == pytest.approx(1 / 3)
    assert not other.is_baseline
    assert row([ours, theirs], "dense").is_baseline


def test_options_make_a_method_of_their_own() -> None:
    units = [unit(samples=samples()), unit("m", samples(0.5)), unit("m", samples(0.25), options={"top_k": 4})]
    assert row(units, "m").ratios["tpot"].value == pytest.approx(2.0)
    assert row(units, "m(top_k=4)").ratios["tpot"].value == pytest.approx(4.0)


@pytest.mark.parametrize("unstable_side", ["method", "baseline"])
def test_an_unstable_side_is_left_out_while_there_is_a_stable_pair(unstable_side: str) -> None:
    status = {"method": "ok", "baseline": "ok"} | {unstable_side: "unstable"}
    units = [
        unit(samples=samples(), block="a"),
        unit("fast", samples(0.5), block="a"),
        unit(samples=samples(), block="b", task="trec", status=status["baseline"]),
        unit("fast", samples(0.1), block="b", task="trec", status=status["method"]),
    ]
    assert row(units, "fast").ratios["tpot"].value == pytest.approx(2.0)
    assert row(units, "fast").trusted


def test_when_all_is_unstable_it_is_shown_and_not_trusted() -> None:
    units = [
        unit(samples=samples(), status="unstable"),
        unit("fast", samples(0.5), status="unstable", reasons=("noise.",)),
    ]
    found = row(units, "fast")
    assert found.ratios["tpot"].value == pytest.approx(2.0)
    assert not found.trusted
    assert found.problems == ("noise.",)


def test_a_gated_unit_has_no_ratio_and_says_why() -> None:
    found = row(longbench_units(), "streaming")
    assert found.statuses == {"ok": 4, "unstable": 0, "gated": 1, "failed": 1}
    assert found.problems[0].startswith("gate parity failed: max")
    assert found.problems[1] == "IndexError: index out of range"
    assert found.score_coverage == "over 4 of 6 tasks"
    assert found.ratios["tpot"].n == 4 * 12


def test_the_score_is_the_mean_of_the_tasks_means() -> None:
    """One task has three requests, the other one: each task weighs the same."""
    units = [unit(samples=samples(score=10.0), block="a"), unit(samples=[sample(score=31.0)], block="b", task="trec")]
    found = row(units, "dense")
    assert found.metrics["score"] == pytest.approx((11.0 + 31.0) / 2)
    assert found.score_coverage == ""


def test_stratified_error_when_every_task_has_one() -> None:
    """Each task's error is 1/sqrt(3); their mean's is that over sqrt(2)."""
    units = [unit(samples=samples(score=base), block=task, task=task) for task, base in (("a", 0.0), ("b", 90.0))]
    assert row(units, "dense").metrics["score_standard_error"] == pytest.approx((1 / 3) ** 0.5 / 2**0.5)


def test_score_change_is_paired_by_request() -> None:
    units = [unit(samples=samples(score=50.0)), unit("worse", samples(score=47.0))]
    change = row(units, "worse").score_change
    assert change is not None
    assert (change.value, change.n) == (pytest.approx(-3.0), 3)
    assert row(units, "dense").score_change is None


def test_other_models_and_thread_counts_are_other_contests() -> None:
    units = [unit(samples=samples()), unit(samples=samples(), workload="needle", block="b")]
    assert len({found.contest for found in compare(units)}) == 2
    assert [found.contest.workload for found in compare(units)] == ["longbench", "needle"]


def test_baselines_come_first() -> None:
    assert [found.label for found in compare(longbench_units())] == ["dense", "longheads", "streaming"]


def test_a_label_holds_only_the_options_that_tell_methods_apart() -> None:
    """One configuration needs none; of two that share `window`, `top_k` is what differs."""
    options = [{"window": 8, "top_k": 2}, {"window": 8, "top_k": 4}]
    both = [unit("m", samples(), options=option) for option in options]
    assert [found.label for found in compare([unit(samples=samples()), both[0]])] == ["dense", "m"]
    rows = compare([unit(samples=samples()), *both])
    assert [found.label for found in rows] == ["dense", "m(top_k=2)", "m(top_k=4)"]
    assert rows[1].options == "top_k=2, window=8"
    assert rows[1].holds(both[0])
    assert not rows[1].holds(both[1])
