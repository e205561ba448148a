"""`suite kernels` and `suite import`, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels.contract import Race, SpeedCase
from kernels.cost import Cost
from suite.cli import run
from suite.commands import kernels as command
from suite.harness import kernel_race

ROOT = Path(__file__).resolve().parents[2]


def suite(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "suite", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_check_reports_every_backend_and_is_green() -> None:
    done = suite("kernels", "check", "--op", "rms_norm", "--json")
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)
    assert {"reference", "triton"} <= {finding["backend"] for finding in findings}
    assert {finding["dtype"] for finding in findings} == {"fp32", "bf16"}
    assert not any(finding["complaints"] for finding in findings)


def test_a_red_kernel_is_named_and_exits_with_1(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    red = {"op": "gemv", "case": "1x2", "dtype": "fp32", "backend": "reference", "complaints": ["y is wrong"]}
    monkeypatch.setattr(command, "_findings", lambda backend, ops: iter([red | {"backend": backend}]))
    assert command.check(["gemv"], as_json=False) == 1
    assert "red: gemv 1x2 fp32 on reference: y is wrong" in capsys.readouterr().err


def test_bench_refuses_a_red_op_and_measures_nothing(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(command, "_is_red", lambda op: True)
    monkeypatch.setattr(command, "_ceilings", lambda threads, dtype: (1e9, 1e9))
    assert run(["kernels", "bench", "--op", "gemv", "--threads", "1"]) == 4
    assert "its contract is red" in capsys.readouterr().err


def test_an_unknown_op_is_one_sentence_and_measures_nothing(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(command, "_ceilings", lambda threads, dtype: pytest.fail("measured"))
    assert run(["kernels", "bench", "--op", "gemw"]) == 2
    assert "there is no kernel 'gemw'; known: " in capsys.readouterr().err


def sleeper(own: float, peer: float) -> SpeedCase:
    import time

    race = Race(lambda: time.sleep(own), Cost(8_000, 10**9, 0), {"peer": lambda: time.sleep(peer)})
    return SpeedCase("nothing", "sleep", lambda dtype: race)


def test_a_row_says_how_much_faster_and_how_near_the_ceiling() -> None:
    times = kernel_race.race(sleeper(0.004, 0.008), torch.float32, 1, rounds=4)
    row = next(command.bench_rows(sleeper(0, 0), torch.float32, 1, times, (1e12, 1e12)))
    fields = {"op", "case", "dtype", "threads", "bytes", "flops", "gb_per_s", "gflop_per_s", "ceiling_fraction"}
    assert fields | {"peer", "peer_ratio", "low", "high"} <= row.keys()
    assert row["gb_per_s"] == pytest.approx(1e9 / (row["median_ms"] / 1e3) / 1e9)
    assert row["ceiling_fraction"] == pytest.approx(1e-3 / (row["median_ms"] / 1e3))
    assert 1.2 < row["peer_ratio"] < 2.4
    assert len(row["samples_ms"]["peer"]) == 4


def test_a_case_is_drawn_often_enough_to_leave_the_caches() -> None:
    drawn = []

    def make(dtype: torch.dtype) -> Race:
        drawn.append(dtype)
        return Race(lambda: None, Cost(0, kernel_race.CYCLE_BYTES // 4, 0), {})

    times = kernel_race.race(SpeedCase("nothing", "small", make), torch.float32, 1, rounds=1)
    assert times.sets == len(drawn) == 4


def test_an_op_that_fails_leaves_the_rows_of_the_others(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def rows(op: str, ceilings: object, progress: str) -> Iterator[dict[str, str]]:
        yield {"op": op}
        if op == "gemv":
            raise RuntimeError("out of memory")

    monkeypatch.setattr(command, "_op_rows", rows)
    monkeypatch.setattr(command, "_is_red", lambda op: False)
    monkeypatch.setattr(command, "_ceilings", lambda count, dtype: (1.0, 1.0))
    assert run(["kernels", "bench", "--op", "gemv", "--op", "rope", "--threads", "1", "--json"]) == 3
    printed = capsys.readouterr()
    assert [row["op"] for row in json.loads(printed.out)] == ["gemv", "rope"]
    assert "gemv: out of memory" in printed.err


def test_pytest_benchmark_files_are_imported(tmp_path: Path, capsys) -> None:
    info = {"op": "gemv", "case": "1 x 2", "dtype": "bfloat16", "threads": 1, "bytes": 2 * 10**9, "flops": 10**9}
    stats = {"median": 0.5, "data": [0.5]}
    file = tmp_path / "b.json"
    file.write_text(json.dumps({"benchmarks": [{"extra_info": info, "stats": stats}, {"stats": stats}]}))
    assert run(["import", str(file), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["op"], row["gb_per_s"], row["samples_ms"]) == ("gemv", 4.0, {"own": [500.0]})


@pytest.mark.parametrize(("text", "code"), [("{", 2), ("{}", 2), ('{"benchmarks": []}', 4)], ids=str)
def test_other_files_are_refused_in_one_sentence(text: str, code: int, tmp_path: Path, capsys) -> None:
    file = tmp_path / "b.json"
    file.write_text(text)
    assert run(["import", str(file)]) == code
    assert str(file) in capsys.readouterr().err


def test_an_unknown_instruction_set_is_answered_by_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUITE_KERNELS", "avx9")
    assert run(["list", "methods"]) == 2
    assert capsys.readouterr().err.startswith("suite: SUITE_KERNELS=avx9 is no instruction set; known: amx, avx512")
