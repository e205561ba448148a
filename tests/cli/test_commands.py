"""The commands end to end on the lab model: what they print, what they leave behind, and how quick they start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from suite.cli import run
from suite.commands.run_table import _EXTRAS, _extras

LAB = ("run", "--workload", "recall", "--model", "lab-recall", "--dtype", "fp32", "--limit", "2", "--kv-budget", "64")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run in its own directory, as a user would make it: in a process of its own, with `--json`."""
    folder = tmp_path_factory.mktemp("run")
    done = subprocess.run(
        [sys.executable, "-m", "suite", *LAB, "--json"], cwd=folder, capture_output=True, text=True, env=environment()
    )
    return folder, done


def environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    clean = {name: value for name, value in os.environ.items() if name != "SUITE_STORE"}
    return {**clean, "PYTHONPATH": str(root)}


def test_run_tells_what_a_prompt_reads_and_what_lies_on_the_host(finished):
    units = json.loads(finished[1].stdout)["units"]
    found = {unit["method"].split("(")[0].strip(): unit["metrics"] for unit in units}
    assert found["dense"]["prefill_density"] == pytest.approx(1)
    assert found["streaming"]["prefill_density"] < 0.9
    assert {name: m["kv_host_bytes"] > 0 for name, m in found.items() if m["kv_host_bytes"] is not None} == {
        name: name == "actqkv" for name, m in found.items() if m["kv_host_bytes"] is not None
    }
    for metrics in found.values():
        if metrics["kv_host_bytes"] is not None:
            assert metrics["kv_device_bytes"] + metrics["kv_host_bytes"] == metrics["kv_resident_bytes"]


def test_columns_that_tell_nothing_are_left_out():
    dense = {"metrics": {"prefill_density": 1.0, "kv_host_bytes": 0.0}}
    assert _extras([dense], _EXTRAS) == []
    assert [extra.title for extra in _extras([dense, {"metrics": {"prefill_density": 0.5}}], _EXTRAS)] == [
        "prefill read"
    ]


def test_run_prints_one_json_document_and_leaves_a_report(finished):
    folder, done = finished
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {"schema", "machine", "units", "report"} <= document.keys()
    ran = {unit["method"].split(":")[0].split("(")[0].strip() for unit in document["units"]}
    assert {"dense", "longheads", "streaming", "actqkv", "qwen2_5_1m"} <= ran
    assert ran.isdisjoint({"oracle", "random", "uniform"})  # controls run when they are asked for
    assert (folder / document["report"]).stat().st_size > 1_000_000


def test_every_unit_has_gates_times_and_retention(finished):
    for unit in json.loads(finished[1].stdout)["units"]:
        assert unit["gates"]
        assert all(gate["passed"] for gate in unit["gates"])
        assert unit["metrics"]["median_ttft_ms"] > 0
        assert unit["metrics"]["stored_retention"] <= 1.0
        assert unit["metrics"]["process_peak_bytes"] > 1e6


def test_beyond_the_trained_window_the_selecting_methods_read_less(finished):
    units = [u for u in json.loads(finished[1].stdout)["units"] if u["task"] == "1024"]
    retention = {
        unit["method"].split(":")[0].split("(")[0].strip(): unit["metrics"]["selected_retention"] for unit in units
    }
    assert retention["dense"] == 1.0
    assert retention["longheads"] < 0.2
    assert retention["streaming"] < 0.1


def test_report_and_export_read_the_same_store(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished[0])
    monkeypatch.delenv("SUITE_STORE")
    assert run(["report", "-o", "again.html", "--json"]) == 0
    assert Path(json.loads(capsys.readouterr().out)["report"]).exists()
    assert run(["export", "--format", "csv", "-o", "out", "--json"]) == 0
    for file in json.loads(capsys.readouterr().out)["files"]:
        assert Path(file).read_text().count("\n") > 3


def test_nothing_is_left_to_resume(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished[0])
    monkeypatch.delenv("SUITE_STORE")
    assert run(["resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["methods", "workloads", "models", "engines", "hardware", "kernels", "claims"])
def test_lists_name_what_there_is(kind, capsys):
    assert run(["list", kind, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(row["name"] for row in rows)


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "sweep",
        "resume",
        "list",
        "roofline",
        "reproduce",
        "report",
        "export",
        "train",
        "doctor",
        "compare",
        "nightly",
    ],
)
def test_every_command_has_help_with_an_example(command, capsys):
    assert run([command, "--help"]) == 0
    assert "python -m suite" in capsys.readouterr().out


def test_help_and_list_import_nothing_heavy():
    code = (
        "import sys; from suite.cli import run; run(['list', 'methods']); run(['--help']); "
        "print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_prediction_on_a_datasheet(capsys):
    assert run(["roofline", "--model", "lab-recall", "--hardware", "h100-sxm", "--seqlen", "128", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["phases"]["decode"]["seconds"] > 0
    assert document["phases"]["prefill"]["seconds"] > document["phases"]["decode"]["seconds"]


def test_doctor_prints_the_harness_cost(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "µs per generated token" in checks["harness cost"]["found"]


def test_a_prompt_longer_than_the_window_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = ["--task", "256", "--limit", "1", "--method", "dense", "--threads", "1"]
    assert run(["run", "--workload", "recall", "--model", "lab-recall", "--dtype", "fp32", *task]) == 0
    assert "runs past the trained window of 128" in capsys.readouterr().out
