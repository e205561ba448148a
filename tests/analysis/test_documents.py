"""The JSON document of `suite run`, the frames, and the summary behind a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.documents import run_document
from analysis.frames import samples_frame, units_frame
from analysis.summary import build_summary, newest_blocks
from suite.errors import NothingMeasuredError
from suite.harness.store import Store
from tests.analysis.factory import MACHINE, TASKS, calibration, fill, longbench_units, sample, unit


@pytest.fixture
def filled(tmp_path: Path) -> Store:
    return fill(tmp_path / "results.sqlite")


def test_run_document() -> None:
    def category_means(scores: dict[str, float]) -> dict[str, float]:
        return {"all": sum(scores.values()) / len(scores)}

    units = longbench_units()
    document = json.loads(json.dumps(run_document(units, {"cpu": "x"}, calibration(), "r.html", category_means)))
    assert set(document) >= {"schema", "machine", "units", "report"}
    assert document["report"] == "r.html"
    first, second = document["units"][:2]
    assert set(first) >= {"key", "workload", "method", "model", "engine", "status", "gates", "metrics", "ratios"}
    assert first["ratios"] == {}
    assert second["ratios"]["tpot"]["value"] == pytest.approx(1.22, rel=0.05)
    assert second["ratios"]["tpot"]["low"] < 1.22 < second["ratios"]["tpot"]["high"]
    assert first["metrics"]["decode_ceiling_fraction"] < 1
    dense = document["summary"][0]
    assert dense["category_scores"]["all"] == pytest.approx(dense["metrics"]["score"])
    assert dense["statuses"]["ok"] == len(TASKS)


def test_a_document_has_no_nan_and_no_speed_of_a_gated_unit() -> None:
    document = run_document(longbench_units(), {})
    json.dumps(document, allow_nan=False)
    gated = next(row for row in document["units"] if row["status"] == "gated")
    assert gated["metrics"]["median_ttft_ms"] is None
    assert gated["gates"][0]["passed"] is False


def test_frames() -> None:
    units = longbench_units()
    by_unit, by_sample = units_frame(units), samples_frame(units)
    assert len(by_unit) == len(units)
    assert by_unit.set_index(["task", "method"]).loc[("trec", "longheads"), "status"] == "unstable"
    assert len(by_sample) == sum(len(unit.samples) for unit in units)
    medians = by_sample.groupby("method")["tpot_ms"].median()
    assert medians["longheads"] < medians["dense"]


def test_summary(filled: Store) -> None:
    data = build_summary(filled)
    (contest,) = data.contests
    assert contest.title == "longbench on smollm2-135m (bf16, 2 threads)"
    what = (
        "3 methods on 6 tasks, 24 requests; units: 15 ok, 1 unstable, 1 gated, 1 failed. For instance: the hypervisor"
    )
    assert contest.headlines[0].startswith(what)
    assert contest.headlines[2].startswith("longheads against dense: output tokens come 1.22× as fast [")
    assert contest.headlines[2].endswith("1 unit unstable and left out of the speeds.")
    assert "over 4 of 6 tasks" in contest.headlines[3]
    assert {roof.label for roof in data.roofs} == {"bf16, 2 threads"}
    assert len(data.points) == 2 * 16
    assert len(data.claims) == 3
    assert ("cpu", "AMD EPYC (2 cores)") in data.conditions
    assert len(data.raw["units"]) == 18
    assert any("synthetic" in note for note in data.notes)


def test_summary_of_some_units_only(filled: Store) -> None:
    keys = {unit.key for unit in filled.units() if unit.spec.workload.task == "trec"}
    data = build_summary(filled, keys)
    assert data.contests[0].rows[0].tasks == ("trec",)


def test_without_a_calibration_it_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.sqlite")
    store.add_units(longbench_units(), "sweep")
    data = build_summary(store)
    assert data.roofs == ()
    assert "suite roofline --calibrate" in data.notes[0]
    assert data.contests[0].predictions == ()


def test_points_above_a_ceiling_are_never_ignored(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.sqlite")
    store.add_units([unit(samples=[sample(gaps=(1.0, 1.0), ttft=1e5)])], "sweep")
    store.add_calibration(calibration())
    assert any(note.startswith("1 of 2 roofline points lie above") for note in build_summary(store).notes)


def test_an_all_unstable_run_makes_no_verdict(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.sqlite")
    reasons = ("other processes kept 1.20 cores busy (limit 0.10); stop them.",)
    slow, fast = [sample("q0", gaps=(10.0,) * 3)], [sample("q0", gaps=(5.0,) * 3)]
    store.add_units(
        [unit(samples=slow, status="unstable", reasons=reasons), unit("m", fast, status="unstable", reasons=reasons)],
        "s",
    )
    what, _, line = build_summary(store).contests[0].headlines
    assert "2.00× as fast [no interval]" in line
    assert line.endswith("take the speeds as a hint, not as a verdict.")
    assert what.endswith("For instance: other processes kept 1.20 cores busy (limit 0.10).")


def test_an_empty_store_is_a_clear_message(tmp_path: Path) -> None:
    with pytest.raises(NothingMeasuredError, match="run `python -m suite run` first"):
        build_summary(Store(tmp_path / "results.sqlite"))


def test_a_ledger_without_units_is_a_report(tmp_path: Path) -> None:
    store = fill(tmp_path / "all.sqlite")
    alone = Store(tmp_path / "claims.sqlite")
    alone.add_findings(store.findings())
    data = build_summary(alone)
    assert (data.contests, len(data.claims)) == ((), 3)


def test_units_of_another_machine_are_left_out_and_said_so(filled: Store) -> None:
    filled.add_units([unit(samples=[sample()], machine_id="other", block="elsewhere")], "later")
    data = build_summary(filled)
    assert len(data.raw["units"]) == 1
    assert any("18 older units" in note for note in data.notes)
    assert MACHINE not in json.dumps(data.raw["units"])


def test_the_newest_of_two_equal_questions_wins() -> None:
    """A later run with more items replaces the earlier one; another set of methods is another question."""
    old = [unit(samples=[sample()], block="old"), unit("m", [sample()], block="old")]
    alone = [unit(samples=[sample()], block="alone")]
    new = [
        one.model_copy(
            update={
                "block": "new",
                "key": one.key + "new",
                "spec": one.spec.model_copy(update={"workload": one.spec.workload.model_copy(update={"limit": 9})}),
            }
        )
        for one in old
    ]
    assert {one.block for one in newest_blocks([*old, *alone, *new])} == {"alone", "new"}
