"""Keeps another core busy with one resource, so that a timed part can be seen to need it or not."""

from __future__ import annotations

import os
import threading
from functools import partial
from types import TracebackType

import torch

from suite.errors import InputError
from suite.harness import threads
from suite.harness.measurement import Beside

COPIED_BYTES = 128 << 20
EDGE = 320
"""Three fp32 matrices of this edge fit into a core's second cache: the product touches no memory."""


def spare_cpu() -> int | None:
    """A CPU on another core than this thread's; None where there is none, or the thread is bound to no core."""
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    places = {threads.siblings(cpu) for cpu in own}
    others = [cpu for cpu in sorted(threads.available_cpus()) if threads.siblings(cpu) not in places]
    return others[-1] if len(places) == 1 and others else None


class Companion:
    """While entered, a thread on a spare core copies memory ("memory") or multiplies in its cache ("compute")."""

    def __init__(self, beside: Beside) -> None:
        self._beside, self._stop = beside, threading.Event()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        if self._beside == "nothing":
            return
        cpu = spare_cpu()
        if cpu is None:
            raise InputError("a companion needs a core of its own, and a main thread that is bound to another.")
        self._thread = threading.Thread(target=self._work, args=(cpu,))
        self._thread.start()
        self._ready.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self, cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        torch.set_num_threads(1)
        if self._beside == "memory":
            source, target = torch.ones(2, COPIED_BYTES // 4)
            work = partial(target.copy_, source)
        else:
            square = torch.randn(EDGE, EDGE)
            work = partial(torch.mm, square, square, out=torch.empty_like(square))
        self._ready.set()
        while not self._stop.is_set():
            work()
