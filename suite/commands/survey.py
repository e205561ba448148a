"""`suite report lrm-table`: the table of the survey of efficient reasoning, from the runs in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.commands.output import interval, number, print_json, stdout, table
from suite.commands.stores import open_store
from suite.errors import InputError, NothingMeasuredError
from suite.registry import WORKLOADS

if TYPE_CHECKING:
    from analysis.hardware import Hardware
    from analysis.lrm_survey import SurveyRow

SCHEMA = "inference-suite.lrm-table/1"


def lrm_table(workload: str, hardware: str, store_file: Path | None, as_json: bool) -> int:
    """Measured rows, with the roofline's time on `hardware` if given; then, apart, what the survey prints."""
    from analysis.hardware import load_hardware
    from analysis.lrm_printed import coverage, printed_rows
    from analysis.summary import build_summary

    _check(workload)
    device = load_hardware(hardware) if hardware else None
    with open_store(store_file) as store:
        rows = [row for row in build_summary(store).survey if workload in ("", row.workload)]
        if not rows:
            raise NothingMeasuredError(
                f"no scored run of {workload or 'a reasoning workload'} is in {store.path}; "
                f"run `python -m suite run --workload {workload or 'gsm8k'}` first."
            )
    leaves = coverage()
    if as_json:
        document = {"schema": SCHEMA, "rows": [_document(row, device) for row in rows]}
        print_json(document | {"printed": [asdict(row) for row in printed_rows()], "coverage": leaves})
        return 0
    _print_measured(rows, device)
    cells = [[row.leaf, row.method, row.model, number(row.accuracy, 4), number(row.tokens)] for row in printed_rows()]
    table(
        f"NOT MEASURED HERE: {printed_rows()[0].source}; other models and settings, no row compares with another",
        ["leaf", "method", "model", "accuracy %", "tokens"],
        cells,
        left=3,
    )
    covered = sum(bool(names) for names in leaves.values())
    stdout().print(f"{covered} of {len(leaves)} leaves of the survey's tree have a runnable method.", markup=False)
    return 0


def _reasoning() -> list[str]:
    return [entry.name for entry in WORKLOADS.values() if entry.family == "reasoning"]


def _check(workload: str) -> None:
    if workload and WORKLOADS[workload].family != "reasoning":
        raise InputError(f"workload {workload} is not about reasoning; known: {', '.join(_reasoning())}.")


def _document(row: SurveyRow, device: Hardware | None) -> dict[str, Any]:
    name = device.name if device is not None else None
    return asdict(row) | {"hardware": name, "predicted_ms": _predicted(row, device)}


def _predicted(row: SurveyRow, device: Hardware | None) -> float | None:
    return row.work.milliseconds(device) if row.work is not None and device is not None else None


def _print_measured(rows: Sequence[SurveyRow], device: Hardware | None) -> None:
    cells = [
        [
            f"{row.method}\n{row.leaf.rpartition('.')[2].replace('_', ' ')}",
            f"{row.workload}, {row.model}\n{row.setting}",
            f"{interval(row.accuracy.value, row.accuracy.low, row.accuracy.high)}\nof {row.accuracy.n}",
            f"{number(row.mean_tokens)}\n({number(row.median_tokens)})",
            f"{number(row.generated_tokens)}\n({number(row.sequential_tokens)})",
            number(row.hidden_steps),
            number(row.work.flops / 1e9 if row.work is not None else None),
            number(row.work.bytes / 1e9 if row.work is not None else None),
            number(row.latency_ms),
            *([number(_predicted(row, device))] if device is not None else []),
            *_ratios(row),
        ]
        for row in rows
    ]
    names = ["method, leaf", "workload, model", "accuracy %", "tokens (median)", "all (in turn)", "hidden"]
    costs = ["GFLOP", "GB", "ms", *([f"{device.name} ms"] if device is not None else [])]
    table("Per answer, measured here", [*names, *costs, "tokens x", "FLOPs x", "time x"], cells, left=2)


def _ratios(row: SurveyRow) -> list[str]:
    if row.is_baseline:
        return ["1", "1", "1"]
    if row.no_gain:
        return ["no gain at equal accuracy", "-", "-"]
    return [number(row.token_ratio), number(row.flop_ratio), number(row.latency_ratio)]
