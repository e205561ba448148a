"""`suite import` of load results, as a user runs it: side by side, as JSON, and every kind of wrong file."""

from __future__ import annotations

import json

import pytest

from suite.cli import run

OURS = {
    "schema": "inference-suite.load/1",
    "model": "small",
    "mode": "open loop",
    "load": "serving, poisson arrivals, 4 requests/s",
    "metrics": {"completed": 2, "failed": 0, "lost": 0, "mean_ttft_ms": 31.5, "mean_ttft_send_ms": 30.5},
    "remarks": ["p99 of 2 requests is a guess: 459 are needed"],
}
VLLM = {
    "model_id": "large",
    "request_rate": 4.0,
    "duration": 2.0,
    "completed": 6,
    "failed": 0,
    "request_throughput": 3.0,
    "mean_ttft_ms": 28.25,
}
KERNELS = {
    "machine_info": {},
    "benchmarks": [
        {
            "extra_info": {"op": "gemv", "case": "1 x 2", "dtype": "bf16", "threads": 1, "bytes": 8, "flops": 8},
            "stats": {"median": 0.5},
        }
    ],
}


@pytest.fixture
def imported(tmp_path, monkeypatch, capsys):
    """Runs the command on files of these contents; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*contents, arguments=()):
        names = []
        for number, content in enumerate(contents):
            names.append(f"{number}.json")
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / names[-1]).write_bytes(text.encode("latin-1"))
        code = run(["import", *names, *arguments])
        return code, *capsys.readouterr()

    return call


def cells(out: str, row: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.startswith(f"│ {row} ")]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_runs_stand_side_by_side_and_what_is_not_held_is_a_dash(imported):
    code, out, _ = imported(OURS, VLLM)
    assert code == 0
    assert cells(out, "1") == ["suite", "small", "serving, poisson arrivals, 4 requests/s", "0.json"]
    assert cells(out, "2") == ["vllm", "large", "4 requests/s", "1.json"]
    assert cells(out, "completed requests") == ["2", "6"]
    assert cells(out, "failed requests") == ["0", "0"]
    assert cells(out, "completed, requests/s") == ["-", "3"]
    assert cells(out, "TTFT from sending, mean") == ["30.5", "28.25"]
    assert cells(out, "TTFT from the scheduled arrival, mean") == ["31.5", "-"]
    assert "goodput" not in out
    assert "note: 0.json: p99 of 2 requests is a guess" in out


def test_json_has_every_name_for_every_run(imported):
    code, out, err = imported(OURS, VLLM, arguments=["--json"])
    found = json.loads(out)
    assert (code, err, found["schema"]) == (0, "", "inference-suite.import/1")
    first, second = found["runs"]
    assert first["metrics"].keys() == second["metrics"].keys()
    assert (first["metrics"]["request_throughput"], second["metrics"]["mean_ttft_send_ms"]) == (None, 28.25)
    assert (second["tool"], second["file"], second["remarks"]) == ("vllm", "1.json", [])


def test_kernel_benchmarks_are_imported_alone(imported):
    code, out, _ = imported(KERNELS, arguments=["--json"])
    assert (code, json.loads(out)[0]["op"]) == (0, "gemv")
    code, _, err = imported(VLLM, KERNELS)
    assert code == 2
    assert "1.json holds kernel benchmarks" in err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "0.json is damaged, or no JSON"),
        ('{"model_id": ', "0.json is damaged, or no JSON"),
        ("\xff\xfe", "0.json is not text"),
        ("[]", "0.json is no JSON object"),
        ("[" * 100_000, "0.json is damaged, or no JSON"),
        (json.dumps(VLLM) + "\n" + json.dumps(VLLM)[:-9], "0.json, line 2 is damaged, or no JSON"),
        (json.dumps({**VLLM, "duration": None}), "0.json is damaged at duration"),
        ({"metadata": {"version": 3}, "benchmarks": []}, "0.json is a GuideLLM report of schema version 3"),
        ({"results": []}, "0.json is no known result file"),
    ],
    ids=["empty", "cut off", "binary", "a list", "deep", "second line", "no duration", "newer", "unknown"],
)
def test_a_wrong_file_is_answered_by_one_sentence(imported, content, told):
    code, out, err = imported(content)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_a_missing_file_is_answered_by_one_sentence(capsys):
    assert run(["import", "nowhere.json"]) == 2
    assert "cannot read nowhere.json" in capsys.readouterr().err
