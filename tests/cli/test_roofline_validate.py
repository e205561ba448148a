"""`suite roofline --validate` on a small committed model, with a planted calibration. No time is judged."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from suite.cli import run
from suite.commands import roofline_validate
from suite.harness import machine, passes
from suite.harness.store import Store
from tests.analysis.factory import calibration

TINY = ("roofline", "--validate", "--model", "lab-long", "--threads", "1", "--batch", "1,2", "--seqlen", "16")


@pytest.fixture
def calibrated(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with ceilings; every look at the clock takes a millisecond, so that a budget always holds as much."""
    ticks = itertools.count()
    monkeypatch.setattr(passes, "time", SimpleNamespace(perf_counter=lambda: next(ticks) * 1e-3))
    monkeypatch.setattr(passes, "OTHER_BYTES", 1 << 20)
    monkeypatch.setattr(passes, "EDGE", 64)
    store.add_calibration(calibration((1,)).model_copy(update={"machine_id": machine.machine_id()}))
    return store.path


def test_runs_add_up_and_the_document_has_both_sides(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "--budget", "2s", "--store", str(calibrated)]
    assert run([*arguments, "--json"]) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["dtype"], found["threads"]) == ("lab-long", "bf16", 1)
    assert {score["side"] for score in found["scores"]} == {"fitted", "held out"}
    assert {point["held_out"] for point in found["points"]} == {False, True}
    assert {(point["batch"], point["tokens"]) for point in found["points"]} == {(1, 16), (2, 16)}
    assert all(point["bound_ms"] > 0 for point in found["points"])
    code = run(arguments)
    out = capsys.readouterr().out
    assert code == int("missed: " in out)
    for told in ("effective rates, fitted", "shapes fitted", "shapes held out", "the uncalibrated bound is above"):
        assert told in out
    with Store(calibrated) as store:
        first, second = store.validations(machine.machine_id())
    assert first.kind == second.kind
    assert all(times.ms for run_ in (first, second) for times in run_.times)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--bits", "4/16/16"), "times models in bf16 or fp32, not in --bits 4/16/16"),
        (("--method", "longheads"), "times dense passes on this machine; leave --method and --hardware out"),
        (("--hardware", "h100_sxm"), "leave --method and --hardware out"),
        (("--budget", "soon"), "--budget soon is not a time span"),
        (("--batch", "0"), "--batch '0' is no list of whole numbers above 0"),
        (("--model", "lab-lang"), "lab-l"),
    ],
)
def test_bad_input_is_a_sentence_and_measures_nothing(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roofline_validate, "ensure_calibration", lambda *what: pytest.fail("measured"))
    assert run(["roofline", "--validate", *arguments, "--store", str(tmp_path / "s.sqlite")]) == 2
    assert sentence in capsys.readouterr().err


def test_a_budget_for_nothing_measures_nothing(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*TINY, "--budget", "0.001s", "--store", str(calibrated)]) == 4
    assert "too short for a single pass" in capsys.readouterr().err
