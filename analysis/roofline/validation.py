"""Measured against predicted, from the stored times of passes: fitted on some shapes, scored on the others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from analysis.residuals import Compared, Score, residuals
from analysis.roofline.ceilings import Ceilings
from analysis.roofline.fit import Fitted, Pricing, fit
from analysis.roofline.model import total_bytes, total_flops
from analysis.roofline.operators import Precision
from analysis.roofline.parts import Bound, Level, bound, part_operators, pass_operators, resident
from analysis.roofline.shape import ModelShape
from suite.harness.measurement import Calibration, Ceiling, PassTimes, PassUnit, Validation

MAPE_BARS = {"decode": 0.10, "prefill": 0.15}
BIAS_BAR = 0.05
"""What held-out passes of the default model must keep to (issue 7)."""
CeilingKind = Literal["read", "gemm"]
CEILINGS = ("read", "multiply")
"""Parts that are no part of a pass."""
LEAST_CONTRAST = 1.2
"""How much more the FLOPs of a perturbed part must change than its bytes, or nothing can be told from its time."""


def is_fitted(batch: int, tokens: int) -> bool:
    """The fixed rule of the split: a chessboard over the binary orders of magnitude of batch and length.

    A shape is on one side in every phase, operator class, run and grid.
    """
    return (batch.bit_length() + tokens.bit_length()) % 2 == 1


@dataclass(frozen=True)
class Perturbed:
    """One operator class with few and with more new tokens, for the same weights, keys and values.

    `flops`, `bytes` and `time` are ratios of more to few; `level` is what the roofline says bounds both.
    """

    part: str
    phase: str
    batch: int
    tokens: int
    level: Level
    flops: float
    bytes: float
    time: float

    @property
    def observed(self) -> Level:
        """What the time went with: "compute" if it is nearer to the FLOPs, else "memory"."""
        return "compute" if self.time > math.sqrt(self.flops * self.bytes) else "memory"

    @property
    def right(self) -> bool:
        """What computing bounds must grow with its FLOPs, all else must not."""
        return (self.level == "compute") == (self.observed == "compute")


@dataclass(frozen=True)
class CeilingSeen:
    """A ceiling as calibrated, and the median and the best of `n` samples between the passes: GB/s or GFLOP/s."""

    kind: CeilingKind
    calibrated: float | None
    median: float
    best: float
    n: int


@dataclass(frozen=True)
class Assessment:
    """All that a validation says. `disturbed`: the largest shares of stolen time and of cores busy with others."""

    model: str
    dtype: str
    threads: int
    fitted: Fitted
    points: tuple[Compared, ...]
    perturbed: tuple[Perturbed, ...] = ()
    ceilings: tuple[CeilingSeen, ...] = ()
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
            times = f"{worst.bound_ms:.4g} ms, and {worst.measured_ms:.4g} were measured"
            found.append(
                f"the uncalibrated bound is above {len(above)} of {len(self.points)} measurements, "
                f"most at {worst.phase} {worst.part} {worst.where}: {times}."
            )
        return found

    @property
    def accuracy(self) -> float | None:
        """Share of the perturbed operator classes whose bound is the one the roofline names."""
        return sum(one.right for one in self.perturbed) / len(self.perturbed) if self.perturbed else None


def score_rows(found: Assessment) -> list[Score]:
    """Every phase and operator class over all batches, then batch by batch; the fitted side first."""
    groups = sorted({(point.phase, point.part) for point in found.points})
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
    parts = [times for times in timed if times.part not in CEILINGS]
    alone = [times for times in parts if not times.perturbed]
    if not any(is_fitted(times.batch, times.tokens) for times in alone):
        return None
    ceilings = Ceilings(calibration) if calibration is not None else None
    seen = [_seen(times, runs[-1].dtype, ceilings) for times in timed if times.part in CEILINGS]
    model = PassModel(runs[-1], _with_best(ceilings, runs[-1], seen))
    fitted = model.fitted([times for times in alone if is_fitted(times.batch, times.tokens)])
    return Assessment(
        model=runs[-1].model,
        dtype=runs[-1].dtype,
        threads=runs[-1].threads,
        fitted=fitted,
        points=tuple(model.compared(times, fitted) for times in alone),
        perturbed=tuple(model.perturbed(parts)),
        ceilings=tuple(seen),
        disturbed=(max(run.steal_share for run in runs), max(run.other_load for run in runs)),
    )


def _pooled(runs: Iterable[Validation]) -> list[PassTimes]:
    """One record per unit, with the samples of all runs."""
    found: dict[PassUnit, list[float]] = {}
    for times in (times for run in runs for times in run.times):
        found.setdefault(times.unit, []).extend(times.ms)
    return [unit.times(ms) for unit, ms in found.items()]


def _seen(times: PassTimes, dtype: str, ceilings: Ceilings | None) -> CeilingSeen:
    is_read = times.part == "read"
    found = ceilings and (ceilings.memory(times.threads) if is_read else ceilings.gemm(dtype, times.threads))
    work = times.tokens if is_read else 2 * times.tokens**3
    rates = [work / ms / 1e6 for ms in times.ms]
    kind: CeilingKind = "read" if is_read else "gemm"
    return CeilingSeen(kind, found.value if found else None, median(rates), max(rates), len(rates))


def _with_best(ceilings: Ceilings | None, run: Validation, seen: Sequence[CeilingSeen]) -> Ceilings | None:
    """The calibrated ceilings, and the best that was reached between the passes: the machine drifts.

    Where no bandwidth was stable there is no bound: activations would be bound by memory, where caches hold them.
    """
    memory = ceilings.memory(run.threads) if ceilings is not None else None
    if ceilings is None or memory is None:
        return None
    return ceilings.with_seen(
        Ceiling(
            kind=one.kind,
            dtype=run.dtype,
            threads=run.threads,
            size=memory.size,
            value=one.best,
            spread=0.0,
            samples=(one.best,),
        )
        for one in seen
    )


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

    def perturbed(self, timed: Sequence[PassTimes]) -> Iterator[Perturbed]:
        """Every part that was perturbed, where the roofline names one bound and FLOPs and bytes can be told apart."""
        usual = {_place(times): times for times in timed if not times.perturbed}
        for other in (times for times in timed if times.perturbed):
            if (one := usual.get(_place(other))) is None:
                continue
            few, more = sorted((one, other), key=lambda times: times.new)
            least, most = self.bound(few), self.bound(more)
            if least is None or most is None or least.level != most.level:
                continue
            flops, moved = (high / low for high, low in zip(self._work(more), self._work(few), strict=True))
            if flops > LEAST_CONTRAST * moved:
                time = median(more.ms) / median(few.ms)
                yield Perturbed(one.part, one.phase, one.batch, one.tokens, least.level, flops, moved, time)

    def _work(self, times: PassTimes) -> tuple[float, float]:
        """FLOPs and bytes of a part."""
        operators = part_operators(self.shape, self.precision, times)
        return float(total_flops(operators)), float(total_bytes(operators))


def _place(times: PassTimes) -> tuple[str, str, int, int, int]:
    return times.part, times.phase, times.batch, times.tokens, times.threads
