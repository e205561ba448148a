"""Peak memory of a call, and of a prefill: the process's resident set, sampled while it runs."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable

import psutil
import torch
from torch import Tensor

from suite.models.attention import Attention
from suite.models.language_model import LanguageModel

INTERVAL_S = 5e-4
_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
_OWN_PAGES, _USUAL = 1 << 18, 32 << 20  # bytes; the second is where glibc's own threshold ends up


def peak_bytes(call: Callable[[], object]) -> int:
    """Resident bytes that `call` needed at most beyond what was there before it."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _OWN_PAGES)  # a freed tensor's pages go at once and are not counted on
    libc.malloc_trim(0)  # else a call that fits into what the last one left behind costs nothing
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
        libc.mallopt(_MMAP_THRESHOLD, _USUAL)
    return peak - before


def prefill_peak(model: LanguageModel, ids: Tensor, attention: Attention, chunk: int) -> int:
    """Peak bytes of a prefill of ids [1, T] in passes of `chunk` tokens, beyond weights and cache."""
    cache = model.decoder.new_cache(1, ids.shape[1])
    for storage in (*cache.keys, *cache.values):
        storage.zero_()  # the cache's pages are there before the measurement

    def prefill() -> None:
        with torch.inference_mode():
            for start in range(0, ids.shape[1], chunk):
                model.decoder(ids[:, start : start + chunk], cache, attention)

    return peak_bytes(prefill)
