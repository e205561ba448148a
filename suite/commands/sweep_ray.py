"""`suite sweep --executor ray`: every run is a task on an existing Ray cluster. Only this file imports Ray."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from suite.commands.sweep_spec import RayTable, SweepRun
from suite.commands.sweep_worker import Job, RunDiedError, RunResult, measure_apart
from suite.errors import InputError
from suite.harness import machine
from suite.harness.store import Store

_ANSWER_S = 5.0
_LOOK_S = 5.0  # nodes that join meanwhile get runs as well

Arrived = Callable[[SweepRun, RunResult], None]


def execute(runs: Sequence[SweepRun], wanted: RayTable, store: Store, arrived: Arrived) -> None:
    """Hands `arrived` every run's result when it comes; stopped, it leaves no task behind.

    No more runs are handed out than have room, so that a machine's calibration reaches the later runs on it.
    """
    with redirect_stdout(sys.stderr):  # Ray tells of dead workers on stdout, which belongs to the table or the document
        _execute(_connected(), runs, wanted, store, arrived)


def _execute(ray: Any, runs: Sequence[SweepRun], wanted: RayTable, store: Store, arrived: Arrived) -> None:
    waiting: dict[Any, SweepRun] = {}
    try:
        _check_room(ray, wanted)
        task = ray.remote(measure_apart).options(**_options(wanted))
        left = list(reversed(runs))
        while left or waiting:
            while left and len(waiting) < max(1, _room(ray, wanted)):
                run = left.pop()
                waiting[task.remote(_job(run, wanted, store))] = run
            for done in ray.wait(list(waiting), timeout=_LOOK_S)[0]:
                arrived(waiting[done], _result(ray, done))
                del waiting[done]
    finally:
        ray.shutdown()  # the cluster ends the tasks of a driver that leaves


def _connected() -> Any:
    """The module, connected to the cluster that RAY_ADDRESS names, else to the one of this machine."""
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "--executor ray needs Ray, which is not installed; `pip install 'inference-suite[ray]'` brings it."
        ) from error
    try:
        _check_answers(os.environ.get("RAY_ADDRESS", ""))
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"there is no Ray cluster to connect to ({_first_line(error)}); start one with `ray start --head`, "
            "or name it in RAY_ADDRESS as host:port."
        ) from error
    return ray


def _check_answers(address: str) -> None:
    """Ray itself goes on trying an address where nobody listens for more than ten minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()


def _options(wanted: RayTable) -> dict[str, Any]:
    """A run begins again when its worker or its process dies, not when it fails by itself."""
    return {
        "num_cpus": wanted.cpus,
        "num_gpus": wanted.gpus,
        "memory": _memory(wanted),
        "max_retries": wanted.retries,
        "retry_exceptions": [RunDiedError],
    }


def _memory(wanted: RayTable) -> int:
    return round(wanted.memory_gib * 2**30)


def _check_room(ray: Any, wanted: RayTable) -> None:
    """Refuses what Ray would wait for without end."""
    if not _room(ray, wanted):
        asked = f"cpus = {wanted.cpus}, gpus = {wanted.gpus:g} and memory_gib = {wanted.memory_gib:g}"
        raise InputError(f"no node of the Ray cluster has the {asked} that [ray] asks for; ask for less.")


def _room(ray: Any, wanted: RayTable) -> int:
    """How many runs the nodes hold together, when nobody else uses them."""
    asked = {"CPU": wanted.cpus, "GPU": wanted.gpus, "memory": _memory(wanted)}
    nodes: list[Mapping[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(name, 0) / amount) for name, amount in asked.items() if amount) for node in nodes)


def _job(run: SweepRun, wanted: RayTable, store: Store) -> str:
    found = [store.calibration(machine_id) for machine_id in store.machines()]
    return Job(
        plan=run.plan,
        code_version=machine.code_version(),
        directory=str(Path.cwd()),
        cpus=wanted.cpus,
        calibrations=tuple(calibration for calibration in found if calibration is not None),
    ).model_dump_json()


def _result(ray: Any, reference: Any) -> RunResult:
    try:
        return RunResult.model_validate_json(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        return RunResult(error=str(error).strip().splitlines()[-1])  # the last line of its traceback
    except ray.exceptions.RayError as error:
        return RunResult(error=_first_line(error))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
