"""What a store loses when a writer is killed, the disk fills, the file is damaged, or several write at once.

Usage: python -m tests.harness.losses        (a line per event; `test_losses.py` holds them to it)

"Finished" is what a writer was told is stored; it says so in its log before it goes on.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from suite.errors import InputError
from suite.harness.measurement import UnitResult
from suite.harness.store import Store
from tests.harness.support import unit

ROOT = Path(__file__).resolve().parents[2]
TEXT = "x" * 20_000
PAGE = 4096


@dataclass(frozen=True)
class Loss:
    """`whole`: the file passes SQLite's integrity check. `told`: the sentence a user got."""

    event: str
    finished: int
    kept: int
    whole: bool
    told: str = ""

    @property
    def lost(self) -> int:
        return self.finished - self.kept


def write(store_path: str, log_path: str, name: str, limit: str) -> None:
    """A writer: units one by one, each logged once it is stored, until it is stopped or refused."""
    if int(limit):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    log = os.open(log_path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    with Store(Path(store_path)) as store:
        for number in range(100_000):
            key = f"{name}-{number}"
            store.add_units([unit(key, text=TEXT)], name)
            os.write(log, f"{key}\n".encode())


def _writer(folder: Path, name: str, limit: int = 0) -> subprocess.Popen[str]:
    arguments = [str(folder / "s.sqlite"), str(folder / f"{name}.log"), name, str(limit)]
    command = [sys.executable, "-m", "tests.harness.losses", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def _finished(folder: Path) -> set[str]:
    """The logged keys; a line that was cut off is none."""
    return {line for log in folder.glob("*.log") for line in log.read_text().split("\n")[:-1]}


def _loss(event: str, folder: Path, told: str = "") -> Loss:
    finished = _finished(folder)
    with Store(folder / "s.sqlite") as store:
        kept = finished & {one.key for one in store.units()}
        (whole,) = store._connection.execute("PRAGMA integrity_check").fetchone()
    return Loss(event, len(finished), len(kept), whole == "ok", told)


def _until(folder: Path, finished: int) -> None:
    deadline = time.monotonic() + 60
    while len(_finished(folder)) < finished:
        assert time.monotonic() < deadline, "the writers do not get on"
        time.sleep(0.005)


def killed(folder: Path, times: int = 3) -> Loss:
    """SIGKILL in the middle of writing, several times over the same store."""
    for turn in range(times):
        writer = _writer(folder, f"killed{turn}")
        _until(folder, 20 * (turn + 1))
        writer.kill()
        writer.communicate()
    return _loss(f"killed {times} times", folder)


def several(folder: Path, writers: int = 4) -> Loss:
    """Writers at once on one store, then all killed."""
    running = [_writer(folder, f"writer{place}") for place in range(writers)]
    _until(folder, 20 * writers)
    for writer in running:
        writer.kill()
        writer.communicate()
    return _loss(f"{writers} writers at once, then killed", folder)


def full_disk(folder: Path) -> Loss:
    """No file may grow beyond 1 MB: to the writer the disk is full."""
    _, said = _writer(folder, "full", 1_000_000).communicate()
    return _loss("full disk", folder, said.strip().rpartition("\n")[2])


def damaged(folder: Path) -> Loss:
    """Random bytes over one page in the middle: what can be told of the file, and how many units are still readable."""
    path, units = folder / "s.sqlite", [unit(f"k{number}", text=TEXT) for number in range(100)]
    with Store(path) as store:
        for one in units:
            store.add_units([one], "s")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // PAGE * PAGE)
        file.write(random.Random(0).randbytes(PAGE))
    before = path.read_bytes()
    try:
        with Store(path) as store:
            store.units()
        told = ""
    except InputError as error:
        told = str(error)
    assert path.read_bytes() == before, "the damaged file was changed"
    return Loss("one page of 4 KiB damaged", len(units), _readable(path), False, told)


def _readable(path: Path) -> int:
    """Units that come back one by one."""
    found = 0
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        for row in range(1, 101):
            try:
                (text,) = connection.execute("SELECT json FROM units WHERE rowid = ?", (row,)).fetchone()
                found += UnitResult.model_validate_json(text).key == f"k{row - 1}"
            except (sqlite3.Error, ValidationError):
                continue
    return found


EVENTS = (killed, several, full_disk, damaged)


def main() -> None:
    """The table."""
    for event in EVENTS:
        with tempfile.TemporaryDirectory() as folder:
            loss = event(Path(folder))
        state = "file whole" if loss.whole else "file damaged"
        print(f"{loss.event}: {loss.finished} finished, {loss.kept} kept, {loss.lost} lost; {state}. {loss.told}")


if __name__ == "__main__":
    write(*sys.argv[1:]) if len(sys.argv) > 1 else main()
