"""`suite nightly`: measures what was left longest within a budget, keeps the history, and says what has got worse.

Every run is in the store and in the history as soon as it is done. Killed, the same command goes on: what the store has
and the history lacks is entered first, and what was not got to is the oldest, hence the first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from suite.commands import refreshing, running
from suite.commands import verdicts as said
from suite.commands.comparing import observations
from suite.commands.output import print_json, span, stderr, stdout
from suite.commands.reporting import check_writable, write_report
from suite.commands.rotation import CUT_OFF, Deadline, Rotation
from suite.commands.stores import open_store
from suite.commands.sweep_spec import SweepRun, read_spec
from suite.errors import InputError, NothingMeasuredError, StoppedError, SuiteError
from suite.experiments import EXPERIMENTS
from suite.harness import machine
from suite.harness.history import HISTORY_NAME, History, Observation, Turn
from suite.harness.measurement import UnitResult
from suite.harness.plan import parse_budget
from suite.harness.store import Store, now

if TYPE_CHECKING:
    from analysis.regression import Verdict

SPEC = Path(__file__).with_name("nightly.toml")
SCHEMA = "inference-suite.nightly/1"
LEDGER_SHARE = 1 / 3  # of the budget, and whatever the runs leave
LEAST_S = 20.0  # a system's claims are not begun with less time than this
_SWEEP = "nightly-"


@dataclass(frozen=True)
class NightlyOptions:
    """The options of `suite nightly`, as given."""

    spec: Path | None
    budget: str
    ledger: Sequence[str]
    history: Path | None
    output: Path
    markdown: Path | None
    github: bool


@dataclass
class _Night:
    """One night: where it writes, and what became of what it tried."""

    store: Store
    history: History
    id: str
    commit: str
    deadline: Deadline
    runs_until: Deadline
    turns: list[Turn] = field(default_factory=list)
    units: list[UnitResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def enter(self, turn: Turn, lines: Sequence[Observation] = ()) -> None:
        """Into the history, all of it or nothing."""
        self.history.append([*lines, turn])
        self.turns = [one for one in self.turns if one.name != turn.name] + [turn]


def nightly(options: NightlyOptions, store_file: Path | None, as_json: bool) -> int:
    """Everything a user can get wrong is found before anything is measured."""
    runs, budget_s = _runs(options.spec or SPEC), parse_budget(options.budget) or 0.0
    slugs = _ledger(options.ledger)
    check_writable(options.output)
    with open_store(store_file) as store:
        history = History(options.history or store.path.with_name(HISTORY_NAME))
        with _alone(history):
            _recover(store, history)
            return _whole_night(runs, slugs, budget_s, store, history, options, as_json)


@contextmanager
def _alone(history: History) -> Iterator[None]:
    """Two nights at once would time each other."""
    check_writable(history.path, "--history")
    try:
        with FileLock(f"{history.path}.night", timeout=0):
            yield
    except Timeout:
        raise InputError(f"another `suite nightly` is writing to {history.path}; wait for it.") from None


def _whole_night(
    runs: Sequence[SweepRun],
    slugs: Sequence[str],
    budget_s: float,
    store: Store,
    history: History,
    options: NightlyOptions,
    as_json: bool,
) -> int:
    turns = [line for line in history.read() if isinstance(line, Turn)]
    for_runs = budget_s * (1 - LEDGER_SHARE) if slugs else budget_s
    night = _Night(store, history, now()[:23] + "Z", _commit(), Deadline(budget_s), Deadline(for_runs))
    if history.skipped:
        night.notes.append(f"{history.skipped} lines of {history.path} are torn or foreign, and were left out.")
    before = refreshing.rows_of(store)
    _measure(runs, Rotation("run", [run.label for run in runs], turns), night)
    _refresh(Rotation("ledger", slugs, turns), night)
    verdicts = [*_judge(night), *refreshing.changes(before, refreshing.rows_of(store))]
    return _present(night, verdicts, options, as_json)


def _runs(spec: Path) -> Sequence[SweepRun]:
    runs = read_spec(spec).runs
    for run in runs:
        if run.plan.limit is None:
            raise InputError(f"{run.label} of {spec} has no limit; a night needs one, so that all ask the same.")
    return runs


def _ledger(names: Sequence[str]) -> list[str]:
    """The systems whose claims are refreshed: all unless some are named; `none` is none."""
    if list(names) == ["none"]:
        return []
    for name in names:
        _ = EXPERIMENTS[name]
    return list(dict.fromkeys(names)) or list(EXPERIMENTS)


def _commit() -> str:
    """The commit that is measured: what a workflow says, else what git says, else unknown."""
    if given := os.environ.get("GITHUB_SHA"):
        return given
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(machine.ROOT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return ""


def _recover(store: Store, history: History) -> None:
    """Enters what the store has and the history lacks: a night was killed, or the disk was full when it was entered."""
    known = {(line.night, line.key) for line in history.read() if isinstance(line, Observation)}
    for sweep in store.sweeps(_SWEEP):
        night, _, run = sweep.removeprefix(_SWEEP).partition(" ")
        found = _observed(store, store.units(sweep=sweep), night, run)
        history.append([line for line in found if (line.night, line.key) not in known])
    while (pending := store.pending_sweep(_SWEEP)) is not None:
        store.finish_sweep(pending.id)


def _observed(store: Store, units: Sequence[UnitResult], night: str, run: str, commit: str = "") -> list[Observation]:
    about = {"night": night, "run": run, "commit": commit}
    return [line.model_copy(update=about) for line in observations(store, units)]


def _measure(runs: Sequence[SweepRun], rotation: Rotation, night: _Night) -> None:
    by_label = {run.label: run for run in runs}
    left_out = []
    for index, label in enumerate(rotation.names):
        estimate_s = rotation.estimate_s(label)
        if index and estimate_s > night.runs_until.left_s:
            left_out.append(label)
            continue
        stderr().print(f"[{index + 1}/{len(runs)}] {label}: about {span(estimate_s)}", markup=False)
        _run(by_label[label], night)
    if left_out:
        night.notes.append(f"{len(left_out)} of {len(runs)} runs did not fit; they are first next time.")


def _run(run: SweepRun, night: _Night) -> None:
    """One run, begun and ended in the history, whatever happens to it."""
    begun = Turn(night=night.id, at=now(), what="run", name=run.label, seconds=0.0, finished=False)
    night.enter(begun)
    start = time.monotonic()
    sweep = f"{_SWEEP}{night.id} {run.label}"
    plan = run.plan.model_copy(update={"fresh": True})
    night.store.save_sweep(sweep, plan.model_dump_json())
    try:
        outcome = running.measure(plan, sweep, night.store).outcome
    except StoppedError as error:
        raise StoppedError(f"{error.args[0].partition('; ')[0]}; the same command goes on.") from None
    except SuiteError as error:
        night.store.finish_sweep(sweep)
        night.enter(begun.model_copy(update={"at": now(), "seconds": time.monotonic() - start, "error": str(error)}))
        return
    took = time.monotonic() - start
    lines = _observed(night.store, outcome.units, night.id, run.label, night.commit)
    night.units += outcome.units
    night.enter(begun.model_copy(update={"at": now(), "seconds": took, "finished": True}), lines)


def _refresh(rotation: Rotation, night: _Night) -> None:
    """Systems whose claims fit, oldest first; one that was never timed gets what is left."""
    left_out = 0
    for slug in rotation.names:
        left_s = night.deadline.left_s
        if left_s < LEAST_S or rotation.estimate_s(slug) > left_s:
            left_out += 1
            continue
        stderr().print(f"ledger: {slug}, {span(left_s)} left", markup=False)
        turn = refreshing.refresh(slug, night.id, night.store, night.deadline)
        night.enter(turn)
        if turn.error == CUT_OFF:
            night.notes.append(f"the ledger's rows of {slug} were cut off; those that were done are kept.")
    if left_out:
        night.notes.append(f"the ledger's rows of {left_out} of {len(rotation.names)} systems did not fit.")


def _judge(night: _Night) -> list[Verdict]:
    from analysis.regression import judge_night

    lines = [line for line in night.history.read() if isinstance(line, Observation)]
    return judge_night(lines, night.id)


def _present(night: _Night, verdicts: Sequence[Verdict], options: NightlyOptions, as_json: bool) -> int:
    title = f"night {night.id}" + (f" of {night.commit[:12]}" if night.commit else "")
    failed = [f"{turn.name}: {turn.error}" for turn in night.turns if turn.error and turn.error != CUT_OFF]
    measured = [unit for unit in night.units if unit.status in ("ok", "unstable")]
    refreshed = [turn for turn in night.turns if turn.what == "ledger" and turn.verdicts]
    if measured or refreshed:
        write_report(night.store, options.output)
    notes = [*_counts(night, len(refreshed)), *night.notes, *(f"failed: {text}" for text in failed)]
    if options.markdown is not None:
        said.write_text(options.markdown, said.markdown(title, verdicts, notes), "--markdown")
    if options.github:
        print("\n".join(said.github_lines(verdicts)), file=sys.stderr)
    if as_json:
        print_json(_document(night, verdicts, options.output if measured or refreshed else None, notes))
    else:
        said.print_verdicts(title, verdicts)
        for note in [*notes, *([f"report: {options.output}"] if measured or refreshed else [])]:
            stdout().print(note, markup=False)
    return _exit_code(night, verdicts, failed, bool(measured or refreshed))


def _counts(night: _Night, refreshed: int) -> list[str]:
    nights = {line.night for line in night.history.read() if isinstance(line, Observation)}
    runs = sum(turn.what == "run" and turn.finished for turn in night.turns)
    return [
        f"{runs} runs with {len(night.units)} units; ledger rows of {refreshed} systems; "
        f"{len(nights)} nights in {night.history.path}"
    ]


def _document(night: _Night, verdicts: Sequence[Verdict], report: Path | None, notes: Sequence[str]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "night": night.id,
        "commit": night.commit,
        "machine": machine.fingerprint(),
        "turns": [turn.model_dump(mode="json") for turn in night.turns],
        "units": [{"key": unit.key, "status": unit.status} for unit in night.units],
        "tally": said.tally(verdicts),
        "verdicts": [one.document() for one in verdicts],
        "notes": list(notes),
        "history": str(night.history.path),
        "report": str(report) if report is not None else None,
    }


def _exit_code(night: _Night, verdicts: Sequence[Verdict], failed: Sequence[str], anything: bool) -> int:
    """4 without any figure; else 3 where something failed; else 1 where something got worse; else 0."""
    if not anything:
        errors = [*failed, *(unit.error for unit in night.units if unit.error)]
        raise NothingMeasuredError("nothing was measured" + (f": {errors[0]}" if errors else "."))
    if failed or any(unit.status == "failed" for unit in night.units):
        return 3
    return 1 if any(one.outcome == "regression" for one in verdicts) else 0
