"""Keeps Python's garbage collector out of timed turns."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Around a whole run: what is already loaded is left out of the collections before each turn, so they are quick."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def quiet_heap() -> Iterator[None]:
    """Around one turn: no collection inside; what earlier turns left behind is collected before the clock starts."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
