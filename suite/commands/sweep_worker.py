"""One run of a sweep on a node of a cluster: in a process of its own, on CPUs of its own, with a store of its own.

`measure_apart` is what the cluster calls; `python -m suite.commands.sweep_worker FOLDER` is the process it starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import Field

from suite.engines import guard
from suite.harness import machine, threads
from suite.harness.measurement import Calibration, Record, UnitResult
from suite.harness.plan import Plan

_JOB, _RESULT, _LOG = "job.json", "result.json", "log.txt"
_TAIL_LINES = 3


class RunDiedError(Exception):
    """The process of a run ended without a result: it was killed, or it crashed."""


class Job(Record):
    """What the driver sends. `calibrations` are those it has, so that a known machine is not calibrated again."""

    plan: Plan
    code_version: str
    directory: str
    cpus: int
    calibrations: tuple[Calibration, ...] = ()


class RunResult(Record):
    """What comes back: units with the conditions they were measured under, or the `error` there is instead."""

    units: tuple[UnitResult, ...] = ()
    notes: tuple[str, ...] = ()
    machine_id: str = ""
    fingerprint: dict[str, Any] = Field(default_factory=dict)
    calibration: Calibration | None = None
    error: str | None = None


def measure_apart(document: str) -> str:
    """A `Job` as JSON to a `RunResult` as JSON."""
    job = Job.model_validate_json(document)
    version = machine.code_version()
    if version != job.code_version:
        error = f"this node has version {version} of the suite, the driver {job.code_version}; install one on both."
        return RunResult(error=error).model_dump_json()
    with tempfile.TemporaryDirectory(prefix="suite-run-") as name, claimed_cpus(job.cpus) as cpus:
        folder = Path(name)
        (folder / _JOB).write_text(document)
        _run_child(folder, job.directory, cpus)
        if not (folder / _RESULT).exists():
            tail = (folder / _LOG).read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            raise RunDiedError(f"its process ended without a result: {' | '.join(tail)}")
        return (folder / _RESULT).read_text()


@contextmanager
def claimed_cpus(count: int) -> Iterator[list[int]]:
    """CPUs that no other run on this node holds, whole cores first: a cluster counts CPUs, but does not say which.

    All of them where none is free, as when the cluster was told of more CPUs than there are; the noise check sees it.
    """
    folder = Path(tempfile.gettempdir()) / f"suite-cpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    available = sorted(threads.available_cpus(), key=lambda cpu: (threads.siblings(cpu), cpu))
    claimed: list[int] = []
    with ExitStack() as held:
        for cpu in available:
            if len(claimed) < count:
                with suppress(Timeout):
                    held.enter_context(FileLock(folder / f"{cpu}.lock", timeout=0))
                    claimed.append(cpu)
        yield claimed or available


def _run_child(folder: Path, directory: str, cpus: Sequence[int]) -> None:
    """Returns when the process has ended; it ends with this one at the latest, also by kill -9."""
    module = [sys.executable, "-m", "suite.commands.sweep_worker", str(folder)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(machine.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        threads.CPUS_VARIABLE: ",".join(map(str, cpus)),
    }
    environment.pop("OMP_NUM_THREADS", None)  # Ray sets it; the plan, or a measurement, says how many there are
    with (folder / _LOG).open("wb") as log, subprocess.Popen(
        [sys.executable, guard.__file__, *module], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
        cwd=directory, env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        process.wait()


def main(folder: Path) -> None:
    """Measures the job in the folder and leaves the result there, whole."""
    threads.pin()
    from suite.harness.block import describe

    try:
        result = _measured(folder)
    except Exception as error:  # whatever a model or a method raises: the driver counts it, shows it and goes on
        result = RunResult(error=describe(error))
    part = folder / "part.json"
    part.write_text(result.model_dump_json())
    part.replace(folder / _RESULT)


def _measured(folder: Path) -> RunResult:
    from suite.commands import running
    from suite.harness.store import Store

    job = Job.model_validate_json((folder / _JOB).read_text())
    with Store(folder / "suite.sqlite") as store:
        for calibration in job.calibrations:
            store.add_calibration(calibration)
        outcome, _, measured = running.measure(job.plan, None, store)
    return RunResult(
        units=tuple(outcome.units),
        notes=tuple(outcome.notes),
        machine_id=machine.machine_id(),
        fingerprint=machine.fingerprint(),
        calibration=measured,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
