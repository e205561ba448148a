"""`kill -9` in the middle of a sweep loses the block that was running, and nothing else."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suite.harness.store import Store

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = 5


def _start(command: str, folder: Path, log: str) -> subprocess.Popen[bytes]:
    arguments = [command, str(folder / "store.sqlite"), str(folder / log)]
    return subprocess.Popen([sys.executable, "-m", "tests.harness.sweep_process", *arguments], cwd=ROOT)


def _stored_tasks(path: Path) -> list[str]:
    """Tasks of the stored units, read by a second connection while the first process writes."""
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            rows = connection.execute("SELECT json_extract(json, '$.spec.workload.task') FROM units ORDER BY created")
            return [task for (task,) in rows]
    except sqlite3.OperationalError:
        return []  # not created yet


def _kill_after(blocks: int, folder: Path) -> list[str]:
    """Starts the sweep, kills it as soon as so many blocks are stored, and returns the stored tasks."""
    process = _start("run", folder, "first.log")
    deadline = time.monotonic() + 60
    while len(_stored_tasks(folder / "store.sqlite")) < 2 * blocks:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return _stored_tasks(folder / "store.sqlite")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_a_killed_sweep_resumes_without_losing_or_repeating(tmp_path: Path) -> None:
    survived = _kill_after(2, tmp_path)
    assert 4 <= len(survived) < 2 * BLOCKS
    assert len(survived) % 2 == 0, "half a block was stored"
    with Store(tmp_path / "store.sqlite") as store:
        before = {unit.key: unit for unit in store.units()}
    assert _start("resume", tmp_path, "second.log").wait() == 0
    with Store(tmp_path / "store.sqlite") as store:
        after = {unit.key: unit for unit in store.units()}
        assert store.pending_sweep() is None
    assert {key: after[key] for key in before} == before
    assert sorted(unit.spec.workload.task for unit in after.values()) == sorted("aabbccddee")
    repeated = {
        line.split()[1][0] for line in (tmp_path / "second.log").read_text().splitlines() if "gate/" not in line
    }
    assert repeated == set("abcde") - set(survived)
