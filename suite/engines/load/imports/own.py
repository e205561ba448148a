"""The reports of `suite load` and `suite load --sweep`."""

from __future__ import annotations

from collections.abc import Sequence

from suite.engines.load.imports.run import KINDS, NAMES, Document, Part, Run, complete, parsed

RUN = "inference-suite.load/1"
SWEEP = "inference-suite.load-sweep/1"
FROM_DUE_TIME = {f"{kind}_{name}_ms" for name in ("ttft", "e2el") for kind in KINDS}


class Report(Part):
    """What is read of a load report."""

    model: str
    mode: str
    load: str
    metrics: dict[str, float | None]
    remarks: list[str]


class Sweep(Part):
    """A sweep's reports, one per rate that was tried."""

    points: list[Document]


def recognised(document: Document) -> bool:
    """Whether `suite load` wrote it."""
    return document.get("schema") in (RUN, SWEEP)


def read(documents: Sequence[Document], file: str) -> list[Run]:
    """One run per report."""
    reports: list[Document] = []
    for document in documents:
        sweep = document.get("schema") == SWEEP
        reports += parsed(Sweep, document, file).points if sweep else [document]
    return [_run(report, file) for report in reports]


def _run(document: Document, file: str) -> Run:
    metrics = document.get("metrics")
    if isinstance(metrics, dict):
        document = {**document, "metrics": {name: metrics.get(name) for name in NAMES}}
    found = parsed(Report, document, file)
    # In a closed loop nothing is due before it is sent, so a latency from the due time says nothing.
    hidden = FROM_DUE_TIME if found.mode == "closed loop" else set()
    kept = {name: value for name, value in found.metrics.items() if name not in hidden}
    return Run(file, "suite", found.model, found.load, complete(kept), tuple(found.remarks))
