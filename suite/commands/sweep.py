"""`suite sweep`: the product of a file's axes, one `suite run` each, here or on a Ray cluster; killed, it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suite.commands import running
from suite.commands.output import print_json, span, stderr, stdout
from suite.commands.reporting import check_writable, write_report
from suite.commands.run_table import print_problems, print_summary
from suite.commands.stores import open_store
from suite.commands.sweep_ray import Arrived, execute
from suite.commands.sweep_spec import SweepRun, read_spec
from suite.commands.sweep_worker import RunResult
from suite.errors import InputError, NothingMeasuredError, StoppedError, SuiteError
from suite.harness import machine
from suite.harness.store import Run, Store

EXECUTORS = ("local", "ray")
SCHEMA = "inference-suite.sweep/1"


def sweep(spec_file: Path, executor: str, store_file: Path | None, output: Path, as_json: bool) -> int:
    """Everything a user can get wrong is found before the first run starts."""
    if executor not in EXECUTORS:
        raise InputError(f"there is no executor {executor!r}; known: {', '.join(EXECUTORS)}.")
    spec = read_spec(spec_file)
    check_writable(output)
    with open_store(store_file) as store:
        # Runs of this machine are no answer for another one; those of a cluster are, wherever they ran in it.
        book = _Book(store, spec.runs, machine.machine_id() if executor == "local" else executor)
        try:
            if executor == "ray" and book.left:
                execute(book.left, spec.ray, store, book.enter)
            else:
                _execute_here(book.left, store, book.enter)
        except (KeyboardInterrupt, StoppedError):
            raise StoppedError(
                f"interrupted after {len(book.found)} of {len(spec.runs)} runs, which are safe in {store.path}; "
                "the same command measures the rest."
            ) from None
        return _present(book, output, as_json)


def _execute_here(runs: Sequence[SweepRun], store: Store, arrived: Arrived) -> None:
    for run in runs:
        arrived(run, _measured(run, store))


def _measured(run: SweepRun, store: Store) -> RunResult:
    try:
        outcome = running.measure(run.plan, None, store).outcome
    except StoppedError:
        raise
    except SuiteError as error:
        return RunResult(error=str(error))
    return RunResult(units=tuple(outcome.units), notes=tuple(outcome.notes))


class _Book:
    """What became of each run. A finished one is written into the store at once; a failed one is tried next time."""

    def __init__(self, store: Store, runs: Sequence[SweepRun], place: str) -> None:
        self.store, self.runs = store, runs
        self.keys = {run.label: run.key(place) for run in runs}
        self.found = {run.label: done for run in runs if (done := store.run(self.keys[run.label])) is not None}
        self.errors: dict[str, str] = {}
        self.taken_over = set(self.found)
        self._started = time.perf_counter()
        if self.found:
            stderr().print(f"{len(self.found)} of {len(runs)} runs are in {store.path} already", markup=False)

    @property
    def left(self) -> list[SweepRun]:
        """The runs that are not in the store."""
        return [run for run in self.runs if run.label not in self.found]

    def enter(self, run: SweepRun, result: RunResult) -> None:
        """Keeps a result, and says so with the time that is left."""
        if result.error is None:
            self._keep(run, result)
        else:
            self.errors[run.label] = result.error
        said = "done" if result.error is None else f"failed: {result.error}"
        done = len(self.found) + len(self.errors)
        took = (time.perf_counter() - self._started) / (done - len(self.taken_over))
        left = len(self.runs) - done
        stderr().print(f"[{done}/{len(self.runs)}] {run.label}: {said}; about {span(took * left)} left", markup=False)

    def _keep(self, run: SweepRun, result: RunResult) -> None:
        if result.calibration is not None:  # measured elsewhere, with a store of its own
            self.store.add_machine(result.machine_id, json.dumps(result.fingerprint))
            if self.store.calibration(result.machine_id) != result.calibration:
                self.store.add_calibration(result.calibration)
        self.store.add_run(self.keys[run.label], result.units, result.notes)
        self.found[run.label] = Run(result.units, result.notes)


def _present(book: _Book, output: Path, as_json: bool) -> int:
    units = [unit for done in book.found.values() for unit in done.units]
    measured = [unit for unit in units if unit.status in ("ok", "unstable")]
    if measured:
        write_report(book.store, output, units)
    document = {
        "schema": SCHEMA,
        "machines": {key: json.loads(text) for key, text in book.store.machines().items()},
        "runs": [_run_row(run, book) for run in book.runs],
        "report": str(output) if measured else None,
    }
    if as_json:
        print_json(document)
    else:
        _print(document)
    if not measured and book.errors:
        raise NothingMeasuredError(f"nothing was measured: {next(iter(book.errors.values()))}")
    return 3 if book.errors else running.exit_code(units)


def _run_row(run: SweepRun, book: _Book) -> dict[str, Any]:
    """One run of the document: what `suite run --json` says about it, or its error."""
    from analysis.documents import run_document

    row: dict[str, Any] = {"run": run.label, "key": book.keys[run.label]}
    done = book.found.get(run.label)
    if done is None:
        return {**row, "status": "failed", "error": book.errors[run.label], "units": [], "summary": [], "notes": []}
    machine_id = done.units[0].machine_id
    means = running.category_means(run.plan.blocks[0].workload.name)
    made = run_document(done.units, {}, book.store.calibration(machine_id), None, means)
    status = "taken over" if run.label in book.taken_over else "measured"
    shown = {name: made[name] for name in ("units", "summary")}
    return {**row, "status": status, "error": None, "machine": machine_id, **shown, "notes": list(done.notes)}


def _print(document: dict[str, Any]) -> None:
    console = stdout()
    failed = 0
    for number, run in enumerate(document["runs"], 1):
        said = run["status"]
        if run["error"] is not None:
            failed, said = failed + 1, f"failed: {run['error']}"
        console.print(f"run {number}: {run['run']}: {said}", markup=False)
    rows = [(str(number), row) for number, run in enumerate(document["runs"], 1) for row in run["summary"]]
    if rows:
        print_summary("the sweep's runs", [row for _, row in rows], [number for number, _ in rows])
    for number, run in enumerate(document["runs"], 1):
        print_problems(run["summary"], f"run {number}: ")
        for note in run["notes"]:
            console.print(f"run {number}: {note}", markup=False)
    if failed:
        console.print(
            f"{failed} of {len(document['runs'])} runs failed; the same command tries them again", markup=False
        )
    if document["report"]:
        console.print(f"report: {document['report']}", markup=False)
