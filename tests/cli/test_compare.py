"""`suite compare` on the command line: exit codes, every form of its answer, and a slowdown that was really planted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from analysis.regression import Verdict
from kernels import gemv
from suite.cli import run
from suite.commands.verdicts import MARKER, markdown
from suite.harness import machine, noise
from suite.harness.store import Store
from tests.analysis.factory import MACHINE, sample, unit
from tests.cli.sweeps import calibrated

PLANTED_S = 0.004  # per call of a kernel that takes microseconds: no machine is as noisy as that


def _store(path: Path, slow: float = 1.0, **changes: Any) -> Path:
    samples = [sample(f"q{i}", ttft=100.0 * slow + i, gaps=(10.0 * slow + i / 10,) * 4) for i in range(12)]
    with Store(path) as store:
        store.add_units([unit("dense", samples, **changes)], "sweep-of-" + path.stem)
        store.add_machine(MACHINE, '{"cpu": "EPYC", "cores": 2}')
    return path


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(_store(tmp_path / "base.sqlite"))


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = run(["compare", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_nothing_changed_is_0(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = _json(capsys, base, base)
    assert code == 0
    assert {one["outcome"] for one in document["verdicts"]} == {"same"}


def test_a_regression_is_1_in_every_form(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = str(_store(tmp_path / "new.sqlite", 1.5))
    comment = tmp_path / "comment.md"
    code, document = _json(capsys, base, new)
    assert code == 1
    found = {one["metric"]: one for one in document["verdicts"]}
    assert found["tpot"]["outcome"] == "regression"
    assert found["tpot"]["change"]["value"] == pytest.approx(0.5, abs=0.05)
    assert run(["compare", base, new, "--markdown", str(comment), "--github"]) == 1
    out, err = capsys.readouterr()
    assert "regression" in out
    assert "::error title=regression%3A tpot::dense" in err
    assert err.count("::error title=") == 3  # ttft, tpot, e2el
    assert comment.read_text().startswith(MARKER)
    assert "**regression**" in comment.read_text()
    assert run(["compare", new, base]) == 0  # faster is no regression


def test_text_of_others_is_no_markup(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "RuntimeError: <img src=x> | @everyone\n::error::[x](http://x) 100%"
    new = str(_store(tmp_path / "new.sqlite", status="failed", error=nasty))
    assert run(["compare", base, new, "--markdown", str(tmp_path / "c.md"), "--github"]) == 1
    text = (tmp_path / "c.md").read_text()
    row = next(line for line in text.splitlines() if "RuntimeError" in line)
    assert row.count(" | ") == 6
    assert not {"<img", "@everyone", "[x]("} & {mark for mark in ("<img", "@everyone", "[x](") if mark in text}
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("::error")]
    assert len(lines) == 1
    assert "100%25" in lines[0]


def test_nothing_to_judge_is_4(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = str(_store(tmp_path / "other.sqlite", task="another"))
    assert run(["compare", base, other]) == 4
    assert "nothing to judge: it is not among the earlier results" in capsys.readouterr().err


def test_results_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here.sqlite"
    monkeypatch.setenv("SUITE_STORE", str(here))
    _store(here, block="a", code_version="0.1.0+aaaa1111")
    _store(here, 1.5, block="b", code_version="0.1.0+bbbb2222")
    assert _json(capsys, "0.1.0+aaaa1111", "bbbb")[0] == 1
    assert _json(capsys, "bbbb2222", "aaaa")[0] == 0
    assert _json(capsys, "aaaa", "sweep-of-here")[0] == 1  # its last answer
    assert run(["compare", "aaaa", "cccc"]) == 2
    assert "cccc names no results" in capsys.readouterr().err


@pytest.mark.parametrize(("junk", "expected"), [(b"", 4), (b"no store", 2), (b"SQLite format 3\0" + b"\7" * 4000, 2)])
def test_a_corrupt_store_is_one_sentence(
    base: str, tmp_path: Path, junk: bytes, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.sqlite"
    bad.write_bytes(junk)
    assert run(["compare", base, str(bad)]) == expected
    err = capsys.readouterr().err
    assert err.startswith("suite: ")
    assert "Traceback" not in err


def test_a_sleep_planted_in_a_kernel_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two real runs through the command line, the second with a kernel that sleeps. Whether this machine is quiet
    enough for a verdict is not the question here, so the limits of the noise check are lifted."""
    for limit in ("STEAL_LIMIT", "LOAD_LIMIT", "SPREAD_LIMIT"):
        monkeypatch.setattr(noise, limit, float("inf"))
    monkeypatch.chdir(tmp_path)
    measured = [
        "run", "--workload", "recall", "--model", "lab-recall", "--dtype", "fp32", "--threads", "1", "--task", "128",
        "--method", "dense", "--limit", "4", "--repeats", "3",
    ]  # fmt: skip
    for name in ("base", "new"):
        with Store(tmp_path / f"{name}.sqlite") as store:
            calibrated(store, machine.machine_id())
    assert run([*measured, "--store", "base.sqlite"]) == 0
    quick = gemv.linear

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(PLANTED_S)
        return quick(*arguments, **options)

    with monkeypatch.context() as planted:
        planted.setattr(gemv, "linear", slow)
        assert run([*measured, "--store", "new.sqlite"]) == 0
    capsys.readouterr()
    code, document = _json(capsys, "base.sqlite", "new.sqlite")
    found = {one["metric"]: one for one in document["verdicts"]}
    assert code == 1
    assert found["ttft"]["outcome"] == "regression"
    assert found["tpot"]["outcome"] == "regression"
    assert found["tpot"]["after"] - found["tpot"]["before"] > 1e3 * PLANTED_S / 2
    assert found["score"]["outcome"] == found["kv_read_bytes_per_step"]["outcome"] == "same"


def test_units_without_figures_are_a_row_for_each_reason():
    new = [Verdict(f"unit {i}", "status", "no verdict", reason="it is new.") for i in range(30)]
    slow = Verdict("unit 30", "tpot", "regression", 10.0, 20.0)
    said = markdown("night", [*new, Verdict("unit 31", "status", "no verdict", reason="it is gone."), slow])
    rows = [line.split(" | ")[0] for line in said.splitlines() if line.startswith("| ")]
    assert rows == ["| unit", "| unit 30", "| 30 units", "| unit 31"]
    assert "1 regression, 31 no verdict" in said
