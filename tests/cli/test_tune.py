"""`suite tune` as a user calls it: on a lab model, for real, and with everything one can get wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.summary import build_summary
from reports.build import render
from suite.cli import run
from suite.harness.store import Store

QUICK = ["tune", "--model", "lab-recall", "--workload", "recall", "--method", "streaming:window=32", "--limit", "2"]
QUICK += ["--task", "128", "-p", "window", "--threads", "1", "--dtype", "fp32", "--keep-score", "0"]


def test_a_study_is_measured_raced_reported_and_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUITE_STORE", str(tmp_path / "suite.sqlite"))
    assert run([*QUICK, "--trials", "2", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert run([*QUICK, "--trials", "3", "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["trials"][:2] == first["trials"]
    assert len(second["trials"]) == 3
    measured = [trial for trial in second["trials"] if trial["state"] == "complete"]
    assert all(trial["wall_s"] > 0 and trial["tokens"] > 0 and trial["pid"] for trial in measured)
    assert second["race"]["over_default"]["n"] == 10
    assert second["verdict"]
    assert "best so far" in (tmp_path / "tuning.html").read_text()
    with Store() as store:
        data = build_summary(store)
    (study,) = data.studies  # the newest of its name
    assert (study.verdict, len(study.best_so_far["search"])) == (second["verdict"], len(second["best_so_far"]))
    page = render(data)
    assert study.best in page
    assert 'class="plot" id="study-1"' in page


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["-p", "windows"], "no tunable option 'windows'"),
        (["--sampler", "bayes"], "known: tpe, random, grid, nsga2"),
        (["-m", "dense"], "dense has nothing to tune"),
        (["-m", "streaming:window=0"], "window"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_bad_wish_is_answered_by_one_sentence(
    changed: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*QUICK, *changed]) == 2
    assert said in capsys.readouterr().err
