"""The conditions of a report: what it ran on, what disturbed it, and what a reader must know before believing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.report_data import RoofPoint
from suite.harness.measurement import Calibration, UnitResult

REFUSED = "refused"
ABOVE_CEILING = 1.05
"""A point this far above a measured ceiling is no longer the ceiling's own spread."""


def notes(
    units: Sequence[UnitResult], points: Sequence[RoofPoint], calibration: Calibration | None, left_out: int
) -> tuple[str, ...]:
    """What a reader must know before believing a number."""
    said = []
    if calibration is None:
        said.append("No calibration of this machine is stored, so there is no roofline: `suite roofline --calibrate`.")
    elif varied := refused(calibration):
        said.append(f"Ceilings that varied too much, and are not used: {len(varied)}; see the machine.")
    above = sum((point.ceiling_fraction or 0.0) > ABOVE_CEILING for point in points)
    if above:
        said.append(
            f"{above} of {len(points)} roofline points lie above their measured ceiling: it was measured on a busier "
            "machine, the data came from a cache, or the counts are wrong."
        )
    if any(unit.source == "synthetic" for unit in units):
        said.append(
            "Scores with `source: synthetic` come from generated items: compare methods by them, not with papers."
        )
    versions = {unit.code_version for unit in units}
    if len(versions) > 1:
        said.append(f"The units come from {len(versions)} versions of the code: {', '.join(sorted(versions))}.")
    if left_out:
        said.append(f"{left_out} older units, or units of other machines, are in the store and not shown.")
    return tuple(said)


def refused(calibration: Calibration | None) -> tuple[str, ...]:
    """Ceilings that varied too much to be used, a sentence each."""
    return tuple(calibration.conditions.get(REFUSED, ())) if calibration is not None else ()


def conditions(
    units: Sequence[UnitResult], calibration: Calibration | None, machine: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """Machine, versions, threads and noise, flattened to names and printable values."""
    rows = [(name, _printable(value)) for name, value in machine.items()]
    noises = [unit.noise for unit in units if unit.noise is not None]
    if noises:
        rows += [
            ("threads", ", ".join(sorted({str(noise.threads) for noise in noises}))),
            ("threads pinned", "yes" if all(noise.pinned for noise in noises) else "no"),
            ("steal time, worst unit", f"{max(noise.steal_share for noise in noises):.1%}"),
            ("load of other processes, worst unit", f"{max(noise.other_load for noise in noises):.2f} cores"),
            ("spread of repeats, worst unit", f"{max(noise.spread for noise in noises):.1%}"),
        ]
    rows += [("energy", ", ".join(sorted({unit.energy.source for unit in units})))] if units else []
    rows += [("code version", ", ".join(sorted({unit.code_version for unit in units})))] if units else []
    if calibration is not None:
        rows += [
            ("calibrated at", calibration.measured_at),
            ("cost of a call", f"{calibration.call_overhead_us:.2f} µs"),
        ]
        own = {name: value for name, value in calibration.conditions.items() if name != REFUSED}
        rows += [(f"calibration: {name}", _printable(value)) for name, value in own.items()]
    return tuple((name, value) for name, value in rows if value)


def _printable(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_printable(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_printable(inner).rstrip(".") for inner in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
