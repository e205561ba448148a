"""Threads are pinned before torch loads, their number is chosen by measurement, and loose threads are noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suite.harness import threads

LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="thread masks are read from /proc")
TWO_CORES = pytest.mark.skipif(threads.available_cores() < 2, reason="needs two cores")

REPORT = """
import json, os, sys
from suite.harness import threads
{first}
assert "torch" not in sys.modules
cores = threads.available_cores()
import torch
torch.set_num_threads(2)
torch.ones(1 << 20).sum()
print(json.dumps({{"pinned": threads.pinned(2), "cores": cores, "after": threads.available_cores(),
                  "mask": len(os.sched_getaffinity(0)), "env": os.environ.get("OMP_PLACES")}}))
"""


def report(first: str, **environment: str) -> dict[str, object]:
    """What a fresh process finds out about its threads."""
    hidden = (*threads.PINNED, "OMP_NUM_THREADS")
    clean = {name: value for name, value in os.environ.items() if name not in hidden}
    process = subprocess.run(
        [sys.executable, "-c", REPORT.format(first=first)],
        env=clean | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, object] = json.loads(process.stdout)
    return found


@LINUX
@TWO_CORES
def test_pinned_threads_have_cores_of_their_own_and_the_cores_are_still_counted() -> None:
    found = report("threads.pin()")
    assert found["pinned"] is True
    assert found["env"] == "cores"
    assert found["cores"] == found["after"] == threads.available_cores()


@LINUX
@TWO_CORES
def test_unpinned_threads_are_noticed_and_the_users_setting_is_respected() -> None:
    found = report("threads.pin()", OMP_PROC_BIND="false")
    assert found["pinned"] is False
    assert found["cores"] == threads.available_cores()


@LINUX
def test_pinning_again_in_a_child_of_a_pinned_thread_widens_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = threads.available_cpus()
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cpus)})
        threads.pin()
        assert os.sched_getaffinity(0) == set(cpus)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])], ids=str
)
def test_candidates(cores: int, counts: list[int]) -> None:
    assert threads.candidates(cores) == counts


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        pytest.param([1.0, 0.55, 0.3], 4, id="scales"),
        pytest.param([1.0, 0.98, 0.97], 1, id="busy machine"),
        pytest.param([1.0, 0.5, 0.49], 2, id="saturated at two"),
        pytest.param([1.0, 8.0, 0.9], 4, id="two land on one core"),
    ],
)
def test_more_threads_have_to_be_clearly_faster(seconds: list[float], count: int) -> None:
    assert threads.fastest([1, 2, 4], seconds) == count


def test_the_choice_is_quick_and_leaves_torch_as_it_was() -> None:
    import torch

    before = torch.get_num_threads()
    start = time.perf_counter()
    chosen = threads.choose_threads()
    assert time.perf_counter() - start < 2.0, "the aim is 0.3 s on an idle machine"
    assert 1 <= chosen <= threads.available_cores()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("content", "cpus"),
    [("max 100000\n", float("inf")), ("150000 100000\n", 1.5), ("nonsense", float("inf"))],
    ids=["no limit", "limit", "unreadable"],
)
def test_cpu_quota(tmp_path: Path, content: str, cpus: float) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert threads._cpu_max(tmp_path / "cpu.max") == cpus


def test_a_quota_limits_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_quota", lambda: 1.5)
    assert threads.available_cores() == 1
    monkeypatch.setattr(threads, "_quota", lambda: 0.5)
    assert threads.available_cores() == 1


def test_importing_the_module_imports_nothing_heavy() -> None:
    script = "import sys, suite.harness.threads; print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "[]\n"
