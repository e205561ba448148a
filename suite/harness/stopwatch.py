"""Times short calls, on the host or on a GPU: `sampler(call)` gives a function that takes one sample."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SAMPLE_S = 2e-3
"""Short calls are repeated until a sample lasts about this long."""

Call = Callable[[], object]
Sampler = Callable[[], float]
"""Takes one sample: mean seconds per call."""


def sampler(call: Call) -> Sampler:
    """Warms `call` up and settles how often a sample repeats it; on the GPU where torch makes its tensors there."""
    return gpu_sampler(call) if torch.get_default_device().type == "cuda" else host_sampler(call)


def host_sampler(call: Call) -> Sampler:
    """By the host's clock, in as many calls as last `SAMPLE_S`."""
    call()
    calls = repeats(seconds_per_call(call, 2))
    return lambda: seconds_per_call(call, calls)


def gpu_sampler(call: Call) -> Sampler:
    """By the GPU's own events, around the replay of a CUDA graph, so that launching does not count.

    A call that waits for the GPU, or copies from the host, cannot be in a graph: then its launches count, as they would
    for whoever uses it.
    """
    for _ in range(3):  # compiles, tunes, and fills the allocator
        call()
    calls = repeats(gpu_seconds(lambda: [call(), call()]) / 2)
    replay = captured(call, calls) or (lambda: [call() for _ in range(calls)])
    replay()
    return lambda: gpu_seconds(replay) / calls


def repeats(seconds: float) -> int:
    """Calls in a sample, of a call that takes so long."""
    return max(1, round(SAMPLE_S / seconds))


def seconds_per_call(call: Call, calls: int) -> float:
    """Mean time of so many calls by the host's clock."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def gpu_seconds(call: Call) -> float:
    """Time of one call on an idle GPU's clock."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    before.record()
    call()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3


def captured(call: Call, calls: int) -> Call | None:
    """So many calls as one CUDA graph; None if they cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay
