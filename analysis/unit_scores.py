"""Residuals of ordinary units: the time of their passes against the uncalibrated roofline's."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.placement import placements
from analysis.residuals import Compared, Score, grouped
from analysis.roofline.ceilings import Ceilings
from analysis.samples import method_label
from suite.harness.measurement import UnitResult


def unit_scores(units: Iterable[UnitResult], ceilings: Ceilings | None) -> list[Score]:
    """One row per method, phase, batch and data type over the stable units that have a prediction."""
    points = [
        Compared(
            part=method_label(unit.spec.method),
            phase=place.phase,
            batch=unit.spec.engine.batch_size,
            tokens=round(next(count.context_tokens_mean for count in unit.counts if count.phase == place.phase)),
            dtype=unit.spec.model.dtype,
            measured_ms=place.measured_ms,
            predicted_ms=place.predicted_ms,
        )
        for unit in units
        if unit.status == "ok"
        for place in placements(unit, ceilings).values()
        if place.predicted_ms is not None
    ]
    found = grouped(points, lambda point: (point.phase, point.part, point.batch, point.dtype))
    return [Score(*place, score) for place, score in found.items()]
