"""Refreshing rows of the claims ledger within the time a night has left: one process per system, ended with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from suite.commands.rotation import CUT_OFF, Deadline
from suite.engines import guard
from suite.harness import machine
from suite.harness.history import Turn
from suite.harness.measurement import Finding
from suite.harness.store import Store, now

if TYPE_CHECKING:
    from analysis.regression import Verdict

_RANKS = ("not reproduced", "partly", "reproduced")
_TAIL_LINES = 2


def refresh(slug: str, night: str, store: Store, deadline: Deadline) -> Turn:
    """Measures the claims of one system; rows that were done before the time was up are in the store, and told."""
    started, at = time.monotonic(), now()
    command = [sys.executable, "-m", "suite", "reproduce", slug, "--store", str(store.path.absolute()), "--json"]
    paths = [str(machine.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log, subprocess.Popen(
        [sys.executable, guard.__file__, *command], stdin=subprocess.PIPE, stdout=out, stderr=log, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        error = _waited(process, deadline)
        out.seek(0)
        log.seek(0)
        error = error or _failure(out.read(), log.read())
    verdicts = {
        claim: row.verdict for (owner, claim), row in rows_of(store).items() if owner == slug and row.measured_at >= at
    }
    return Turn(
        night=night, at=at, what="ledger", name=slug, seconds=time.monotonic() - started, finished=error is None,
        error=error, verdicts=verdicts,
    )  # fmt: skip


def _waited(process: subprocess.Popen[bytes], deadline: Deadline) -> str | None:
    """None when it ended by itself."""
    try:
        process.wait(max(0.0, deadline.left_s))
    except subprocess.TimeoutExpired:
        return CUT_OFF
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return None


def _failure(out: str, log: str) -> str | None:
    """A command that did its work left one JSON document."""
    try:
        json.loads(out)
    except ValueError:
        said = [line for line in log.splitlines() if line and not line.startswith("[guard]")]
        return " | ".join(said[-_TAIL_LINES:]) or "it ended without a result"
    return None


def rows_of(store: Store) -> dict[tuple[str, str], Finding]:
    """This machine's ledger."""
    here = machine.machine_id()
    return {(row.slug, row.claim): row for row in store.findings() if row.machine_id == here}


def changes(before: Mapping[tuple[str, str], Finding], after: Mapping[tuple[str, str], Finding]) -> list[Verdict]:
    """The claims whose verdict has fallen or risen; only where the intervals are apart is that more than chance."""
    from analysis.regression import Verdict

    verdicts = []
    for key, new in after.items():
        old = before.get(key)
        if old is None or old.verdict == new.verdict or not {old.verdict, new.verdict} <= set(_RANKS):
            continue
        told = f"{old.verdict} -> {new.verdict}"
        unit = f"ledger · {new.slug}: {new.claim}"
        if not _apart(old, new):
            verdict = Verdict(unit, "claim", "no verdict", old.measured, new.measured, reason=f"{told}, within noise.")
        elif _RANKS.index(new.verdict) < _RANKS.index(old.verdict):
            verdict = Verdict(unit, "claim", "regression", old.measured, new.measured, reason=told)
        else:
            verdict = Verdict(unit, "claim", "improvement", old.measured, new.measured, reason=told)
        verdicts.append(verdict)
    return verdicts


def _apart(old: Finding, new: Finding) -> bool:
    if old.low is None or old.high is None or new.low is None or new.high is None:
        return old.measured != new.measured
    return new.high < old.low or new.low > old.high
