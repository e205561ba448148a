"""`suite roofline --validate`: times a model's passes and says how well the roofline predicts them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.commands.calibration import ensure_calibration
from suite.commands.output import number, print_json, progress_bar, stderr, stdout, table
from suite.commands.roofline import read_precision
from suite.commands.stores import open_store
from suite.commands.wishes import numbers
from suite.errors import InputError, NothingMeasuredError
from suite.harness import machine
from suite.harness import threads as thread_pool
from suite.harness.measurement import Validation
from suite.harness.plan import parse_budget
from suite.harness.progress import Progress
from suite.harness.store import Store, now
from suite.shapes import shape_of
from suite.spec import Dtype

if TYPE_CHECKING:
    from analysis.residuals import Residuals, Score
    from analysis.roofline.validation import Assessment
    from suite.harness.measurement import PassUnit
    from suite.harness.passes import Timings
    from suite.models.language_model import LanguageModel

BATCHES, LENGTHS, BUDGET = "1,2,4,8,16", "128,256,512,1024,2048,4096,8192", "4m"


@dataclass(frozen=True)
class ValidateOptions:
    """The options of `suite roofline --validate`, as given; empty ones have defaults."""

    model: str
    method: str
    hardware: str
    batch: str
    seqlen: str
    bits: str
    threads: int
    budget: str
    store: Path | None
    as_json: bool


def validate(options: ValidateOptions) -> int:
    """Times what the budget allows, adds it to the store and prints the statistics; 1 where a bar is missed."""
    from analysis.roofline.validation import assess
    from suite.harness.passes import grid, perturbed
    from suite.models.loaders import load_model

    if (options.method, options.hardware) != ("dense", "local"):
        raise InputError("--validate times dense passes on this machine; leave --method and --hardware out.")
    batches = numbers(options.batch or BATCHES, "--batch")
    lengths = numbers(options.seqlen or LENGTHS, "--seqlen")
    budget_s, dtype = parse_budget(options.budget or BUDGET), _dtype(options.bits)
    threads = options.threads or thread_pool.available_cores()
    model = load_model(options.model, dtype)  # an unknown one is refused before anything is measured
    with open_store(options.store) as store:
        ensure_calibration(store, threads, stderr())
        units = grid(sorted(batches), sorted(lengths), threads)
        _measure(store, model, threads, units + perturbed(units), budget_s or 0.0)
        here = machine.machine_id()
        found = assess(store.validations(here), store.calibration(here))
    if found is None:
        raise NothingMeasuredError("no shape of the fitted half was timed; give more of them, or a longer --budget.")
    if options.as_json:
        print_json(document(found))
    else:
        _print(found)
    return int(bool(found.missed()))


def _dtype(bits: str) -> Dtype:
    """The data type of which weights, keys and activations all are."""
    precision = read_precision(bits)
    widths = {precision.weight, precision.kv, precision.activation}
    if widths not in ({2.0}, {4.0}):
        raise InputError(f"--validate times models in bf16 or fp32, not in --bits {bits}; write 16/16/16 or 32/32/32.")
    return "bf16" if widths == {2.0} else "fp32"


def _measure(store: Store, model: LanguageModel, threads: int, units: list[PassUnit], budget_s: float) -> None:
    """Times the units and stores what was timed, interrupted or not."""
    from analysis.roofline.ceilings import Ceilings
    from analysis.roofline.validation import PassModel
    from suite.harness.heap import frozen_heap
    from suite.harness.passes import Agenda, PassBench, Timings, time_passes

    run, calibration = _empty(model, threads), store.calibration(machine.machine_id())
    assert calibration is not None
    priced = PassModel(run, Ceilings(calibration))

    def least_s(unit: PassUnit) -> float:
        least = priced.bound(unit.times())
        return 0.0 if least is None else least.seconds

    bench = PassBench(model, max(unit.batch for unit in units), max(unit.tokens for unit in units))
    agenda, timings = Agenda(units, _seen(store, run), least_s, budget_s), Timings()
    try:
        with frozen_heap(), progress_bar() as show:
            time_passes(bench, agenda, timings, lambda unit, left: show(_moment(unit, timings, len(units), left)))
    finally:
        if timings.ms:
            store.add_machine(run.machine_id, json.dumps(machine.fingerprint()))
            store.add_validation(run.model_copy(update=timings.figures()))
    if not timings.ms:
        raise NothingMeasuredError("the budget is too short for a single pass; give a longer --budget.")
    if left := sum(unit not in timings.ms and unit not in agenda.seen for unit in units):
        stderr().print(f"{left} of {len(units)} parts did not fit the budget; another run adds them", markup=False)


def _empty(model: LanguageModel, threads: int) -> Validation:
    """A run of this model that has timed nothing yet."""
    return Validation(
        machine_id=machine.machine_id(),
        measured_at=now(),
        code_version=machine.code_version(),
        model=model.name,
        model_digest=model.digest,
        shape=asdict(shape_of(model.config)),
        dtype=model.dtype,
        threads=threads,
    )


def _seen(store: Store, run: Validation) -> dict[PassUnit, int]:
    """Earlier runs of the same kind that timed each unit."""
    same = [old for old in store.validations(run.machine_id) if old.kind == run.kind]
    return dict(Counter(times.unit for old in same for times in old.times))


def _moment(unit: PassUnit, timings: Timings, units: int, left_s: float) -> Progress:
    activity = f"{unit.phase} {unit.part}, {unit.batch} x {unit.tokens}{', perturbed' if unit.perturbed else ''}"
    return Progress(activity, 0, 0, len(timings.ms), units, left_s)


def document(found: Assessment) -> dict[str, Any]:
    """Everything but the raw samples, which are in the store."""
    from analysis.roofline.validation import score_rows

    return {
        "model": found.model,
        "dtype": found.dtype,
        "threads": found.threads,
        "parameters": [{"term": term, "value": value, "unit": unit} for term, value, unit in found.fitted.described()],
        "scores": [_score(row) for row in score_rows(found)],
        "points": [asdict(point) for point in found.points],
        "bound_above_measurement": [asdict(point) for point in found.above()],
        "perturbed": [{**asdict(one), "right": one.right} for one in found.perturbed],
        "bound_accuracy": found.accuracy,
        "ceilings": [asdict(one) for one in found.ceilings],
        "missed": found.missed(),
    }


def _score(row: Score) -> dict[str, Any]:
    place = {"side": _side(row.held_out), "phase": row.phase, "part": row.part, "batch": row.batch, "dtype": row.dtype}
    return place | asdict(row.residuals)


def _side(held_out: bool | None) -> str:
    return "held out" if held_out else "fitted"


def _print(found: Assessment) -> None:
    from analysis.roofline.validation import score_rows
    from analysis.roofline.validation_text import sentences

    where = f"{found.model}, {found.dtype}, {found.threads} threads"
    table(
        f"effective rates, fitted: {where}",
        ["term", "value", "unit"],
        [[term, number(value), unit] for term, value, unit in found.fitted.described()],
    )
    for held_out in (False, True):
        rows = [row for row in score_rows(found) if row.held_out == held_out and (row.part == "pass" or not row.batch)]
        table(
            f"predicted against measured time, shapes {_side(held_out)}: {where}",
            ["phase", "part", "batch", *COLUMNS],
            [[row.phase, row.part, str(row.batch or "all"), *_cells(row.residuals)] for row in rows],
            left=3,
        )
    stdout().print("prompts are read as the engine reads them; caches of decode steps are filled with random values")
    for line in sentences(found):
        stdout().print(line, markup=False)


COLUMNS = ("n", "MAPE", "bias", "median", "p90", "worst", "at batch × tokens", "pred/meas", "rank correlation")


def _cells(score: Residuals) -> list[str]:
    shares = (score.mape, score.bias, score.median, score.p90, score.worst)
    signs = ("", "+", "+", "", "+")
    cells = [f"{share:{sign}.1%}" for share, sign in zip(shares, signs, strict=True)]
    return [str(score.n), *cells, score.worst_at, number(score.ratio), number(score.rank)]
