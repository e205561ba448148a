"""`suite sweep --executor ray` on a real cluster of two workers: what comes back, and what survives which end."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from suite.cli import run
from suite.harness.machine import ROOT
from suite.harness.store import Store
from suite.harness.threads import CPUS_VARIABLE, available_cpus
from tests.cli.sweeps import DEFAULTS, ONE_REFUSED, TWO, WAIT_S, calibrated, ended, found, measuring, statuses, sweep

pytest.importorskip("ray")

ENVIRONMENT = {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
CLUSTER = """
import ray, sys
context = ray.init(
    num_cpus=2, include_dashboard=False, object_store_memory=10**8, _temp_dir=sys.argv[1], log_to_driver=False
)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
MACHINE = "from suite.harness import threads, machine; threads.pin(); print(machine.machine_id())"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster that ends with the process which started it."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # short: it holds sockets
        process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **ENVIRONMENT, "RAY_ADDRESS": ""},
        )  # fmt: skip
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate(timeout=WAIT_S)


@pytest.fixture(scope="module")
def nodes() -> list[str]:
    """The machine ids of runs that have one CPU, and two."""
    return [machine_id(sorted(available_cpus())[:count]) for count in (1, 2)]


def machine_id(cpus: Sequence[int]) -> str:
    """The id of this machine for a process that has these CPUs of it."""
    environment = {**os.environ, **ENVIRONMENT, CPUS_VARIABLE: ",".join(map(str, cpus))}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.check_output([sys.executable, "-c", MACHINE], env=environment, text=True).strip()


@pytest.fixture
def ready(cluster: str, nodes: list[str], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of the commands, in an empty directory beside a cluster whose machine is calibrated."""
    monkeypatch.chdir(tmp_path)
    for name, value in {**ENVIRONMENT, "RAY_ADDRESS": cluster}.items():
        monkeypatch.setenv(name, value)
    for node in nodes:
        calibrated(store, node)
    return store


def test_units_calibration_and_failures_come_back(
    ready: Store, nodes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ready.calibration(nodes[0])
    code, first = sweep(ONE_REFUSED, tmp_path, capsys, "--executor", "ray")
    assert code == 3
    assert statuses(first) == ["failed", "measured"]
    assert "trained window" in first["runs"][0]["error"]
    assert [unit["method"] for unit in first["runs"][1]["units"]] == ["dense", "streaming(window=32)"]
    assert first["runs"][1]["machine"] == nodes[0]
    assert first["runs"][1]["units"][0]["metrics"]["decode_ceiling_fraction"] > 0
    assert first["machines"][nodes[0]]["cores"] == 1
    assert ready.calibration(nodes[0]) == known  # the node did not measure it again
    assert (tmp_path / "report.html").exists()
    before = ready.units()
    assert len(before) == 2
    code, second = sweep(ONE_REFUSED, tmp_path, capsys, "--executor", "ray")
    assert statuses(second) == ["failed", "taken over"]
    assert ready.units() == before


@pytest.mark.parametrize("victim", ["worker", "process"])
@pytest.mark.parametrize("retries", [0, 1])
def test_a_run_whose_worker_is_killed_begins_again(
    ready: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], victim: str, retries: int
) -> None:
    killed: list[psutil.Process] = []

    def kill() -> None:
        child = found(lambda: measuring(tmp_path))
        (child.parents()[1] if victim == "worker" else child).kill()
        killed.append(child)

    killer = threading.Thread(target=kill)
    killer.start()
    one = DEFAULTS + f'method = "dense"\n[ray]\nretries = {retries}\n'
    if retries:
        code, document = sweep(one, tmp_path, capsys, "--executor", "ray")
        assert (code, statuses(document)) == (0, ["measured"])
        assert len(ready.units()) == 1
    else:
        (tmp_path / "sweep.toml").write_text(one)
        assert run(["sweep", "sweep.toml", "--executor", "ray"]) == 4
        assert "1 of 1 runs failed" in capsys.readouterr().out
        assert ready.units() == []
    killer.join()
    assert ended(killed[0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_an_ended_driver_loses_no_finished_run(
    ready: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    both = TWO + "[ray]\ncpus = 2\n"  # one after the other
    (tmp_path / "sweep.toml").write_text(both)
    driver = subprocess.Popen(
        [sys.executable, "-m", "suite", "sweep", "sweep.toml", "--executor", "ray"], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    first = found(lambda: measuring(tmp_path))
    assert ended(first)
    second = found(lambda: measuring(tmp_path))
    driver.send_signal(number)
    _, said = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == code, said
    assert ("interrupted after 1 of 2 runs" in said) == (number == signal.SIGINT)
    assert ended(second)
    finished = rows(ready)
    assert len(finished) == 1
    again, document = sweep(both, tmp_path, capsys, "--executor", "ray")
    assert (again, statuses(document)) == (0, ["taken over", "measured"])
    assert rows(ready)[:1] == finished


def rows(store: Store) -> list[tuple[str, str]]:
    """Finished runs with the time they were written at."""
    with sqlite3.connect(store.path) as connection:
        return connection.execute("SELECT id, created FROM runs ORDER BY created").fetchall()


@pytest.mark.parametrize(
    ("asked", "address", "told"),
    [
        ("cpus = 3", None, "no node of the Ray cluster has the cpus = 3, gpus = 0"),
        ("memory_gib = 100000", None, "memory_gib = 100000 that [ray] asks for"),
        ("cpus = 1", "127.0.0.1:1", "no Ray cluster to connect to"),
        ("cpus = 1", "nowhere", "name it in RAY_ADDRESS as host:port"),
    ],
)
def test_a_cluster_that_cannot_do_it_is_told(
    ready: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    asked: str, address: str | None, told: str,
) -> None:  # fmt: skip
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    (tmp_path / "sweep.toml").write_text(DEFAULTS + f"[ray]\n{asked}\n")
    assert run(["sweep", "sweep.toml", "--executor", "ray"]) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert out == ""


def test_without_ray_the_command_says_how_to_get_it(
    ready: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "sweep.toml").write_text(DEFAULTS)
    assert run(["sweep", "sweep.toml", "--executor", "ray"]) == 2
    assert "pip install 'inference-suite[ray]'" in capsys.readouterr().err
