"""What disturbed a timed part, and whether its figures can be trusted (measurement rule 5).

A unit with any reason is `unstable` and gets no verdict. Each reason says what is wrong, by how much, and what to do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from suite.harness import threads as thread_pool
from suite.harness.measurement import Noise, Sample

STEAL_LIMIT = 0.01  # share of the CPU time this machine asked for that the hypervisor gave to others
LOAD_LIMIT = 0.10  # cores kept busy by other processes
LOAD_MIN_S = 0.05  # /proc/stat counts in ticks of 10 ms: less than this is not evidence
SPREAD_LIMIT = 0.15  # robust relative standard deviation of the normalised times

_MIN_REPEATS = 4
_MIN_GAPS = 8
_IQR_OF_NORMAL = 1.349  # interquartile range of a normal distribution in standard deviations
_SAME_STEP = 0.1  # a gap below this share of the 90th percentile is between tokens of one step (speculation)


@dataclass(frozen=True)
class Snapshot:
    """Clocks of the machine and of this process, all in seconds."""

    wall_s: float
    own_s: float
    busy_s: float
    steal_s: float


def snapshot(children_s: float = 0.0) -> Snapshot:
    """The state of the clocks now. `busy_s` sums over all CPUs and contains this process.

    `children_s`: CPU time so far of processes that belong to what is measured.
    """
    times = psutil.cpu_times()
    busy = times.user + times.system + sum(getattr(times, name, 0.0) for name in ("nice", "irq", "softirq"))
    return Snapshot(time.perf_counter(), time.process_time() + children_s, busy, getattr(times, "steal", 0.0))


class Disturbance:
    """Sums of what happened between pairs of snapshots: the timed turns of one unit, in seconds."""

    def __init__(self) -> None:
        self.wall_s = self.other_s = self.busy_s = self.steal_s = 0.0

    def add(self, before: Snapshot, after: Snapshot) -> None:
        """Adds one timed turn. `other_s` may fall a tick below zero; only the sum over many turns means anything."""
        busy = after.busy_s - before.busy_s
        self.wall_s += after.wall_s - before.wall_s
        self.busy_s += busy
        self.other_s += busy - (after.own_s - before.own_s)
        self.steal_s += after.steal_s - before.steal_s

    @property
    def steal_share(self) -> float:
        """Stolen time as a share of all CPU time asked for, 0 to 1."""
        asked = self.busy_s + self.steal_s
        return self.steal_s / asked if asked > 0 else 0.0

    @property
    def other_load(self) -> float:
        """Cores that other processes kept busy, on average."""
        if self.other_s < LOAD_MIN_S or self.wall_s <= 0:
            return 0.0
        return self.other_s / self.wall_s


def judge(disturbance: Disturbance, samples: Sequence[Sample], threads: int, inside: bool = True) -> Noise:
    """The noise record of one unit; `threads` is the size of the OpenMP pool it ran with.

    One that did not run `inside` this process has an engine's own pool, which is not looked at.
    """
    cores, is_pinned = thread_pool.available_cores(), not inside or thread_pool.pinned(threads)
    noise = Noise(
        threads=threads,
        pinned=is_pinned,
        steal_share=disturbance.steal_share,
        other_load=disturbance.other_load,
        spread=spread(samples),
    )
    return noise.model_copy(update={"reasons": reasons(noise, cores)})


def reasons(noise: Noise, cores: int) -> tuple[str, ...]:
    """Why the unit is unstable: one sentence for each limit that is exceeded, none when it is stable."""
    found = []
    if noise.threads > cores:
        found.append(f"{noise.threads} threads share {cores} cores; run again with at most {cores} threads.")
    if noise.threads > 1 and not noise.pinned:
        found.append(
            f"the {noise.threads} OpenMP threads are not bound to cores of their own; "
            "run again with OMP_PROC_BIND=true OMP_PLACES=cores set, and see `python -m suite doctor`."
        )
    if noise.steal_share > STEAL_LIMIT:
        found.append(
            f"the hypervisor took {noise.steal_share:.1%} of the CPU time (limit {STEAL_LIMIT:.0%}); "
            "run again on a quieter or a dedicated machine."
        )
    if noise.other_load > LOAD_LIMIT:
        found.append(
            f"other processes kept {noise.other_load:.2f} cores busy (limit {LOAD_LIMIT:.2f}); "
            "stop them (`top` names them) and run again."
        )
    if noise.spread > SPREAD_LIMIT:
        found.append(
            f"the normalised times spread by {noise.spread:.0%} (limit {SPREAD_LIMIT:.0%}); "
            "run again on an idle machine, or with a larger --limit or --budget."
        )
    return tuple(found)


def spread(samples: Sequence[Sample]) -> float:
    """Relative spread of times that should be equal, as a robust standard deviation; 0 with too few of them.

    Two kinds are looked at and the worse one counts: repeats of one request (end to end, divided by their median), and
    the steps within one request (divided by its median step, so that requests of all lengths can be pooled).
    """
    return max(_robust(_repeat_ratios(samples), _MIN_REPEATS), _robust(_step_ratios(samples), _MIN_GAPS))


def _repeat_ratios(samples: Sequence[Sample]) -> list[float]:
    groups: dict[str, list[float]] = {}
    for sample in samples:
        groups.setdefault(sample.request_id, []).append(sample.e2el_ms)
    return [value / statistics.median(group) for group in groups.values() if len(group) > 1 for value in group]


def _step_ratios(samples: Sequence[Sample]) -> list[float]:
    ratios: list[float] = []
    for sample in samples:
        if len(sample.itl_ms) < 2:
            continue
        floor = _SAME_STEP * sorted(sample.itl_ms)[int(0.9 * (len(sample.itl_ms) - 1))]
        steps = [gap for gap in sample.itl_ms if gap > floor]
        middle = statistics.median(steps) if steps else 0.0
        ratios += [gap / middle for gap in steps if middle > 0]
    return ratios


def _robust(ratios: Sequence[float], least: int) -> float:
    if len(ratios) < least:
        return 0.0
    low, _, high = statistics.quantiles(ratios, n=4)
    return (high - low) / _IQR_OF_NORMAL
