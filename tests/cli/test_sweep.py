"""`suite sweep` in this process: which runs a file asks for, its mistakes, and that no run is lost or repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from suite.cli import run
from suite.commands import running, sweep_worker
from suite.commands.sweep_spec import read_spec
from suite.commands.sweep_worker import Job, RunResult, claimed_cpus, measure_apart
from suite.errors import StoppedError
from suite.harness import machine, threads
from suite.harness.store import Store
from tests.cli.sweeps import DEFAULTS, ONE_REFUSED, REFUSED, TWO, calibrated, statuses, sweep


@pytest.fixture
def ready(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of the commands, in an empty directory on a machine that is calibrated."""
    monkeypatch.chdir(tmp_path)
    calibrated(store, machine.machine_id())
    return store


def test_the_product_of_the_axes_is_run_each_point_once(tmp_path: Path) -> None:
    axes = '[axes]\nmodel = ["lab-recall", "lab-long", "lab-recall"]\ntask = ["128", ["128", "256"]]\nbatch = [2]\n'
    (tmp_path / "s.toml").write_text(DEFAULTS + axes)
    runs = read_spec(tmp_path / "s.toml").runs
    assert [run.label for run in runs] == [
        f"model={model}, task={task}, batch=2" for model in ("lab-recall", "lab-long") for task in ("128", "128+256")
    ]
    assert [(run.plan.model.name, len(run.plan.blocks)) for run in runs] == [
        ("lab-recall", 1), ("lab-recall", 2), ("lab-long", 1), ("lab-long", 2),
    ]  # fmt: skip
    assert {run.plan.engine.batch_size for run in runs} == {2}


def test_a_run_is_what_the_command_line_makes_of_the_same_words(tmp_path: Path) -> None:
    given = 'method = ["longheads", "streaming"]\nset = "pairs=3"\nseed = 7\nrepeats = 2\nkv_budget = 64\n'
    (tmp_path / "s.toml").write_text(DEFAULTS + given)
    (run,) = read_spec(tmp_path / "s.toml").runs
    assert [method.name for method in run.plan.methods] == ["dense", "longheads", "streaming"]
    workload = run.plan.blocks[0].workload
    assert (workload.options, workload.seed, workload.limit) == ({"pairs": 3}, 7, 1)
    assert run.plan.blocks[0].protocol.repeats == 2
    assert run.plan.engine.threads == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[axis]", "sweep.toml has no option 'axis'; did you mean 'axes'?"),
        ("[defaults", "no TOML file"),
        ("[defaults]\nmodel = 'lab-recall'", "names no workload"),
        (DEFAULTS + "modle = 'x'", "no option 'modle'; did you mean 'model'?"),
        (DEFAULTS + "batch = 0", "option batch = 0"),
        (DEFAULTS + "[axes]\nbatch = 2", "axis batch of sweep.toml must be a list"),
        (DEFAULTS + "[axes]\nbatch = []", "axis batch of sweep.toml must be a list"),
        (DEFAULTS + "[axes]\nmethod = ['dense', 'longheds']", "method=longheds of sweep.toml: unknown"),
        (DEFAULTS + "[axes]\ndtype = ['fp32', 'fp16']", "dtype=fp16"),
        (DEFAULTS + "[ray]\ncpu = 2", "[ray] of sweep.toml has no option 'cpu'; did you mean 'cpus'?"),
        (DEFAULTS + "[ray]\nretries = -1", "option retries = -1"),
    ],
    ids=lambda value: value[-24:],
)
def test_every_mistake_is_one_sentence_before_the_first_run(
    ready: Store, tmp_path: Path, text: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.toml").write_text(text)
    assert run(["sweep", "sweep.toml"]) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert err.count("suite: ") == 1
    assert out == ""
    assert ready.units() == []


def test_a_missing_file_and_an_unknown_executor_are_told(
    ready: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sweep", "nowhere.toml"]) == 2
    assert "cannot read nowhere.toml" in capsys.readouterr().err
    (tmp_path / "sweep.toml").write_text(TWO)
    assert run(["sweep", "sweep.toml", "--executor", "slurm"]) == 2
    assert "known: local, ray" in capsys.readouterr().err


def test_a_failed_run_is_counted_and_tried_again_and_a_finished_one_is_not(
    ready: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, first = sweep(ONE_REFUSED, tmp_path, capsys)
    assert code == 3
    assert statuses(first) == ["failed", "measured"]
    assert "trained window" in first["runs"][0]["error"]
    assert [unit["method"] for unit in first["runs"][1]["units"]] == ["dense", "streaming(window=32)"]
    assert first["runs"][1]["units"][1]["ratios"]["ttft"]["value"] > 0
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    before = ready.units()
    code, second = sweep(ONE_REFUSED, tmp_path, capsys)
    assert code == 3
    assert statuses(second) == ["failed", "taken over"]
    assert second["runs"][1]["units"] == first["runs"][1]["units"]
    assert ready.units() == before


def test_other_code_measures_again(
    ready: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = DEFAULTS + 'method = "dense"\n'
    assert statuses(sweep(one, tmp_path, capsys)[1]) == ["measured"]
    monkeypatch.setattr(machine, "code_version", lambda: "another")
    assert statuses(sweep(one, tmp_path, capsys)[1]) == ["measured"]
    assert statuses(sweep(one, tmp_path, capsys)[1]) == ["taken over"]


def test_nothing_measured_is_said(ready: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.toml").write_text(DEFAULTS + f'method = "{REFUSED}"\n')
    assert run(["sweep", "sweep.toml"]) == 4
    out, err = capsys.readouterr()
    assert "1 of 1 runs failed" in out
    assert "nothing was measured: method longheads cannot run" in err


def test_stopped_it_keeps_the_finished_runs(
    ready: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweep.toml").write_text(TWO)
    measure = running.measure

    def stopped(planned: Any, sweep: None, store: Store) -> running.Measured:
        if "48" in planned.model_dump_json():
            raise StoppedError("stopped")
        return measure(planned, sweep, store)

    monkeypatch.setattr(running, "measure", stopped)
    assert run(["sweep", "sweep.toml"]) == 130
    assert "interrupted after 1 of 2 runs" in capsys.readouterr().err
    monkeypatch.setattr(running, "measure", measure)
    code, document = sweep(TWO, tmp_path, capsys)
    assert code == 0
    assert statuses(document) == ["taken over", "measured"]


def test_runs_on_one_node_get_cpus_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_worker.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(threads, "available_cpus", lambda: frozenset({0, 1, 2, 3}))
    monkeypatch.setattr(threads, "siblings", lambda cpu: str(cpu % 2))  # 0 and 2 are one core, 1 and 3 the other
    with claimed_cpus(2) as first, claimed_cpus(2) as second, claimed_cpus(1) as third:
        assert (first, second) == ([0, 2], [1, 3])
        assert third == [0, 2, 1, 3]
    with claimed_cpus(1) as again:
        assert again == [0]


def test_a_node_with_other_code_refuses(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(DEFAULTS)
    (run,) = read_spec(tmp_path / "s.toml").runs
    job = Job(plan=run.plan, code_version="older", directory=str(tmp_path), cpus=1)
    result = RunResult.model_validate_json(measure_apart(job.model_dump_json()))
    assert "the driver older; install one on both" in (result.error or "")


def test_the_spec_of_the_readme_is_one(tmp_path: Path) -> None:
    lines = (machine.ROOT / "README.md").read_text().partition("    [defaults]\n")[2].partition("\nAll runs")[0]
    (tmp_path / "s.toml").write_text("[defaults]\n" + lines)
    assert len(read_spec(tmp_path / "s.toml").runs) == 8
