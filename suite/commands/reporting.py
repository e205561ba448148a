"""`suite report` and `suite export`: what is in the store, for people and for other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from suite.commands.output import print_json, stdout
from suite.commands.stores import open_store
from suite.commands.verdicts import write_text
from suite.errors import InputError, NothingMeasuredError
from suite.harness.measurement import UnitResult
from suite.harness.store import Store


def write_report(store: Store, output: Path, units: Sequence[UnitResult] | None = None) -> list[Path]:
    """The HTML report of some units (default: all) and its static figures; returns the files written."""
    from analysis.summary import build_summary
    from reports.build import ReportError, build_report

    keys = None if units is None else {unit.key for unit in units}
    try:
        written = build_report(build_summary(store, keys), output)
    except ReportError as error:
        raise InputError(str(error)) from error
    return [written.html, *written.pictures]


def check_writable(output: Path, option: str = "-o") -> None:
    """Refuses a report path now that could not be written after minutes of measuring."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("ab"):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to {output} ({error.strerror or error}); give {option} a writable file."
        ) from error


@dataclass(frozen=True)
class Wanted:
    """The options of `suite report` as given; `output` is the page's, the others are those of `lrm-table`."""

    output: Path | None
    workload: str
    hardware: str


def report(kind: str, wanted: Wanted, store_file: Path | None, as_json: bool) -> int:
    """Writes the report of everything in the store, or prints one of its tables."""
    from suite.commands.survey import lrm_table

    if kind == "lrm-table":
        if wanted.output is not None:
            raise InputError("lrm-table is printed, -o is the page's; --json gives it to programs.")
        return lrm_table(wanted.workload, wanted.hardware, store_file, as_json)
    if kind != "page":
        raise InputError(f"there is no report {kind!r}; known: page, lrm-table.")
    if wanted.workload or wanted.hardware:
        raise InputError("--workload and --hardware belong to `suite report lrm-table`; the page shows everything.")
    output = wanted.output or Path("report.html")
    with open_store(store_file) as store:
        files = write_report(store, output)
    if as_json:
        print_json({"report": str(output), "files": [str(file) for file in files]})
    else:
        stdout().print(f"report: {output}", markup=False)
    return 0


def export(form: str, output: Path, store_file: Path | None, as_json: bool) -> int:
    """Writes units and samples as parquet, CSV or JSON, or one file in the shape that another tool reads."""
    from analysis.exchange import SHAPES
    from suite.harness.export import FORMATS
    from suite.harness.export import export as write

    if form not in (*FORMATS, *SHAPES):
        raise InputError(f"unknown export format {form!r}; known: {', '.join((*FORMATS, *SHAPES))}.")
    with open_store(store_file) as store:
        units = store.units()
        if not units:
            raise NothingMeasuredError(f"there is nothing to export in {store.path}; run `python -m suite run` first.")
        files = write(units, output, form) if form in FORMATS else [_write_shape(form, store, units, output)]
    if as_json:
        print_json({"files": [str(file) for file in files]})
    else:
        for file in files:
            stdout().print(f"written: {file}", markup=False)
    return 0


def _write_shape(form: str, store: Store, units: Sequence[UnitResult], folder: Path) -> Path:
    """The newest answer to each question, of the machine measured last."""
    from analysis.exchange import SHAPES
    from analysis.summary import newest_blocks

    machine_id = units[-1].machine_id
    newest = newest_blocks([unit for unit in units if unit.machine_id == machine_id])
    document = SHAPES[form](newest, json.loads(store.machines().get(machine_id, "{}")))
    path = folder / f"{form}.json"
    write_text(path, json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False), "-o")
    return path
