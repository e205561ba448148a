"""The shapes of other tools: the fields each of them reads, with the right figures and units."""

from __future__ import annotations

import json

import pytest

from analysis.exchange import SHAPES
from suite.harness.measurement import UnitResult
from tests.analysis.factory import sample, unit

MACHINE = {"cpu": "AMD EPYC", "cores": 2}


@pytest.fixture
def units() -> list[UnitResult]:
    dense = [sample(f"q{i}", ttft=100.0 + i, gaps=(10.0,) * 4, score=50.0 + i) for i in range(4)]
    gated = unit("streaming", [], status="gated")
    return [unit("dense", dense, started_at="2026-01-02T03:04:05"), gated]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_json_and_takes_no_units(shape: str, units: list[UnitResult]) -> None:
    assert "dense" in json.dumps(SHAPES[shape](units, MACHINE), allow_nan=False) or shape == "lm-eval"
    assert "dense" not in json.dumps(SHAPES[shape]([], {}), allow_nan=False)


def test_github_action_benchmark(units: list[UnitResult]) -> None:
    rows = {row["name"].rpartition(": ")[2]: row for row in SHAPES["github-action-benchmark"](units, MACHINE)}
    assert (rows["median_ttft_ms"]["value"], rows["median_ttft_ms"]["unit"]) == (101.5, "ms")
    assert rows["median_ttft_ms"]["range"] == "± 1.291"
    assert rows["kv_resident_bytes"]["unit"] == "bytes"
    assert all("dense" in row["name"] for row in rows.values())  # what is gated has no figures


def test_bencher(units: list[UnitResult]) -> None:
    (measures,) = SHAPES["bencher"](units, MACHINE).values()
    assert measures["latency"]["value"] == pytest.approx(141.5e6)  # nanoseconds
    assert measures["ttft-ms"]["lower_value"] <= measures["ttft-ms"]["value"] <= measures["ttft-ms"]["upper_value"]
    assert measures["score"] == {"value": 51.5}


def test_pytest_benchmark_has_the_fields_its_own_statistics_have(units: list[UnitResult]) -> None:
    from pytest_benchmark.stats import Stats

    document = SHAPES["pytest-benchmark"](units, MACHINE)
    row = next(row for row in document["benchmarks"] if row["name"].endswith("ttft"))
    theirs = Stats()
    for milliseconds in (100, 101, 102, 103):
        theirs.update(milliseconds / 1e3)
    ours = {name: row["stats"][name] for name in Stats.fields}
    same = ("min", "max", "mean", "stddev", "rounds", "median", "ops", "total", "outliers", "ld15iqr", "hd15iqr")
    assert {name: ours[name] for name in same} == pytest.approx({name: getattr(theirs, name) for name in same})
    assert {"machine_info", "commit_info", "datetime", "version"} <= document.keys()
    assert {"group", "name", "fullname", "params", "param", "extra_info", "options", "stats"} <= row.keys()


def test_lm_eval(units: list[UnitResult]) -> None:
    document = SHAPES["lm-eval"](units, MACHINE)
    assert document["results"]["longbench_qasper"]["score,none"] == 51.5
    assert document["results"]["longbench_qasper"]["score_stderr,none"] == pytest.approx(0.645497)
    assert document["n-samples"]["longbench_qasper"] == {"original": 4, "effective": 4}
    assert document["higher_is_better"]["longbench_qasper"] == {"score": True}
    tasks = document["results"].keys()
    assert all(document[part].keys() == tasks for part in ("configs", "versions", "n-shot", "group_subtasks"))
