"""Spec-Bench's ratio of means, by hand: it is not the paired ratio, and the two must not be mixed up."""

from __future__ import annotations

import math
from typing import Any

import pytest

from analysis.comparison import compare
from analysis.documents import run_document
from analysis.spec_bench import SpecBenchRow, accepted_tokens, spec_bench_rows, speeds
from suite.harness.measurement import Sample, UnitResult
from tests.analysis.factory import sample, unit
from workloads.schema import DraftFigures

UNUSED: dict[str, Any] = {
    "drafted": 9, "accepted": 1, "offered_at": (), "accepted_at": (), "draft_ns": 0, "decode_ns": 1
}  # fmt: skip


def turn(task: str, question: int, number: int, tokens: int, ms: float, repeat: int = 0, **drafts: int) -> Sample:
    """One turn: a fifth of its time is prefill."""
    gaps = [0.8 * ms / (tokens - 1)] * (tokens - 1)
    one = sample(f"{task}/{question}/{number}", repeat, ttft=0.2 * ms, gaps=gaps, task=task)
    metadata = {"question_id": question, "category": task, "turn": number}
    figures = DraftFigures(**{**UNUSED, **drafts}) if drafts else None
    return one.model_copy(update={"metadata": metadata, "token_ids": tuple(range(tokens)), "drafts": figures})


def contest(own: dict[str, list[Sample]], dense: dict[str, list[Sample]], **fields: Any) -> list[UnitResult]:
    return [
        unit(method, samples, task=task, block=task, workload="spec-bench", **fields)
        for task in own
        for method, samples in (("dense", dense[task]), ("lookahead", own[task]))
    ]


DENSE = {
    "mt_bench": [turn("mt_bench", 1, 1, 10, 1000), turn("mt_bench", 1, 2, 30, 1000), turn("mt_bench", 2, 1, 10, 1000)],
    "qa": [turn("qa", 3, 1, 40, 1000)],
}
OWN = {
    "mt_bench": [
        turn("mt_bench", 1, 1, 10, 400, rounds=4, emitted=9),
        turn("mt_bench", 1, 2, 30, 600, rounds=10, emitted=29),
        turn("mt_bench", 2, 1, 10, 1000, rounds=9, emitted=9),
    ],
    "qa": [turn("qa", 3, 1, 40, 500, rounds=13, emitted=39)],
}


def found(units: list[UnitResult]) -> dict[tuple[str, str], SpecBenchRow]:
    return {(row.method, row.category): row for row in spec_bench_rows(compare(units), units)}


def test_a_questions_speed_is_over_all_its_turns_with_their_prefill():
    assert speeds(DENSE["mt_bench"]) == pytest.approx({("mt_bench", 1, 0): 20.0, ("mt_bench", 2, 0): 10.0})
    assert speeds(OWN["mt_bench"]) == pytest.approx({("mt_bench", 1, 0): 40.0, ("mt_bench", 2, 0): 10.0})


def test_the_speed_up_is_a_ratio_of_means():
    """Speeds 40, 10 and 80 tokens/s against 20, 10 and 40: overall 130 / 70, the paired ratio 4 ** (1 / 3)."""
    rows = found(contest(OWN, DENSE))
    assert rows["lookahead", "mt_bench"].speedup == pytest.approx(25 / 15)
    assert rows["lookahead", "qa"].speedup == pytest.approx(2.0)
    overall = rows["lookahead", "overall"]
    assert overall.speedup == pytest.approx(130 / 70)
    assert overall.speedup != pytest.approx(4 ** (1 / 3), rel=0.05)
    assert overall.tokens_per_s == pytest.approx(130 / 3)
    assert (overall.questions, rows["lookahead", "mt_bench"].questions) == (3, 2)
    assert {rows["dense", name].speedup for name in ("overall", "mt_bench", "qa")} == {1.0}
    assert overall.spread is None


def test_accepted_tokens_are_over_all_rounds():
    """86 tokens in 36 rounds; the mean of the requests' own means is another number."""
    rows = found(contest(OWN, DENSE))
    assert rows["lookahead", "overall"].accepted == pytest.approx(86 / 36)
    assert rows["lookahead", "mt_bench"].accepted == pytest.approx(47 / 23)
    assert rows["dense", "overall"].accepted == accepted_tokens(DENSE["qa"]) == 1.0


def test_repeats_are_averaged_and_their_spread_is_told():
    dense = {"qa": [turn("qa", 3, 1, 40, 1000, repeat) for repeat in range(2)]}
    own = {"qa": [turn("qa", 3, 1, 40, ms, repeat) for repeat, ms in enumerate((500, 250))]}
    row = found(contest(own, dense))["lookahead", "overall"]
    assert row.questions == 1
    assert row.speedup == pytest.approx((80 + 160) / 80)
    assert row.spread == pytest.approx(math.sqrt(2))  # of 2 and 4


def test_only_questions_that_both_answered_count_and_no_gated_unit_does():
    fewer = {**DENSE, "qa": [turn("qa", 4, 1, 40, 1000)]}
    rows = found(contest(OWN, fewer))
    assert ("lookahead", "qa") not in rows
    assert rows["lookahead", "overall"].questions == 2
    units = contest(OWN, DENSE)
    units[-1] = units[-1].model_copy(update={"status": "gated"})
    assert ("lookahead", "qa") not in found(units)


def test_other_workloads_have_no_such_figures():
    units = contest(OWN, DENSE)
    assert [row["category"] for row in run_document(units, {})["spec_bench"][:3]] == ["overall", "mt_bench", "qa"]
    others = [one.model_copy(update={"spec": one.spec.model_copy(update={"workload": other(one)})}) for one in units]
    assert found(others) == {}
    assert "spec_bench" not in run_document(others, {})


def other(one: UnitResult) -> Any:
    return one.spec.workload.model_copy(update={"name": "longbench"})
