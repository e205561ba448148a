"""Level shifts in the history of one figure: change points by `ruptures`, then a rank test over nights.

A night, not a request, is what is replicated: requests of one night share its machine, and testing them against those
of another night finds the machine's mood. Nights are not independent either, so their noise is scaled by how much each
resembles the one before. Noise of a few tenths of a percent hides less than noise of a few percent: what is found after
how many nights is in `tests/analysis/test_change_points.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import ruptures
from scipy import ndimage, stats

from analysis.statistics import FloatArray

WINDOW = 60  # nights looked back at; a level that has held that long is the accepted one
MIN_BASE = 10  # nights before a shift; with fewer their noise is not known
MIN_NIGHTS = 3  # nights at the new level
MIN_EFFECT = 0.01  # a shift by less is not worth a person's time
FALSE_ALARMS = 0.01  # the expected number of shifts per history of the whole family when nothing changes
EFFECT_NIGHTS = 0.10  # a shift by 3.3 % must have held for three nights, one by 1 % for ten
RANK_LEVEL = 0.01

_TRUSTED = 14  # the newest nights do not tell the noise: they may be those that have shifted
_NOISE_FLOOR = 0.002
_MAX_LAG = 0.7
_CLIP = 3.0
_LARGE = 200.0  # what a step's square times its nights must exceed, in units of one night's noise
_NOISY = 20  # on a noisy machine a shift must be larger, or hold for longer


@dataclass(frozen=True)
class Shift:
    """The last change of level. `size` is the difference of the logarithms of the medians, `noise` that of a night."""

    start: int
    size: float
    noise: float
    p: float


def last_shift(values: Sequence[float], family: int = 1) -> Shift | None:
    """The shift that the series (positive, oldest first) is in, up or down; None when it is where it was.

    `family` is the number of series looked at in the same night: with more of them each must be surer.
    """
    skipped = max(0, len(values) - WINDOW)
    logs = np.log(np.asarray(values[skipped:], dtype=np.float64))
    if len(logs) < MIN_BASE + MIN_NIGHTS:
        return None
    noise, long_run = _noise(logs)
    start, before = _split(_clipped(logs, noise) / long_run, family)
    if start is None:
        return None
    size = float(np.median(logs[start:]) - np.median(logs[before:start]))
    held = abs(size) * (len(logs) - start)
    if abs(size) < MIN_EFFECT or held < max(EFFECT_NIGHTS, _NOISY * noise):
        return None
    worse: Literal["greater", "less"] = "greater" if size > 0 else "less"
    p = float(stats.mannwhitneyu(logs[start:], logs[before:start], alternative=worse).pvalue)
    if p >= RANK_LEVEL:
        return None
    return Shift(skipped + start, size, noise, p)


def _split(standardised: FloatArray, family: int) -> tuple[int | None, int]:
    """Where the last level begins, and the one before it; a last level that is the first one is no change.

    A split of pure noise gains more than 2 log(n family / a) with a chance of about a.
    """
    penalty = 2 * math.log(len(standardised) * family / FALSE_ALARMS)
    starts = _starts(standardised, penalty, MIN_NIGHTS)
    if starts[-1] < MIN_BASE:
        return None, 0
    return starts[-1], starts[-2] if starts[-1] - starts[-2] >= MIN_BASE else 0


def _starts(values: FloatArray, penalty: float, least: int) -> list[int]:
    """Where the levels of the series begin, each of `least` nights or more."""
    search: Any = ruptures.KernelCPD(kernel="linear", min_size=least)
    return [0, *map(int, search.fit(values.reshape(-1, 1)).predict(pen=penalty)[:-1])]


def _noise(logs: FloatArray) -> tuple[float, float]:
    """Robust standard deviation of a night, and the one that counts for means of nights that resemble each other."""
    base = logs[: max(MIN_BASE, len(logs) - _TRUSTED)] if len(logs) > 2 * _TRUSTED else logs[:-MIN_NIGHTS]
    away = _levelled(base)
    noise = max(float(stats.median_abs_deviation(away, scale="normal")), _NOISE_FLOOR) * (1 + 2 / len(base))
    away = np.clip(away, -_CLIP * noise, _CLIP * noise)
    lag = float(away[1:] @ away[:-1] / max(float(away @ away), 1e-12))
    lag = min(max(lag, 0.0) + (1 + 3 * max(lag, 0.0)) / len(base), _MAX_LAG)  # the estimate is low on short series
    return noise, noise * math.sqrt((1 + lag) / (1 - lag))


def _levelled(base: FloatArray) -> FloatArray:
    """The series without its own large steps, which are no noise: those of several times what one night adds."""
    step = max(float(stats.median_abs_deviation(np.diff(base), scale="normal")), _NOISE_FLOOR)
    starts = _starts(base / step, _LARGE, MIN_BASE // 2)
    return np.concatenate([part - np.median(part) for part in np.split(base, starts[1:])])


def _clipped(logs: FloatArray, noise: float) -> FloatArray:
    """The series without what a single night does alone: no value is far from the median of its five neighbours."""
    padded = np.asarray(ndimage.median_filter(logs, size=5, mode="mirror"), dtype=np.float64)
    return np.clip(logs, padded - _CLIP * noise, padded + _CLIP * noise)
