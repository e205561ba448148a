"""Measures the ceilings of this machine: bandwidth by working set, matrix products per data type, cost of a call.

Each ceiling is the median of ten samples. One whose coefficient of variation exceeds 10% is measured again, up to three
times, and then refused: a ceiling that moves cannot judge anything. (`methods/_roofline.md` section 1, "Hygiene".)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from analysis.roofline import probes
from analysis.roofline.probes import Probe
from analysis.statistics import coefficient_of_variation
from suite.harness.measurement import Calibration, Ceiling

REPEATS = 10
SPREAD_LIMIT = 0.10
ATTEMPTS = 4
BUDGET_S = 32.0
"""After this time nothing is measured a second time, which keeps the whole below 40 s."""
SAMPLE_S = 5e-4
"""Short calls are repeated until a sample lasts this long; the clock's own resolution and cost then vanish."""
UNKNOWN_LLC_BYTES = 32 << 20

Progress = Callable[[int, int, str], None]
"""(probes done, probes in all, what was measured or why it was refused)."""

_CACHES = Path("/sys/devices/system/cpu")


@dataclass
class _Session:
    """What a calibration gathers while it runs."""

    progress: Progress
    total: int
    started: float = field(default_factory=time.perf_counter)
    done: int = 0
    ceilings: list[Ceiling] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    variants: dict[str, dict[str, float]] = field(default_factory=dict)

    def hurried(self) -> bool:
        return time.perf_counter() - self.started > BUDGET_S


def calibrate(threads: Sequence[int], progress: Progress, machine_id: str = "") -> Calibration:
    """Measures this machine with each number of threads; the threads should be pinned (`suite.harness.threads`).

    About 20 s on an idle machine, below 40 s on a busy one.
    """
    llc = llc_bytes()
    sets = probes.working_sets(llc, psutil.virtual_memory().available // 4)
    per_count = 3 * len(sets) + len(probes.DTYPES) * (len(probes.SQUARES) + 2)
    session = _Session(progress, per_count * len(threads))
    before = torch.get_num_threads()
    load = os.getloadavg()[0]
    try:
        overhead_us = 1e6 * _overhead()
        for count in threads:
            torch.set_num_threads(count)
            _calibrate_threads(session, count, sets, llc)
    finally:
        torch.set_num_threads(before)
    return Calibration(
        machine_id=machine_id,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ceilings=tuple(session.ceilings),
        call_overhead_us=overhead_us,
        conditions={**_conditions(llc, load), "refused": session.refused, "variants": session.variants},
    )


def _calibrate_threads(session: _Session, threads: int, sets: Sequence[int], llc: int) -> None:
    empty = {kind: _median_seconds(call) for kind, call in probes.stream_overhead().items()}
    for size in sets:
        for probe in probes.stream_probes(size, threads):
            _measure(session, probe, empty[probe.kind])
    for dtype in probes.DTYPES:
        for probe in probes.gemm_probes(dtype, threads):
            _measure(session, probe)
        _measure(session, probes.gemv_probe(dtype, threads, llc))


def _measure(session: _Session, probe: Probe, overhead_s: float = 0.0) -> None:
    """Measures one probe until it is stable, and stores its ceiling or the reason why there is none."""
    ceiling: Ceiling | None = None
    for _ in range(ATTEMPTS):
        ceiling = _attempt(session, probe, overhead_s)
        if ceiling is None or ceiling.spread <= SPREAD_LIMIT or session.hurried():
            break
    session.done += 1
    message = _verdict(probe, ceiling)
    if ceiling is not None and ceiling.spread <= SPREAD_LIMIT:
        session.ceilings.append(ceiling)
    else:
        session.refused.append(message)
    session.progress(session.done, session.total, message)


def _verdict(probe: Probe, ceiling: Ceiling | None) -> str:
    if ceiling is None:
        return f"{probe.label}: refused, the call costs more than the transfer."
    unit = "GFLOP/s" if probe.kind in ("gemm", "gemv") else "GB/s"
    if ceiling.spread > SPREAD_LIMIT:
        limit = f"{SPREAD_LIMIT:.0%}"
        return f"{probe.label}: refused, {ceiling.value:.1f} {unit} varies by {ceiling.spread:.0%} (limit {limit})."
    return f"{probe.label}: {ceiling.value:.1f} {unit}, spread {ceiling.spread:.1%}"


def _attempt(session: _Session, probe: Probe, overhead_s: float) -> Ceiling | None:
    """The fastest variant's ceiling; None if the call itself takes half of the time or more."""
    timed = {name: _seconds(call) for name, call in probe.variants.items()}
    seconds = min(timed.values(), key=lambda values: float(np.median(values)))
    if float(np.median(seconds)) < 2 * overhead_s:
        return None
    samples = tuple(probe.work / (value - overhead_s) / 1e9 for value in seconds if value > overhead_s)
    if len(timed) > 1:
        medians = {variant: probe.work / float(np.median(values)) / 1e9 for variant, values in timed.items()}
        session.variants[probe.label] = {variant: round(value, 2) for variant, value in medians.items()}
    return Ceiling(
        kind=probe.kind,
        dtype=probe.dtype,
        threads=probe.threads,
        size=probe.size,
        value=float(np.median(samples)),
        spread=coefficient_of_variation(samples),
        samples=samples,
    )


def _seconds(call: Callable[[], object]) -> list[float]:
    """Seconds per call: one warm-up, one probe for the number of calls per sample, then the samples."""
    call()
    calls = max(1, round(SAMPLE_S / _time(call, 1)))
    return [_time(call, calls) for _ in range(REPEATS)]


def _time(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return max(time.perf_counter() - start, 1e-9) / calls


def _median_seconds(call: Callable[[], object]) -> float:
    return float(np.median(_seconds(call)))


def _overhead() -> float:
    return _median_seconds(probes.empty_call())


def llc_bytes() -> int:
    """Size of all last-level caches together, from /sys; 32 MiB where the system does not say."""
    sizes: dict[tuple[int, str], int] = {}
    for level, shared, size in _cache_entries():
        sizes[level, shared] = size
    top = max((level for level, _ in sizes), default=0)
    return sum(size for (level, _), size in sizes.items() if level == top) or UNKNOWN_LLC_BYTES


def _cache_entries() -> Iterator[tuple[int, str, int]]:
    """(level, CPUs that share it, bytes) of every cache of every CPU."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for folder in _CACHES.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            size = (folder / "size").read_text().strip()
            shared = (folder / "shared_cpu_list").read_text().strip()
            yield int((folder / "level").read_text()), shared, int(size[:-1]) * units[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue  # virtual machines publish some entries without a size


def _conditions(llc: int, load: float) -> dict[str, Any]:
    """What a reader needs to judge or repeat the figures."""
    return {
        "llc_bytes": llc,
        "load_average_before": load,
        "torch": torch.__version__,
        "omp": {name: value for name, value in sorted(os.environ.items()) if name.startswith(("OMP_", "MKL_"))},
        "governor": _read(_CACHES / "cpu0/cpufreq/scaling_governor"),
        "huge_pages": _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "repeats": REPEATS,
        "spread_limit": SPREAD_LIMIT,
        "bytes": "STREAM counts; write-allocate traffic is not included; the cost of an empty call is taken off",
        "tall_gemm": {"size": probes.TALL[0], "rows_columns_depth": list(probes.TALL)},
    }


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "not available"
