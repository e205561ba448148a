"""`suite run` and `suite resume`: plan, load, calibrate where needed, measure, print, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from suite.commands.calibration import ensure_calibration
from suite.commands.engine_models import engine_model
from suite.commands.output import print_json, progress_bar, stderr, stdout
from suite.commands.reporting import check_writable, write_report
from suite.commands.run_table import print_problems, print_spec_bench, print_summary
from suite.commands.stores import open_store
from suite.commands.wishes import RunOptions
from suite.engines import native
from suite.errors import NothingMeasuredError
from suite.harness import machine, threads
from suite.harness.budget import fit
from suite.harness.measurement import Calibration, UnitResult
from suite.harness.options import make_workload, read_requests
from suite.harness.plan import Plan, load_contenders, plan
from suite.harness.runner import Bench, Outcome, pending, run_blocks, start_sweep
from suite.harness.store import Store
from suite.models.loaders import load_served
from suite.registry import ENGINES, WORKLOADS

if TYPE_CHECKING:
    from suite.engines.base import Engine
    from suite.harness.counting import ModelCost
    from suite.models.language_model import LanguageModel, TextModel

REPORT = Path("report.html")


def run(options: RunOptions, store_file: Path | None, output: Path | None, as_json: bool) -> int:
    """Everything a user can get wrong is found before a model is loaded."""
    planned = plan(options.wishes())
    check_writable(output or REPORT)
    with open_store(store_file) as store:
        return _present(measure(planned, None, store), store, output or REPORT, as_json)


def resume(store_file: Path | None, output: Path | None, as_json: bool) -> int:
    """Continues the latest unfinished sweep under its own plan."""
    with open_store(store_file) as store:
        sweep, planned = pending(store)
        return _present(measure(planned, sweep, store), store, output or REPORT, as_json)


class Measured(NamedTuple):
    """A plan's outcome, and the roofline of the machine it was measured on, where passes were counted."""

    outcome: Outcome
    planned: Plan
    calibration: Calibration | None


def measure(planned: Plan, sweep: str | None, store: Store) -> Measured:
    """Loads the model and runs the plan: from its beginning under a new sweep, or what is left of the given one."""
    if planned.engine.name != "native":
        return _measure_served(planned, sweep, store)
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
        return Measured(run_blocks(planned, sweep, bench), planned, calibration)


def _measure_served(planned: Plan, sweep: str | None, store: Store) -> Measured:
    """The same with the model in an engine, started once and always ended. Its passes are not seen: no roofline."""
    from suite.harness.served import ServedContender

    console, count = stderr(), planned.engine.threads or threads.choose_threads()
    model = load_served(planned.model)
    engine = _engine(planned, model, count)
    load = partial(ServedContender.of, model=model, engine=engine)
    planned, contenders = load_contenders(planned, cast("LanguageModel", model), load)
    with ExitStack() as stack:
        with console.status(f"starting {engine.name}"):
            stack.enter_context(engine)
        listener = stack.enter_context(progress_bar())
        bench = Bench(model, contenders, store, count, None, listener, engine)
        return Measured(run_blocks(planned, sweep or start_sweep(store, planned), bench), planned, None)


def _engine(planned: Plan, model: TextModel, count: int) -> Engine:
    """Not started; with room for the longest request of the plan, and a prefix cache for the texts of a search."""
    blocks = [block.units[0].workload for block in planned.blocks]
    requests = [request for spec in blocks for request in read_requests(make_workload(spec), spec)]
    longest = max(len(model.encode(request).ids) + request.max_new_tokens for request in requests)
    named = engine_model(planned.model.name, planned.model.dtype, longest)
    engine: Engine = ENGINES.load(planned.engine.name)(named, count, prefix_cache=True)
    return engine


def model_cost(model: LanguageModel) -> ModelCost:
    """The analytic roofline's FLOPs and bytes of the passes a phase made, at the retention it was seen with."""
    from analysis.roofline import predict
    from analysis.roofline.operators import Precision
    from suite.shapes import shape_of

    bits = 16 if model.dtype == "bf16" else 32
    return predict.model_cost(shape_of(model.config), Precision.of_bits(bits, bits, bits))


def category_means(workload: str) -> Callable[[Mapping[str, float]], Mapping[str, float]] | None:
    """The workload's own averages over its tasks, where it has them (LongBench)."""
    return getattr(WORKLOADS.load(workload), "aggregate", None)


def _present(measured: Measured, store: Store, output: Path, as_json: bool) -> int:
    from analysis.documents import run_document

    outcome, planned, calibration = measured
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


def _print(document: Mapping[str, Any], outcome: Outcome) -> None:
    first = document["summary"][0]
    source = f"source: {first['source']}"
    print_summary(
        f"{first['workload']} on {first['model']} ({first['dtype']}, {first['threads']} threads, {source})",
        document["summary"],
    )
    if document.get("spec_bench"):
        print_spec_bench(document["spec_bench"])
    print_problems(document["summary"])
    console = stdout()
    for note in [*outcome.notes, *_prompt_notes(outcome.units)]:
        console.print(note, markup=False)
    if document["report"]:
        console.print(f"report: {document['report']}", markup=False)


def _prompt_notes(units: Sequence[UnitResult]) -> list[str]:
    """What was done about prompts that did not fit the window: how many, and the first of them."""
    noted = {sample.request_id: sample.notes[0] for unit in units for sample in unit.samples if sample.notes}
    first = next(iter(noted.items()), None)
    return [] if first is None else [f"{len(noted)} prompts did not fit as they were; {first[0]}: {first[1]}"]
