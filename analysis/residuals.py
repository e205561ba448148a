"""How far predicted times are from measured ones (`methods/_roofline.md` section 7).

A residual is (predicted - measured) / measured, so a model that promises too little time has a negative bias. Nothing
is dropped and nothing weighted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

Key = TypeVar("Key")


@dataclass(frozen=True)
class Compared:
    """One measured time and its prediction, in milliseconds; the other fields say of what, and on which side it is."""

    part: str
    phase: str
    batch: int
    tokens: int
    dtype: str
    measured_ms: float
    predicted_ms: float
    bound_ms: float | None = None
    held_out: bool = False

    @property
    def residual(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_ms / self.measured_ms - 1

    @property
    def where(self) -> str:
        """Batch and tokens: "4 x 512"."""
        return f"{self.batch} × {self.tokens}"


@dataclass(frozen=True)
class Residuals:
    """Statistics of `n` residuals, as shares; `ratio` is the geometric mean of predicted over measured.

    `rank` is Spearman's correlation of predicted and measured times, None below three points or without variation.
    """

    n: int
    mape: float
    bias: float
    median: float
    p90: float
    worst: float
    worst_at: str
    ratio: float
    rank: float | None


@dataclass(frozen=True)
class Score:
    """Statistics of one group; `batch` 0 stands for all batches. `held_out` is None where nothing was fitted."""

    phase: str
    part: str
    batch: int
    dtype: str
    residuals: Residuals
    held_out: bool | None = None


def residuals(points: Sequence[Compared]) -> Residuals | None:
    """None of no points. `p90` is the 90th percentile of absolute residuals, `worst` the largest with its sign."""
    if not points:
        return None
    signed = np.array([point.residual for point in points])
    worst = int(np.argmax(np.abs(signed)))
    return Residuals(
        n=len(points),
        mape=float(np.abs(signed).mean()),
        bias=float(signed.mean()),
        median=float(np.median(signed)),
        p90=float(np.percentile(np.abs(signed), 90)),
        worst=float(signed[worst]),
        worst_at=points[worst].where,
        ratio=float(np.exp(np.log1p(signed).mean())),
        rank=_rank([point.predicted_ms for point in points], [point.measured_ms for point in points]),
    )


def _rank(predicted: Sequence[float], measured: Sequence[float]) -> float | None:
    if len(predicted) < 3 or len(set(predicted)) == 1 or len(set(measured)) == 1:
        return None
    return float(stats.spearmanr(predicted, measured).statistic)


def grouped(points: Iterable[Compared], key: Callable[[Compared], Key]) -> dict[Key, Residuals]:
    """Statistics of every group, in order of appearance."""
    groups: dict[Key, list[Compared]] = {}
    for point in points:
        groups.setdefault(key(point), []).append(point)
    return {name: found for name, members in groups.items() if (found := residuals(members)) is not None}
