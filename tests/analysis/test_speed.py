"""The analytic model under pytest-benchmark: `pytest tests/analysis/test_speed.py -m slow --benchmark-only`.

A point is prefill and decode of one batch size and length, operator by operator, as LLM-Viewer computes in 0.05 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from analysis.hardware import load_hardware
from analysis.roofline.estimate import Setup, seconds
from analysis.roofline.operators import Precision
from analysis.roofline.predict import datasheet_machine
from analysis.roofline.shape import load_preset
from suite.cost import Count

POINTS = 100_000


def times(setup: Setup, batch: Count, tokens: Count) -> list[Count]:
    """Seconds of both phases."""
    return [seconds(found) for found in setup.phases(batch, tokens).values()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-3-8b", "deepseek-v3", "gemma-2-9b"])
@pytest.mark.parametrize("points", [1, POINTS])
def test_speed(name: str, points: int, benchmark: Callable[..., Any]) -> None:
    setup = Setup(load_preset(name), Precision(), datasheet_machine(load_hardware("h100-sxm"), Precision()))
    batch, tokens = (axis.ravel() for axis in np.meshgrid(np.arange(1.0, 251.0), np.arange(100.0, 40100.0, 100.0)))
    assert len(batch) == POINTS
    asked = (8, 4096) if points == 1 else (batch, tokens)
    benchmark.extra_info |= {"points": points}
    found = benchmark(times, setup, *asked)
    assert all(np.size(value) == points for value in found)
