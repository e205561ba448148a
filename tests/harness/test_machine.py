"""Results are tied to the machine and to the code that made them."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest

from suite.harness import machine
from suite.harness.overhead import LIMIT_US, harness_overhead
from suite.methods.base import Method


def test_the_fingerprint_names_what_a_speed_depends_on() -> None:
    found = machine.fingerprint()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["memory_gib"] >= 1
    assert found["packages"]["torch"].startswith("2.")
    assert "OMP_PROC_BIND" in found["omp"]
    assert json.loads(json.dumps(found)) == found


def test_the_machine_id_follows_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = machine.machine_id.__wrapped__
    before = compute()
    assert len(before) == 16
    assert compute() == before
    monkeypatch.setattr(machine, "fingerprint", lambda: {"cpu": "another"})
    assert compute() != before


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param("suite/a.py", False, id="a source file changes"),
        pytest.param("kernels/gemv/cpu.cpp", False, id="a kernel appears"),
        pytest.param("suite/notes.txt", True, id="a note"),
        pytest.param("reports/build.py", True, id="a report"),
    ],
)
def test_the_code_version_follows_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, same: bool
) -> None:
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    before = machine.code_version.__wrapped__()
    (tmp_path / change).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / change).write_text("a = 2\n")
    assert (machine.code_version.__wrapped__() == before) is same


def test_a_plug_ins_file_counts_and_our_own_is_in_the_code_version() -> None:
    assert machine.plugin_version(Method) == ""
    assert len(machine.plugin_version(OrderedDict)) == 12
    assert machine.plugin_version(int) == "builtins"


def test_the_harness_costs_little_per_token() -> None:
    found = harness_overhead()
    assert 0 < found.meter_us < found.harness_us
    assert found.harness_us < 4 * LIMIT_US, "the aim is 50 us on an idle machine; `suite doctor` shows it"
    assert found.tokens == 256
