"""`suite import`: results of other tools, and of this one, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from suite.commands.output import number, print_json, stdout, table
from suite.engines.load.imports import guidellm
from suite.engines.load.imports.files import read_documents, read_runs
from suite.engines.load.imports.run import LATENCIES, TOTALS, Document, Run
from suite.errors import InputError

SCHEMA = "inference-suite.import/1"
SHOWN_KINDS = ("mean", "median", "p99")
ROWS = (
    *TOTALS.items(),
    *((f"{kind}_{name}_ms", f"{said}, {kind}") for name, said in LATENCIES.items() for kind in SHOWN_KINDS),
)
"""Metrics with their labels: a row each."""


def import_files(paths: Sequence[Path], as_json: bool) -> int:
    """One table of all runs of load results; a file of kernel benchmarks is shown by itself."""
    files = [(path, read_documents(path)) for path in paths]
    for path, documents in files:
        if _has_kernels(documents[0]):
            return _import_kernels(path, len(files), as_json)
    runs = [run for path, documents in files for run in read_runs(documents, str(path))]
    if as_json:
        print_json({"schema": SCHEMA, "runs": [asdict(run) for run in runs]})
    else:
        _show(runs)
    return 0


def _has_kernels(document: Document) -> bool:
    return "benchmarks" in document and not guidellm.recognised(document)


def _import_kernels(path: Path, files: int, as_json: bool) -> int:
    from suite.commands import kernels

    if files > 1:
        raise InputError(f"{path} holds kernel benchmarks, which have no table with others: import it alone.")
    return kernels.import_file(path, as_json)


def _show(runs: Sequence[Run]) -> None:
    """What the runs are, then a column of figures for each; rows that no run has a value for are left out."""
    cells = [[str(n), run.tool, run.model or "-", run.load or "-", run.file] for n, run in enumerate(runs, 1)]
    table("runs", ["", "tool", "model", "load", "file"], cells, left=5)
    rows = []
    for name, said in ROWS:
        values = [run.metrics[name] for run in runs]
        if any(value is not None for value in values):
            rows.append([said, *(number(value, 4) for value in values)])
    columns = [f"{n} {run.tool}" for n, run in enumerate(runs, 1)]
    table("side by side, latencies in ms", ["", *columns], rows)
    for file, remark in dict.fromkeys((run.file, remark) for run in runs for remark in run.remarks):
        stdout().print(f"note: {file}: {remark}", markup=False)
