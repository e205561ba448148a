"""Peak memory of a call: the process's resident set, sampled while it runs."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable

import psutil

INTERVAL_S = 5e-4


def peak_bytes(call: Callable[[], object]) -> int:
    """Resident bytes that `call` needed at most beyond what was there before it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else a call that fits into what the last one left behind costs nothing
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    peak = before

    def watch() -> None:
        nonlocal peak
        while not done.wait(INTERVAL_S):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return peak - before
