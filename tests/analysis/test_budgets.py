"""Curves of accuracy against cost: paired differences, budgets at equal accuracy, and what lies outside a curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from analysis.budgets import Curve, budget_ratio, curve, difference
from analysis.search import Outcome, Samples, first_finish, majority
from analysis.statistics import Estimate


def drawn(accuracy: Sequence[float], tokens: Sequence[float], questions: int = 400, seed: int = 0) -> Curve:
    """Questions whose chance of being answered is `accuracy`, plus or minus a difficulty, the same at all sizes."""
    hard = np.random.default_rng(seed).uniform(-0.1, 0.1, questions)
    rows = [
        tuple(Outcome(share + shift, cost, cost, cost) for share, cost in zip(accuracy, tokens, strict=True))
        for shift in hard - hard.mean()
    ]
    return Curve("made", tuple(2**power for power in range(len(tokens))), tuple(rows))


def told(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


def test_ratio_at_equal_accuracy_interpolates_in_log2() -> None:
    """0.5 lies half way between 0.4 at 200 and 0.6 at 800: at 400 tokens, a quarter of the baseline's 1,600."""
    base, method = drawn([0.3, 0.5], [800, 1600]), drawn([0.4, 0.6], [200, 800])
    ratio = told(budget_ratio(base, method, "gen_tokens"))
    assert ratio.value == pytest.approx(4.0)
    assert (ratio.low, ratio.high) == pytest.approx((4.0, 4.0))
    assert told(budget_ratio(base, method, "size")).value == pytest.approx(2 / math.sqrt(2))


def test_difficulty_that_both_share_cancels_and_other_does_not() -> None:
    base, method = drawn([0.3, 0.5], [800, 1600]), drawn([0.4, 0.6], [200, 800], seed=1)
    ratio = told(budget_ratio(base, method, "gen_tokens"))
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < 3.9 < 4.1 < ratio.high


def test_what_questions_cost_is_resampled_too() -> None:
    """Both are right on the same questions: all that is uncertain is what they spend."""
    costs = np.random.default_rng(0).exponential(1000.0, (400, 2))
    right = [float(index % 2) for index in range(400)]
    base, method = (
        Curve(
            "made", (1,), tuple((Outcome(share, cost, cost, cost),) for share, cost in zip(right, column, strict=True))
        )
        for column in costs.T
    )
    ratio = told(budget_ratio(base, method, "gen_tokens"))
    assert ratio.value == pytest.approx(costs[:, 0].mean() / costs[:, 1].mean())
    spread = 1.96 * math.sqrt(2 / 400)  # of the ratio of two means whose deviation is as large as they are
    assert ratio.low == pytest.approx(ratio.value * (1 - spread), rel=0.05)
    assert ratio.high == pytest.approx(ratio.value * (1 + spread), rel=0.05)


def test_an_accuracy_that_is_never_reached_has_no_ratio() -> None:
    assert budget_ratio(drawn([0.9], [100]), drawn([0.4, 0.6], [200, 800]), "gen_tokens") is None


def test_a_ratio_that_only_the_average_reaches_has_no_lower_bound() -> None:
    ratio = told(budget_ratio(drawn([0.59999], [1600]), drawn([0.4, 0.6], [200, 800], seed=1), "gen_tokens"))
    assert ratio.low is None
    assert "do not reach" in ratio.note


def test_a_method_that_starts_above_is_at_least_so_much_better() -> None:
    ratio = told(budget_ratio(drawn([0.3], [800]), drawn([0.4, 0.6], [200, 800]), "gen_tokens"))
    assert ratio.value == 4.0
    assert ratio.note.startswith("at least")


def test_difference_is_at_one_budget_not_at_one_size() -> None:
    """At size 2 the method is 20 points better; at the baseline's tokens it is 10 points worse."""
    base, method = drawn([0.4, 0.6], [100, 200]), drawn([0.4, 0.8], [100, 1600])
    assert told(difference(base, method, "size")).value == pytest.approx(20.0)
    found = told(difference(base, method, "gen_tokens"))
    assert found.value == pytest.approx(-10.0)
    assert (found.low, found.high) == pytest.approx((-10.0, -10.0))
    assert difference(base, drawn([0.4, 0.8], [300, 1600]), "gen_tokens") is None
    assert told(difference(base, method, "gen_tokens", at=0)).value == pytest.approx(0.0)


def test_a_budget_that_falls_with_the_size_is_read_in_its_own_order() -> None:
    """The first of more chains finishes earlier: sequential tokens fall as accuracy rises."""
    base, method = drawn([0.6], [100]), drawn([0.5, 0.7], [200, 50])
    assert told(difference(base, method, "seq_tokens")).value == pytest.approx(0.0)
    assert told(budget_ratio(base, method, "seq_tokens")).value == pytest.approx(2.0)


def test_a_curve_of_stored_answers() -> None:
    rng = np.random.default_rng(0)
    questions = []
    for _ in range(30):
        correct = rng.random(8) < 0.6
        lengths = np.where(correct, rng.integers(10, 40, 8), rng.integers(20, 60, 8))
        classes = np.where(correct, np.argmax(correct), np.argmin(correct))
        questions.append(Samples(lengths, classes, correct, np.ones(8, dtype=bool)))
    voting, first = (
        curve("majority", questions, majority, (1, 3, 5)),
        curve("first", questions, first_finish, (1, 3, 5)),
    )
    points = voting.points()
    assert [point.size for point in points] == [1, 3, 5]
    assert points[0].accuracy.value == pytest.approx(100 * np.mean([one.correct.mean() for one in questions]))
    assert points[0].accuracy.n == 30
    assert points[2].gen_tokens == pytest.approx(5 * points[0].gen_tokens)
    assert first.points()[2].seq_tokens < points[0].seq_tokens < points[2].seq_tokens
    assert first.points()[2].finished_only_tokens < first.points()[2].gen_tokens < points[2].gen_tokens
    assert told(difference(voting, voting, "gen_tokens", at=1)).value == 0.0
    assert told(budget_ratio(voting, voting, "gen_tokens", at=2)).value == pytest.approx(1.0)
    with pytest.raises(ValueError, match="needs a question"):
        curve("none", [], partial(first_finish, m=1), (1,))
