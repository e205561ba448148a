"""Pinned OpenMP threads and the number of them (DESIGN section 5).

Nothing heavy is imported here, because `pin` has to run before torch is: libgomp reads its settings when it loads.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

PINNED = {
    "OMP_PROC_BIND": "true",
    "OMP_PLACES": "cores",
    "OMP_DYNAMIC": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "THP_MEM_ALLOC_ENABLE": "1",  # torch asks for huge pages: weights and caches are read 10-40% faster
}
CPUS_VARIABLE = "SUITE_CPUS"  # the CPUs this program was given; a pinned thread passes only its own core on to children

PROBE_BYTES = 32 << 20
PROBE_REPEATS = 7
GAIN = 0.95  # more threads must take at most this share of the time, or they are not worth their noise

_TASKS = Path("/proc/self/task")
_CGROUPS = Path("/sys/fs/cgroup")


def pin() -> None:
    """Binds OpenMP threads to cores, unless the user's environment says otherwise. Call before torch is imported."""
    given = os.environ.get(CPUS_VARIABLE)
    if given and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(cpu) for cpu in given.split(",")})
    os.environ[CPUS_VARIABLE] = ",".join(str(cpu) for cpu in sorted(_affinity()))
    for name, value in PINNED.items():
        os.environ.setdefault(name, value)


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def available_cpus() -> frozenset[int]:
    """The logical CPUs the program may use. A pinned main thread's own mask is narrower than that."""
    given = os.environ.get(CPUS_VARIABLE)
    if given:
        return frozenset(int(cpu) for cpu in given.split(","))
    return frozenset().union(_affinity(), *_task_masks())


def available_cores() -> int:
    """Physical cores among the available CPUs, at most the cgroup's CPU quota; at least 1."""
    places = {siblings(cpu) for cpu in available_cpus()}
    return max(1, int(min(len(places), _quota())))


def siblings(cpu: int) -> str:
    """A name of the physical core this logical CPU belongs to."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> float:
    """CPUs that the control group allows (v2 `cpu.max`, this group and those above it), infinite without a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folders = [_CGROUPS / path, *(_CGROUPS / parent for parent in Path(path).parents)]
    return min((_cpu_max(folder / "cpu.max") for folder in folders), default=math.inf)


def _cpu_max(path: Path) -> float:
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return math.inf
    return math.inf if quota == "max" else int(quota) / int(period)


def _task_masks() -> list[frozenset[int]]:
    """Affinity mask of every thread of this process; empty where there is no /proc."""
    masks = []
    for task in _TASKS.glob("*"):
        try:
            masks.append(frozenset(os.sched_getaffinity(int(task.name))))
        except ProcessLookupError:
            continue  # the thread ended meanwhile
    return masks


def pinned(threads: int) -> bool:
    """True when the OpenMP threads stay on cores of their own: at least min(threads, cores) threads have one each.

    The thread pool must have run once with that many threads (`choose_threads` sees to it).
    """
    cores = available_cores()
    masks = _task_masks()
    if not masks:
        return os.environ.get("OMP_PROC_BIND", "false").lower() not in ("false", "")
    if cores == 1:
        return True
    places = [{siblings(cpu) for cpu in mask} for mask in (_affinity(), *masks)]
    bound = {next(iter(place)) for place in places if len(place) == 1}
    return len(places[0]) == 1 and len(bound) >= min(threads, cores)


def candidates(cores: int) -> list[int]:
    """Thread counts worth trying: the powers of two below `cores`, and `cores`."""
    return sorted({1 << power for power in range(cores.bit_length()) if 1 << power < cores} | {cores})


def choose_threads() -> int:
    """The number of threads that reads memory fastest now, from a probe of well under 300 ms.

    More threads are taken only when they are clearly faster: on a busy machine one thread alone gives stable figures.
    """
    counts = candidates(available_cores())
    return fastest(counts, [_read_seconds(threads) for threads in counts])


def fastest(counts: Sequence[int], seconds: Sequence[float]) -> int:
    """The count to use; a larger one has to beat the best smaller one by the margin `GAIN`."""
    best, best_seconds = counts[0], seconds[0]
    for count, taken in zip(counts[1:], seconds[1:], strict=True):
        if taken < GAIN * best_seconds:
            best, best_seconds = count, taken
    return best


def _read_seconds(threads: int) -> float:
    """Median time of reading `PROBE_BYTES` with so many threads, in seconds."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        data = torch.ones(PROBE_BYTES // 8, dtype=torch.int64)
        times = []
        for _ in range(PROBE_REPEATS):
            start = time.perf_counter()
            data.sum()
            times.append(time.perf_counter() - start)
        return statistics.median(times)
    finally:
        torch.set_num_threads(before)
