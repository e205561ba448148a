"""Where a unit's prefill and decode lie on the measured roofline, and what of their time it does not explain.

A pass is one prefill of one request, or one decode step. Work comes from the untimed counting pass, time from the timed
samples of the same requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis import statistics
from analysis.roofline.ceilings import Ceilings
from analysis.roofline.model import Machine
from analysis.samples import is_timed, threads_of, tpot_ms
from suite.harness.measurement import OpCount, Phase, PhaseCount, Sample, UnitResult


@dataclass(frozen=True)
class Placement:
    """One phase of one unit. Work is per pass; `measured_ms` is the median time of a pass.

    `predicted_ms` is the roofline's lower bound, of which `launch_ms` is calls; both, and `machine`, are None without a
    calibration. `cache_resident` says that a pass touches less than the last-level cache holds.
    """

    phase: Phase
    flops: float
    counted_bytes: float
    modelled_bytes: float | None
    measured_ms: float
    machine: Machine | None = None
    predicted_ms: float | None = None
    launch_ms: float | None = None
    cache_resident: bool = False

    @property
    def intensity(self) -> float:
        """FLOPs per counted byte."""
        return self.flops / self.counted_bytes

    @property
    def gb_per_s(self) -> float:
        """Counted bytes over measured time."""
        return self.counted_bytes / self.measured_ms / 1e6

    @property
    def gflop_per_s(self) -> float:
        """Counted FLOPs over measured time."""
        return self.flops / self.measured_ms / 1e6

    @property
    def ceiling_fraction(self) -> float | None:
        """Achieved FLOP/s over min(peak, intensity x bandwidth); above 1 the counts or the ceiling are wrong."""
        if self.machine is None:
            return None
        attainable = min(self.machine.flops_per_s, self.intensity * self.machine.bytes_per_s)
        return self.gflop_per_s * 1e9 / attainable

    @property
    def unexplained_ms(self) -> float | None:
        """Measured minus predicted; negative means that the model promises too little, which is an error in it."""
        return None if self.predicted_ms is None else self.measured_ms - self.predicted_ms


def placements(unit: UnitResult, ceilings: Ceilings | None) -> dict[str, Placement]:
    """Placement of each counted phase of a timed unit, by phase."""
    if not is_timed(unit):
        return {}
    counted = _counted_samples(unit)
    placed = {count.phase: _place(unit, count, counted, ceilings) for count in unit.counts if count.counted_bytes}
    return {phase: place for phase, place in placed.items() if place is not None}


def placement_metrics(placed: Sequence[Mapping[str, Placement]]) -> dict[str, float | None]:
    """Means over units of what both phases achieved and what the roofline predicts; None where nothing is known."""
    metrics: dict[str, float | None] = {}
    for phase, time in (("prefill", "ttft"), ("decode", "tpot")):
        columns = {
            "gb_per_s": f"{phase}_gb_per_s",
            "gflop_per_s": f"{phase}_gflop_per_s",
            "flops": f"{phase}_flops",
            "counted_bytes": f"{phase}_counted_bytes",
            "modelled_bytes": f"{phase}_modelled_bytes",
            "ceiling_fraction": f"{phase}_ceiling_fraction",
            "predicted_ms": f"predicted_{time}_ms",
            "unexplained_ms": f"unexplained_{time}_ms",
        }
        for field, name in columns.items():
            values = [getattr(places[phase], field) for places in placed if phase in places]
            metrics[name] = statistics.mean([value for value in values if value is not None])
    return metrics


def _counted_samples(unit: UnitResult) -> list[Sample]:
    """Timed samples of the requests that were also counted: the first `protocol.counted` of the unit."""
    requests = list(dict.fromkeys(sample.request_id for sample in unit.samples))[: unit.spec.protocol.counted]
    return [sample for sample in unit.samples if sample.request_id in requests]


def _place(
    unit: UnitResult, count: PhaseCount, samples: Sequence[Sample], ceilings: Ceilings | None
) -> Placement | None:
    requests = len({sample.request_id for sample in samples})
    passes = requests if count.phase == "prefill" else count.steps
    measured_ms = _pass_ms(count.phase, samples)
    if measured_ms is None or not passes:
        return None
    bytes_per_pass = count.counted_bytes / passes
    machine = ceilings and ceilings.machine(unit.spec.model.dtype, threads_of(unit), bytes_per_pass)
    predicted_s, launch_s = _predicted_seconds(count.ops, machine) if machine and count.ops else (None, None)
    llc = ceilings.llc_bytes if ceilings else 0
    return Placement(
        phase=count.phase,
        flops=count.flops / passes,
        counted_bytes=bytes_per_pass,
        modelled_bytes=count.modelled_bytes / passes if count.modelled_bytes else None,
        measured_ms=measured_ms,
        machine=machine or None,
        predicted_ms=None if predicted_s is None else 1e3 * predicted_s / passes,
        launch_ms=None if launch_s is None else 1e3 * launch_s / passes,
        cache_resident=bytes_per_pass < llc,
    )


def _pass_ms(phase: Phase, samples: Sequence[Sample]) -> float | None:
    """Median time of a pass: TTFT for a prefill; TPOT for a decode step, or for a round the time of all its tokens."""
    if phase == "prefill":
        return statistics.median([sample.ttft_ms for sample in samples])
    return statistics.median([value for value in map(_decode_pass_ms, samples) if value is not None])


def _decode_pass_ms(sample: Sample) -> float | None:
    if sample.drafts is None:
        return tpot_ms(sample)
    return (sample.e2el_ms - sample.ttft_ms) / sample.drafts.rounds if sample.drafts.rounds else None


def _predicted_seconds(ops: Sequence[OpCount], machine: Machine) -> tuple[float, float]:
    """Sum over operators of max(FLOPs / peak, bytes / bandwidth) plus launches, and the launches alone."""
    launch = sum(op.calls for op in ops) * machine.launch_s
    work = sum(
        max(op.flops / machine.flops_per_s, (op.read_bytes + op.write_bytes) / machine.bytes_per_s) for op in ops
    )
    return work + launch, launch
