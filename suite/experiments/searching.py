"""What the experiments of the search family share: one policy of the lab, its problems, and methods at many sizes.

All problems of a point are searched side by side. A cost is that of the searches' own ledgers; accuracies are those of
the answers they return, at temperature 1 (`_verifiers.md`, sections 6 and 7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from analysis.budgets import Budget, Curve, budget_ratio, difference
from analysis.search import Outcome
from analysis.statistics import Estimate, mean_estimate
from suite.experiments.base import Workbench
from suite.experiments.drafting import with_interval
from suite.harness.contender import Contender
from suite.harness.meter import RequestMeter
from suite.models.loaders import load_model
from suite.spec import MethodSpec
from workloads.chain import Chain
from workloads.schema import Completion

TASK = "arithmetic-24"
PROBLEMS = 500
SEED = 1  # sizes and options were settled on problems of seed 0
ROWS = 4096  # chains side by side at most
JUDGE = "likelihood"
FLIPPED = f"flipped:share=0.2:of={JUDGE}"

Options = Callable[[int], Mapping[str, Any]]


class Lab:
    """One policy and its problems."""

    def __init__(self, policy: str, bench: Workbench) -> None:
        self.policy, self._bench = policy, bench
        self._model = load_model(policy, "fp32")
        self._chain = Chain()
        self._requests = list(self._chain.requests(TASK, PROBLEMS, SEED))

    def curve(self, label: str, method: str, sizes: Sequence[int], options: Options, judge: str = JUDGE) -> Curve:
        """A method at several sizes, of which `options` makes its options."""
        columns = [self._outcomes(f"{label} {size}", method, {"verifier": judge, **options(size)}) for size in sizes]
        return Curve(label, tuple(sizes), tuple(zip(*columns, strict=True)))

    def greedy(self) -> float:
        """Accuracy of the policy's most likely chains, in percent."""
        found = self._outcomes("greedy", "best_of_n", {"samples": 1, "temperature": 0.0})
        return 100 * sum(one.accuracy for one in found) / len(found)

    def _outcomes(self, label: str, method: str, options: Mapping[str, Any]) -> list[Outcome]:
        contender = Contender.load(MethodSpec(name=method, options={"temperature": 1.0, **options}), self._model)
        contender.prepare()
        step = max(1, ROWS // int(options["samples"]))
        found: list[Outcome] = []
        for first in range(0, len(self._requests), step):
            self._bench.tick(f"{self.policy}, {label}: problem {first} of {len(self._requests)}")
            asked = self._requests[first : first + step]
            done = contender.complete(asked, RequestMeter())
            found += [_outcome(one, self._chain.score(one, request)) for one, request in zip(done, asked, strict=True)]
        return found


def _outcome(done: Completion, score: float) -> Outcome:
    figures = done.search
    assert figures is not None
    return Outcome(score / 100, figures.generated, figures.sequential, figures.generated,
                   verifier_passes=figures.verifier_passes)  # fmt: skip


def samples(size: int) -> dict[str, Any]:
    """Methods whose size is the number of their samples."""
    return {"samples": size}


def told(curve: Curve) -> str:
    """A curve in words: accuracies by size, and what they cost."""
    points = curve.points()

    def row(values: Sequence[float]) -> str:
        return "/".join(f"{value:.0f}" for value in values)

    passes = curve.budgets("verifier_passes")
    return (
        f"{curve.label} {row([point.accuracy.value for point in points])} % at {row(curve.sizes)} "
        f"({row([p.gen_tokens for p in points])} tokens, {row([p.seq_tokens for p in points])} deep, "
        f"{row(passes.tolist())} passes)"
    )


def above(base: Curve, method: Curve, size: int, base_size: int | None = None) -> Estimate | None:
    """Points of accuracy by which `method` is above `base` at one size (or the base at its own), paired by problem."""
    theirs = base.figures("accuracy")[:, base.sizes.index(base_size or size)]
    ours = method.figures("accuracy")[:, method.sizes.index(size)]
    return mean_estimate((100 * (ours - theirs)).tolist())


def ratios(base: Curve, method: Curve, budget: Budget) -> str:
    """In words, at every size of the base: how many times less the method needs for the same accuracy."""
    found = ((size, budget_ratio(base, method, budget, at)) for at, size in enumerate(base.sizes))
    return ", ".join(f"{size}: {with_interval(ratio)}" for size, ratio in found)


def differences(base: Curve, method: Curve, budget: Budget) -> str:
    """In words, at every size of the base: points by which the method is above it at the same budget."""
    found = ((size, difference(base, method, budget, at)) for at, size in enumerate(base.sizes))
    return ", ".join(f"{size}: {with_interval(gap)}" for size, gap in found)


def missed(estimate: Estimate | None) -> str:
    """Why there is no figure."""
    return "its curve does not come to that point" if estimate is None else ""


def table(curves: Sequence[Curve]) -> dict[str, Any]:
    """All points, for the ledger's details."""
    return {
        curve.label: [
            {
                "size": point.size, "accuracy": point.accuracy.value, "low": point.accuracy.low,
                "high": point.accuracy.high, "gen_tokens": point.gen_tokens, "seq_tokens": point.seq_tokens,
                "verifier_passes": float(passes),
            }
            for point, passes in zip(curve.points(), curve.budgets("verifier_passes"), strict=True)
        ]
        for curve in curves
    }  # fmt: skip
