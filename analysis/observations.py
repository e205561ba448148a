"""From a unit to the line of the nights' history: its figures, and the times and scores that pair with other nights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from analysis.comparison import contest_of, problems
from analysis.headlines import contest_title
from analysis.metrics import kv_metrics, latency_metrics, score_metrics
from analysis.samples import method_label, pair_times, question, request_scores, threads_of, timed_samples
from suite.harness.history import Observation
from suite.harness.measurement import UnitResult

PLACE = ("cpu", "cores", "gpus", "memory_gib")
"""What of a machine's fingerprint makes it another one. New packages or a new kernel may be what made it slower."""


def place_of(fingerprint: Mapping[str, Any]) -> str:
    """Hash of the hardware, 16 hexadecimal digits; of nothing where the machine is unknown."""
    return _hash(json.dumps([fingerprint.get(name) for name in PLACE]))


def observe(
    unit: UnitResult, place: str, *, night: str = "", at: str = "", run: str = "", commit: str = ""
) -> Observation:
    """The line of a unit; without a night it stands for a stored result."""
    timed = timed_samples(unit)
    figures = latency_metrics(timed) | score_metrics(unit.samples) | kv_metrics(unit.kv)
    figures["model_bytes"] = float(unit.memory.model_bytes) if unit.memory is not None else None
    times = {
        name: {f"{request}#{repeat}": milliseconds for (request, repeat), milliseconds in pairs.items()}
        for name, pairs in pair_times(timed).items()
    }
    return Observation(
        night=night,
        at=at or unit.started_at,
        run=run,
        question=_hash("\n".join((question(unit), unit.workload_revision, unit.model_digest, str(threads_of(unit))))),
        place=place,
        label=label(unit),
        status=unit.status,
        reasons=tuple(problems(unit)),
        greedy=unit.spec.sampling.temperature == 0,
        higher_is_better=unit.higher_is_better,
        metrics={name: value for name, value in figures.items() if value is not None},
        times=times,
        scores=request_scores(unit.samples),
        code_version=unit.code_version,
        commit=commit,
        key=unit.key,
    )


def label(unit: UnitResult) -> str:
    """The unit in a table: "dense · qasper, longbench on smollm2-135m (bf16, 2 threads)"."""
    return f"{method_label(unit.spec.method)} · {unit.spec.workload.task}, {contest_title(contest_of(unit))}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
