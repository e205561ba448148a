"""Statistics of samples: medians, percentiles, paired ratios and scores, each with its interval and sample count.

Everything is deterministic: the bootstrap draws from a fixed seed. Samples are flagged, never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 20240223
OUTLIER_Z = 3.5
"""Modified z-score above which a sample is flagged (Iglewicz and Hoaglin, 1993)."""

PairKey = tuple[str, int]
"""What two samples must share to form a pair: (request_id, repeat)."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure from `n` samples with its 95% interval.

    Without one `low` and `high` are None, without an upper bound `high` is, and `note` says why.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    note: str = ""


def median(values: Sequence[float]) -> float | None:
    """The median, None of no values."""
    return float(np.median(values)) if len(values) else None


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-th percentile (0-100) by linear interpolation, as vLLM's benchmark computes it; None of no values."""
    return float(np.percentile(values, q)) if len(values) else None


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean, None of no values."""
    return float(np.mean(values)) if len(values) else None


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean; None below two values, where it is unknown rather than zero."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def coefficient_of_variation(values: Sequence[float]) -> float:
    """Sample standard deviation over the mean (0 for one value)."""
    return float(stats.variation(values, ddof=1)) if len(values) > 1 else 0.0


def outliers(values: Sequence[float]) -> list[bool]:
    """True where a value's modified z-score (from median and MAD) exceeds 3.5. Nothing is removed."""
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 3:
        return [False] * len(data)
    distance = np.abs(data - np.median(data))
    mad = float(np.median(distance))
    if mad == 0.0:
        return [False] * len(data)
    return [bool(flag) for flag in 0.6745 * distance / mad > OUTLIER_Z]


def mean_estimate(values: Sequence[float]) -> Estimate | None:
    """Mean with a bootstrap interval; None of no values."""
    if not len(values):
        return None
    data = np.asarray(values, dtype=np.float64)
    low, high, note = _interval(data)
    return Estimate(float(data.mean()), low, high, len(data), note)


def pair_logs(baseline: Mapping[PairKey, float], method: Mapping[PairKey, float]) -> list[float]:
    """log(baseline / method) of every pair both sides have, in a fixed order; times of zero form no pair."""
    shared = sorted(baseline.keys() & method.keys())
    return [math.log(baseline[key] / method[key]) for key in shared if baseline[key] > 0 and method[key] > 0]


def ratio_from_logs(logs: Sequence[float]) -> Estimate | None:
    """Geometric mean of the ratios behind `logs` with its bootstrap interval; None of no pairs.

    Resampling whole pairs keeps what the two sides share (the request, the moment), so the drift of the machine does
    not widen the interval. It is conditional on the requests drawn.
    """
    if not len(logs):
        return None
    data = np.asarray(logs, dtype=np.float64)
    low, high, note = _interval(data)
    return Estimate(
        math.exp(float(data.mean())),
        None if low is None else math.exp(low),
        None if high is None else math.exp(high),
        len(data),
        note,
    )


def paired_ratio(baseline: Mapping[PairKey, float], method: Mapping[PairKey, float]) -> Estimate | None:
    """How many times smaller `method`'s times are than `baseline`'s: a speed-up above 1 means the method is faster."""
    return ratio_from_logs(pair_logs(baseline, method))


def ratio_of_means(above: Sequence[float], below: Sequence[float]) -> Estimate | None:
    """mean(above) / mean(below) of two independent samples, with a percentile bootstrap interval over both.

    None where either is empty or the mean below is not positive. Where resamples below are all zeros, as those of
    scores can be, the upper bound may not exist: then `high` is None.
    """
    top, bottom = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if not len(top) or not len(bottom) or bottom.mean() <= 0:
        return None
    value = float(top.mean() / bottom.mean())
    n = min(len(top), len(bottom))
    if n < 2:
        return Estimate(value, None, None, n, "one sample, no interval")
    with np.errstate(invalid="ignore"):  # differences of infinite ratios
        result = stats.bootstrap(
            (top, bottom),
            _ratios,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(SEED),
        )
        ratios, tail = result.bootstrap_distribution, 50 * (1 - CONFIDENCE)
        low = np.percentile(np.where(ratios == -np.inf, 0.0, ratios), tail)
        high = np.percentile(np.where(ratios == -np.inf, np.inf, ratios), 100 - tail)
    if not np.isfinite(high):
        return Estimate(value, float(low), None, n, "no upper bound: too few samples below are not zero")
    return Estimate(value, float(low), float(high), n)


def _ratios(above: FloatArray, below: FloatArray, axis: int) -> FloatArray:
    """Ratios of means of resamples, infinite over nothing; nothing over nothing may be anything, and is -inf here."""
    top, bottom = above.mean(axis=axis), below.mean(axis=axis)
    over_nothing = np.where(top == 0, -np.inf, np.inf)
    ratios: FloatArray = np.divide(top, bottom, out=over_nothing, where=bottom != 0)
    return ratios


def _interval(data: FloatArray) -> tuple[float | None, float | None, str]:
    """Bootstrap interval of the mean: BCa, or percentile where BCa is undefined."""
    if len(data) < 2:
        return None, None, "one sample, no interval"
    if np.ptp(data) <= 1e-12 * np.abs(data).max():
        return float(data[0]), float(data[0]), "all samples equal"
    result = stats.bootstrap(
        (data,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="BCa" if len(data) > 2 else "percentile",
        rng=np.random.default_rng(SEED),
    )
    note = "" if len(data) >= 5 else f"only {len(data)} samples"
    return float(result.confidence_interval.low), float(result.confidence_interval.high), note
