"""Times kernels against their peers: interleaved, over fresh sets of inputs, raw samples kept.

A kernel that finds its inputs in a cache because it has just read them says nothing about decoding, where every layer's
weights and keys are read once per token. So each case is drawn several times, and the calls cycle through the sets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from kernels.contract import Race, SpeedCase
from kernels.cost import Cost
from suite.harness.heap import quiet_heap
from suite.harness.noise import Disturbance, snapshot
from suite.harness.stopwatch import sampler

CYCLE_BYTES = 256 << 20
"""What the sets of a case have together: beyond every cache that a core has to itself."""
MOST_SETS = 64
OWN = "own"


@dataclass
class RaceTimes:
    """Seconds per call of one case by contender, one sample per round; the kernel itself is called `OWN`."""

    cost: Cost
    sets: int
    seconds: dict[str, list[float]]
    disturbance: Disturbance = field(default_factory=Disturbance)


def race(case: SpeedCase, dtype: torch.dtype, threads: int, rounds: int) -> RaceTimes:
    """Runs one case with `threads` threads: a warm-up round, then `rounds` rounds of everybody in turn."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _race(_sets(case, dtype), rounds)
    finally:
        torch.set_num_threads(before)


def _sets(case: SpeedCase, dtype: torch.dtype) -> list[Race]:
    torch.manual_seed(0)
    first = case.make(dtype)
    wanted = min(MOST_SETS, -(-CYCLE_BYTES // max(1, first.cost.bytes)))
    return [first, *(case.make(dtype) for _ in range(wanted - 1))]


def _race(sets: list[Race], rounds: int) -> RaceTimes:
    contenders = {OWN: _cycled([one.run for one in sets])}
    contenders |= {name: _cycled([one.peers[name] for one in sets]) for name in sets[0].peers}
    times = RaceTimes(sets[0].cost, len(sets), {name: [] for name in contenders})
    samplers = {name: sampler(call) for name, call in contenders.items()}
    before = snapshot()
    for turn in range(rounds):
        with quiet_heap():
            for name in _rotated(list(samplers), turn):
                times.seconds[name].append(samplers[name]())
    times.disturbance.add(before, snapshot())
    return times


def _rotated(names: list[str], turn: int) -> list[str]:
    start = turn % len(names)
    return names[start:] + names[:start]


def _cycled(calls: list[Callable[[], object]]) -> Callable[[], object]:
    turn: Iterator[Callable[[], object]] = itertools.cycle(calls)
    return lambda: next(turn)()
