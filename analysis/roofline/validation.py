"""Measured against predicted, from the stored times of passes: fitted on some shapes, scored on the others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from analysis.residuals import Compared, Score, residuals
from analysis.roofline.ceilings import Ceilings
from analysis.roofline.fit import Fitted, Pricing, fit
from analysis.roofline.operators import Precision
from analysis.roofline.parts import Bound, Level, bound, part_operators, pass_operators, resident
from analysis.roofline.shape import ModelShape
from suite.harness.measurement import Calibration, PassTimes, Validation

MAPE_BARS = {"decode": 0.10, "prefill": 0.15}
BIAS_BAR = 0.05
"""What held-out passes of the default model must keep to (issue 7)."""
LEAST_CONTRAST = 1.1
"""A companion must slow the memory control by this factor more than the other control, or nothing can be told."""


def is_fitted(batch: int, tokens: int) -> bool:
    """The fixed rule of the split: a chessboard over the binary orders of magnitude of batch and length.

    A shape is on one side in every phase, operator class, run and grid.
    """
    return (batch.bit_length() + tokens.bit_length()) % 2 == 1


@dataclass(frozen=True)
class Perturbed:
    """An operator class on one thread: how much slower it is beside a core that copies memory than beside one that
    multiplies, and what the roofline says bounds it; `memory_share` is the share of its least time that is memory's.
    """

    part: str
    phase: str
    batch: int
    tokens: int
    slowdown: float
    level: Level
    memory_share: float
    observed: Level

    @property
    def right(self) -> bool:
        """Only what memory bounds may slow down."""
        return (self.level == "memory") == (self.observed == "memory")


@dataclass(frozen=True)
class Assessment:
    """All that a validation says. `controls` are the slowdowns of a read from memory and of a product in a cache."""

    model: str
    dtype: str
    threads: int
    fitted: Fitted
    points: tuple[Compared, ...]
    perturbed: tuple[Perturbed, ...] = ()
    controls: tuple[float, float] | None = None
    disturbed: tuple[float, float] = (0.0, 0.0)

    def side(self, held_out: bool, phase: str = "", part: str = "", batch: int = 0) -> list[Compared]:
        """The points of one side of the split, of one phase, part and batch where these are given."""
        return [
            point
            for point in self.points
            if point.held_out == held_out
            and phase in ("", point.phase)
            and part in ("", point.part)
            and batch in (0, point.batch)
        ]

    def above(self) -> list[Compared]:
        """Where the uncalibrated bound is above the measurement, which means that bound or ceiling is wrong."""
        return [point for point in self.points if point.bound_ms is not None and point.bound_ms > point.measured_ms]

    def missed(self) -> list[str]:
        """The bars that held-out passes do not keep to, each as a sentence; none of nothing measured."""
        found = []
        for phase, bar in MAPE_BARS.items():
            score = residuals(self.side(True, phase, "pass"))
            if score is not None and score.mape > bar:
                found.append(f"{phase} is predicted within {score.mape:.1%} on average; the bar is {bar:.0%}.")
            if score is not None and abs(score.bias) > BIAS_BAR:
                found.append(f"{phase} has a bias of {score.bias:+.1%}; the bar is {BIAS_BAR:.0%}.")
        if above := self.above():
            worst = max(above, key=lambda point: (point.bound_ms or 0.0) / point.measured_ms)
            found.append(
                f"the uncalibrated bound is above {len(above)} of {len(self.points)} measurements, "
                f"most at {worst.phase} {worst.part} {worst.where}: {worst.bound_ms:.4g} for {worst.measured_ms:.4g} ms."
            )
        return found

    @property
    def accuracy(self) -> float | None:
        """Share of the perturbed operator classes whose bound is the one the roofline names."""
        return sum(one.right for one in self.perturbed) / len(self.perturbed) if self.perturbed else None


def score_rows(found: Assessment) -> list[Score]:
    """Every phase and operator class over all batches, then batch by batch; the fitted side first."""
    groups = dict.fromkeys((point.phase, point.part) for point in found.points)
    batches = [0, *sorted({point.batch for point in found.points})]
    return [
        Score(phase, part, batch, found.dtype, score, held_out)
        for held_out in (False, True)
        for phase, part in groups
        for batch in batches
        if (score := residuals(found.side(held_out, phase, part, batch))) is not None
    ]


def newest(validations: Sequence[Validation]) -> list[Validation]:
    """The last run, and the earlier ones that timed the same code with the same model in the same way."""
    return [run for run in validations if run.kind == validations[-1].kind]


def assess(validations: Sequence[Validation], calibration: Calibration | None) -> Assessment | None:
    """Fits and scores the newest runs; None where nothing lies on the side that is fitted.

    A unit's measured time is the median of all its samples. Without a calibration there is no bound.
    """
    runs = newest(validations) if validations else []
    timed = _pooled(runs)
    alone = [times for times in timed if times.beside == "nothing"]
    if not any(is_fitted(times.batch, times.tokens) for times in alone):
        return None
    model = PassModel(runs[-1], Ceilings(calibration) if calibration is not None else None)
    fitted = model.fitted([times for times in alone if is_fitted(times.batch, times.tokens)])
    perturbed, controls = model.perturbed(timed)
    return Assessment(
        model=runs[-1].model,
        dtype=runs[-1].dtype,
        threads=runs[-1].threads,
        fitted=fitted,
        points=tuple(model.compared(times, fitted) for times in alone),
        perturbed=tuple(perturbed),
        controls=controls,
        disturbed=(max(run.steal_share for run in runs), max(run.other_load for run in runs)),
    )


def _pooled(runs: Iterable[Validation]) -> list[PassTimes]:
    """One record per unit, with the samples of all runs."""
    found: dict[PassTimes, tuple[float, ...]] = {}
    for times in (times for run in runs for times in run.times):
        unit = times.model_copy(update={"ms": ()})
        found[unit] = (*found.get(unit, ()), *times.ms)
    return [unit.model_copy(update={"ms": ms}) for unit, ms in found.items()]


class PassModel:
    """What the roofline says of the passes of one run's model."""

    def __init__(self, run: Validation, ceilings: Ceilings | None) -> None:
        width = 4.0 if run.dtype == "fp32" else 2.0
        self.shape = ModelShape(**{**run.shape, "windows": tuple(run.shape["windows"])})
        self.precision, self.dtype, self.ceilings = Precision(width, width, width), run.dtype, ceilings
        self.pricing = Pricing(self.shape, self.precision, ceilings.llc_bytes if ceilings is not None else 0)

    def fitted(self, timed: Sequence[PassTimes]) -> Fitted:
        """Effective rates from the median times of these parts."""
        return fit([self.pricing.terms(times) for times in timed], [median(times.ms) / 1e3 for times in timed])

    def compared(self, times: PassTimes, fitted: Fitted) -> Compared:
        """The median time beside the calibrated prediction and the uncalibrated bound."""
        least = self.bound(times)
        return Compared(
            times.part,
            times.phase,
            times.batch,
            times.tokens,
            self.dtype,
            measured_ms=median(times.ms),
            predicted_ms=1e3 * fitted.predict(self.pricing.terms(times)),
            bound_ms=None if least is None else 1e3 * least.seconds,
            held_out=not is_fitted(times.batch, times.tokens),
        )

    def bound(self, times: PassTimes) -> Bound | None:
        """The least time by the measured ceilings; None without them."""
        if self.ceilings is None:
            return None
        held = resident(pass_operators(self.shape, self.precision, times))
        return bound(
            part_operators(self.shape, self.precision, times), held, self.ceilings, self.dtype, times.threads
        )  # fmt: skip

    def perturbed(self, timed: Sequence[PassTimes]) -> tuple[list[Perturbed], tuple[float, float] | None]:
        """Operator classes beside both companions, judged by the slowdowns of the two controls, which come second."""
        sides = {
            side: {
                times.model_copy(update={"ms": (), "beside": "nothing"}): median(times.ms)
                for times in timed if times.beside == side
            }
            for side in ("memory", "compute")
        }  # fmt: skip
        slower = {unit: ms / sides["compute"][unit] for unit, ms in sides["memory"].items() if unit in sides["compute"]}
        controls = {unit.part: value for unit, value in slower.items() if unit.part in ("read", "multiply")}
        if len(controls) < 2:
            return [], None
        read, multiply = controls["read"], controls["multiply"]
        if read < LEAST_CONTRAST * multiply:
            return [], (read, multiply)
        found = []
        for unit, value in slower.items():
            least = self.bound(unit) if unit.part not in controls else None
            if least is not None:
                observed: Level = "memory" if value > math.sqrt(read * multiply) else "compute"
                place = (unit.part, unit.phase, unit.batch, unit.tokens)
                found.append(Perturbed(*place, value, least.level, least.memory / least.seconds, observed))
        return found, (read, multiply)
