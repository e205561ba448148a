"""Small sweeps on the lab model, for the tests of both executors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from suite.cli import run
from suite.harness.store import Store
from tests.analysis.factory import calibration

DEFAULTS = """
[defaults]
workload = "recall"
task = "128"
model = "lab-recall"
dtype = "fp32"
threads = 1
limit = 1
"""
TWO = DEFAULTS + '[axes]\nmethod = ["streaming:window=32", "streaming:window=48"]\n'
REFUSED = "longheads:chunk=64,attention_length=1024"  # it does not fit the model, which only the loaded model tells
ONE_REFUSED = DEFAULTS + f'[axes]\nmethod = ["{REFUSED}", "streaming:window=32"]\n'
WAIT_S = 60.0


def calibrated(store: Store, machine_id: str) -> None:
    """Spares the runs on a machine the time of its calibration."""
    store.add_machine(machine_id, "{}")
    store.add_calibration(calibration().model_copy(update={"machine_id": machine_id}))


def sweep(text: str, folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    """Runs a spec with `--json`; its exit code and its document."""
    (folder / "sweep.toml").write_text(text)
    code = run(["sweep", str(folder / "sweep.toml"), "-o", str(folder / "report.html"), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def statuses(document: dict[str, Any]) -> list[str]:
    """What became of each run."""
    return [row["status"] for row in document["runs"]]


def found(look: Callable[[], psutil.Process | None]) -> psutil.Process:
    """What `look` finds in the end."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if (process := look()) is not None:
            return process
        time.sleep(0.05)
    raise AssertionError("nothing came")


def ended(process: psutil.Process) -> bool:
    """True when it ends in time; what nobody has waited for stays as a zombie."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def measuring(folder: Path) -> psutil.Process | None:
    """The process that measures a run of the sweep in this directory."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = process.info["cmdline"] or []
        if process.info["cwd"] == str(folder) and command[1:3] == ["-m", "suite.commands.sweep_worker"]:
            return process
    return None
