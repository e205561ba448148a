"""pandas frames of units and of samples, for notebooks and further analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.metrics import unit_metrics
from analysis.roofline.ceilings import Ceilings
from analysis.samples import method_label, threads_of, tpot_ms
from suite.harness.measurement import UnitResult


def units_frame(units: Sequence[UnitResult], ceilings: Ceilings | None = None) -> pd.DataFrame:
    """One row per unit: what it was, its status, and all its metrics (NaN where a metric does not exist)."""
    return pd.DataFrame([_identity(unit) | unit_metrics(unit, ceilings) for unit in units])


def samples_frame(units: Sequence[UnitResult]) -> pd.DataFrame:
    """One row per timed request with its latencies in milliseconds; `itl_ms` holds the tuple of gaps."""
    rows = [
        _identity(unit)
        | {
            "request_id": sample.request_id,
            "repeat": sample.repeat,
            "turn": sample.turn,
            "prompt_tokens": sample.prompt_tokens,
            "output_tokens": len(sample.token_ids),
            "ttft_ms": sample.ttft_ms,
            "tpot_ms": tpot_ms(sample),
            "e2el_ms": sample.e2el_ms,
            "itl_ms": sample.itl_ms,
            "score": sample.score,
        }
        for unit in units
        for sample in unit.samples
    ]
    return pd.DataFrame(rows)


def _identity(unit: UnitResult) -> dict[str, Any]:
    spec = unit.spec
    return {
        "key": unit.key,
        "block": unit.block,
        "workload": spec.workload.name,
        "task": spec.workload.task,
        "method": method_label(spec.method),
        "model": spec.model.name,
        "dtype": spec.model.dtype,
        "engine": spec.engine.name,
        "threads": threads_of(unit),
        "batch_size": spec.engine.batch_size,
        "status": unit.status,
        "source": unit.source,
    }
