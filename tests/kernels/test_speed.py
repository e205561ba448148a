"""The kernels' realistic shapes under pytest-benchmark: `pytest tests/kernels/test_speed.py --benchmark-only`.

`--benchmark-json FILE` and `suite import FILE` give the same rows as `suite kernels bench`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels.build import OPS
from kernels.contract import SpeedCase, case_book

CASES = [case for op in OPS for case in case_book(op).speed]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.name}")
def test_speed(case: SpeedCase, benchmark: Callable[..., Any]) -> None:
    race = case.make(case.dtypes[0])
    benchmark.extra_info |= {
        "op": case.op,
        "case": case.name,
        "dtype": str(case.dtypes[0]).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "bytes": race.cost.bytes,
        "flops": race.cost.flops,
    }
    benchmark(race.run)
    assert race.cost.bytes > 0
