"""The measured roofline of this machine: taken from the store, or measured and stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from suite.harness import machine
from suite.harness.measurement import Calibration
from suite.harness.store import Store

if TYPE_CHECKING:
    from rich.console import Console


def ensure_calibration(store: Store, threads: int, console: Console) -> Calibration:
    """The stored calibration if it covers `threads`, else a new one."""
    found = store.calibration(machine.machine_id())
    if found is not None and any(ceiling.threads == threads for ceiling in found.ceilings):
        return found
    console.print("this machine's roofline is measured once, and stored", markup=False)
    return measure(store, sorted({1, threads}), console)


def measure(store: Store, threads: Sequence[int], console: Console) -> Calibration:
    """Measures the ceilings with each number of threads, and stores them with their spread."""
    from analysis.roofline.calibrate import calibrate

    columns = (TextColumn("calibrating {task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)
            bar.refresh()

        calibration = calibrate(threads, show, machine.machine_id())
    store.add_machine(machine.machine_id(), json.dumps(machine.fingerprint()))
    store.add_calibration(calibration)
    return calibration
