"""Histories of nights with a known truth, as noisy as a shared cloud machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from suite.harness.history import Observation

LEVEL_MS = {"ttft": 120.0, "tpot": 12.0}
BREATH = 0.004  # standard deviation of a night's level
REQUESTS = 4


def levels(rng: np.random.Generator, series: int, nights: int, breath: float = BREATH) -> np.ndarray:
    """[series, nights] factors: heavy tails (Student t, 3 degrees of freedom), each night like the one before it
    (correlation 0.5), half of it common to all series; one night in a hundred is 3 to 12 % slower, unflagged."""
    common, own = (_autoregressive(rng, rows, nights) for rows in (1, series))
    logs = breath * np.sqrt(0.5) * (common + own)
    bad = rng.random((series, nights)) < 0.01
    return np.exp(logs + bad * rng.uniform(0.03, 0.12, (series, nights)))


def _autoregressive(rng: np.random.Generator, rows: int, nights: int, lag: float = 0.5) -> np.ndarray:
    shocks = rng.standard_t(3, (rows, nights + 50)) / np.sqrt(3) * np.sqrt(1 - lag**2)
    values = np.zeros_like(shocks)
    for night in range(1, shocks.shape[1]):
        values[:, night] = lag * values[:, night - 1] + shocks[:, night]
    return values[:, 50:]


def observation(night: int, unit: str, factors: dict[str, float], **changes: Any) -> Observation:
    """One unit in one night; `factors` are of its latencies' usual levels."""
    values = {name: LEVEL_MS[name] * factor for name, factor in factors.items()}
    fields: dict[str, Any] = {
        "night": f"night-{night:04d}",
        "at": f"{night:04d}",
        "run": "a",
        "question": unit,
        "place": "here",
        "label": unit,
        "status": "ok",
        "metrics": {f"median_{name}_ms": value for name, value in values.items()}
        | {"selected_retention": 0.25, "kv_resident_bytes": 1e6},
        "times": {
            name: {f"q{request}#0": value * (1 + request / 10) for request in range(REQUESTS)}
            for name, value in values.items()
        },
        "scores": {f"q{request}": 50.0 for request in range(REQUESTS)},
    }
    return Observation(**(fields | changes))


def history(factors: np.ndarray, first: int = 0) -> Iterator[list[Observation]]:
    """The observations of each night; two rows of `factors` make a unit."""
    for night in range(factors.shape[1]):
        yield [
            observation(
                first + night, f"unit {row // 2}", dict(zip(LEVEL_MS, factors[row : row + 2, night], strict=True))
            )
            for row in range(0, len(factors), 2)
        ]
