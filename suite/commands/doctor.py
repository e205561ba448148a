"""`suite doctor`: what this machine can do, what is missing, and what measuring costs."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from suite.commands.output import print_json, table
from suite.commands.stores import open_store
from suite.harness import machine, noise
from suite.harness import threads as thread_pool


@dataclass(frozen=True)
class Check:
    """One thing looked at: `ok` is False where something is missing or disturbs, and `advice` then says what to do."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def examine(store_file: Path | None, as_json: bool) -> int:
    """Prints all checks; exit code 0, because a machine that lacks something is still worth knowing."""
    checks = [check() for check in (_machine, _threads, _quiet, _kernels, _gpu, _vllm, _model, _browser, _overhead)]
    checks.append(_calibration(store_file))
    if as_json:
        print_json({"machine": machine.fingerprint(), "checks": [asdict(check) for check in checks]})
    else:
        rows = [[check.name, "ok" if check.ok else "look", check.found, check.advice] for check in checks]
        table("doctor", ["what", "", "found", "what to do"], rows, left=99)
    return 0


def _machine() -> Check:
    facts = machine.fingerprint()
    return Check("machine", True, f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['os']}")


def _threads() -> Check:
    chosen = thread_pool.choose_threads()
    pinned = thread_pool.pinned(chosen)
    advice = "" if pinned else "set OMP_PROC_BIND=true OMP_PLACES=cores"
    return Check(
        "threads",
        pinned,
        f"{chosen} of {thread_pool.available_cores()} cores read memory fastest; pinned: {pinned}",
        advice,
    )


def _quiet() -> Check:
    import time

    before = noise.snapshot()
    time.sleep(1.0)
    seen = noise.Disturbance()
    seen.add(before, noise.snapshot())
    quiet = seen.other_load < noise.LOAD_LIMIT and seen.steal_share < noise.STEAL_LIMIT
    advice = "" if quiet else "measure when nothing else runs; units will be marked unstable"
    return Check(
        "quiet", quiet, f"other processes use {seen.other_load:.2f} cores, steal {seen.steal_share:.1%}", advice
    )


def _kernels() -> Check:
    from kernels import build

    ready = build.load("gemv") is not None
    found = f"built, in {build.cache_folder()}" if ready else "not built: the slow reference path serves"
    return Check("C++ kernels", ready, found, "" if ready else "install g++")


def _gpu() -> Check:
    names = machine.gpu_names()
    return Check("GPU", True, ", ".join(names) or "none: GPU telemetry and energy are reported as not available")


def _vllm() -> Check:
    from suite.engines import vllm_environment

    here = vllm_environment.installed()
    found = f"installed, in {vllm_environment.folder()}" if here else "not installed"
    return Check("vLLM", here, found, "" if here else "python -m suite engines install vllm")


def _model() -> Check:
    from suite.models.loaders.pinned import model_folder

    here = model_folder().exists()
    return Check(
        "default model",
        here,
        "cached" if here else "not fetched yet",
        "" if here else "the first run fetches 98 MB from the package registry",
    )


def _browser() -> Check:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return Check(
        "browser",
        found is not None,
        found or "none",
        "" if found else "install chromium to run the report's browser tests",
    )


def _overhead() -> Check:
    from suite.harness.overhead import LIMIT_US, harness_overhead

    cost = harness_overhead()
    found = f"{cost.harness_us:.1f} µs per generated token against a null model (limit {LIMIT_US:.0f})"
    return Check("harness cost", cost.harness_us <= LIMIT_US, found)


def _calibration(store_file: Path | None) -> Check:
    from analysis.roofline.ceilings import Ceilings

    with open_store(store_file) as store:
        calibration = store.calibration(machine.machine_id())
    if calibration is None:
        return Check("roofline", False, "not measured", "python -m suite roofline --calibrate")
    ceilings = Ceilings(calibration)
    threads = max(ceilings.threads())
    read, gemm = ceilings.memory(threads), ceilings.gemm("bf16", threads)
    figures = ", ".join(
        text
        for text in (
            f"read {read.value:.1f} GB/s" if read else "",
            f"bf16 GEMM {gemm.value:.0f} GFLOP/s" if gemm else "",
        )
        if text
    )
    return Check("roofline", True, f"{figures} with {threads} threads, measured {calibration.measured_at}")
