"""`suite kernels`: are the kernels right, and how fast are they beside their peers and the machine's ceilings."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from suite.commands.output import interval, number, print_json, stderr, table
from suite.errors import InputError, NothingMeasuredError, UnitError
from suite.harness import threads as thread_pool

if TYPE_CHECKING:
    from kernels.contract import SpeedCase
    from suite.harness.kernel_race import RaceTimes

ROUNDS = 12
Row = dict[str, Any]


def known_ops(wanted: Sequence[str]) -> list[str]:
    """The ops asked for, or all."""
    from kernels.build import OPS

    for op in wanted:
        if op not in OPS:
            raise InputError(f"there is no kernel {op!r}; known: {', '.join(OPS)}.")
    return list(wanted) or list(OPS)


# ---- check -------------------------------------------------------------------------------------------------------


def check(wanted: Sequence[str], as_json: bool) -> int:
    """Every op's contract on every backend that runs here; exit code 1 if something is red."""
    ops, findings = known_ops(wanted), []
    for backend in _backends():
        for finding in _findings(backend, ops):
            findings.append(finding)
            for complaint in finding["complaints"]:
                name = f"{finding['op']} {finding['case']} {finding['dtype']} on {backend}"
                stderr().print(f"red: {name}: {complaint}", markup=False)
    if as_json:
        print_json(findings)
    else:
        _print_findings(ops, findings)
    return int(any(finding["complaints"] for finding in findings))


def _backends() -> list[str]:
    """The C++ paths this processor can run, the reference, and Triton where it is installed."""
    from importlib.util import find_spec

    from kernels import build

    levels = list(build.LEVELS)
    runnable = levels[levels.index(build.level()) :] if build.level() in levels else []
    if build.load("gemv") is None:
        runnable = []
    return [*runnable, "reference", *(["triton"] if find_spec("triton") else [])]


def _findings(backend: str, ops: Sequence[str]) -> Iterator[Row]:
    """One document per case, from a process of its own: the Triton interpreter needs its environment from the start."""
    import torch

    interpreted = backend == "triton" and not torch.cuda.is_available()
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if interpreted else {})
    command = [sys.executable, "-m", "kernels.check", backend, *ops]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield from (json.loads(line) for line in process.stdout)
    if process.returncode:
        raise UnitError(f"checking the {backend} kernels ended with exit status {process.returncode}.")


def _print_findings(ops: Sequence[str], findings: Sequence[Row]) -> None:
    backends = list(dict.fromkeys(finding["backend"] for finding in findings))

    def cell(op: str, backend: str) -> str:
        own = [finding for finding in findings if (finding["op"], finding["backend"]) == (op, backend)]
        red = sum(bool(finding["complaints"]) for finding in own)
        return f"{red} of {len(own)} red" if red else f"{len(own)} ok" if own else "-"

    table(
        "kernels against their fp64 references",
        ["op", *backends],
        [[op, *(cell(op, b) for b in backends)] for op in ops],
    )


# ---- bench -------------------------------------------------------------------------------------------------------


def bench(wanted: Sequence[str], threads: int, as_json: bool) -> int:
    """Realistic shapes, timed; ops whose contract is red on this machine's path get no speed, and exit code 1.

    Where there is a GPU, and unless a number of threads asks for the CPU, the Triton kernels are timed on it.
    """
    import torch

    on_gpu = torch.cuda.is_available() and not threads
    torch.set_default_device("cuda" if on_gpu else None)
    try:
        counts = [threads] if threads else [1] if on_gpu else sorted({1, thread_pool.available_cores()})
        return _bench(wanted, counts, as_json)
    finally:
        torch.set_default_device(None)


def _bench(wanted: Sequence[str], counts: Sequence[int], as_json: bool) -> int:
    import torch

    ops, red, failed = known_ops(wanted), [], []  # an unknown one is refused before anything is measured
    ceilings = {
        (count, dtype): _ceilings(count, dtype) for count in counts for dtype in (torch.bfloat16, torch.float32)
    }
    rows: list[Row] = []
    try:
        for done, op in enumerate(ops):
            if _is_red(op):
                red.append(op)
                stderr().print(f"{op}: its contract is red (suite kernels check --op {op}): not timed", markup=False)
                continue
            try:
                rows.extend(_op_rows(op, ceilings, f"[{done + 1}/{len(ops)}]"))
            except RuntimeError as error:  # one op must not take the rows of the others with it
                failed.append(op)
                stderr().print(f"{op}: {error}", markup=False)
    except KeyboardInterrupt:
        stderr().print(f"interrupted: the table holds the {len(rows)} rows timed so far", markup=False)
    if not rows:
        raise NothingMeasuredError("no kernel was timed.")
    if as_json:
        print_json(rows)
    else:
        _print_rows(rows)
    if failed:
        raise UnitError(f"timing {', '.join(failed)} ended with an error.")
    return int(bool(red))


def _op_rows(op: str, ceilings: dict[tuple[int, Any], tuple[float, float]], progress: str) -> Iterator[Row]:
    """All cases of an op, with as many threads as there are ceilings for."""
    from kernels.contract import case_book
    from suite.harness.kernel_race import race

    for case in case_book(op).speed:
        stderr().print(f"{progress} {case.op} {case.name}", markup=False)
        for count, dtype in ceilings:
            if dtype in case.dtypes:
                yield from bench_rows(case, dtype, count, race(case, dtype, count, ROUNDS), ceilings[count, dtype])


def _is_red(op: str) -> bool:
    from kernels import build
    from kernels.check import check as check_op

    backend = "triton" if _device() != "cpu" else build.level() if build.load(op) is not None else "reference"
    return any(finding.complaints for finding in check_op(op, backend))


def _device() -> str:
    """Where torch makes its tensors now: "cpu", or the name of the GPU."""
    import torch

    return torch.cuda.get_device_name() if torch.get_default_device().type == "cuda" else "cpu"


def _ceilings(threads: int, dtype: Any) -> tuple[float, float]:
    """Read bandwidth over as many bytes as a bench cycles through, and the best matrix product: bytes/s and FLOP/s."""
    import torch

    from analysis.roofline.probes import DTYPES, gemm_probes, stream_probes
    from suite.harness.kernel_race import CYCLE_BYTES
    from suite.harness.stopwatch import sampler

    def rate(probe: Any) -> float:
        medians = []
        for call in probe.variants.values():
            sample = sampler(call)
            medians.append(statistics.median(sample() for _ in range(ROUNDS)))
        return float(probe.work) / min(medians)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        name = next(name for name, known in DTYPES.items() if known is dtype)
        return rate(next(stream_probes(CYCLE_BYTES, threads))), max(rate(p) for p in gemm_probes(name, threads))
    finally:
        torch.set_num_threads(before)


def bench_rows(
    case: SpeedCase, dtype: Any, threads: int, times: RaceTimes, ceilings: tuple[float, float]
) -> Iterator[Row]:
    """One row per peer (or one without), in the form of DESIGN section 4."""
    from analysis.statistics import median, ratio_from_logs
    from suite.harness import noise
    from suite.harness.kernel_race import OWN

    own = median(times.seconds[OWN]) or float("nan")
    bandwidth, peak = ceilings
    least = max(times.cost.bytes / bandwidth, times.cost.flops / peak)
    row: Row = {
        "op": case.op,
        "case": case.name,
        "dtype": str(dtype).removeprefix("torch."),
        "device": _device(),
        "threads": threads,
        "bytes": times.cost.bytes,
        "flops": times.cost.flops,
        "median_ms": own * 1e3,
        "gb_per_s": times.cost.bytes / own / 1e9,
        "gflop_per_s": times.cost.flops / own / 1e9,
        "ceiling_fraction": least / own,
        "ceiling_gb_per_s": bandwidth / 1e9,
        "ceiling_gflop_per_s": peak / 1e9,
        "unstable": times.disturbance.other_load > noise.LOAD_LIMIT
        or times.disturbance.steal_share > noise.STEAL_LIMIT,
        "sets": times.sets,
        "samples_ms": {name: [1e3 * value for value in values] for name, values in times.seconds.items()},
    }
    peers: list[str | None] = [name for name in times.seconds if name != OWN]
    for peer in peers or [None]:
        ratio = None if peer is None else ratio_from_logs(_logs(times.seconds[peer], times.seconds[OWN]))
        low, high = (None, None) if ratio is None else (ratio.low, ratio.high)
        yield row | {"peer": peer, "peer_ratio": ratio and ratio.value, "low": low, "high": high}


def _logs(peer: Sequence[float], own: Sequence[float]) -> list[float]:
    return [math.log(theirs / ours) for theirs, ours in zip(peer, own, strict=True)]


def _print_rows(rows: Sequence[Row]) -> None:
    cells = [
        [
            row["op"],
            row["case"],
            row["dtype"],
            str(row["threads"]) if row["device"] == "cpu" else "GPU",
            f"{row['median_ms']:.4g}",
            number(row["gb_per_s"]),
            number(row["gflop_per_s"]),
            f"{row['ceiling_fraction']:.0%}",
            row["peer"] or "-",
            interval(row["peer_ratio"], row["low"], row["high"]),
            "unstable" if row["unstable"] else "",
        ]
        for row in rows
    ]
    columns = ["op", "case", "dtype", "threads", "ms", "GB/s", "GFLOP/s", "roof", "peer", "x faster", "noise"]
    table("kernels, timed over fresh inputs", columns, cells, left=3)
    for threads in sorted({row["threads"] for row in rows}):
        row = next(row for row in rows if row["threads"] == threads)
        ceilings = f"{row['ceiling_gb_per_s']:.1f} GB/s read, {row['ceiling_gflop_per_s']:.0f} GFLOP/s {row['dtype']}"
        where = f"with {threads} threads" if row["device"] == "cpu" else f"on {row['device']}"
        stderr().print(f"ceilings of this run {where}: {ceilings}", markup=False)


# ---- compile -----------------------------------------------------------------------------------------------------


def compile_kernels(wanted: Sequence[str], targets: Sequence[str], as_json: bool) -> int:
    """Every Triton kernel for every target; exit code 1 on a spill or a matrix product without tensor cores."""
    from dataclasses import asdict
    from importlib.util import find_spec

    if find_spec("triton") is None:
        raise InputError("Triton is not installed; pip install triton.")
    from kernels.compile import TARGETS, compile_all

    for target in targets:
        if target not in TARGETS:
            raise InputError(f"there is no target {target!r}; known: {', '.join(TARGETS)}.")
    found = []
    for done in compile_all(known_ops(wanted), list(targets) or list(TARGETS)):
        found.append(done)
        stderr().print(f"[{len(found)}] {done.op} {done.kernel} for {done.target}", markup=False)
        for problem in done.problems:
            stderr().print(f"problem: {done.kernel} on {done.target} {problem}", markup=False)
    found.sort(key=lambda one: (one.op, one.kernel, list(TARGETS).index(one.target)))
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        _print_compiled(found)
    return int(any(one.problems for one in found))


def _print_compiled(found: Sequence[Any]) -> None:
    columns = ["op", "kernel", "target", "problems", "registers", "spills", "shared KiB", "occupancy", "tensor cores"]
    cells = [
        [
            one.op,
            one.kernel,
            one.target,
            "; ".join(one.problems),
            str(one.registers),
            str(one.spills),
            f"{one.shared_bytes / 1024:.1f}",
            f"{one.occupancy:.0%} ({one.limited_by})",
            "yes" if one.tensor_core else "no" if one.dot else "-",
        ]
        for one in found
    ]
    table("Triton kernels, compiled ahead of time", columns, cells, left=4)


# ---- import ------------------------------------------------------------------------------------------------------


def import_file(path: Any, as_json: bool) -> int:
    """Rows of a `pytest --benchmark-json` file of the kernel benchmarks, in the same form."""
    try:
        document = json.loads(path.read_text())
        rows = [_imported(one) for one in document["benchmarks"] if "op" in one.get("extra_info", {})]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of `pytest --benchmark-json`: {error}.") from error
    if not rows:
        raise NothingMeasuredError(f"{path} holds no kernel benchmark.")
    if as_json:
        print_json(rows)
    else:
        cells = [
            [r["op"], r["case"], r["dtype"], str(r["threads"]), f"{r['median_ms']:.4g}", number(r["gb_per_s"])]
            for r in rows
        ]
        table(
            f"{len(rows)} kernel benchmarks of {path}", ["op", "case", "dtype", "threads", "ms", "GB/s"], cells, left=3
        )
    return 0


def _imported(one: Row) -> Row:
    info, seconds = one["extra_info"], float(one["stats"]["median"])
    rates = {"gb_per_s": info["bytes"] / seconds / 1e9, "gflop_per_s": info["flops"] / seconds / 1e9}
    return {
        **info,
        "median_ms": 1e3 * seconds,
        **rates,
        "samples_ms": {"own": [1e3 * s for s in one["stats"].get("data", [])]},
    }
