"""`suite nightly` on the lab model: the budget and the rotation, the history, the exit codes, and a kill in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from analysis.claims import Verdict
from suite.cli import run
from suite.commands import nightly, refreshing, running
from suite.commands.rotation import CUT_OFF, Deadline, Rotation
from suite.commands.sweep_spec import read_spec
from suite.errors import UnitError
from suite.harness import machine, noise
from suite.harness.history import HISTORY_NAME, History, Observation, Turn
from suite.harness.store import Store
from tests.analysis.factory import finding
from tests.cli.sweeps import DEFAULTS, REFUSED, calibrated

THREE = DEFAULTS + 'method = "dense"\nrepeats = 3\n[axes]\nseed = [0, 1, 2]\n'
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ready(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of the commands on a calibrated machine, and a spec of three runs that take a second each.

    Every unit is unstable: how fast the tests' machine is in two nights decides nothing.
    """
    monkeypatch.setattr(noise, "LOAD_LIMIT", -1.0)
    monkeypatch.chdir(tmp_path)
    calibrated(store, machine.machine_id())
    (tmp_path / "n.toml").write_text(THREE)
    return store


def _night(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    code = run(["nightly", "n.toml", "--ledger", "none", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def _history(store: Store) -> History:
    return History(store.path.with_name(HISTORY_NAME))


def _nights(store: Store) -> list[Observation]:
    return [line for line in _history(store).read() if isinstance(line, Observation)]


def test_two_nights_grow_the_history_and_are_no_false_alarm(
    ready: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for nights in (1, 2):
        code, document = _night(capsys, "--budget", "5m", "--markdown", "issue.md")
        assert code == 0
        assert [turn["finished"] for turn in document["turns"]] == [True] * 3
        assert len({line.at for line in _nights(ready)}) == 3 * nights
        assert "regression" not in document["tally"]
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    assert "night" in (tmp_path / "issue.md").read_text()
    assert {one["outcome"] for one in document["verdicts"]} == {"same", "no verdict"}


def test_what_did_not_fit_is_first_next_time(ready: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A budget for the first run only: three nights get to all three."""
    measured = []
    for _ in range(3):
        code, document = _night(capsys, "--budget", "0.1s")
        assert code == 0
        measured += [turn["name"] for turn in document["turns"]]
        assert "2 of 3 runs did not fit" in " ".join(document["notes"])
    assert sorted(measured) == ["seed=0", "seed=1", "seed=2"]


def test_a_slowdown_is_found_the_next_night_and_told(ready: Store, tmp_path: Path, capsys, monkeypatch) -> None:
    for limit in ("STEAL_LIMIT", "LOAD_LIMIT", "SPREAD_LIMIT"):  # the tests' machine may be busy
        monkeypatch.setattr(noise, limit, float("inf"))
    assert _night(capsys, "--budget", "5m")[0] == 0
    lines = _history(ready).path.read_text().splitlines()
    quicker = [_quicker(line) for line in lines]  # as if the code had been ten times as fast yesterday
    _history(ready).path.write_text("".join(line + "\n" for line in quicker))
    code, document = _night(capsys, "--budget", "5m", "--markdown", "issue.md", "--github")
    assert code == 1
    found = {one["metric"] for one in document["verdicts"] if one["outcome"] == "regression"}
    assert "ttft" in found
    assert "**regression**" in (tmp_path / "issue.md").read_text()


def _quicker(line: str) -> str:
    document = json.loads(line)
    if document["kind"] == "unit":
        document["times"] = {
            name: {pair: value / 10 for pair, value in pairs.items()} for name, pairs in document["times"].items()
        }
        for name in document["metrics"]:
            if name.endswith("_ms"):
                document["metrics"][name] /= 10
    return json.dumps(document)


def test_nothing_measured_is_4_and_a_failed_run_3(ready: Store, tmp_path: Path, capsys) -> None:
    (tmp_path / "n.toml").write_text(DEFAULTS + f'method = "{REFUSED}"\n')
    assert run(["nightly", "n.toml", "--ledger", "none"]) == 4
    assert "nothing was measured: the run: method longheads cannot run" in capsys.readouterr().err
    (tmp_path / "n.toml").write_text(DEFAULTS + f'[axes]\nmethod = ["{REFUSED}", "dense"]\n')
    code, document = _night(capsys, "--budget", "5m")
    assert code == 3
    assert [turn["error"] is None for turn in document["turns"]] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["n.toml", "--budget", "soon"], "--budget soon is not a time span"),
        (["n.toml", "--ledger", "longheds"], "did you mean 'longheads'?"),
        (["free.toml"], "has no limit"),
        (["nowhere.toml"], "cannot read nowhere.toml"),
        (["n.toml", "-o", "n.toml/report.html"], "cannot write to"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence_before_anything_is_measured(
    ready: Store, tmp_path: Path, arguments: list[str], told: str, capsys
) -> None:
    (tmp_path / "free.toml").write_text('[defaults]\nworkload = "recall"\nmodel = "lab-recall"\n')
    assert run(["nightly", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert ready.units() == []


def test_the_default_set_is_one_that_can_be_run() -> None:
    assert len(read_spec(nightly.SPEC).runs) > 5
    assert all(run.plan.limit for run in nightly._runs(nightly.SPEC))


def test_a_run_that_kills_the_night_does_not_keep_the_others_from_their_turn(ready: Store, capsys, monkeypatch) -> None:
    """Its attempt counts from the beginning: the next night begins with another."""

    def killed(*_: Any) -> running.Measured:
        raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr(running, "measure", killed)
        with pytest.raises(SystemExit):
            run(["nightly", "n.toml", "--ledger", "none"])
    _, document = _night(capsys, "--budget", "0.1s")
    assert [turn["name"] for turn in document["turns"]] == ["seed=1"]


def test_killed_it_goes_on_and_has_lost_nothing_that_was_finished(ready: Store, tmp_path: Path, capsys) -> None:
    """kill -9 of a real process after its first run; what the store had by then is in the history afterwards."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    tasks = DEFAULTS.replace('task = "128"', 'task = ["128", "256", "512", "1024"]')
    (tmp_path / "n.toml").write_text(tasks + 'method = "dense"\nrepeats = 30\n')
    command = [sys.executable, "-m", "suite", "nightly", "n.toml", "--ledger", "none", "--budget", "5m"]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not ready.units() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {unit.key for unit in ready.units()}
    assert finished
    assert _nights(ready) == []  # the run was not over
    (tmp_path / "n.toml").write_text(tasks + 'method = "dense"\n')
    code, _ = _night(capsys, "--budget", "0.1s")
    assert code == 0
    assert finished <= {line.key for line in _nights(ready)}
    assert len({line.night for line in _nights(ready)}) == 2
    assert ready.pending_sweep() is None


def test_two_nights_at_once_are_refused(ready: Store, capsys) -> None:
    with nightly._alone(_history(ready)):
        assert run(["nightly", "n.toml", "--ledger", "none"]) == 2
    assert "another `suite nightly`" in capsys.readouterr().err


def test_a_lost_store_loses_no_history_and_a_lost_history_no_store(ready: Store, tmp_path: Path, capsys) -> None:
    assert _night(capsys, "--budget", "5m")[0] == 0
    other = tmp_path / "other.sqlite"
    with Store(other) as fresh:
        calibrated(fresh, machine.machine_id())
    code, document = _night(capsys, "--budget", "5m", "--store", str(other))
    assert code == 0
    assert "first time" not in " ".join(one["reason"] for one in document["verdicts"])
    _history(ready).path.unlink()
    assert _night(capsys, "--budget", "5m")[0] == 0
    assert len(ready.units()) == 3


def test_a_full_disk_under_the_history_loses_no_finished_unit(ready: Store, tiny_disk: Path, capsys) -> None:
    there = tiny_disk / "nightly.jsonl"
    (tiny_disk / "filler").write_bytes(b"x" * 256 * 1024)
    assert run(["nightly", "n.toml", "--ledger", "none", "--history", str(there)]) == 2
    assert "free some space" in capsys.readouterr().err
    assert there.read_bytes() == b""
    (tiny_disk / "filler").unlink()
    assert _night(capsys, "--budget", "0.1s", "--history", str(there))[0] == 0
    History(there).path.rename(tiny_disk / "kept.jsonl")  # and when it is lost, the store gives back what it has
    assert _night(capsys, "--budget", "0.1s", "--history", str(there))[0] == 0
    assert len({line.night for line in History(there).read()}) == 2


def test_a_corrupt_store_is_one_sentence_and_the_history_goes_on_without_it(ready: Store, capsys) -> None:
    assert _night(capsys, "--budget", "0.1s")[0] == 0
    before = _nights(ready)
    bad = ready.path.with_name("bad.sqlite")
    bad.write_bytes(b"SQLite format 3\0" + b"\7" * 5000)
    assert run(["nightly", "n.toml", "--ledger", "none", "--store", str(bad)]) == 2
    assert "damaged" in capsys.readouterr().err
    assert _nights(ready) == before


def _turn(name: str, at: str, seconds: float = 10.0, **changes: Any) -> Turn:
    return Turn(
        **({"night": "n", "at": at, "what": "run", "name": name, "seconds": seconds, "finished": True} | changes)
    )


def test_the_rotation_takes_what_was_left_longest() -> None:
    past = [
        _turn("a", "2"),
        _turn("b", "1", 30.0),
        _turn("c", "3", 5.0, finished=False, error=CUT_OFF),
        _turn("a", "4"),
    ]
    rotation = Rotation("run", ["a", "b", "c", "d", "e"], past)
    assert rotation.names == ["d", "e", "b", "c", "a"]
    assert [rotation.estimate_s(name) for name in "abcd"] == [10.0, 30.0, 10.0, 60.0]
    assert Rotation("ledger", ["a"], past).estimate_s("a") == 60.0


def test_a_ledger_row_is_refreshed_in_a_process_of_its_own_and_cut_off_in_time(ready: Store) -> None:
    started = time.monotonic()
    turn = refreshing.refresh("longheads", "n", ready, Deadline(1.0))
    assert turn.error == CUT_OFF
    assert not turn.finished
    assert time.monotonic() - started < 20


def test_a_broken_experiment_is_told(ready: Store) -> None:
    turn = refreshing.refresh("no-such-system", "n", ready, Deadline(60.0))
    assert not turn.finished
    assert "no-such-system" in (turn.error or "")


@pytest.mark.parametrize(
    ("old", "new", "low", "outcome"),
    [
        ("reproduced", "partly", 0.5, "regression"),
        ("partly", "reproduced", 0.5, "improvement"),
        ("reproduced", "not reproduced", 1.8, "no verdict"),
        ("reproduced", "reproduced", 0.5, None),
        ("reproduced", "not measurable here", 0.5, None),
    ],
)
def test_a_claim_that_fell_is_a_regression_if_its_interval_says_so(old: str, new: str, low: float, outcome) -> None:
    TypeAdapter(Verdict).validate_python(old)
    was = finding(verdict=old, measured=2.0, low=1.9, high=2.1)
    now = finding(verdict=new, measured=low + 0.1, low=low, high=low + 0.2)
    found = refreshing.changes({("a", "b"): was}, {("a", "b"): now})
    assert [one.outcome for one in found] == ([outcome] if outcome else [])


def test_a_unit_error_in_a_run_goes_on_with_the_next(ready: Store, capsys, monkeypatch) -> None:
    measure = running.measure

    def failing(planned: Any, sweep: str | None, store: Store) -> running.Measured:
        assert planned.fresh  # what has not changed is measured all the same
        if '"seed":1' in planned.model_dump_json():
            raise UnitError("the model is gone.")
        return measure(planned, sweep, store)

    monkeypatch.setattr(running, "measure", failing)
    code, document = _night(capsys, "--budget", "5m")
    assert code == 3
    assert [turn["error"] for turn in document["turns"]] == [None, "the model is gone.", None]
    assert len(_nights(ready)) == 2
