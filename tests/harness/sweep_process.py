"""A second process for `test_kill.py`: runs, or resumes, a sweep of fake units and logs every completion to a file.

Usage: python -m tests.harness.sweep_process run|resume STORE LOG
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from suite.harness.plan import plan
from suite.harness.runner import pending, run_blocks, start_sweep
from suite.harness.store import Store
from suite.spec import MethodSpec, Protocol
from tests.harness import support


class _Log(list[tuple[str, str]]):
    """Appends to a file at once, so that a kill loses no line."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("a", buffering=1)

    def append(self, entry: tuple[str, str]) -> None:
        self._file.write(f"{entry[0]} {entry[1]}\n")


def main(command: str, store_path: str, log_path: str) -> None:
    """One process's share of the sweep."""
    support.register(pytest.MonkeyPatch())
    support.log = _Log(Path(log_path))
    slow = {"delay_us": 5000}
    methods = [MethodSpec(name=name, options=slow) for name in ("dense", "other")]
    wished = support.wishes(tasks=support.Tasks.tasks, protocol=Protocol(warmup=0, counted=0))
    with Store(Path(store_path)) as store:
        if command == "run":
            made = plan(support.Wishes(**{**vars(wished), "methods": methods}))
            sweep = start_sweep(store, made)
        else:
            sweep, made = pending(store)
        made, ready = support.bench(made, store)
        run_blocks(made, sweep, ready)


if __name__ == "__main__":
    main(*sys.argv[1:])
