"""`suite run` and `suite resume`: plan, load, calibrate where needed, measure, print, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from suite.commands.calibration import ensure_calibration
from suite.commands.output import interval, number, print_json, progress_bar, stderr, stdout, table
from suite.commands.reporting import check_writable, write_report
from suite.commands.stores import open_store
from suite.commands.wishes import RunOptions
from suite.engines import native
from suite.errors import NothingMeasuredError
from suite.harness import machine, threads
from suite.harness.budget import fit
from suite.harness.measurement import Calibration, UnitResult
from suite.harness.plan import Plan, load_contenders, plan
from suite.harness.runner import Bench, Outcome, pending, run_blocks, start_sweep
from suite.harness.store import Store
from suite.registry import WORKLOADS

if TYPE_CHECKING:
    from suite.harness.counting import ModelCost
    from suite.models.language_model import LanguageModel

REPORT = Path("report.html")


def run(options: RunOptions, store_file: Path | None, output: Path | None, as_json: bool) -> int:
    """Everything a user can get wrong is found before a model is loaded."""
    planned = plan(options.wishes())
    check_writable(output or REPORT)
    with open_store(store_file) as store:
        return _measure(planned, None, store, output or REPORT, as_json)


def resume(store_file: Path | None, output: Path | None, as_json: bool) -> int:
    """Continues the latest unfinished sweep under its own plan."""
    with open_store(store_file) as store:
        sweep, planned = pending(store)
        return _measure(planned, sweep, store, output or REPORT, as_json)


def _measure(planned: Plan, sweep: str | None, store: Store, output: Path, as_json: bool) -> int:
    console = stderr()
    count = planned.engine.threads or threads.choose_threads()
    with console.status(f"loading {planned.model.name}"):
        model = native.load(planned.model, count)
        planned, contenders = load_contenders(planned, model)
    calibration = ensure_calibration(store, count, console)
    if sweep is None:
        with console.status("measuring how many items fit into the budget"):
            planned = fit(planned, contenders, model)
        sweep = start_sweep(store, planned)
    for note in planned.notes:
        console.print(note, markup=False)
    with progress_bar() as listener:
        bench = Bench(model, contenders, store, count, model_cost(model), listener)
        outcome = run_blocks(planned, sweep, bench)
    return _present(outcome, planned, calibration, store, output, as_json)


def model_cost(model: LanguageModel) -> ModelCost:
    """The analytic roofline's FLOPs and bytes of the passes a phase made, at the retention it was seen with."""
    from analysis.roofline import predict
    from analysis.roofline.operators import Precision
    from suite.commands.roofline import shape_of

    bits = 16 if model.dtype == "bf16" else 32
    return predict.model_cost(shape_of(model.config), Precision.of_bits(bits, bits, bits))


def category_means(workload: str) -> Callable[[Mapping[str, float]], Mapping[str, float]] | None:
    """The workload's own averages over its tasks, where it has them (LongBench)."""
    return getattr(WORKLOADS.load(workload), "aggregate", None)


def _present(
    outcome: Outcome, planned: Plan, calibration: Calibration | None, store: Store, output: Path, as_json: bool
) -> int:
    from analysis.documents import run_document

    workload = planned.blocks[0].workload.name
    if outcome.measured:
        write_report(store, output, outcome.units)
    document = run_document(
        outcome.units,
        machine.fingerprint(),
        calibration,
        str(output) if outcome.measured else None,
        category_means(workload),
    )
    document["notes"] = outcome.notes
    if as_json:
        print_json(document)
    else:
        _print(document, outcome)
    return exit_code(outcome.units)


def exit_code(units: Sequence[UnitResult]) -> int:
    """3 where a unit failed, else 1 where a gate was not met, else 0; `NothingMeasuredError` (4) without any figure."""
    statuses = [unit.status for unit in units]
    if not {"ok", "unstable"} & set(statuses):
        errors = list(dict.fromkeys(unit.error for unit in units if unit.error))
        raise NothingMeasuredError("nothing was measured" + (f": {errors[0]}" if errors else "."))
    return 3 if "failed" in statuses else 1 if "gated" in statuses else 0


_RATIOS = (("ttft", "prefill x"), ("tpot", "decode x"))
_SHOWN_PROBLEMS = 3


class _Extra(NamedTuple):
    """A column that is there where some method has another value than `usual`."""

    metric: str
    title: str
    usual: float
    show: Callable[[float | None], str]


_EXTRAS = (
    _Extra("prefill_density", "prefill read", 1.0, number),
    _Extra("kv_host_bytes", "host KV MB", 0.0, lambda size: number(None if size is None else size / 1e6)),
)


def _print(document: Mapping[str, Any], outcome: Outcome) -> None:
    columns = [
        "method", "status", "n", "score", "TTFT ms", "TPOT ms", "tok/s", "KV stored", "KV read", "GB/s", "roof",
        *(title for _, title in _RATIOS),
    ]  # fmt: skip
    extras = _extras(document["summary"])
    columns[9:9] = [extra.title for extra in extras]
    rows = [_row(row, extras) for row in document["summary"]]
    first = document["summary"][0]
    source = f"source: {first['source']}"
    table(
        f"{first['workload']} on {first['model']} ({first['dtype']}, {first['threads']} threads, {source})",
        columns,
        rows,
        left=2,
    )
    console = stdout()
    for row in document["summary"]:
        for problem in row["problems"][:_SHOWN_PROBLEMS]:
            console.print(f"{row['method']}: {problem}", markup=False)
        if len(row["problems"]) > _SHOWN_PROBLEMS:
            console.print(
                f"{row['method']}: {len(row['problems']) - _SHOWN_PROBLEMS} more, in the report", markup=False
            )
    for note in [*outcome.notes, *_prompt_notes(outcome.units)]:
        console.print(note, markup=False)
    if document["report"]:
        console.print(f"report: {document['report']}", markup=False)


def _prompt_notes(units: Sequence[UnitResult]) -> list[str]:
    """What was done about prompts that did not fit the window: how many, and the first of them."""
    noted = {sample.request_id: sample.notes[0] for unit in units for sample in unit.samples if sample.notes}
    first = next(iter(noted.items()), None)
    return [] if first is None else [f"{len(noted)} prompts did not fit as they were; {first[0]}: {first[1]}"]


def _extras(summary: Sequence[Mapping[str, Any]]) -> list[_Extra]:
    """Those columns that tell something; what rounds to the usual value does not."""
    values = {extra: [row["metrics"].get(extra.metric) for row in summary] for extra in _EXTRAS}
    return [e for e, found in values.items() if any(x is not None and abs(x - e.usual) >= 5e-4 for x in found)]


def _row(row: Mapping[str, Any], extras: Sequence[_Extra]) -> list[str]:
    metrics, ratios = row["metrics"], row["ratios"]
    error = metrics.get("score_standard_error")
    score = number(metrics.get("score")) + (f" ± {number(error, 2)}" if error is not None else "")
    fraction = metrics.get("decode_ceiling_fraction")
    return [
        row["method"].replace("(", "\n("),
        ", ".join(f"{count} {status}" for status, count in row["statuses"].items() if count),
        str(row["requests"]),
        score,
        number(metrics.get("median_ttft_ms")),
        number(metrics.get("median_tpot_ms")),
        number(metrics.get("output_throughput")),
        number(metrics.get("stored_retention")),
        number(metrics.get("selected_retention")),
        *(extra.show(metrics.get(extra.metric)) for extra in extras),
        number(metrics.get("decode_gb_per_s")),
        "-" if fraction is None else f"{fraction:.0%}",
        *(_ratio(ratios.get(name)) for name, _ in _RATIOS),
    ]


def _ratio(ratio: Mapping[str, Any] | None) -> str:
    return "1" if ratio is None else interval(ratio["value"], ratio["low"], ratio["high"])
