"""Accuracy against cost: curves of methods over their sizes, and what two of them differ by at one budget.

The default reading is at equal generated tokens, then at equal sequential tokens, then at equal size (`_verifiers.md`,
section 4). Intervals come from a bootstrap over questions, the same ones for both methods; a ratio resamples what they
spent as well, a difference is one at the mean budget. Between two sizes accuracy is interpolated linearly in log2 of
the budget; outside a curve nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis import statistics
from analysis.search import FloatArray, Outcome, Samples
from analysis.statistics import Estimate

Budget = Literal["gen_tokens", "seq_tokens", "verifier_passes", "size"]
Method = Callable[[Samples, int], Outcome]


@dataclass(frozen=True)
class Point:
    """One method at one size, means over questions: accuracy in percent with its interval, tokens for each question."""

    size: int
    accuracy: Estimate
    gen_tokens: float
    seq_tokens: float
    finished_only_tokens: float
    tie_rate: float


@dataclass(frozen=True)
class Curve:
    """One method on Q questions at P sizes; `outcomes[q][p]`."""

    label: str
    sizes: tuple[int, ...]
    outcomes: tuple[tuple[Outcome, ...], ...]

    def figures(self, name: str) -> FloatArray:
        """[Q, P]: one field of the outcomes."""
        return np.array([[getattr(one, name) for one in row] for row in self.outcomes], dtype=np.float64)

    def spent(self, budget: Budget) -> FloatArray:
        """[Q, P]: what each question took of a budget; of sizes, the size itself."""
        if budget == "size":
            return np.tile(np.array(self.sizes, dtype=np.float64), (len(self.outcomes), 1))
        return self.figures(budget)

    def budgets(self, budget: Budget) -> FloatArray:
        """[P]: the means over questions."""
        means: FloatArray = self.spent(budget).mean(axis=0)
        return means

    def points(self) -> list[Point]:
        """The curve as a table."""
        found = []
        for place, size in enumerate(self.sizes):
            accuracy = statistics.mean_estimate((100 * self.figures("accuracy")[:, place]).tolist())
            assert accuracy is not None
            names = ("gen_tokens", "seq_tokens", "finished_only_tokens", "tie_rate")
            found.append(Point(size, accuracy, *(float(self.figures(name)[:, place].mean()) for name in names)))
        return found


def curve(label: str, questions: Sequence[Samples], method: Method, sizes: Sequence[int]) -> Curve:
    """Evaluates `method` on every question at every size; `ValueError` without questions or sizes."""
    if not questions or not sizes:
        raise ValueError(f"{label}: a curve needs a question and a size at least")
    return Curve(label, tuple(sizes), tuple(tuple(method(one, size) for size in sizes) for one in questions))


def difference(base: Curve, method: Curve, budget: Budget, at: int = -1) -> Estimate | None:
    """Points of accuracy that `method` is above `base` at the budget of `base`'s point `at`, paired by question.

    None where the method's curve does not reach that budget: then its range has to be measured, not guessed.
    """
    ours = _at(method, budget, float(base.budgets(budget)[at]))
    return None if ours is None else statistics.mean_estimate((100 * (ours - base.figures("accuracy")[:, at])).tolist())


def budget_ratio(base: Curve, method: Curve, budget: Budget, at: int = -1) -> Estimate | None:
    """How many times less `method` needs for the accuracy of `base`'s point `at`; None where it never comes to it.

    Where its smallest point is accurate enough already, that point counts, and the note says so: the ratio is then at
    least this. Where some resamples do not reach it either, there may be no lower bound.
    """
    budgets, theirs = method.budgets(budget), float(base.budgets(budget)[at])
    goals, curves = base.figures("accuracy")[:, at], method.figures("accuracy")
    value = theirs / _reaching(curves.mean(axis=0), budgets, float(goals.mean()))
    if value == 0.0:
        return None
    questions = len(goals)
    draws = np.random.default_rng(statistics.SEED).multinomial(
        questions, np.full(questions, 1 / questions), size=statistics.RESAMPLES
    )
    columns = (base.spent(budget)[:, at], curves, method.spent(budget), goals)
    resampled = zip(*(draws @ column / questions for column in columns), strict=True)
    ratios = [spent / _reaching(accuracy, needed, float(goal)) for spent, accuracy, needed, goal in resampled]
    tail = 50 * (1 - statistics.CONFIDENCE)
    low, high = np.percentile(ratios, tail), np.percentile(ratios, 100 - tail)
    return Estimate(value, float(low) or None, float(high), questions, _note(value, theirs, budgets, ratios))


def _note(value: float, theirs: float, budgets: FloatArray, ratios: Sequence[float]) -> str:
    if value == theirs / budgets.min():
        return "at least: its smallest point is accurate enough"
    missed = float(np.mean(np.array(ratios) == 0.0))
    return f"{missed:.0%} of the resamples do not reach the accuracy" if missed else ""


def _at(method: Curve, budget: Budget, wanted: float) -> FloatArray | None:
    """[Q]: the method's accuracy on each question at that budget; None outside its curve."""
    budgets = method.budgets(budget)
    order = np.argsort(budgets, kind="stable")
    places = np.log2(budgets[order])
    if not budgets[order[0]] <= wanted <= budgets[order[-1]]:
        return None
    accuracy = method.figures("accuracy")[:, order]
    return np.array([np.interp(np.log2(wanted), places, row) for row in accuracy])


def _reaching(accuracy: FloatArray, budgets: FloatArray, goal: float) -> float:
    """The smallest budget at which the interpolated curve comes to `goal`; infinite where it does not."""
    order = np.argsort(budgets, kind="stable")
    heights, places = accuracy[order] - goal, np.log2(budgets[order])
    enough = np.flatnonzero(heights >= -1e-12)
    if not len(enough):
        return float("inf")
    first = int(enough[0])
    if first == 0:
        return float(budgets[order[0]])
    below, above = heights[first - 1 : first + 1]
    share = below / (below - above)
    return float(2 ** (places[first - 1] + share * (places[first] - places[first - 1])))
